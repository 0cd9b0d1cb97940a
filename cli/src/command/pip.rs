//! `cooper pip`: installs packages into a session. Quiet when it works, the installer's words when it does not.

use std::{collections::VecDeque, io::Write};

use cooper_proto::v1::{InstallSpec, Stream, TaskSpec, TaskState, task_spec::Kind};

use super::{
    exec::exit_status,
    follow::{Follow, Sink},
};
use crate::{
    args::Pip,
    context::Context,
    failure::{EXIT_COOPER, Failure, Report, Result},
    output::json,
    progress::Progress,
    units,
};

/// Of the installer's output, its last bytes are kept.
const KEPT_BYTES_MAX: usize = 256 << 10;

pub async fn run(context: &Context, args: Pip) -> Result<u8> {
    let what = args.packages.join(" ");
    let spec = TaskSpec {
        kind: Some(Kind::Install(InstallSpec { packages: args.packages })),
        session_id: args.session,
        timeout_ms: args.timeout.unwrap_or(0),
        ..TaskSpec::default()
    };
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let cluster = context.cluster().map_err(of_cooper)?;
    let mut tail = Tail {
        progress: Progress::new(&context.out),
        what: format!("installing {what}"),
        kept: VecDeque::new(),
    };
    tail.progress.show(&tail.what);
    let task = Follow::new_task(&cluster, spec, &args.schedule)
        .map_err(of_cooper)?
        .run(&mut tail)
        .await
        .map_err(of_cooper)?;
    let Tail { progress, kept, .. } = tail;
    drop(progress);
    let kept = Vec::from(kept);

    if context.out.json {
        let mut document = json::task(&task);
        json::add_stream(&mut document, "output", &kept);
        context.out.document(&document)?;
        return Ok(exit_status(&task));
    }
    if task.state() == TaskState::Succeeded {
        if context.out.stderr_tty {
            let took = units::between(task.started_at_ms, task.ended_at_ms);
            context.out.note(&format!("installed {what} in {took}"));
        }
        if task.outcome.as_ref().is_some_and(|outcome| outcome.restart_required) {
            context.out.note("note: the interpreter has imported what was replaced, and keeps the old until it is started anew");
        }
        return Ok(0);
    }
    let _ = std::io::stderr().lock().write_all(&kept);
    if let Some(error) = task.outcome.as_ref().and_then(|outcome| outcome.error.clone()) {
        context.out.report(&Report { code: error.code, message: error.message, hint: error.hint, exit: 0 });
    }
    Ok(exit_status(&task))
}

struct Tail {
    progress: Progress,
    what: String,
    kept: VecDeque<u8>,
}

impl Sink for Tail {
    fn write(&mut self, _: Stream, data: &[u8]) -> Result<()> {
        self.progress.show_log(&self.what, data);
        self.kept.extend(data);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES_MAX);
        self.kept.drain(..surplus);
        Ok(())
    }

    fn restarted(&mut self, _attempts_used: u32) {
        self.kept.clear();
    }
}
