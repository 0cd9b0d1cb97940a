//! A page of documentation whose examples are run.
//!
//! An example is a fenced block marked `console`: lines that begin with `$ ` are commands for bash, lines that begin with
//! `> ` go on with the command above, everything else is what it prints, both streams together. `…` stands for any text
//! within a line; a line that is only `…` for any lines. All examples of a page run in one shell, in order, so that later
//! ones see the variables and sessions of earlier ones. Every command has to succeed.

use std::{fs, path::Path, time::Duration};

use regex::Regex;

use crate::{
    Cluster, binary,
    program::{Running, command},
    seconds,
};

const PATIENCE: Duration = seconds(240);
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
    let examples = examples(&text);
    let mut script = String::from("exec 2>&1 </dev/null\n");
    for (number, example) in examples.iter().enumerate() {
        script += &format!("printf '\\n{MARK} {number} %s\\n' $?\n{}\n", example.command);
    }
    script += &format!("printf '\\n{MARK} {} %s\\n' $?\n", examples.len());

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
    for example in &examples {
        let next = parts.next();
        let status = next
            .and_then(|(mark, _)| mark.split_once(' '))
            .map_or("none: the shell ended", |(_, status)| status);
        let at = format!("{}:{}: $ {}", page.display(), example.line, example.command);
        assert_eq!(status, "0", "{at}\nended with {status} and printed:\n{}", part.1);
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

/// Whether this is what was expected; newlines at its end do not count.
pub fn fits(expected: &[String], printed: &str) -> bool {
    let lines = expected.iter().map(|line| match line.as_str() {
        "…" => "(?:.*\n)*?".to_owned(),
        line => line.split('…').map(regex::escape).collect::<Vec<_>>().join(".*") + "\n",
    });
    let pattern =
        Regex::new(&format!("^(?:{})$", lines.collect::<String>())).expect("it is made of escaped text");
    let printed = printed.trim_end_matches('\n');
    pattern.is_match(&if printed.is_empty() { String::new() } else { format!("{printed}\n") })
}
