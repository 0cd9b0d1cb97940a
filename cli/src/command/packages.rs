//! `cooper packages`: what a session has installed, more and less of it. Quiet when it works, the installer's words when
//! it does not.

use std::{collections::VecDeque, io::Write, path::Path};

use cooper_common::error::Code;
use cooper_proto::v1::{
    InstallSpec, ListPackagesRequest, Stream, TaskSpec, TaskState, UninstallSpec, task_spec::Kind,
};
use serde_json::json;

use super::{
    exec::exit_status,
    follow::{Follow, Sink},
};
use crate::{
    args::{Packages, PackagesRun},
    context::Context,
    failure::{EXIT_COOPER, Failure, Report, Result},
    output::json,
    progress::Progress,
    units,
};

/// Of the installer's output, its last bytes are kept.
const KEPT_BYTES_MAX: usize = 256 << 10;

pub async fn run(context: &Context, packages: Packages) -> Result<u8> {
    match packages {
        Packages::List { session } => list(context, session).await,
        Packages::Install(args) => {
            let mut named = args.packages.clone();
            named.extend(args.requirements.iter().map(|file| file.display().to_string()));
            let requirements = args.requirements.as_deref().map(read).transpose()?.unwrap_or_default();
            let kind = Kind::Install(InstallSpec {
                packages: args.packages,
                requirements,
                upgrade: args.upgrade,
                index_url: args.index_url,
            });
            change(context, args.session, kind, ("installing", "installed"), &named, args.run).await
        }
        Packages::Uninstall(args) => {
            let named = args.packages.clone();
            let kind = Kind::Uninstall(UninstallSpec { packages: args.packages });
            change(context, args.session, kind, ("removing", "removed"), &named, args.run).await
        }
    }
}

fn read(file: &Path) -> Result<String> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    text.map_err(|error| Failure::new(Code::InvalidArgument, format!("{}: {error}", file.display())))
}

async fn list(context: &Context, session: String) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ListPackagesRequest { session_id: session.clone() };
    let answer = client.sessions().list_packages(request).await?.into_inner();
    if context.out.json {
        let packages: Vec<_> = answer
            .packages
            .iter()
            .map(|it| json!({"name": it.name, "version": it.version, "from": it.from, "imported": it.imported}))
            .collect();
        let document = json!({"session_id": session, "packages": packages, "truncated": answer.truncated});
        context.out.document(&document)?;
        return Ok(0);
    }
    let imported = |imported| if imported { "yes" } else { "no" }.to_owned();
    let rows =
        answer.packages.into_iter().map(|it| vec![it.name, it.version, it.from, imported(it.imported)]);
    context.out.table(&["package", "version", "from", "imported"], rows.collect())?;
    if answer.truncated {
        context.out.note("note: there are more");
    }
    Ok(0)
}

async fn change(
    context: &Context,
    session: String,
    kind: Kind,
    (doing, done): (&str, &str),
    named: &[String],
    run: PackagesRun,
) -> Result<u8> {
    let what = named.join(" ");
    let spec = TaskSpec {
        kind: Some(kind),
        session_id: session,
        timeout_ms: run.timeout.unwrap_or(0),
        ..TaskSpec::default()
    };
    let of_cooper = |failure: Failure| failure.exit(EXIT_COOPER);
    let cluster = context.cluster().map_err(of_cooper)?;
    let mut tail = Tail {
        progress: Progress::new(&context.out),
        what: format!("{doing} {what}"),
        kept: VecDeque::new(),
    };
    tail.progress.show(&tail.what);
    let task = Follow::new_task(&cluster, spec, &run.schedule)
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
            context.out.note(&format!("{done} {what} in {took}"));
        }
        if let Some(outcome) = task.outcome.as_ref().filter(|outcome| outcome.restart_required) {
            let modules = outcome.restart_modules.join(", ");
            context.out.note(&format!(
                "note: restart required: the interpreter has imported {modules}, and keeps the old until it is started anew"
            ));
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
