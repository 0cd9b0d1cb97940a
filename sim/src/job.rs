//! What simulated code does, written as the code of a task: how long it runs, what it prints, how it exits.

use std::str::FromStr;

/// One execution, told from all others by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    pub number: u64,
    pub ms: u64,
    /// Bytes of stdout and stderr.
    pub bytes: [u64; 2],
    pub exit: i32,
    /// May be run again when it was lost.
    pub again: bool,
}

impl Job {
    pub fn code(&self) -> String {
        let Self { number, ms, bytes: [out, err], exit, again } = self;
        format!("{number} {ms} {out} {err} {exit} {}", u8::from(*again))
    }

    /// A byte of what it prints.
    pub fn byte(&self, stream: usize, offset: u64) -> u8 {
        let mixed = (self.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (offset + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9)
            ^ stream as u64;
        (mixed.wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
    }
}

impl FromStr for Job {
    type Err = ();
    fn from_str(code: &str) -> Result<Self, ()> {
        let numbers: Vec<u64> = code.split(' ').map_while(|word| word.parse().ok()).collect();
        let [number, ms, out, err, exit, again] = numbers[..] else { return Err(()) };
        Ok(Self { number, ms, bytes: [out, err], exit: exit as i32, again: again == 1 })
    }
}
