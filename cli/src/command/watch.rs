//! Follows a run: a line per step that ended, on a terminal a live line for the one that goes on.

use std::collections::BTreeSet;

use cooper_proto::v1::{
    LogPosition, Run, RunState, Step, StepLog, StepState, Stream, WatchRunRequest, watch_run_response::Event,
};

use super::{follow::Interrupts, plan};
use crate::{
    connect::{Client, Cluster, Patience},
    context::Context,
    failure::{Failure, Report, Result, is_cut},
    output::{clean, json},
    progress::Progress,
    units,
};

/// Where a run is, to a shell.
pub fn exit_status(state: RunState) -> u8 {
    match state {
        RunState::Succeeded => 0,
        RunState::AwaitingApproval => 3,
        RunState::RolledBack => 4,
        RunState::Refused => 5,
        RunState::RollbackFailed => 6,
        RunState::Rejected | RunState::Expired | RunState::Cancelled => 7,
        RunState::Failed
        | RunState::Unspecified
        | RunState::Queued
        | RunState::Planning
        | RunState::Running
        | RunState::RollingBack => 1,
    }
}

/// Terminal, or waiting for a person.
fn is_over(state: RunState) -> bool {
    !matches!(
        state,
        RunState::Unspecified
            | RunState::Queued
            | RunState::Planning
            | RunState::Running
            | RunState::RollingBack
    )
}

/// Follows a run until it is terminal or waits for approval; shows it; the status it means.
pub async fn to_the_end(context: &Context, cluster: &Cluster, client: Client, run_id: &str) -> Result<u8> {
    let mut view = View {
        context,
        progress: Progress::new(&context.out),
        shown: BTreeSet::new(),
        doing: String::new(),
        position: None,
    };
    let mut interrupts = Interrupts::new()?;
    let run = tokio::select! {
        run = follow(cluster, client, run_id, &mut view) => run?,
        () = interrupts.next() => {
            drop(view);
            context.out.note(&format!(
                "left; the run goes on: `cooper runs watch {run_id}` follows it, `cooper cancel {run_id}` ends it"
            ));
            return Err(Failure::Exit(130));
        }
    };
    drop(view);
    if run.dry_run && run.state() == RunState::Succeeded {
        let plan = plan::get(&cluster.connect().await?, run.id.clone(), 0).await?;
        plan::show_dry_run(context, &run, &plan)?;
    } else {
        show_end(context, &run)?;
    }
    Ok(exit_status(run.state()))
}

async fn follow(cluster: &Cluster, mut client: Client, run_id: &str, view: &mut View<'_>) -> Result<Run> {
    let mut patience = Patience::default();
    loop {
        let cut = match watch(&client, run_id, view, &mut patience).await {
            Ok(run) => return Ok(run),
            Err(status) if is_cut(&status) => Failure::from(status),
            Err(status) => return Err(status.into()),
        };
        let cut = cut.hint(format!("the run goes on; see it with `cooper runs watch {run_id}`"));
        client = patience.reconnect(cluster, cut).await?;
    }
}

async fn watch(
    client: &Client,
    run_id: &str,
    view: &mut View<'_>,
    patience: &mut Patience,
) -> Result<Run, tonic::Status> {
    let request = WatchRunRequest { run_id: run_id.to_owned(), resume: view.position.clone() };
    let mut events = client.runs().watch_run(request).await?.into_inner();
    while let Some(message) = events.message().await? {
        patience.contact();
        match message.event {
            Some(Event::Run(run)) => {
                view.update(&run);
                if is_over(run.state()) {
                    return Ok(run);
                }
            }
            Some(Event::Log(log)) => {
                view.read(&log);
                view.progress.show_log(&log.step, &log.data);
            }
            None => {}
        }
    }
    Err(tonic::Status::unavailable("the stream ended before the run did"))
}

struct View<'a> {
    context: &'a Context,
    progress: Progress,
    /// Steps whose end was shown, by attempt, name and task.
    shown: BTreeSet<(u32, String, String)>,
    doing: String,
    /// Where the logs are.
    position: Option<LogPosition>,
}

impl View<'_> {
    fn read(&mut self, log: &StepLog) {
        let fresh = || LogPosition {
            task_id: log.task_id.clone(),
            attempts_used: log.attempts_used,
            ..LogPosition::default()
        };
        let same = self.position.take().filter(|position| {
            (&position.task_id, position.attempts_used) == (&log.task_id, log.attempts_used)
        });
        let mut position = same.unwrap_or_else(fresh);
        let end = log.offset + log.data.len() as u64;
        if log.stream() == Stream::Stderr {
            position.stderr_offset = end;
        } else {
            position.stdout_offset = end;
        }
        self.position = Some(position);
    }

    fn update(&mut self, run: &Run) {
        if self.context.out.json {
            return;
        }
        if let (RunState::Queued, Some(waits)) = (run.state(), &run.error)
            && self.shown.insert((0, "queued".to_owned(), waits.message.clone()))
        {
            let line = format!("{:<9} {}", "queued", clean(&waits.message));
            let _ = self.progress.beside(|| self.context.out.line(&line));
        }
        let mut doing = None;
        for step in &run.steps {
            match step.state() {
                // A dry run skips all that comes after its plan: no news.
                StepState::Skipped if run.dry_run => {}
                StepState::Succeeded | StepState::Failed | StepState::Skipped => {
                    if self.shown.insert((step.attempt, step.name.clone(), step.task_id.clone())) {
                        let line = step_line(step);
                        // A closed pipe is noticed when the end is shown.
                        let _ = self.progress.beside(|| self.context.out.line(&line));
                    }
                }
                StepState::Running => doing = Some(step.name.clone()),
                StepState::Pending | StepState::Unspecified => {}
            }
        }
        let doing = doing.unwrap_or_else(|| json::run_state(run.state()).replace('_', " "));
        // A log line of the same step says more.
        if doing != self.doing {
            self.progress.show(&doing);
            self.doing = doing;
        }
    }
}

