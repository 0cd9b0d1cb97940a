//! Stored rows as messages of the contract.

use cooper_common::{error::Code, ids::TaskId};
use cooper_core::{cluster::Ended, run, session, task};
use cooper_proto::v1;
use prost::Message as _;

use crate::{
    artifacts,
    cluster::Cluster,
    runs::{self, Loaded},
    sessions, store, tasks,
};

pub type Result<T> = std::result::Result<T, tonic::Status>;

fn error(code: &str, message: &str) -> v1::Error {
    let hint = Code::parse(code).map(Code::hint).unwrap_or_default();
    v1::Error { code: code.to_owned(), message: message.to_owned(), hint: hint.to_owned() }
}

pub fn reason(reason: &session::Reason) -> v1::Error {
    error(&reason.code, &reason.message)
}

pub fn session(cluster: &Cluster, record: &store::Record) -> Result<v1::Session> {
    let body = sessions::body(record).map_err(crate::doors::status)?;
    let spec =
        v1::CreateSessionRequest::decode(record.row.spec.as_deref().unwrap_or_default()).unwrap_or_default();
    let live =
        record.id.parse().ok().and_then(|id| {
            cluster.look(|core| core.session(id).map(|live| (live.active(), live.body.traffic)))
        });
    let (active, traffic) = live.unwrap_or((0, body.traffic));
    let state = match body.state {
        session::State::Initializing => v1::SessionState::Initializing,
        session::State::Ready => v1::SessionState::Ready,
        session::State::Checkpointing => v1::SessionState::Checkpointing,
        session::State::Draining => v1::SessionState::Draining,
        session::State::Destroyed => v1::SessionState::Destroyed,
        session::State::Failed => v1::SessionState::Failed,
    };
    Ok(v1::Session {
        id: record.id.clone(),
        name: body.name,
        state: state.into(),
        worker_id: body.worker,
        labels: spec.labels,
        worker_labels: spec.worker_labels,
        limits: spec.limits,
        created_at_ms: record.row.created_ms,
        updated_at_ms: record.row.updated_ms,
        python_version: body.python_version,
        facilities: body.facilities,
        tier: body.tier,
        interpreter_restarted: body.interpreter_restarted,
        active_executions: active as u32,
        error: body.reason.as_ref().map(reason),
        tenant: record.row.tenant.clone(),
        expires_at_ms: body.lifetime.expires_at_ms,
        idle_timeout_ms: body.lifetime.idle_timeout_ms,
        metadata: spec.metadata,
        network: spec.network,
        network_refused: body.network_refused,
        network_usage: Some(v1::NetworkUsage {
            sent_bytes: traffic.total.sent,
            received_bytes: traffic.total.received,
            connects: traffic.total.connects,
        }),
        template: spec.template,
        spare: body.spare.is_some(),
        hibernate_after_ms: body.lifetime.hibernate_after_ms,
        hibernated: body.hibernated,
        globals: crate::checkpoints::read_opaque(&body.globals),
        secrets: spec.secrets,
        inject: spec.inject,
        last_checkpoint_id: body.last_checkpoint.map(|id| id.to_string()).unwrap_or_default(),
    })
}

fn task_state(state: task::State) -> v1::TaskState {
    match state {
        task::State::Queued => v1::TaskState::Queued,
        task::State::Assigned => v1::TaskState::Assigned,
        task::State::Running => v1::TaskState::Running,
        task::State::Ended(task::End::Succeeded) => v1::TaskState::Succeeded,
        task::State::Ended(task::End::Failed) => v1::TaskState::Failed,
        task::State::Ended(task::End::TimedOut) => v1::TaskState::TimedOut,
        task::State::Ended(task::End::Cancelled) => v1::TaskState::Cancelled,
        task::State::Ended(task::End::Lost) => v1::TaskState::Lost,
        task::State::Ended(task::End::DeadLetter) => v1::TaskState::DeadLetter,
    }
}

/// The state a client filters by.
pub fn state_of(state: v1::TaskState) -> Option<task::State> {
    let ends = [
        task::End::Succeeded,
        task::End::Failed,
        task::End::TimedOut,
        task::End::Cancelled,
        task::End::Lost,
        task::End::DeadLetter,
    ];
    let all = [task::State::Queued, task::State::Assigned, task::State::Running];
    all.into_iter().chain(ends.map(task::State::Ended)).find(|ours| task_state(*ours) == state)
}

