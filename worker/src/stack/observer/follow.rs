//! What a container prints, line by line, as far as rules know it.

use bytes::Bytes;
use cooper_common::{
    clock,
    error::Result,
    limits::observer::{LINE_BYTES_MAX, LINES_PER_SECOND_MAX},
};
use cooper_repair::RuleSet;
use futures::{Stream, StreamExt};

/// Reads to the end, and says which rule of class `auto` knows a line.
pub(super) async fn lines(
    pieces: impl Stream<Item = Result<Bytes>>,
    rules: &RuleSet,
    mut found: impl FnMut(String, String),
) {
    let mut pieces = std::pin::pin!(pieces);
    let mut line = Vec::new();
    let mut pace = Pace::default();
    while let Some(Ok(piece)) = pieces.next().await {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX - line.len().min(LINE_BYTES_MAX);
            line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                if pace.lets(clock::mono_ms()) {
                    let text = String::from_utf8_lossy(&line);
                    if let Some(rule) = rules.triggered(&text) {
                        found(rule.id.clone(), text.into_owned());
                    }
                }
                line.clear();
            }
        }
    }
}

/// So many lines within a second.
#[derive(Default)]
struct Pace {
    second: u64,
    lines: u32,
}

impl Pace {
    fn lets(&mut self, now_ms: u64) -> bool {
        if now_ms / 1_000 != self.second {
            (self.second, self.lines) = (now_ms / 1_000, 0);
        }
        self.lines += 1;
        self.lines <= LINES_PER_SECOND_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(pieces: &[&[u8]]) -> Vec<String> {
        let mut rules = Vec::new();
        let pieces = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece)));
        lines(futures::stream::iter(pieces), RuleSet::builtin(), |rule, _| rules.push(rule)).await;
        rules
    }

    #[tokio::test]
    async fn a_line_is_known_however_it_arrives_and_only_if_a_rule_of_class_auto_knows_it() {
        let pieces: [&[u8]; 3] = [b"started\nModuleNotFoundError: No mod", b"ule named 'ya", b"ml'\nready\n"];
        assert_eq!(found(&pieces).await, ["python.module-missing"]);
        assert_eq!(
            found(&[b"\x1b[31mModuleNotFoundError: No module named 'yaml'\x1b[0m\r\n"]).await.len(),
            1
        );
        assert!(found(&[b"KeyError: 'GREETING'\n"]).await.is_empty(), "that one wants an approval");
    }

    #[tokio::test]
    async fn a_flood_is_passed_over_and_a_line_without_end_is_not_kept() {
        let flood = b"ModuleNotFoundError: No module named 'yaml'\n".repeat(5_000);
        assert!(found(&[&flood]).await.len() <= 2 * LINES_PER_SECOND_MAX as usize, "I12");
        let long = b"x".repeat(10 * LINE_BYTES_MAX);
        assert!(found(&[&long, &long, b"\n"]).await.is_empty());
    }
}
