//! Takes secrets out of what Cooper writes (I9): values that are known to be secret, and text that has a secret's shape.
//!
//! Everything Cooper itself produces or forwards goes through one [`Redactor`]: whole texts by [`Redactor::redact`],
//! streams by a [`Writer`], which holds back what could still become part of a secret.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine as _;
use regex::bytes::{Regex, RegexSet};

/// What stands where a secret was.
pub const MARK: &str = "[redacted]";
/// Shorter values are not redacted: they would take ordinary words with them.
pub const SECRET_BYTES_MIN: usize = 6;
/// Known secrets of one redactor; further ones are not taken (the shapes still are).
pub const SECRETS_MAX: usize = 4096;
/// A line longer than this is written in parts.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Held back from a part, so that a shape that goes on is still seen whole; longer known secrets hold back more.
const HOLD_BYTES: usize = 4 << 10;
/// Lines after which a private key that never ends is taken to have ended.
const KEY_LINES_MAX: usize = 512;

/// Shapes of secrets. The group `s` is what is taken out, the whole match where there is none.
const SHAPES: [&str; 17] = [
    r"(?i)\bauthorization\s*:\s*(?:(?:bearer|basic|token|digest)\s+)?(?P<s>[^\s'\x22]+)",
    r"(?i)\bbearer\s+(?P<s>[a-z0-9._~+/=-]{8,})",
    r"\bcpr_[0-9a-zA-Z]{16,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{16,}",
    r"\bgithub_pat_[A-Za-z0-9_]{16,}",
    r"\bglpat-[A-Za-z0-9_-]{16,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\bsk-[A-Za-z0-9_-]{20,}",
    r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bpypi-[A-Za-z0-9_-]{32,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    // The userinfo of a URL: everything behind its first colon, also where the password holds an `@`.
    r"(?i)\b[a-z][a-z0-9+.-]*://[^\s/:@'\x22]*:(?P<s>[^\s/'\x22]+)@",
    // An assignment in the manner of the environment, unless it refers to another variable.
    r"\b[A-Z0-9_]*(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)[A-Z0-9_]*=(?P<s>'[^']{6,}'|\x22[^\x22$][^\x22]{5,}\x22|[^\s'\x22$][^\s'\x22]{5,})",
    r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
];
/// One pass over the text tells which shapes are in it: nearly always none.
static SHAPE_SET: LazyLock<RegexSet> =
    LazyLock::new(|| RegexSet::new(SHAPES).expect("the shapes are constants, checked by the tests"));
static SHAPE_EACH: LazyLock<Vec<Regex>> =
    LazyLock::new(|| SHAPES.map(|shape| Regex::new(shape).expect("as in the set")).into());
static KEY_BEGIN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----").expect("a constant"));
static KEY_END: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"-----END [A-Z0-9 ]*PRIVATE KEY-----").expect("a constant"));

/// True if a variable of this name holds a secret by its name: a word of it is PASSWORD, TOKEN, SECRET, KEY, ….
/// Names of files and directories (`…_FILE`) hold none.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    if ["_FILE", "_PATH", "_DIR"].iter().any(|end| name.ends_with(end)) {
        return false;
    }
    const PARTS: [&str; 8] =
        ["PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "SECRET", "CREDENTIAL", "APIKEY", "PRIVATE"];
    let words = || name.split(|c: char| !c.is_ascii_alphanumeric());
    PARTS.iter().any(|part| name.contains(part))
        || words().any(|word| matches!(word, "KEY" | "KEYS" | "PASS" | "AUTH"))
}

/// What is to be taken out of text. Cheap to clone only in small numbers; share it by reference.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first.
    secrets: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} secrets)", self.secrets.len())
    }
}

