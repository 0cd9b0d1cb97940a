//! The user's commands: each asks the coordinator and shows the answer.

mod admin;
mod approvals;
mod artifacts;
mod attach;
mod audit;
mod certs;
mod checkpoint;
mod config;
mod contexts;
mod diagnose;
mod doctor;
mod drain;
mod events;
mod exec;
mod files;
mod follow;
mod health;
mod history;
mod input;
mod mcp;
mod notebook;
mod packages;
mod pause;
mod plan;
mod port;
mod repair;
mod runs;
mod secret;
mod session;
mod stacks;
mod stats;
mod store;
mod tasks;
mod template;
mod watch;

use std::{future::Future, path::Path, time::Duration};

use clap::CommandFactory;
use cooper_common::error::Code;

use crate::{
    args::{Cli, Command},
    context::Context,
    failure::{Failure, Result},
    version,
};

/// Runs a command to its exit status.
pub fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Health => return health::run(context),
        Command::Config(args) => return config::run(context, args),
        Command::Context(args) => return contexts::run(context, args),
        Command::Completions { shell } => return completions(context, shell),
        Command::Doctor(args) => return doctor::run(context, args),
        Command::Certs(args) => return certs::run(context, args),
        Command::Mcp(args) => return mcp::run(context, args),
        Command::Version => return version(context),
        Command::Man { dir } => return man(&dir),
        _ => {}
    }
    block_on(async {
        match command {
            Command::Session(args) => session::run(context, args).await,
            Command::Checkpoint(args) => checkpoint::run(context, args).await,
            Command::Artifacts(args) => artifacts::run(context, args).await,
            Command::Template(args) => template::run(context, args).await,
            Command::Secret(args) => secret::run(context, args).await,
            Command::Exec(args) => exec::exec(context, args).await,
            Command::Sh(args) => exec::sh(context, args).await,
            Command::Port(args) => port::run(context, args).await,
            Command::Packages(args) => packages::run(context, args).await,
            Command::Attach(args) => attach::run(context, args).await,
            Command::Files(args) => files::run(context, args).await,
            Command::Diagnose(args) => diagnose::run(context, args).await,
            Command::Repair(args) => repair::repair(context, args).await,
            Command::Approvals(args) => approvals::run(context, args).await,
            Command::Approve(args) => repair::decide(context, args, true).await,
            Command::Reject(args) => repair::decide(context, args, false).await,
            Command::Cancel(args) => repair::cancel(context, args).await,
            Command::Pause(args) => pause::pause(context, args).await,
            Command::Resume(args) => pause::resume(context, args).await,
            Command::Runs(args) => runs::run(context, args).await,
            Command::Stacks(args) => stacks::run(context, args).await,
            Command::Workers => admin::workers(context).await,
            Command::Drain(args) => drain::drain(context, args).await,
            Command::Undrain { worker } => drain::undrain(context, worker).await,
            Command::Tasks(args) => tasks::run(context, args).await,
            Command::Token(args) => admin::token(context, args).await,
            Command::Audit(args) => audit::run(context, args).await,
            Command::Events(args) => events::run(context, args).await,
            Command::Store(args) => store::run(context, args).await,
            Command::Status => admin::status(context).await,
            other => Err(Failure::new(Code::Internal, format!("{other:?} is not a command of this place"))),
        }
    })
}

/// One thread is enough for a command; nothing is waited for once it is done.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Internal, format!("cannot start the async runtime: {error}")))?;
    let end = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::ZERO);
    end
}

fn version(context: &Context) -> Result<u8> {
    context.out.answer(version::json, || format!("cooper {}", version::text()))?;
    Ok(0)
}

/// Pages for whoever packages Cooper.
fn man(dir: &Path) -> Result<u8> {
    let command = <Cli as clap::CommandFactory>::command();
    clap_mangen::generate_to(command, dir).map_err(|error| {
        Failure::new(
            Code::InvalidArgument,
            format!("cannot write manual pages to {}: {error}", dir.display()),
        )
    })?;
    Ok(0)
}

fn completions(context: &Context, shell: clap_complete::Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cooper", &mut script);
    context.out.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(0)
}

/// Why the coordinator there is not ready: what happened, and what to do. `None` when it is, or is not there.
pub fn not_ready(url: &str, ca: Option<&Path>) -> Option<(String, String)> {
    let answer = health::get(url, "/ready", ca).ok()?;
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    (answer["status"] != "ready")
        .then(|| (text("message").unwrap_or_default(), text("hint").unwrap_or_default()))
}

/// True when a coordinator answers `/health` there and says that it is well.
pub fn healthy(url: &str, ca: Option<&Path>) -> bool {
    health::get(url, "/health", ca).is_ok_and(|answer| answer["status"] == "healthy")
}
