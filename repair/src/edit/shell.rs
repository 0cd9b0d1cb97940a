//! Just enough shell to find the words of a command inside a `RUN` and to add one more.

use std::ops::Range;

/// One simple command: its words with where they stand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Command {
    /// Its words, quotes and continuations taken off.
    pub(crate) words: Vec<Word>,
}

/// One word.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The word without quotes.
    pub(crate) text: String,
    /// Where it stands in the shell text, quotes included.
    pub(crate) span: Range<usize>,
}

impl Command {
    /// Index of the word after the sequence of words `names`, which may follow variable assignments and `sudo`.
    pub(crate) fn after(&self, names: &[&str]) -> Option<usize> {
        let prefix = |word: &&Word| word.text == "sudo" || word.text == "env" || is_assignment(&word.text);
        let start = self.words.iter().take_while(prefix).count();
        let mut at = start;
        for name in names {
            // Options such as `apt-get -y install` may stand between.
            while at > start
                && self.words.get(at).is_some_and(|word| word.text.starts_with('-') && word.text != *name)
            {
                at += 1;
            }
            let word = self.words.get(at)?.text.as_str();
            // A program may be called by its path.
            let word = if at == start { word.rsplit('/').next().unwrap_or(word) } else { word };
            if word != *name {
                return None;
            }
            at += 1;
        }
        Some(at)
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|part| part.is_ascii_alphanumeric() || part == '_')
    })
}

/// Splits shell text into its simple commands, in order. Whatever it cannot read ends up in some word: it never fails.
pub(crate) fn commands(text: &str) -> Vec<Command> {
    let bytes = text.as_bytes();
    let mut commands = vec![Command::default()];
    let mut word: Option<Word> = None;
    let mut at = 0;
    let mut line_start = true;
    while at < bytes.len() {
        let continued = continuation(&bytes[at..]);
        if continued > 0 {
            finish(&mut word, at, &mut commands);
            at += continued;
            line_start = true;
            continue;
        }
        let byte = bytes[at];
        match byte {
            // Docker drops comment lines between continued lines; the shell drops the rest of a line.
            b'#' if word.is_none() => {
                at += bytes[at..]
                    .iter()
                    .position(|&byte| byte == b'\n')
                    .map_or(bytes.len() - at, |end| end + 1);
                continue;
            }
            b' ' | b'\t' | b'\r' => finish(&mut word, at, &mut commands),
            b'\n' | b';' | b'&' | b'|' | b'(' | b')' => {
                finish(&mut word, at, &mut commands);
                // Blank lines between continued lines do not end a command.
                if byte != b'\n' || !line_start {
                    commands.push(Command::default());
                }
            }
            b'\'' | b'"' => {
                let close = bytes[at + 1..]
                    .iter()
                    .position(|&next| next == byte)
                    .map_or(bytes.len(), |end| at + 1 + end);
                let open = word.get_or_insert_with(|| Word { text: String::new(), span: at..at });
                open.text.push_str(&text[at + 1..close]);
                at = close.min(bytes.len() - 1) + 1;
                line_start = false;
                continue;
            }
            _ => {
                let length = text[at..].chars().next().map_or(1, char::len_utf8);
                let open = word.get_or_insert_with(|| Word { text: String::new(), span: at..at });
                open.text.push_str(&text[at..at + length]);
                at += length;
                line_start = false;
                continue;
            }
        }
        line_start = byte == b'\n' || (line_start && byte.is_ascii_whitespace());
        at += 1;
    }
    finish(&mut word, bytes.len(), &mut commands);
    commands.retain(|command| !command.words.is_empty());
    commands
}

fn finish(word: &mut Option<Word>, end: usize, commands: &mut [Command]) {
    if let Some(mut word) = word.take() {
        word.span.end = end;
        if let Some(command) = commands.last_mut() {
            command.words.push(word);
        }
    }
}

/// Length of a `\` that ends a line, with the blanks Docker allows after it.
fn continuation(bytes: &[u8]) -> usize {
    if bytes.first() != Some(&b'\\') {
        return 0;
    }
    let blanks = bytes[1..].iter().take_while(|&&byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
    if bytes.get(1 + blanks) == Some(&b'\n') { blanks + 2 } else { 0 }
}

/// Text to put after `last` so that `addition` becomes a further argument, in the style the command is written in: on
/// a line of its own where `last` has one.
pub(crate) fn addition(text: &str, last: &Range<usize>, addition: &str) -> String {
    let line = text[..last.start].rfind('\n').map(|at| at + 1);
    let indent = line.map(|start| &text[start..last.start]).filter(|before| before.trim().is_empty());
    match indent {
        Some(indent) => format!(" \\\n{indent}{addition}"),
        None => format!(" {addition}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<String>> {
        let texts = |command: Command| command.words.into_iter().map(|word| word.text).collect();
        commands(text).into_iter().map(texts).collect()
    }

    #[test]
    fn commands_are_split_at_operators_and_joined_over_continued_lines() {
        let text =
            "apt-get update && \\\n    # tools\n    apt-get install -y 'git' \\\n\n  curl; rm -rf \"/x y\"";
        assert_eq!(
            words(text),
            [
                vec!["apt-get", "update"],
                vec!["apt-get", "install", "-y", "git", "curl"],
                vec!["rm", "-rf", "/x y"]
            ]
        );
    }

    #[test]
    fn a_command_is_found_behind_assignments_and_options() {
        let commands = commands("DEBIAN_FRONTEND=noninteractive apt-get -y install git");
        assert_eq!(commands[0].after(&["apt-get", "install"]), Some(4));
        assert_eq!(commands[0].after(&["apt-get", "update"]), None);
    }

    #[test]
    fn unclosed_quotes_and_odd_bytes_do_not_panic() {
        for text in ["'", "\"a", "\\", "é'ü", "a\\\n", "#", "&&&", "'é"] {
            commands(text);
        }
    }
}