impl Redactor {
    /// A redactor for these values, their base64 and percent-encoded forms, and every shape. Of a value of several
    /// lines each line counts too, since logs are written by lines.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = BTreeSet::new();
        for value in values {
            for part in std::iter::once(value).chain(value.lines()).map(str::trim) {
                // A value that is part of the mark could never be kept out of the output.
                if part.len() >= SECRET_BYTES_MIN && !MARK.contains(part) && secrets.len() < SECRETS_MAX {
                    secrets
                        .insert(base64::engine::general_purpose::STANDARD_NO_PAD.encode(part).into_bytes());
                    secrets.insert(percent_encoded(part).into_bytes());
                    secrets.insert(part.as_bytes().to_vec());
                }
            }
        }
        let mut secrets: Vec<_> = secrets.into_iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// A redactor for the variables whose names look secret, and for the password in any value that is a URL.
    pub fn for_environment<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut values = Vec::new();
        for (name, value) in variables {
            if is_secret_name(name) {
                values.push(value);
            }
            values.extend(url_password(value));
        }
        Self::new(values)
    }

    /// This redactor and another one's secrets.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.secrets.extend(other.secrets);
        self.secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.secrets.dedup();
        self.secrets.truncate(3 * SECRETS_MAX);
        self
    }

    /// The text without its secrets.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.redact_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            // Secrets and shapes are whole characters, so what is left is text; lossy only to need no unwrap.
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Like [`Self::redact`], for bytes.
    pub fn redact_bytes<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let spans = self.spans(text);
        if spans.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(replaced(text, &spans)) }
    }

    /// True if there is something in the text that would be taken out, known values shorter than `known_min` aside.
    pub fn finds(&self, text: &str, known_min: usize) -> bool {
        let known = |secret: &Vec<u8>| secret.len() >= known_min && contains(text.as_bytes(), secret);
        self.secrets.iter().any(known) || SHAPE_SET.is_match(text.as_bytes())
    }

    /// Where the secrets are: in order, apart from each other.
    fn spans(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for secret in &self.secrets {
            found.extend(memchr::memmem::find_iter(text, secret).map(|at| at..at + secret.len()));
        }
        for shape in &SHAPE_SET.matches(text) {
            let secret = |captures: regex::bytes::Captures<'_>| {
                captures.name("s").or_else(|| captures.get(0)).map(|m| m.range())
            };
            found.extend(SHAPE_EACH[shape].captures_iter(text).filter_map(secret));
        }
        found.sort_by_key(|span| (span.start, span.end));
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for span in found {
            match spans.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => spans.push(span),
            }
        }
        spans
    }

    fn hold(&self) -> usize {
        self.secrets.first().map_or(0, Vec::len).max(HOLD_BYTES)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

fn replaced(text: &[u8], spans: &[Range<usize>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    for span in spans {
        out.extend_from_slice(&text[at..span.start]);
        out.extend_from_slice(MARK.as_bytes());
        at = span.end;
    }
    out.extend_from_slice(&text[at..]);
    out
}

/// The password in `scheme://user:password@host`.
fn url_password(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (userinfo, _) = authority.rsplit_once('@')?;
    Some(userinfo.split_once(':')?.1)
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// Writes a stream without its secrets, line by line: what is not yet a whole line waits, so that the pieces in which it
/// arrives make no difference. Call [`Writer::finish`] at the end; what is dropped unfinished is lost.
#[derive(Debug)]
pub struct Writer<'r, W: io::Write> {
    redactor: Cow<'r, Redactor>,
    inner: W,
    pending: Vec<u8>,
    /// Lines since a private key began that has not ended.
    key_lines: Option<usize>,
}

impl<'r, W: io::Write> Writer<'r, W> {
    pub fn new(redactor: &'r Redactor, inner: W) -> Self {
        Self { redactor: Cow::Borrowed(redactor), inner, pending: Vec::new(), key_lines: None }
    }

    /// A writer that owns its redactor.
    pub fn owning(redactor: Redactor, inner: W) -> Writer<'static, W> {
        Writer { redactor: Cow::Owned(redactor), inner, pending: Vec::new(), key_lines: None }
    }

    /// Takes another redactor from here on; what waits is written by it too.
    pub fn set_redactor(&mut self, redactor: Redactor) {
        self.redactor = Cow::Owned(redactor);
    }

    /// Writes what waits, as if its line ended here.
    pub fn end_line(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.pending);
        self.line(&rest)
    }

    /// Writes what waits and returns the inner writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_line()?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    /// Writes a whole line (its end included), or the last part of one.
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(lines) = self.key_lines {
            self.key_lines = Some(lines + 1).filter(|n| *n < KEY_LINES_MAX && !KEY_END.is_match(line));
            return Ok(());
        }
        let redacted = self.redactor.redact_bytes(line);
        self.inner.write_all(&redacted)?;
        if let Some(last) = KEY_BEGIN.find_iter(line).last()
            && !KEY_END.is_match(&line[last.end()..])
        {
            // The redaction of this line took its end with it.
            self.inner.write_all(b"\n")?;
            self.key_lines = Some(0);
        }
        Ok(())
    }

    /// Writes the front of a line that is too long, cut where no secret is cut.
    fn part(&mut self) -> io::Result<()> {
        let mut cut = self.pending.len().saturating_sub(self.redactor.hold());
        if let Some(span) = self.redactor.spans(&self.pending).into_iter().find(|span| span.contains(&cut)) {
            cut = if span.start > 0 { span.start } else { span.end };
        }
        let rest = self.pending.split_off(cut);
        let front = std::mem::replace(&mut self.pending, rest);
        self.line(&front)
    }
}

