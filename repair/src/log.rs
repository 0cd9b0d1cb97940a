//! Build and container logs: raw bytes in, plain bounded lines out, and the step that failed.
//!
//! Rules match single lines, so everything that tools put around a line (colours, carriage returns, BuildKit's
//! `#12 0.345 `, compose's `web-1  | `, the time stamps of CI services and of `docker logs -t`) is taken off here, once.

use std::sync::LazyLock;

use regex::Regex;

use crate::limits;

/// A normalised log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Its lines, in order, without line ends and prefixes.
    pub lines: Vec<Line>,
    /// Bytes left out of the middle of the raw log, 0 if it was short enough. A mark line stands in their place.
    pub left_out_bytes: usize,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Plain text, at most [`limits::LOG_LINE_BYTES_MAX`] bytes.
    pub text: String,
    /// BuildKit's number of the step that printed it, if the line told.
    pub vertex: Option<u32>,
}

/// The build step that failed, as far as the log tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// BuildKit's number of the step.
    pub vertex: Option<u32>,
    /// The step's name in brackets, such as `web builder 3/6`.
    pub step: Option<String>,
    /// The instruction as the log repeats it, such as `RUN git --version`.
    pub instruction: Option<String>,
    /// Dockerfile the culprit stands in.
    pub dockerfile: Option<String>,
    /// First and last line of the culprit in it, from 1.
    pub culprit: Option<(usize, usize)>,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("patterns in this file are constant and tested")
}

static STAMP: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^\u{feff}?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z "));
static VERTEX: LazyLock<Regex> = LazyLock::new(|| regex(r"^#(\d{1,6}) (?:\d+\.\d+ )?"));
static BLOCK_TIME: LazyLock<Regex> = LazyLock::new(|| regex(r"^\d+\.\d+ "));
static CONTAINER: LazyLock<Regex> = LazyLock::new(|| regex(r"^[A-Za-z0-9][\w.-]*-\d+\s+\| ?"));
static STEP: LazyLock<Regex> = LazyLock::new(|| regex(r"^ ?> \[(?P<step>[^\]]+)\] (?P<instruction>.*?):?$"));
static ERROR: LazyLock<Regex> = LazyLock::new(|| regex(r"^ERROR: "));
static DOCKERFILE: LazyLock<Regex> = LazyLock::new(|| regex(r"^(?P<file>[^\s:][^:]*):(?P<line>\d{1,6})$"));
static CULPRIT: LazyLock<Regex> = LazyLock::new(|| regex(r"^\s*(?P<line>\d{1,6}) \| >>> "));
static EXIT: LazyLock<Regex> =
    LazyLock::new(|| regex(r"did not complete successfully: exit code: (?P<code>\d{1,9})"));

impl Log {
    /// Makes plain, bounded lines of what a build or a container printed. Never fails, whatever the bytes.
    pub fn normalise(raw: &[u8]) -> Self {
        let (head, left_out_bytes, tail) = bounded(raw);
        let mut lines = Vec::new();
        let mut in_block = false;
        let mut push = |part: &[u8], lines: &mut Vec<Line>| {
            let text = String::from_utf8_lossy(part);
            let text = text.strip_suffix('\n').unwrap_or(&text);
            for line in text.split('\n').filter(|_| !text.is_empty()) {
                lines.push(normalise_line(line, &mut in_block));
            }
        };
        push(head, &mut lines);
        if left_out_bytes > 0 {
            lines.push(Line { text: format!("[{left_out_bytes} bytes left out]"), vertex: None });
        }
        push(tail, &mut lines);
        Self { lines, left_out_bytes }
    }

    /// The lines as text, each ended by `\n`.
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect()
    }

    /// The failing step of a build log; everything `None` where the log does not tell.
    pub fn failure(&self) -> Failure {
        let mut failure = Failure::default();
        let mut in_block = false;
        for line in &self.lines {
            if line.vertex.is_some() && ERROR.is_match(&line.text) {
                failure.vertex = line.vertex;
            }
            if line.text == "------" {
                in_block = !in_block;
            }
            if let Some(found) = STEP.captures(&line.text).filter(|_| in_block) {
                failure.step = Some(found["step"].to_owned());
                failure.instruction = Some(found["instruction"].to_owned());
            }
            if let Some(found) = DOCKERFILE.captures(&line.text).filter(|_| line.vertex.is_none()) {
                failure.dockerfile = Some(found["file"].to_owned());
                failure.culprit = None;
            }
            if let Some(number) = CULPRIT.captures(&line.text).and_then(|found| found["line"].parse().ok()) {
                let first = failure.culprit.map_or(number, |(first, _)| first);
                failure.culprit = Some((first, number));
            }
            if let Some(code) = EXIT.captures(&line.text).and_then(|found| found["code"].parse().ok()) {
                failure.exit_code = Some(code);
            }
        }
        failure
    }

    /// The lines that may tell the cause of a failed build: those of the failing step and those of no step. All lines
    /// if the log does not name a failing step.
    pub fn suspects<'a>(&'a self, failure: &Failure) -> impl Iterator<Item = &'a str> {
        let vertex = failure.vertex;
        self.lines
            .iter()
            .filter(move |line| vertex.is_none() || line.vertex.is_none() || line.vertex == vertex)
            .map(|line| line.text.as_str())
    }
}