/// The worker's outcome, or the reason why there is none.
fn outcome(body: &task::Body, result: Option<&[u8]>) -> Option<v1::Outcome> {
    matches!(body.state, task::State::Ended(_)).then(|| {
        let decoded = result.and_then(|bytes| v1::Outcome::decode(bytes).ok());
        let of_worker = decoded.is_some();
        let mut outcome = decoded.unwrap_or_default();
        if let Some(why) = &body.reason {
            // With what the last attempt said, where it said something.
            if !of_worker {
                outcome.exit_code = 125;
            }
            outcome.error = Some(reason(why));
        }
        // A step's report is between Cooper and its worker.
        outcome.step_json.clear();
        outcome
    })
}

fn of_body(id: String, body: &task::Body, tenant: &str, created_ms: i64, result: Option<&[u8]>) -> v1::Task {
    v1::Task {
        id,
        state: task_state(body.state).into(),
        // Where it ran; what it was asked for, its submitter knows.
        spec: body
            .session
            .map(|session| v1::TaskSpec { session_id: session.to_string(), ..v1::TaskSpec::default() }),
        attempt: body.fence.attempt,
        worker_id: body.worker.clone().unwrap_or_default(),
        created_at_ms: created_ms,
        started_at_ms: body.started_ms,
        ended_at_ms: body.ended_ms,
        outcome: outcome(body, result),
        tenant: tenant.to_owned(),
        priority: body.priority.into(),
        attempts_used: body.attempts_used(),
        max_attempts: body.max_attempts(),
        not_before_at_ms: body.not_before_ms(),
    }
}

pub fn task(record: &store::Record) -> Result<v1::Task> {
    let body = tasks::body(record).map_err(crate::doors::status)?;
    let row = &record.row;
    let mut task = of_body(record.id.clone(), &body, &row.tenant, row.created_ms, row.result.as_deref());
    task.spec = v1::TaskSpec::decode(row.spec.as_deref().unwrap_or_default()).ok().map(|mut spec| {
        if let Some(v1::task_spec::Kind::Step(step)) = &mut spec.kind {
            step.input_json.clear();
        }
        spec
    });
    Ok(task)
}

/// A sentence about an ended task.
pub fn how_it_ended(record: &store::Record, task: &v1::Task) -> String {
    let error = task.outcome.as_ref().and_then(|outcome| outcome.error.as_ref());
    match error {
        Some(error) => format!("it ended as {}: {}", record.row.state, error.message),
        None => format!("it ended as {}", record.row.state),
    }
}

/// Of the spec only the session.
pub fn ended(ended: &Ended) -> v1::Task {
    of_body(ended.task.to_string(), &ended.body, &ended.tenant, ended.created_ms, ended.result.as_deref())
}

/// A task that was just taken in.
pub fn accepted(id: TaskId) -> v1::Task {
    v1::Task { id: id.to_string(), state: v1::TaskState::Queued.into(), ..v1::Task::default() }
}

pub fn run_state(state: run::State) -> v1::RunState {
    match state {
        run::State::Queued => v1::RunState::Queued,
        run::State::Planning => v1::RunState::Planning,
        run::State::AwaitingApproval => v1::RunState::AwaitingApproval,
        run::State::Running => v1::RunState::Running,
        run::State::Succeeded => v1::RunState::Succeeded,
        run::State::RollingBack => v1::RunState::RollingBack,
        run::State::RolledBack => v1::RunState::RolledBack,
        run::State::RollbackFailed => v1::RunState::RollbackFailed,
        run::State::Failed => v1::RunState::Failed,
        run::State::Rejected => v1::RunState::Rejected,
        run::State::Expired => v1::RunState::Expired,
        run::State::Cancelled => v1::RunState::Cancelled,
        run::State::Refused => v1::RunState::Refused,
    }
}

/// The stored name of a state a client filters by.
pub fn run_state_name(state: v1::RunState) -> Option<&'static str> {
    run::State::ALL.iter().find(|ours| run_state(**ours) == state).map(|ours| ours.as_str())
}

fn step(step: &run::Step) -> v1::Step {
    let state = match step.state {
        run::StepState::Pending => v1::StepState::Pending,
        run::StepState::Running => v1::StepState::Running,
        run::StepState::Succeeded => v1::StepState::Succeeded,
        run::StepState::Failed => v1::StepState::Failed,
        run::StepState::Skipped => v1::StepState::Skipped,
    };
    v1::Step {
        name: step.kind.as_str().to_owned(),
        state: state.into(),
        started_at_ms: step.started_ms,
        ended_at_ms: step.ended_ms,
        task_id: step.task.map(|id| id.to_string()).unwrap_or_default(),
        message: step.message.clone(),
        attempt: step.attempt,
    }
}

