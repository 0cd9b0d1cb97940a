//! Takes secrets out of what a host answers: an answer that says what was asked would hand them to the session.
//!
//! Byte for byte and of the same length, so that what says how long an answer is stays true. What comes compressed or written
//! in another way (base64, escapes) is not recognized.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What stands there instead.
const INSTEAD: u8 = b'*';
/// Shorter ones would be found where they are not meant.
const SECRET_BYTES_MIN: usize = 6;

#[derive(Debug, Default)]
pub struct Mask {
    /// The longest first.
    secrets: Vec<Vec<u8>>,
    /// The beginning of one, perhaps.
    held: Vec<u8>,
}

impl Mask {
    pub fn new<'a>(secrets: impl Iterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<Vec<u8>> =
            secrets.filter(|it| it.len() >= SECRET_BYTES_MIN).map(|it| it.as_bytes().to_vec()).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { secrets, held: Vec::new() }
    }

    /// Without the secrets in it.
    pub fn whole(&self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        self.blot(&mut text);
        text
    }

    /// The next of a stream, without the secrets in it and without the end that may be the beginning of one.
    pub fn next(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        self.blot(&mut text);
        let begun = |secret: &Vec<u8>| {
            (1..secret.len().min(text.len() + 1)).rev().find(|length| text.ends_with(&secret[..*length]))
        };
        let held = self.secrets.iter().filter_map(begun).max().unwrap_or(0);
        self.held = text.split_off(text.len() - held);
        text
    }

    /// What was held back: nothing comes any more.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn blot(&self, text: &mut [u8]) {
        for secret in &self.secrets {
            let found: Vec<usize> = memchr::memmem::find_iter(text, secret).collect();
            for at in found {
                text[at..at + secret.len()].fill(INSTEAD);
            }
        }
    }
}

/// A body on its way to the session.
pub struct Masked {
    body: Incoming,
    mask: Mask,
    ready: VecDeque<Bytes>,
    over: bool,
}

impl Masked {
    pub fn new(body: Incoming, mask: Mask) -> Self {
        Self { body, mask, ready: VecDeque::new(), over: false }
    }
}

impl Body for Masked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            let next = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers are left out.
                Some(Ok(frame)) => frame.into_data().map(|data| self.mask.next(&data)).unwrap_or_default(),
                None => {
                    self.over = true;
                    self.mask.rest()
                }
            };
            if !next.is_empty() {
                self.ready.push_back(next.into());
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.mask.held.is_empty() && (self.over || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before anything is read; the length stays.
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_a_secret_is_not_held_back() {
        let mut mask = Mask::new(["s3cret-value", "short"].into_iter());
        assert_eq!(mask.next(b"data: short\n\n"), b"data: short\n\n");
        assert_eq!(mask.next(b"data: s3cr"), b"data: ");
        assert_eq!(mask.next(b"et-valu"), b"");
        assert_eq!(mask.next(b"ex"), b"************x");
        assert_eq!((mask.next(b"s3cret"), mask.rest()), (Vec::new(), b"s3cret".to_vec()));
    }

    proptest! {
        #[test]
        fn no_secret_gets_through_in_whatever_pieces_and_the_length_stays(
            parts in proptest::collection::vec(prop_oneof![Just("aabaab"), Just("aabaabaac"), Just("aab"), Just("c"), Just("x")], 0..40),
            cuts in proptest::collection::vec(1usize..7, 1..60),
        ) {
            let text = parts.concat().into_bytes();
            let mut mask = Mask::new(["aabaab", "aabaabaac"].into_iter());
            let (mut out, mut rest, mut cuts) = (Vec::new(), &text[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                out.extend(mask.next(piece));
                rest = after;
            }
            out.extend(mask.rest());
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(memchr::memmem::find(&out, b"aabaab").is_none(), "{}", String::from_utf8_lossy(&out));
        }
    }
}