impl<W: io::Write> io::Write for Writer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                self.line(&line)?;
            }
            while self.pending.len() > LINE_BYTES_MAX + self.redactor.hold() {
                self.part()?;
            }
        }
        Ok(bytes.len())
    }

    /// Passes on what has been written; a line that is not whole still waits.
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn streamed(redactor: &Redactor, text: &[u8], piece: usize) -> Vec<u8> {
        let mut writer = Writer::new(redactor, Vec::new());
        for piece in text.chunks(piece.max(1)) {
            writer.write_all(piece).expect("writes to memory");
        }
        writer.finish().expect("writes to memory")
    }

    proptest! {
        #[test]
        fn a_planted_secret_never_appears_whatever_the_pieces(
            secret in "[A-Za-z0-9!#$%&+,./:;<=>?@^_~-]{6,60}",
            around in proptest::collection::vec("[ -~\n]{0,80}", 1..8),
            piece in 1usize..100,
        ) {
            prop_assume!(!MARK.contains(&secret));
            let text = around.join(&secret);
            let redactor = Redactor::new([secret.as_str()]);
            // The text around may hold the mark's own letters; only what was planted must be gone.
            let out = streamed(&redactor, text.as_bytes(), piece);
            prop_assert!(!contains(&out, secret.as_bytes()));
            prop_assert!(!redactor.redact(&text).contains(&secret));
        }

        #[test]
        fn pieces_make_no_difference(text in "[ -~\n]{0,400}", one in 1usize..50, other in 1usize..50) {
            let redactor = Redactor::new(["hunter22", "s3cr3t-value"]);
            prop_assert_eq!(
                streamed(&redactor, text.as_bytes(), one),
                streamed(&redactor, text.as_bytes(), other)
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_secret_in_an_endless_line_never_appears(at in 60_000usize..80_000, piece in 100usize..9_000) {
            let redactor = Redactor::new(["planted-secret"]);
            let mut text = vec![b'.'; 150_000];
            text[at..at + 14].copy_from_slice(b"planted-secret");
            let out = streamed(&redactor, &text, piece);
            prop_assert!(!contains(&out, b"planted-secret"));
            prop_assert_eq!(out.len(), text.len() - 14 + MARK.len());
        }
    }

    #[test]
    fn shapes_are_taken_out_and_what_surrounds_them_stays() {
        let none = Redactor::default();
        for (text, shown) in [
            ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
            ("curl -H 'authorization: basic Zm9vOmJhcg=='", "curl -H 'authorization: basic [redacted]'"),
            ("key AKIAABCDEFGHIJKLMNOP.", "key [redacted]."),
            ("x ghp_0123456789abcdefghij y", "x [redacted] y"),
            ("https://user:pa@ss@host/path", "https://user:[redacted]@host/path"),
            ("redis://:hunter2@cache:6379", "redis://:[redacted]@cache:6379"),
            ("cpr_0123456789abcdef0123", "[redacted]"),
            ("DB_PASSWORD=hunter22 next", "DB_PASSWORD=[redacted] next"),
            ("GITHUB_TOKEN=$OTHER", "GITHUB_TOKEN=$OTHER"),
            ("ModuleNotFoundError: No module named 'token'", "ModuleNotFoundError: No module named 'token'"),
            ("https://mirror.example/debian stable", "https://mirror.example/debian stable"),
            ("#7 0.1 pip install flask==3.1.0", "#7 0.1 pip install flask==3.1.0"),
        ] {
            assert_eq!(none.redact(text), shown);
            assert_eq!(String::from_utf8_lossy(&streamed(&none, text.as_bytes(), 3)), shown);
        }
    }

    #[test]
    fn a_private_key_is_taken_out_whole() {
        let key =
            "before\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nQFKE\n-----END RSA PRIVATE KEY-----\nafter\n";
        assert_eq!(Redactor::default().redact(key), "before\n[redacted]\nafter\n");
        assert_eq!(streamed(&Redactor::default(), key.as_bytes(), 7), b"before\n[redacted]\nafter\n");
    }

    #[test]
    fn names_say_what_is_secret() {
        for name in ["DB_PASSWORD", "apiKey_token", "AWS_SECRET_ACCESS_KEY", "SIGNING_KEY", "MYSQL_ROOT_PASS"]
        {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["PWD", "KEYBOARD", "COOPER_TOKEN_FILE", "STORE_URL", "PATH", "MONKEY", "BYPASS"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn the_environment_brings_secrets_by_name_and_passwords_of_urls() {
        let redactor = Redactor::for_environment([
            ("API_TOKEN", "tok-123456"),
            ("MODE", "production"),
            ("DATABASE_URL", "postgres://app:s3cr3t-pw@db/app"),
            ("PIN_KEY", "12345"),
        ]);
        assert_eq!(
            redactor.redact("tok-123456 production s3cr3t-pw 12345 dG9rLTEyMzQ1Ng"),
            "[redacted] production [redacted] 12345 [redacted]"
        );
    }
}