pub fn run(loaded: &Loaded) -> v1::Run {
    let run = &loaded.run;
    let body = &run.body;
    v1::Run {
        id: run.id.to_string(),
        stack: body.stack.clone(),
        service: body.service.clone(),
        state: run_state(body.state).into(),
        steps: run.steps.iter().map(step).collect(),
        cause: body.cause.clone(),
        rule_id: body.rule_id.clone(),
        plan_hash: body.plan_hash.clone(),
        files: body.files.clone(),
        approval: run.approval().map(approval),
        error: body.reason.as_ref().map(reason),
        created_at_ms: run.created_ms,
        updated_at_ms: loaded.updated_ms,
        priority: body.priority.into(),
        queue_position: if body.state == run::State::Queued { body.queue_position } else { 0 },
        automatic: body.automatic,
        trigger: body.trigger.clone(),
        dry_run: body.dry_run,
        instruction: body.instruction.clone(),
        tenant: run.tenant.to_string(),
        artifacts: body.artifacts.iter().map(|artifact| artifact.name.clone()).collect(),
        promotion: body.promotion.clone(),
        image_equal: body.image_equal,
        model_calls: body.model_calls.iter().map(model_call).collect(),
        attempt: body.attempt,
        max_attempts: body.max_attempts,
        attempts: body.tried.iter().map(attempt).collect(),
        retry_of: match body.origin {
            run::Origin::Retry { of, .. } => of.to_string(),
            run::Origin::Repair | run::Origin::Undo { .. } => String::new(),
        },
        undo_of: match body.origin {
            run::Origin::Undo { of } => of.to_string(),
            run::Origin::Repair | run::Origin::Retry { .. } => String::new(),
        },
        approvals: run.approvals.iter().map(approval).collect(),
    }
}

fn model_call(call: &run::ModelCall) -> v1::ModelCall {
    v1::ModelCall {
        at_ms: call.at_ms,
        model: call.model.clone(),
        status: call.status.clone(),
        latency_ms: call.latency_ms,
        tokens: call.tokens,
        message: call.message.clone(),
    }
}

fn attempt(tried: &run::Tried) -> v1::Attempt {
    v1::Attempt {
        number: tried.attempt,
        plan_hash: tried.plan_hash.clone(),
        rule_id: tried.rule_id.clone(),
        cause: tried.cause.clone(),
        files: tried.files.clone(),
        error: tried.reason.as_ref().map(reason),
    }
}

pub fn pauses(held: Vec<runs::Pause>) -> v1::Pauses {
    let pause =
        |it: runs::Pause| v1::Pause { stack: it.stack, reason: it.reason, by: it.by, since_ms: it.since_ms };
    v1::Pauses { pauses: held.into_iter().map(pause).collect() }
}

pub fn approval(approval: &run::Approval) -> v1::Approval {
    v1::Approval {
        id: approval.id.to_string(),
        plan_hash: approval.plan_hash.clone(),
        decision: approval.decision.as_str().to_owned(),
        reasons: approval.reasons.clone(),
        approvers: approval.approvers.clone(),
        decided_by: approval.decided_by.clone(),
        comment: approval.comment.clone(),
        decided_at_ms: approval.decided_ms,
        expires_at_ms: approval.expires_ms,
        attempt: approval.attempt,
    }
}

pub fn artifact(artifact: &run::Artifact) -> v1::Artifact {
    v1::Artifact {
        name: artifact.name.clone(),
        size_bytes: artifact.size_bytes,
        digest: artifact.digest.clone(),
        created_at_ms: artifact.created_ms,
        ..v1::Artifact::default()
    }
}

/// Of a session.
pub fn made_artifact(record: &store::Record) -> Result<v1::Artifact> {
    let artifact = artifacts::body(record).map_err(crate::doors::status)?;
    Ok(v1::Artifact {
        name: artifact.name,
        size_bytes: artifact.size_bytes,
        digest: artifact.digest,
        created_at_ms: record.row.created_ms,
        id: record.id.clone(),
        sha256: artifact.sha256,
        media_type: artifact.media_type,
        session_id: record.row.parent.clone(),
        task_id: artifact.task.to_string(),
    })
}

pub fn stack(stack: &runs::Stack) -> v1::Stack {
    v1::Stack {
        name: stack.name.clone(),
        dir: stack.dir.clone(),
        worker_id: stack.worker.to_string(),
        online: stack.online,
    }
}

pub fn audit(row: cooper_common::audit::Row) -> v1::AuditRow {
    let entry = row.entry;
    v1::AuditRow {
        seq: row.seq,
        at_ms: entry.at_ms,
        tenant: entry.tenant,
        token_id: entry.token_id,
        name: entry.name,
        from: entry.from,
        action: entry.action,
        object: entry.object,
        outcome: entry.outcome,
        detail: entry.detail,
        hash: row.hash,
    }
}
