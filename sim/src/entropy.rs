//! Randomness from the seed, for everything on a simulated thread: hash maps, tokio's choice between ready branches, ids,
//! jitter. All of it comes from the C library's `getrandom` in the end, and this is that function.
#![allow(unsafe_code)]

use std::{cell::Cell, slice};

thread_local! {
    /// None = the kernel's randomness.
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on all randomness of this thread follows from `seed`. Before anything on the thread has asked for some.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
}

/// SplitMix64: what is asked for is a seed, not a secret.
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, word ^ (word >> 31))
}

/// Takes the place of the C library's function in this program.
///
/// # Safety
/// As there: `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    // SAFETY: the caller's promise. With a length of 0 (a probe) the pointer is not used, whatever it is.
    let out = if len == 0 { &mut [] } else { unsafe { slice::from_raw_parts_mut(buffer, len) } };
    match STATE.get() {
        Some(mut state) => {
            for piece in out.chunks_mut(8) {
                let (after, word) = next(state);
                piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
                state = after;
            }
            STATE.set(Some(state));
            len as isize
        }
        None => match rustix::rand::getrandom(out, rustix::rand::GetRandomFlags::from_bits_retain(flags)) {
            Ok(got) => got as isize,
            Err(errno) => {
                // SAFETY: the thread's own errno.
                unsafe { *libc::__errno_location() = errno.raw_os_error() };
                -1
            }
        },
    }
}
