//! Answers of `/mcp`: one message, or a stream of server-sent events with a message each.

use std::{future::poll_fn, pin::Pin};

use cooper_common::{error::Code, limits};
use serde_json::Value;
use tonic::{
    body::Body,
    codegen::{Body as _, Bytes},
};

use crate::failure::{Failure, Result};

/// Longest message that is passed on. Answers are far shorter.
const MESSAGE_BYTES_MAX: usize = 2 * limits::link::MESSAGE_BYTES_MAX;

/// An answer that is read.
pub struct Answer {
    body: Body,
    /// What was read and is not given yet.
    text: Vec<u8>,
    events: bool,
}

impl Answer {
    pub fn new(body: Body) -> Self {
        Self { body, text: Vec::new(), events: false }
    }

    /// The next message, as soon as it is there.
    ///
    /// # Errors
    /// `unavailable` when the answer is cut, or is none of these.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            while self.events
                && let Some((end, next)) = event_end(&self.text)
            {
                let event: Vec<u8> = self.text.drain(..next).take(end).collect();
                if let Some(message) = data(&event) {
                    return Ok(Some(message));
                }
            }
            let Some(bytes) = next(&mut self.body).await? else { break };
            if self.text.len() + bytes.len() > MESSAGE_BYTES_MAX {
                return Err(Failure::new(Code::Unavailable, "the coordinator's answer is too long"));
            }
            self.text.extend_from_slice(&bytes);
            self.events |= !self.text.trim_ascii_start().starts_with(b"{");
        }
        let rest = std::mem::take(&mut self.text);
        if self.events || rest.is_empty() {
            return Ok(None);
        }
        let message = serde_json::from_slice(&rest);
        message.map(Some).map_err(|_| Failure::new(Code::Unavailable, "the coordinator's answer is not JSON"))
    }
}

async fn next(body: &mut Body) -> Result<Option<Bytes>> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                // Trailers.
                Err(_) => continue,
            },
            Some(Err(status)) => {
                return Err(Failure::new(
                    Code::Unavailable,
                    format!("the answer broke off: {}", status.message()),
                ));
            }
        }
    }
}

/// Where the first event ends, which is at an empty line, and where what follows it begins. Lines end by LF or CR LF.
fn event_end(text: &[u8]) -> Option<(usize, usize)> {
    let mut begin = 0;
    while let Some(length) = text[begin..].iter().position(|byte| *byte == b'\n') {
        let next = begin + length + 1;
        if matches!(&text[begin..next], b"\n" | b"\r\n") {
            return Some((begin, next));
        }
        begin = next;
    }
    None
}

/// The message of an event; comments and events without data have none.
fn data(event: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(event);
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let data: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    serde_json::from_str(&data.join("\n")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(body: &'static str) -> Vec<Value> {
        let (mut answer, mut told) = (Answer::new(Body::new(body.to_owned())), Vec::new());
        while let Some(message) = answer.next().await.expect("an answer") {
            told.push(message);
        }
        told
    }

    #[tokio::test]
    async fn one_message_or_many_are_told_apart() {
        assert_eq!(told("{\"id\": 1}").await, [serde_json::json!({"id": 1})]);
        assert_eq!(told("").await, Vec::<Value>::new());
        let events =
            "retry: 3000\nid: 0\ndata:\n\n: alive\n\ndata: {\"id\":\ndata: 1}\n\r\ndata: {\"id\": 2}\r\n\r\n";
        assert_eq!(told("data: {\"id\": 1}\n\n").await.len(), 1);
        assert_eq!(told(events).await.last(), Some(&serde_json::json!({"id": 2})));
    }
}
