//! A page of documentation whose examples are run.
//!
//! An example is a fenced block marked `console`: lines that begin with `$ ` are commands for bash, lines that begin with
//! `> ` go on with the command above, everything else is what it prints, both streams together. `…` stands for any text
//! within a line; a line that is only `…` for any lines; and so do ids, digests, addresses, durations and times of day, which
//! no two runs share. All examples of a page run in one shell, in order, so that later ones see the variables and sessions of earlier
//! ones. Every command has to succeed, unless the next one is `echo $?`.

use std::{fs, path::Path, sync::LazyLock, time::Duration};

use regex::Regex;

use crate::{
    Cluster, binary,
    docker::Stack,
    program::{Running, command},
    seconds,
};

const PATIENCE: Duration = seconds(480);
/// Before each command and behind the last one: its number, and how the one before ended. Nothing else prints this.
const MARK: &str = "\u{1}cooper-example";

pub struct Example {
    pub line: usize,
    pub command: String,
    /// Lines that it prints.
    pub expected: Vec<String>,
}

/// Runs every example of a page against a cluster; returns how many there were.
///
/// # Panics
/// At the first one that fails or prints something else.
#[track_caller]
pub fn run(page: &Path, cluster: &Cluster, directory: &Path) -> usize {
    let text = fs::read_to_string(page).expect("the page can be read");
    run_text(&text, page, cluster, directory)
}

/// The same of one section, from its heading to the next of its level.
#[track_caller]
pub fn run_section(page: &Path, heading: &str, cluster: &Cluster, directory: &Path) -> usize {
    run_text(&section(page, heading), page, cluster, directory)
}

/// The same of a section that works on a stack which it puts into `/tmp/NAME`: here that is the place of this one, under the
/// name of this one, so that nobody's own is touched and nothing stays behind.
#[track_caller]
pub fn run_with_stack(page: &Path, heading: &str, name: &str, stack: &Stack, cluster: &Cluster) -> usize {
    let called = Regex::new(&format!(r"(/tmp/)?\b{name}\b")).expect("a name");
    let text = called
        .replace_all(&section(page, heading), |found: &regex::Captures| match found.get(1) {
            Some(_) => stack.arg().to_owned(),
            None => stack.project.clone(),
        })
        .into_owned();
    run_text(&text, page, cluster, stack.dir.parent().expect("it lies in a directory"))
}

/// The lines of a section; others are there and empty, so that an error names the right one.
fn section(page: &Path, heading: &str) -> String {
    let text = fs::read_to_string(page).expect("the page can be read");
    let level = format!("{} ", heading.split(' ').next().expect("#s"));
    let mut inside = false;
    let kept = text.lines().map(|line| {
        if line.starts_with(&level) {
            inside = line == heading;
        }
        if inside { line } else { "" }
    });
    kept.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn run_text(text: &str, page: &Path, cluster: &Cluster, directory: &Path) -> usize {
    let examples = examples(text);
    // `$?` is for the next command what it was before the mark.
    let mark = |number: usize| format!("{{ _s=$?; printf '\\n{MARK} {number} %s\\n' $_s; (exit $_s); }}\n");
    let mut script = String::from("exec 2>&1 </dev/null\n");
    for (number, example) in examples.iter().enumerate() {
        script += &format!("{}{}\n", mark(number), example.command);
    }
    script += &mark(examples.len());

    let mut path = binary().parent().expect("it lies in a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // Not by standard input, which commands may read.
    let file = directory.join(".examples.sh");
    fs::write(&file, script).expect("the script is written");
    let mut bash = command("/bin/bash");
    bash.arg(&file).env("PATH", path).env("COOPER_DATA", &cluster.data).current_dir(directory);
    let done = Running::start(bash, b"").finish(PATIENCE);
    let printed = done.out();

    let mark = format!("\n{MARK} ");
    let mut parts = printed.split(&mark).skip(1).map(|part| part.split_once('\n').unwrap_or((part, "")));
    let mut part = parts.next().expect("the shell began");
    for (number, example) in examples.iter().enumerate() {
        let may_fail = examples.get(number + 1).is_some_and(|next| next.command == "echo $?");
        let next = parts.next();
        let status = next
            .and_then(|(mark, _)| mark.split_once(' '))
            .map_or("none: the shell ended", |(_, status)| status);
        let at = format!("{}:{}: $ {}", page.display(), example.line, example.command);
        assert!(status == "0" || may_fail, "{at}\nended with {status} and printed:\n{}", part.1);
        assert!(
            fits(&example.expected, part.1),
            "{at}\nprinted:\n{}\ninstead of:\n{}",
            part.1,
            example.expected.join("\n")
        );
        part = next.expect("it had a status");
    }
    examples.len()
}

/// The examples of a page.
pub fn examples(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (false, _) => {}
            (true, line) => match (line.strip_prefix("$ "), line.strip_prefix("> "), examples.last_mut()) {
                (Some(command), ..) => {
                    examples.push(Example {
                        line: index + 1,
                        command: command.to_owned(),
                        expected: Vec::new(),
                    });
                }
                (None, Some(more), Some(example)) if example.expected.is_empty() => {
                    example.command += "\n";
                    example.command += more;
                }
                (None, _, Some(example)) => example.expected.push(line.to_owned()),
                (None, _, None) => panic!("line {}: output before any command", index + 1),
            },
        }
    }
    examples
}

