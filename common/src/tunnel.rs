//! Bytes of a connection on their way through messages, both ways: with back-pressure, half-close and a bound.
//!
//! Each side may have [`WINDOW_BYTES`] on their way; what the other side has written on is allowed anew ([`Piece::More`]).
//! So whatever carries the messages is always read: a connection whose reader is slow holds up itself and no other one.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, mpsc},
};

use crate::limits::ports::{PIECE_BYTES_MAX, WINDOW_BYTES};

/// Messages that wait to be sent or taken; bytes are bounded by the window.
pub const PIECES: usize = 16;

/// Pieces that wait to be written, however small; beyond it the other side waits with all that it says.
const QUEUED_MAX: usize = 4_096;

/// What the two sides say.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Vec<u8>),
    /// No more data.
    Done,
    /// So many bytes may come beyond those that were allowed.
    More(u32),
}

/// Why a connection ended before both sides were done.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut;

/// Carries bytes between a connection and the other side, until both directions are done or one is cut. `moved` is called
/// now and then while they are.
///
/// # Errors
/// The other side went without a word, sent more than it may, or the connection broke.
pub async fn carry(
    connection: impl AsyncRead + AsyncWrite,
    mut incoming: mpsc::Receiver<Piece>,
    outgoing: mpsc::Sender<Piece>,
    moved: impl Fn(),
) -> Result<(), Cut> {
    let (mut from, mut to) = tokio::io::split(connection);
    let allowed = Semaphore::new(WINDOW_BYTES);
    let waiting = AtomicUsize::new(0);
    let (queue, mut queued) = mpsc::channel(QUEUED_MAX);
    let listen = async {
        let mut ended = false;
        while let Some(piece) = incoming.recv().await {
            match piece {
                Piece::More(bytes) => {
                    let free = (Semaphore::MAX_PERMITS - allowed.available_permits()).min(bytes as usize);
                    allowed.add_permits(free);
                    continue;
                }
                Piece::Data(data) => {
                    if waiting.fetch_add(data.len(), Ordering::Relaxed) + data.len() > WINDOW_BYTES {
                        return Err(Cut);
                    }
                    let _ = queue.send(Some(data)).await;
                }
                Piece::Done => {
                    let _ = queue.send(None).await;
                    ended = true;
                }
            }
        }
        // After its last word the other side may go as soon as it has ours.
        match ended {
            true => std::future::pending().await,
            false => Err::<(), Cut>(Cut),
        }
    };
    let write = async {
        while let Some(Some(data)) = queued.recv().await {
            to.write_all(&data).await.map_err(|_| Cut)?;
            waiting.fetch_sub(data.len(), Ordering::Relaxed);
            moved();
            // Nobody to tell: then nobody sends either.
            let _ = outgoing.send(Piece::More(data.len() as u32)).await;
        }
        to.shutdown().await.map_err(|_| Cut)
    };
    let read = async {
        let mut piece = vec![0; PIECE_BYTES_MAX];
        loop {
            let read = tokio::select! {
                read = from.read(&mut piece) => read.map_err(|_| Cut)?,
                () = outgoing.closed() => return Err(Cut),
            };
            if read == 0 {
                return outgoing.send(Piece::Done).await.map_err(|_| Cut);
            }
            allowed.acquire_many(read as u32).await.map_err(|_| Cut)?.forget();
            moved();
            outgoing.send(Piece::Data(piece[..read].to_vec())).await.map_err(|_| Cut)?;
        }
    };
    let both = async { tokio::try_join!(write, read).map(|_| ()) };
    tokio::select! {
        done = both => done,
        cut = listen => cut,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// Two connections and what carries between them.
    fn joined() -> (DuplexStream, DuplexStream) {
        let ((a, near), (b, far)) = (duplex(1024), duplex(1024));
        let ((there, heard), (back, answered)) = (mpsc::channel(PIECES), mpsc::channel(PIECES));
        tokio::spawn(carry(near, answered, there, || {}));
        tokio::spawn(carry(far, heard, back, || {}));
        (a, b)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_one_end_leaves_the_other_open() {
        let (mut a, mut b) = joined();
        let much: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        let (sent, mut received) = (much.clone(), Vec::new());
        tokio::join!(
            async {
                a.write_all(&sent).await.unwrap();
                a.shutdown().await.unwrap();
            },
            async { b.read_to_end(&mut received).await.unwrap() }
        );
        assert!(received == much);
        b.write_all(b"after the end").await.unwrap();
        b.shutdown().await.unwrap();
        let mut rest = String::new();
        a.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "after the end");
    }

    #[tokio::test]
    async fn who_does_not_read_makes_the_other_wait_within_the_window() {
        let (mut a, _b) = joined();
        let mut written = 0;
        let filling = async {
            loop {
                written += a.write(&[0; 1024]).await.unwrap();
            }
        };
        let full = tokio::time::timeout(std::time::Duration::from_millis(300), filling).await;
        assert!(full.is_err());
        assert!((WINDOW_BYTES..3 * WINDOW_BYTES).contains(&written), "{written}");
    }

    #[tokio::test]
    async fn one_that_goes_without_a_word_or_beyond_its_window_is_cut() {
        for piece in [None, Some(Piece::Data(vec![0; WINDOW_BYTES + 1]))] {
            let (_a, near) = duplex(1024);
            let (there, heard) = mpsc::channel(PIECES);
            let (back, _answers) = mpsc::channel(PIECES);
            let carried = tokio::spawn(carry(near, heard, back, || {}));
            if let Some(piece) = piece {
                there.send(piece).await.unwrap();
            }
            drop(there);
            assert_eq!(carried.await.unwrap(), Err(Cut));
        }
    }
}
