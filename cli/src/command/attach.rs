//! `cooper attach`, and what runs with `--tty`: this terminal becomes that of an execution.

use std::io::{self, IsTerminal};

use cooper_common::error::Code;
use cooper_proto::v1::{ExecutionMode, GetTaskRequest, PythonSpec, ShellSpec, TaskSpec, task_spec::Kind};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    exec::{self, Through, exit_status, show_end},
    follow::Follow,
    input::{self, Over},
};
use crate::{
    args::{Attach, DetachKeys, Schedule},
    connect::Cluster,
    context::Context,
    failure::{EXIT_COOPER, Failure, Result},
    terminal::{self, Raw},
};

/// Bash where there is one. Not with the machine's own settings, which greet a user that a session is not.
const SHELL: &str = "if command -v bash >/dev/null 2>&1; then export PS1=\"${PS1-\\w \\$ }\"; exec bash --norc -i; else exec sh -i; fi";
/// Python's own prompt, over the session's variables.
const PYTHON: &str = "\
try:
    import readline, rlcompleter
    readline.parse_and_bind('tab: complete')
except ImportError:
    pass
import code as _code
_code.interact(local=globals())
None
";
const EXIT_HANGUP: u8 = 129;

pub async fn run(context: &Context, args: Attach) -> Result<u8> {
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let cluster = context.cluster().map_err(of_cooper)?;
    if args.target.starts_with("tsk_") {
        return to_task(context, &cluster, args).await;
    }
    let kind = if args.python {
        let mode = ExecutionMode::Fresh.into();
        let (code, filename) = (PYTHON.to_owned(), "<attach>".to_owned());
        Kind::Python(PythonSpec { code, filename, mode, ..PythonSpec::default() })
    } else {
        let shell = || ["sh", "-c", SHELL].map(str::to_owned).to_vec();
        let argv = if args.command.is_empty() { shell() } else { args.command };
        Kind::Shell(ShellSpec { argv, stdin: Vec::new() })
    };
    let spec = TaskSpec {
        kind: Some(kind),
        session_id: args.target,
        env: args.env.into_iter().collect(),
        cwd: args.cwd.unwrap_or_default(),
        timeout_ms: args.timeout,
        ..TaskSpec::default()
    };
    let follow = Follow::new_task(&cluster, on_terminal(spec), &Schedule::default()).map_err(of_cooper)?;
    self::follow(context, &cluster, follow, &args.detach_keys, true).await
}

/// To one that runs, perhaps started by somebody else.
async fn to_task(context: &Context, cluster: &Cluster, args: Attach) -> Result<u8> {
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let mut tasks = cluster.connect().await.map_err(of_cooper)?.tasks();
    let task = tasks.get_task(GetTaskRequest { task_id: args.target.clone() }).await;
    let spec = task.map_err(|status| of_cooper(status.into()))?.into_inner().spec.unwrap_or_default();
    let follow = Follow::task(cluster, args.target).map_err(of_cooper)?.leaving(args.offset);
    if spec.terminal.is_some() {
        return self::follow(context, cluster, follow, &args.detach_keys, false).await;
    }
    if !spec.stdin_open {
        let what = "the execution was started without --tty and without --interactive";
        return Err(of_cooper(
            Failure::new(Code::StdinNotOpen, what).hint("see it with `cooper tasks follow TASK`"),
        ));
    }
    let passing = input::pass(cluster, follow.task_id(), tokio::io::stdin(), None, false);
    let following = exec::follow_to_exit(context, follow, None);
    tokio::pin!(passing, following);
    tokio::select! {
        ended = &mut following => ended,
        passed = &mut passing => {
            passed.map_err(of_cooper)?;
            following.await
        }
    }
}

/// With a terminal of the size and kind of this one.
pub fn on_terminal(mut spec: TaskSpec) -> TaskSpec {
    spec.terminal = Some(terminal::size());
    if let Some(kind) = std::env::var("TERM").ok().filter(|_| io::stdin().is_terminal()) {
        spec.env.entry("TERM".to_owned()).or_insert(kind);
    }
    spec
}

/// Lends this terminal to an execution until it ends, or the keys that detach are pressed. `whole`: its input comes from
/// here alone.
pub async fn follow(
    context: &Context,
    cluster: &Cluster,
    follow: Follow<'_>,
    keys: &DetachKeys,
    whole: bool,
) -> Result<u8> {
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let no_signal = |error| Failure::new(Code::Internal, format!("cannot listen for signals: {error}"));
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signal)?;
    let task = follow.task_id();
    let mut through = Through::from(follow.received());
    let no_raw = |error| Failure::new(Code::Internal, format!("the terminal cannot be set: {error}"));
    let raw = Raw::enter().map_err(no_raw)?;
    let known = task.clone();
    let end = {
        let passing = input::pass(cluster, task, tokio::io::stdin(), Some(keys), whole);
        let following = follow.run(&mut through);
        tokio::pin!(passing, following);
        let mut passes = true;
        loop {
            tokio::select! {
                ended = &mut following => break Some(ended),
                passed = &mut passing, if passes => match passed {
                    Ok(Over::Detached) => break None,
                    Ok(Over::Input) => passes = false,
                    Err(failure) => break Some(Err(failure)),
                },
                _ = hangup.recv() => break Some(Err(Failure::Exit(EXIT_HANGUP))),
            }
        }
    };
    // Before anything is said: from here on lines end as usual.
    drop(raw);
    let Some(end) = end else {
        let id = known.borrow().clone();
        context.out.note(&format!(
            "\ndetached; go back with: cooper attach {id} --offset {}",
            through.stdout_bytes()
        ));
        return Ok(0);
    };
    let task = end.map_err(of_cooper)?;
    show_end(&context.out, &task, &through)?;
    Ok(exit_status(&task))
}