/// How the fenced blocks of a page are checked, by the line each begins in; an error names a block that is not.
pub fn blocks(text: &str) -> Result<Vec<(usize, Block)>, String> {
    let mut found = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let Some(info) = line.strip_prefix("```") else { continue };
        inside = !inside;
        if !inside {
            continue;
        }
        let (language, note) = info.split_once(' ').unwrap_or((info, ""));
        let (skipped, elsewhere) = (note.strip_prefix("no-run: "), note.strip_prefix("run-by: e2e::"));
        let block = match (language, skipped) {
            (_, Some(reason)) if !reason.is_empty() => Block::Skipped(reason.to_owned()),
            ("console", None) => Block::Run,
            ("sh" | "bash", None) if elsewhere.is_none() => {
                return Err(format!("line {}: it is neither run nor says why", index + 1));
            }
            _ => Block::Shown,
        };
        found.push((index + 1, block));
    }
    Ok(found)
}

/// What is done with a fenced block.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// Its commands are run.
    Run,
    /// Commands that are not, and why.
    Skipped(String),
    /// No commands.
    Shown,
}

/// Whether this is what was expected; newlines at its end do not count.
pub fn fits(expected: &[String], printed: &str) -> bool {
    static VARIES: LazyLock<Regex> = LazyLock::new(|| {
        let kinds = [
            r"\b(?:ses|run|tsk|apr|wrk|tok|ckp)_[0-9a-z]{26}",
            r"\b(?:sha256:)?[0-9a-f]{64}\b",
            r"\b\d\d:\d\d:\d\d\.\d{3}\b",
            r"\b\d+\.\d+\.\d+\.\d+(?::\d+)?\b",
            r"\s+\d+(?:\.\d+)? (?:ms|s)\b",
        ];
        Regex::new(&kinds.join("|")).expect("they are patterns")
    });
    let text = |text: &str| {
        let (mut pattern, mut end) = (String::new(), 0);
        for varies in VARIES.find_iter(text) {
            pattern += &regex::escape(&text[end..varies.start()]);
            let duration = varies.as_str().starts_with(char::is_whitespace);
            pattern += if duration { r"\s+[\d.]+ (?:ms|s)" } else { r"\S+" };
            end = varies.end();
        }
        pattern + &regex::escape(&text[end..])
    };
    let lines = expected.iter().map(|line| match line.as_str() {
        "…" => "(?:.*\n)*?".to_owned(),
        line => line.split('…').map(text).collect::<Vec<_>>().join(".*") + "\n",
    });
    let pattern =
        Regex::new(&format!("^(?:{})$", lines.collect::<String>())).expect("it is made of escaped text");
    let printed = printed.trim_end_matches('\n');
    pattern.is_match(&if printed.is_empty() { String::new() } else { format!("{printed}\n") })
}