pub fn step_line(step: &Step) -> String {
    let took = units::between(step.started_at_ms, step.ended_at_ms);
    // Most runs have one attempt, and need no number.
    let name = if step.attempt > 1 { format!("{} {}", step.attempt, step.name) } else { step.name.clone() };
    let line = format!(
        "{name:<9} {:<10} {took:>8}  {}",
        json::step_state(step.state()),
        clean(&step.message).replace('\n', " ")
    );
    line.trim_end().to_owned()
}

/// What came out, and what to do next.
fn show_end(context: &Context, run: &Run) -> Result<()> {
    let out = &context.out;
    if out.json {
        return out.document(&json::run(run));
    }
    out.line(&summary(run))?;
    if let Some(error) = &run.error
        && run.state() != RunState::Succeeded
        && run.state() != RunState::AwaitingApproval
    {
        out.report(&Report {
            code: error.code.clone(),
            message: error.message.clone(),
            hint: error.hint.clone(),
            exit: 0,
        });
    }
    Ok(())
}

/// The name of an artifact of the run's last attempt.
fn of_attempt(run: &Run, name: &str) -> String {
    if run.attempt > 1 { format!("attempt-{}/{name}", run.attempt) } else { name.to_owned() }
}

/// A few lines that say what a person wants to know of a run that is over or waits.
pub fn summary(run: &Run) -> String {
    let mut lines = vec![format!("{} {} {}", run.id, run.service, json::run_state(run.state()))];
    if !run.cause.is_empty() {
        lines.push(format!("  cause     {}", clean(&run.cause)));
    }
    for (what, of) in [("retry of", &run.retry_of), ("undo of", &run.undo_of)] {
        if !of.is_empty() {
            lines.push(format!("  {what:<9} {of}"));
        }
    }
    if run.attempt > 1 {
        lines.push(format!("  attempts  {} of {}", run.attempt, run.max_attempts));
        for tried in &run.attempts {
            let why = tried.error.as_ref().map_or("", |error| error.message.as_str());
            let line =
                format!("  {:<9} {}: {}", format!("attempt {}", tried.number), tried.rule_id, clean(why));
            lines.push(line.trim_end_matches([':', ' ']).to_owned());
        }
    }
    if !run.files.is_empty() {
        lines.push(format!("  changes   {}", run.files.join(" ")));
    }
    if run.promotion == "conflict" {
        let patch = of_attempt(run, "patch.diff");
        lines.push(format!(
            "  conflict  a file changed meanwhile and was not overwritten; apply {patch} by hand"
        ));
    }
    if run.image_equal == Some(false) {
        lines.push(
            "  image     the one of before was gone; it was built again from the restored files".to_owned(),
        );
    }
    if run.state() == RunState::AwaitingApproval {
        let approval = run.approval.clone().unwrap_or_default();
        for reason in &approval.reasons {
            lines.push(format!("  waits     {}", clean(reason)));
        }
        if !approval.approvers.is_empty() {
            lines.push(format!("  approvers {}", approval.approvers.join(" ")));
        }
        lines.push(format!("  read      cooper runs plan {}", run.id));
        lines.push(format!("  approve   cooper approve {}", run.id));
        lines.push(format!("  reject    cooper reject {}", run.id));
    } else if !run.artifacts.is_empty() {
        lines.push(format!("  artifacts {}", run.artifacts.join(" ")));
        lines.push(format!("  read      cooper runs artifact {} NAME", run.id));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_run_has_its_status() {
        for (state, status) in [
            (RunState::Succeeded, 0),
            (RunState::Failed, 1),
            (RunState::AwaitingApproval, 3),
            (RunState::RolledBack, 4),
            (RunState::Refused, 5),
            (RunState::RollbackFailed, 6),
            (RunState::Rejected, 7),
            (RunState::Expired, 7),
            (RunState::Cancelled, 7),
        ] {
            assert!(is_over(state));
            assert_eq!(exit_status(state), status, "{state:?}");
        }
        for state in [RunState::Queued, RunState::Planning, RunState::Running, RunState::RollingBack] {
            assert!(!is_over(state), "{state:?}");
        }
    }

    #[test]
    fn a_run_that_waits_says_why_and_how_to_go_on() {
        let approval = cooper_proto::v1::Approval {
            reasons: vec!["service web is protected".to_owned()],
            ..Default::default()
        };
        let run = Run {
            id: "run_1".to_owned(),
            service: "web".to_owned(),
            state: RunState::AwaitingApproval.into(),
            approval: Some(approval),
            ..Run::default()
        };
        let text = summary(&run);
        assert!(text.contains("service web is protected") && text.contains("cooper approve run_1"), "{text}");
    }
}
