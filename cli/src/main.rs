//! `cooper`: the one binary: `up`, the roles, and the user's commands.

mod args;
mod command;
mod connect;
mod context;
mod contexts;
mod failure;
mod flags;
mod output;
mod progress;
mod role;
mod terminal;
mod units;
mod up;
mod version;

use std::{env, process::ExitCode};

use clap::{Parser, error::ErrorKind};
use cooper_common::error::Code;

use crate::{
    args::{Cli, Command},
    context::Context,
    failure::{EXIT_PIPE, Failure, Result},
    output::Output,
};

fn main() -> ExitCode {
    // The worker's own processes first: they are started often, and take nothing from the command line.
    if let Some(name) = env::args_os().nth(1)
        && let Some(end) = role::internal(&name)
    {
        return end;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let context = Context::new(cli.global);
    match run(&context, cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(Failure::Exit(status)) => ExitCode::from(status),
        Err(Failure::Pipe) => ExitCode::from(EXIT_PIPE),
        Err(Failure::Error(report)) => {
            context.out.report(&report);
            ExitCode::from(report.exit)
        }
    }
}

/// Roles run before any async runtime exists: the worker's host is single-threaded and brings its own loop.
fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Up(args) => up::run(context, args),
        Command::Coordinator(args) => role::coordinator(context, args),
        Command::Worker(args) => role::worker(context, args),
        Command::WorkerLink | Command::WorkerStep | Command::WorkerInstall => {
            Err(Failure::new(Code::InvalidArgument, "this command is for `cooper worker` itself").exit(2))
        }
        other => command::run(context, other),
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let wants_json = env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
    if asked || !wants_json {
        // A closed pipe behind `cooper --help | head` is nobody's business.
        let _ = error.print();
    } else {
        let text = error.to_string();
        let said: Vec<&str> = text
            .lines()
            .take_while(|line| !line.starts_with("Usage:"))
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let message = said.join(" ").trim_start_matches("error: ").to_owned();
        if let Failure::Error(report) =
            Failure::new(Code::InvalidArgument, message).hint("see `cooper --help`")
        {
            Output::of_process(true).report(&report);
        }
    }
    ExitCode::from(if asked { 0 } else { 2 })
}
