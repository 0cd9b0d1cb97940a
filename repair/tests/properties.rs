//! What holds for any input.
#![allow(clippy::unwrap_used)]

use cooper_repair::diff;
use cooper_repair::dockerfile::Dockerfile;
use cooper_repair::edit::{Edit, FileChange};
use cooper_repair::log::Log;
use cooper_repair::plan::canonical;
use proptest::prelude::*;

/// Dockerfiles of whole instructions, with some noise that may not parse.
fn dockerfile() -> impl Strategy<Value = String> {
    let instruction = prop::sample::select(vec![
        "FROM python:3.11 AS builder",
        "FROM builder",
        "RUN apt-get update && apt-get install -y curl",
        "RUN apt-get update && \\\n    apt-get install -y \\\n      make \\\n && rm -rf /var/lib/apt/lists/*",
        "RUN apt-get install -y \\\n    # tools\n    make",
        "RUN pip install 'flask>2' > /log",
        "RUN pip install -r requirements.txt \\\n  six",
        "RUN git --version",
        "COPY . .",
        "COPY --from=0 /a /b",
        "ADD x /y",
        "USER app",
        "USER root",
        "WORKDIR /é",
        "# comment",
        "",
        "   ",
        "ENV A=b \\\n    C=d",
        "CMD [\"x\"]",
        "RUN <<EOF\napt-get install -y curl\nEOF",
        "ENTRYPOINT ./run.sh",
    ]);
    let noise = prop::sample::select(vec!["RUM x", "RUN x \\", "\\", "&&"]);
    let line = prop_oneof![40 => instruction, 1 => noise];
    let end = prop::sample::select(vec!["\n", "\r\n"]);
    (prop::collection::vec(line, 1..12), end, any::<bool>()).prop_map(|(lines, end, last)| {
        let text = format!("FROM debian\n{}{}", lines.join("\n"), if last { "\n" } else { "" });
        text.replace('\n', end)
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let packages =
        || prop::collection::vec(prop::sample::select(vec!["git", "curl", "g++", "libpq-dev"]), 1..3);
    prop_oneof![
        (0usize..2, prop::option::of(0usize..16), packages()).prop_map(|(stage, before_line, packages)| {
            let packages = packages.into_iter().map(str::to_owned).collect();
            Edit::InstallAptPackages { stage, before_line, packages }
        }),
        (0usize..16).prop_map(|line| Edit::UpdateAptLists { line }),
        (0usize..16).prop_map(|line| Edit::ExtendPipInstall { line, requirement: "PyYAML".to_owned() }),
        (0usize..2).prop_map(|stage| Edit::MakeExecutable { stage, path: "/run.sh".to_owned() }),
        (0usize..2).prop_map(|stage| Edit::AddUser { stage, user: "app".to_owned() }),
        (0usize..2).prop_map(|stage| Edit::SetEnv { stage, name: "LANG".into(), value: "C.UTF-8".into() }),
        (0usize..16).prop_map(|line| Edit::RenameInstruction { line, from: "RUN".into(), to: "ENV".into() }),
    ]
}

/// Applies a unified diff the way `patch` does.
fn apply(old: &str, diff: &str) -> String {
    let old: Vec<&str> = old.split_inclusive('\n').collect();
    let mut new = String::new();
    let mut at = 0;
    let mut lines = diff.split_inclusive('\n').skip(2).peekable();
    while let Some(line) = lines.next() {
        // A mark that the line before has no newline: `split_inclusive` gave it one that is the diff's.
        let unended = lines.peek().is_some_and(|next| next.starts_with('\\'));
        let body = &line[1..];
        let body = if unended { body.strip_suffix('\n').unwrap() } else { body };
        match line.as_bytes()[0] {
            b'@' => {
                let start: usize = line[4..].split([',', ' ']).next().unwrap().parse().unwrap();
                let empty = line[4..].split(' ').next().unwrap().ends_with(",0");
                let start = if empty { start } else { start - 1 };
                new.extend(old[at..start].iter().copied());
                at = start;
            }
            b' ' => {
                assert_eq!(old[at], body);
                new.push_str(body);
                at += 1;
            }
            b'-' => {
                assert_eq!(old[at], body);
                at += 1;
            }
            b'+' => new.push_str(body),
            b'\\' => {}
            other => panic!("not a diff line: {}", other as char),
        }
    }
    new.extend(old[at..].iter().copied());
    new
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 4_000, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_bytes_become_plain_lines(raw in prop::collection::vec(any::<u8>(), 0..2000)) {
        let log = Log::normalise(&raw);
        let _ = log.failure();
        let plain = |text: &str| text.chars().all(|part| part == '\t' || !part.is_control());
        prop_assert!(log.lines.iter().all(|line| plain(&line.text)));
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[A-Z#\\\\ \n\r\t'\"\\[<>&|;a-zé-]{0,200}") {
        if let Ok(file) = Dockerfile::parse(&text) {
            for line in 0..20 {
                let _ = file.at_line(line);
            }
        }
        let _ = Edit::InstallAptPackages { stage: 0, before_line: Some(2), packages: vec!["git".into()] }.apply(&text);
    }

    #[test]
    fn an_edit_keeps_every_other_line_and_is_the_same_as_its_diff(old in dockerfile(), edit in edit()) {
        let applied = edit.apply(&old);
        // Discards are limited: the property cannot hold for want of edits that apply.
        prop_assume!(applied.is_ok());
        let new = applied.unwrap();
        prop_assert!(Dockerfile::parse(&new).is_ok());
        prop_assert_ne!(&new, &old);
        // An added instruction touches nothing; one that is extended or renamed changes a line of its own, and a last
        // line without an end may get one.
        let lines = diff::lines(&old, &new);
        prop_assert!(lines.removed.len() <= 2, "{:?}", lines);
        let change = FileChange::edit("Dockerfile", &old, edit.clone(), String::new()).unwrap();
        prop_assert_eq!(apply(&old, &change.diff), new.clone());
        if old.contains("\r\n") {
            prop_assert!(!new.replace("\r\n", "").contains('\n'), "{:?}", new);
        }
        // What is there is not put there again.
        if matches!(edit, Edit::InstallAptPackages { before_line: None, .. } | Edit::MakeExecutable { .. }) {
            prop_assert!(edit.apply(&new).is_err(), "{:?}", new);
        }
    }

    #[test]
    fn a_requirement_is_added_with_all_lines_kept(
        lines in prop::collection::vec("[a-z]{1,6}(==[0-9.]{1,4})?( # [a-z]{0,5})?", 0..8),
        end in prop::sample::select(vec!["\n", "\r\n"]),
        last in any::<bool>(),
    ) {
        let old = lines.join(end) + if last && !lines.is_empty() { end } else { "" };
        if let Ok(new) = (Edit::AppendRequirement { requirement: "PyYAML".into() }).apply(&old) {
            let kept: Vec<_> = new.lines().take(lines.len()).collect();
            prop_assert_eq!(kept, lines.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(new.lines().last(), Some("PyYAML"));
            prop_assert_eq!(apply(&old, &diff::unified("r", Some(&old), &new)), new);
        }
    }

    #[test]
    fn the_order_of_keys_does_not_change_the_canonical_form(
        fields in prop::collection::btree_map("[a-z]{1,4}", "[^\u{0}]{0,6}", 0..6),
    ) {
        let text = |pairs: Vec<(&String, &String)>| {
            let parts = pairs.iter().map(|(key, value)| format!("{}:{}", canonical(key), canonical(value)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
        };
        let read = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let (forward, backward) = (fields.iter().collect(), fields.iter().rev().collect());
        prop_assert_eq!(canonical(&read(text(forward))), canonical(&read(text(backward))));
    }
}
