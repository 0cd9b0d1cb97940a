//! Claims about the command line.

use clap::{CommandFactory, Parser};
use cooper_common::config::{Kind, Role, SETTINGS};

use super::*;

fn parse(line: &[&str]) -> Command {
    Cli::try_parse_from(std::iter::once("cooper").chain(line.iter().copied())).expect("parses").command
}
fn refused(line: &[&str]) -> bool {
    Cli::try_parse_from(std::iter::once("cooper").chain(line.iter().copied())).is_err()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_setting_of_a_role_that_is_not_a_secret_is_a_flag_of_it() {
    for (name, role) in [("up", Role::Up), ("coordinator", Role::Coordinator), ("worker", Role::Worker)] {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut(name).expect("there").render_long_help().to_string();
        for setting in SETTINGS.iter().filter(|setting| setting.belongs_to(role) && setting.key != "data") {
            let flag = format!("--{}", setting.key.replace('_', "-"));
            let shown = help.contains(&format!("{flag} "));
            assert_eq!(shown, setting.kind != Kind::Secret, "{name} {flag}");
        }
    }
}

#[test]
fn a_setting_given_as_a_flag_is_found_by_its_key() {
    let Command::Worker(worker) = parse(&["worker", "--max-sessions", "3", "--worker-id", "w1"]) else {
        panic!("not a worker")
    };
    let given: Vec<_> = worker.settings.given.iter().map(|(key, value)| (*key, value.as_str())).collect();
    assert_eq!(given, [("max_sessions", "3"), ("worker_id", "w1")]);
}

#[test]
fn code_comes_from_one_place_and_arguments_after_two_dashes() {
    let Command::Exec(exec) = parse(&["exec", "s", "-c", "-1", "--", "-x", "--json"]) else {
        panic!("not exec")
    };
    assert_eq!(
        (exec.code.as_deref(), exec.args.as_slice()),
        (Some("-1"), &["-x".to_owned(), "--json".to_owned()][..])
    );
    let Command::Exec(exec) = parse(&["exec", "s", "-"]) else { panic!("not exec") };
    assert_eq!(exec.file, Some("-".into()));
    assert!(refused(&["exec", "s"]) && refused(&["exec", "s", "a.py", "-c", "1"]));
}

#[test]
fn a_command_of_sh_keeps_its_own_options() {
    for line in [
        &["sh", "--cwd", "d", "s", "ls", "-l", "--json"][..],
        &["sh", "s", "--cwd", "d", "--", "ls", "-l", "--json"],
    ] {
        let Command::Sh(sh) = parse(line) else { panic!("not sh") };
        assert_eq!((sh.cwd.as_deref(), sh.argv.join(" ").as_str()), (Some("d"), "ls -l --json"));
    }
}

#[test]
fn global_options_go_anywhere() {
    for line in
        [&["--json", "--data", "d", "session", "list"][..], &["session", "list", "--json", "--data", "d"]]
    {
        let cli = Cli::try_parse_from(std::iter::once("cooper").chain(line.iter().copied())).expect("parses");
        assert!(cli.global.json && cli.global.data == Some("d".into()));
    }
}