/// Head and tail of a log, and how many bytes between them are left out. Cuts at line ends where there is one near.
fn bounded(raw: &[u8]) -> (&[u8], usize, &[u8]) {
    if raw.len() <= limits::LOG_BYTES_MAX {
        return (raw, 0, &[]);
    }
    let head_end = limits::LOG_HEAD_BYTES;
    let head_end = raw[..head_end].iter().rposition(|&byte| byte == b'\n').map_or(head_end, |at| at + 1);
    let tail_start = raw.len() - (limits::LOG_BYTES_MAX - limits::LOG_HEAD_BYTES);
    let near = &raw[tail_start..(tail_start + limits::LOG_LINE_BYTES_MAX).min(raw.len())];
    let tail_start = near.iter().position(|&byte| byte == b'\n').map_or(tail_start, |at| tail_start + at + 1);
    (&raw[..head_end], tail_start - head_end, &raw[tail_start..])
}

/// One raw line without what tools put around it. `in_block` follows BuildKit's `------` block, in which lines carry
/// only a time.
fn normalise_line(raw: &str, in_block: &mut bool) -> Line {
    // A progress bar overwrites its line: what stood there last is what a person would have seen.
    let visible = raw.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let plain = without_escapes(visible);
    let mut text = plain.as_str();
    for around in [&STAMP, &CONTAINER, &STAMP] {
        if let Some(prefix) = around.find(text) {
            text = &text[prefix.end()..];
        }
    }
    let mut vertex = None;
    if let Some(found) = VERTEX.captures(text) {
        vertex = found[1].parse().ok();
        text = &text[found[0].len()..];
    } else if *in_block && let Some(prefix) = BLOCK_TIME.find(text) {
        text = &text[prefix.end()..];
    }
    if vertex.is_none() && text == "------" {
        *in_block = !*in_block;
    }
    let mut end = text.len().min(limits::LOG_LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Line { text: text[..end].trim_end().to_owned(), vertex }
}

/// Text without terminal escapes and control characters (tabs stay).
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next != '\u{1b}' {
            if next == '\t' || !next.is_control() {
                plain.push(next);
            }
            continue;
        }
        match rest.next() {
            // CSI: parameters, then one final byte.
            Some('[') => while rest.next().is_some_and(|part| !('@'..='~').contains(&part)) {},
            // OSC: up to BEL or ESC \.
            Some(']') => {
                while let Some(part) = rest.next() {
                    if part == '\u{7}' || (part == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            // A character set: one more byte.
            Some('(' | ')') => {
                rest.next();
            }
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = "\
#1 [web internal] load build definition from Dockerfile
#1 DONE 0.0s
#7 [web 3/5] RUN pip install -r requirements.txt
#7 1.204 Collecting flask
#7 DONE 4.0s
#8 [web 4/5] RUN git --version
#8 0.215 /bin/sh: 1: git: not found
#8 ERROR: process \"/bin/sh -c git --version\" did not complete successfully: exit code: 127
------
 > [web 4/5] RUN git --version:
0.215 /bin/sh: 1: git: not found
------
Dockerfile:5
--------------------
   3 |     WORKDIR /app
   4 |     COPY requirements.txt .
   5 | >>> RUN git --version && \\
   6 | >>>     true
   7 |     COPY . .
--------------------
failed to solve: process \"/bin/sh -c git --version\" did not complete successfully: exit code: 127
";

    #[test]
    fn prefixes_colours_and_line_ends_are_taken_off() {
        let raw =
            b"#12 0.345 \x1b[31merror\x1b[0m: x\r\nweb-1  | Traceback\r\n10%\r100% done\n\x1b]0;t\x07ok\n";
        assert_eq!(Log::normalise(raw).text(), "error: x\nTraceback\n100% done\nok\n");
        let kept = b"2026-11-20T10:00:01.1234567Z web-1  | KeyError: 'X'\r\nweb-1  | 2026-11-20T10:00:01Z #8 0.215 no\n";
        assert_eq!(
            Log::normalise(kept).text(),
            "KeyError: 'X'\nno\n",
            "time stamps of CI services and the engine"
        );
    }

    #[test]
    fn the_failing_step_is_found_with_its_lines_in_the_dockerfile() {
        let failure = Log::normalise(BUILD.as_bytes()).failure();
        assert_eq!(failure.vertex, Some(8));
        assert_eq!(failure.step.as_deref(), Some("web 4/5"));
        assert_eq!(failure.instruction.as_deref(), Some("RUN git --version"));
        assert_eq!(failure.dockerfile.as_deref(), Some("Dockerfile"));
        assert_eq!(failure.culprit, Some((5, 6)));
        assert_eq!(failure.exit_code, Some(127));
    }

    #[test]
    fn only_lines_of_the_failing_step_are_suspects() {
        let log = Log::normalise(BUILD.as_bytes());
        let suspects: Vec<_> = log.suspects(&log.failure()).collect();
        assert!(suspects.contains(&"/bin/sh: 1: git: not found"));
        assert!(!suspects.contains(&"Collecting flask"));
    }

    #[test]
    fn a_huge_log_keeps_head_and_tail_around_a_mark() {
        let mut raw = b"first\n".to_vec();
        raw.extend(b"0123456789abcde\n".repeat(limits::LOG_BYTES_MAX / 16 + 50_000));
        raw.extend(b"last\n");
        let log = Log::normalise(&raw);
        assert!(log.left_out_bytes > 0);
        assert!(log.text().len() <= limits::LOG_BYTES_MAX + 64);
        assert_eq!(log.lines[0].text, "first");
        assert_eq!(log.lines.last().map(|line| line.text.as_str()), Some("last"));
        assert!(log.lines.iter().any(|line| line.text == format!("[{} bytes left out]", log.left_out_bytes)));
    }

    #[test]
    fn an_empty_log_has_no_lines() {
        assert!(Log::normalise(b"").lines.is_empty());
    }
}
