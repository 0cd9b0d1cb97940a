//! Messages of the contract as JSON: field names of the proto, states as words, bytes as text where they are text.

use base64::{Engine, engine::general_purpose::STANDARD};
use cooper_proto::v1;
use serde_json::{Map, Value, json};

/// `RUN_STATE_ROLLED_BACK` becomes `rolled_back`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}
pub fn session_state(state: v1::SessionState) -> String {
    word(state.as_str_name(), "SESSION_STATE_")
}
pub fn task_state(state: v1::TaskState) -> String {
    word(state.as_str_name(), "TASK_STATE_")
}
pub fn run_state(state: v1::RunState) -> String {
    word(state.as_str_name(), "RUN_STATE_")
}
pub fn step_state(state: v1::StepState) -> String {
    word(state.as_str_name(), "STEP_STATE_")
}

pub fn error(error: &v1::Error) -> Value {
    json!({"code": error.code, "message": error.message, "hint": error.hint})
}
fn error_or_null(option: &Option<v1::Error>) -> Value {
    option.as_ref().map_or(Value::Null, error)
}

pub fn session(session: &v1::Session) -> Value {
    let limits = session.limits.unwrap_or_default();
    let used = session.network_usage.unwrap_or_default();
    json!({
        "session_id": session.id,
        "name": session.name,
        "state": session_state(session.state()),
        "worker_id": session.worker_id,
        "tenant": session.tenant,
        "labels": session.labels,
        "metadata": session.metadata,
        "worker_labels": session.worker_labels,
        "limits": {
            "exec_timeout_ms": limits.exec_timeout_ms,
            "memory_bytes": limits.memory_bytes,
            "file_size_bytes": limits.file_size_bytes,
            "open_files": limits.open_files,
            "output_bytes": limits.output_bytes,
            "processes_max": limits.processes_max,
            "cpu_millis": limits.cpu_millis,
            "disk_bytes": limits.disk_bytes,
            "inodes_max": limits.inodes_max,
        },
        "python_version": session.python_version,
        "facilities": session.facilities,
        "tier": session.tier,
        "interpreter_restarted": session.interpreter_restarted,
        "active_executions": session.active_executions,
        "created_at_ms": session.created_at_ms,
        "updated_at_ms": session.updated_at_ms,
        "expires_at_ms": session.expires_at_ms,
        "idle_timeout_ms": session.idle_timeout_ms,
        "network": network(session.network.as_ref()),
        "network_refused": session.network_refused,
        "network_usage": {
            "sent_bytes": used.sent_bytes,
            "received_bytes": used.received_bytes,
            "connects": used.connects,
        },
        "template": session.template,
        "secrets": session.secrets,
        "inject": session.inject.iter().map(injection).collect::<Vec<_>>(),
        "spare": session.spare,
        "last_checkpoint_id": session.last_checkpoint_id,
        "hibernate_after_ms": session.hibernate_after_ms,
        "hibernated": session.hibernated,
        "globals": session.globals.as_ref().map(globals),
        "error": error_or_null(&session.error),
    })
}

/// Variables that were saved or restored.
pub fn globals(globals: &v1::GlobalsSummary) -> Value {
    let dropped: Vec<_> =
        globals.dropped.iter().map(|it| json!({"name": it.name, "reason": it.reason})).collect();
    json!({
        "names": globals.names,
        "count": globals.count,
        "dropped": dropped,
        "dropped_count": globals.dropped_count,
        "bytes": globals.bytes,
        "error": globals.error,
    })
}

fn injection(it: &v1::SecretInjection) -> Value {
    json!({"secret": it.secret, "host": it.host, "header": it.header, "plain_http": it.plain_http})
}

fn network(policy: Option<&v1::NetworkPolicy>) -> Value {
    let Some(policy) = policy else { return Value::Null };
    let mode = if policy.mode() == v1::NetworkMode::Proxy { "proxy" } else { "none" };
    json!({"mode": mode, "domains": policy.domains, "ports": policy.ports})
}

/// What a task does, in a word and a line.
pub fn task_kind(spec: Option<&v1::TaskSpec>) -> (&'static str, String) {
    use v1::task_spec::Kind;
    match spec.and_then(|spec| spec.kind.as_ref()) {
        Some(Kind::Python(python)) => ("python", python.code.lines().next().unwrap_or_default().to_owned()),
        Some(Kind::Shell(shell)) => ("shell", shell.argv.join(" ")),
        Some(Kind::Install(install)) => ("install", install.packages.join(" ")),
        Some(Kind::Uninstall(uninstall)) => ("uninstall", uninstall.packages.join(" ")),
        Some(Kind::Step(step)) => ("step", format!("{} of {}", step.step, step.run_id)),
        Some(Kind::Noop(_)) => ("noop", String::new()),
        None => ("", String::new()),
    }
}

pub fn task(task: &v1::Task) -> Value {
    let (kind, summary) = task_kind(task.spec.as_ref());
    let mut value = json!({
        "task_id": task.id,
        "session_id": task.spec.as_ref().map_or("", |spec| spec.session_id.as_str()),
        "state": task_state(task.state()),
        "kind": kind,
        "summary": summary,
        "attempt": task.attempt,
        "attempts_used": task.attempts_used,
        "max_attempts": task.max_attempts,
        "priority": task.priority,
        "not_before_at_ms": task.not_before_at_ms,
        "worker_id": task.worker_id,
        "tenant": task.tenant,
        "created_at_ms": task.created_at_ms,
        "started_at_ms": task.started_at_ms,
        "ended_at_ms": task.ended_at_ms,
    });
    if let (Some(outcome), Some(fields)) = (&task.outcome, value.as_object_mut()) {
        fields.append(&mut outcome_fields(outcome));
    }
    value
}

pub fn why(why: &v1::ExplainTaskResponse) -> Value {
    json!({
        "code": why.code,
        "sentence": why.sentence,
        "worker_id": why.worker_id,
        "blocking_task_id": why.blocking_task_id,
        "ahead": why.ahead,
        "task": why.task.as_ref().map_or(Value::Null, task),
    })
}

fn outcome_fields(outcome: &v1::Outcome) -> Map<String, Value> {
    let usage = outcome.usage.unwrap_or_default();
    let fields = json!({
        "exit_code": outcome.exit_code,
        "result": outcome.result.as_ref().map_or(Value::Null, bundle),
        "displays": outcome.displays.iter().map(bundle).collect::<Vec<_>>(),
        "exception": outcome.exception.as_ref().map_or(Value::Null, |exception| json!({
            "name": exception.name, "value": exception.value, "traceback": exception.traceback,
        })),
        "usage": {
            "wall_ms": usage.wall_ms, "cpu_ms": usage.cpu_ms, "peak_memory_bytes": usage.peak_memory_bytes,
            "disk_bytes": usage.disk_bytes,
        },
        "stdout_bytes": outcome.stdout_bytes,
        "stderr_bytes": outcome.stderr_bytes,
        "stdout_truncated": outcome.stdout_truncated,
        "stderr_truncated": outcome.stderr_truncated,
        "interpreter_restarted": outcome.interpreter_restarted,
        "restart_required": outcome.restart_required,
        "restart_modules": outcome.restart_modules,
        "artifacts": outcome.artifacts.iter().map(artifact_ref).collect::<Vec<_>>(),
        "artifacts_skipped": outcome
            .artifacts_skipped
            .iter()
            .map(|it| json!({"name": it.name, "reason": it.reason}))
            .collect::<Vec<_>>(),
        "artifacts_skipped_count": outcome.artifacts_skipped_count,
        "error": error_or_null(&outcome.error),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Text types as text, the rest as base64.
fn bundle(bundle: &v1::MimeBundle) -> Value {
    bundle.data.iter().map(|(mime, bytes)| (mime.clone(), text_or_base64(bytes))).collect()
}

fn text_or_base64(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => STANDARD.encode(bytes).into(),
    }
}

/// Adds a stream's bytes as `name`, or as `name_base64` when they are not UTF-8.
pub fn add_stream(value: &mut Value, name: &str, bytes: &[u8]) {
    let key = if std::str::from_utf8(bytes).is_ok() { name.to_owned() } else { format!("{name}_base64") };
    value[key] = text_or_base64(bytes);
}

pub fn run(run: &v1::Run) -> Value {
    json!({
        "run_id": run.id,
        "stack": run.stack,
        "service": run.service,
        "state": run_state(run.state()),
        "dry_run": run.dry_run,
        "automatic": run.automatic,
        "trigger": run.trigger,
        "priority": run.priority,
        "queue_position": run.queue_position,
        "instruction": run.instruction,
        "tenant": run.tenant,
        "cause": run.cause,
        "rule_id": run.rule_id,
        "plan_hash": run.plan_hash,
        "files": run.files,
        "promotion": run.promotion,
        "image_equal": run.image_equal,
        "model_calls": run.model_calls.iter().map(model_call).collect::<Vec<_>>(),
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "retry_of": run.retry_of,
        "undo_of": run.undo_of,
        "attempts": run.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "artifacts": run.artifacts,
        "steps": run.steps.iter().map(step).collect::<Vec<_>>(),
        "approval": run.approval.as_ref().map_or(Value::Null, approval),
        "approvals": run.approvals.iter().map(approval).collect::<Vec<_>>(),
        "error": error_or_null(&run.error),
        "created_at_ms": run.created_at_ms,
        "updated_at_ms": run.updated_at_ms,
    })
}

fn model_call(call: &v1::ModelCall) -> Value {
    json!({
        "at_ms": call.at_ms,
        "model": call.model,
        "status": call.status,
        "latency_ms": call.latency_ms,
        "tokens": call.tokens,
        "message": call.message,
    })
}

fn step(step: &v1::Step) -> Value {
    json!({
        "name": step.name,
        "attempt": step.attempt,
        "state": step_state(step.state()),
        "task_id": step.task_id,
        "message": step.message,
        "started_at_ms": step.started_at_ms,
        "ended_at_ms": step.ended_at_ms,
    })
}

fn attempt(attempt: &v1::Attempt) -> Value {
    json!({
        "number": attempt.number,
        "plan_hash": attempt.plan_hash,
        "rule_id": attempt.rule_id,
        "cause": attempt.cause,
        "files": attempt.files,
        "error": error_or_null(&attempt.error),
    })
}

pub fn approval(approval: &v1::Approval) -> Value {
    json!({
        "approval_id": approval.id,
        "attempt": approval.attempt,
        "plan_hash": approval.plan_hash,
        "decision": approval.decision,
        "reasons": approval.reasons,
        "approvers": approval.approvers,
        "decided_by": approval.decided_by,
        "comment": approval.comment,
        "decided_at_ms": approval.decided_at_ms,
        "expires_at_ms": approval.expires_at_ms,
    })
}

pub fn artifact(artifact: &v1::Artifact) -> Value {
    json!({
        "name": artifact.name,
        "size_bytes": artifact.size_bytes,
        "digest": artifact.digest,
        "created_at_ms": artifact.created_at_ms,
    })
}

/// Of a session.
pub fn made_artifact(artifact: &v1::Artifact) -> Value {
    json!({
        "artifact_id": artifact.id,
        "name": artifact.name,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "media_type": artifact.media_type,
        "session_id": artifact.session_id,
        "task_id": artifact.task_id,
        "created_at_ms": artifact.created_at_ms,
    })
}

/// As an outcome names it.
fn artifact_ref(artifact: &v1::ArtifactRef) -> Value {
    json!({
        "artifact_id": artifact.id,
        "name": artifact.name,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "media_type": artifact.media_type,
    })
}

pub fn stack(stack: &v1::Stack) -> Value {
    json!({"name": stack.name, "dir": stack.dir, "worker_id": stack.worker_id, "online": stack.online})
}

/// All but the value, which nobody is told.
pub fn secret(secret: &v1::Secret) -> Value {
    json!({
        "name": secret.name,
        "created_at_ms": secret.created_at_ms,
        "updated_at_ms": secret.updated_at_ms,
    })
}

pub fn template(template: &v1::Template) -> Value {
    let recipe = template.recipe.clone().unwrap_or_default();
    let limits = recipe.limits.unwrap_or_default();
    json!({
        "template_id": template.id,
        "name": template.name,
        "version": template.version,
        "tenant": template.tenant,
        "python_version": template.python_version,
        "checkpoint_id": template.checkpoint_id,
        "packages": recipe.packages,
        "files": recipe.files.iter().map(|file| &file.path).collect::<Vec<_>>(),
        "env": recipe.env,
        "labels": recipe.labels,
        "limits": {"memory_bytes": limits.memory_bytes, "exec_timeout_ms": limits.exec_timeout_ms},
        "worker_labels": recipe.worker_labels,
        "warm_up": recipe.warm_up,
        "spares": recipe.spares,
        "spares_ready": template.spares_ready,
        "created_at_ms": template.created_at_ms,
    })
}

pub fn checkpoint(checkpoint: &v1::Checkpoint) -> Value {
    let summary = checkpoint.summary.clone().unwrap_or_default();
    json!({
        "checkpoint_id": checkpoint.id,
        "name": checkpoint.name,
        "session_id": checkpoint.session_id,
        "tenant": checkpoint.tenant,
        "created_at_ms": checkpoint.created_at_ms,
        "python_version": checkpoint.python_version,
        "archive_bytes": checkpoint.archive_bytes,
        "digest": checkpoint.digest,
        "files": summary.files,
        "directories": summary.directories,
        "symlinks": summary.symlinks,
        "hard_links": summary.hard_links,
        "content_bytes": summary.content_bytes,
        "skipped": summary.skipped,
        "skipped_count": summary.skipped_count,
        "globals": summary.globals.as_ref().map(globals),
    })
}

pub fn worker(worker: &v1::Worker) -> Value {
    json!({
        "worker_id": worker.id,
        "state": worker.state,
        "incarnation": worker.incarnation,
        "version": worker.version,
        "hostname": worker.hostname,
        "capabilities": worker.capabilities,
        "sessions": worker.sessions,
        "sessions_max": worker.sessions_max,
        "running": worker.running,
        "stacks": worker.stacks,
        "labels": worker.labels,
        "last_seen_at_ms": worker.last_seen_at_ms,
        "protocol": worker.protocol,
        "draining_since_ms": worker.draining_since_ms,
        "drain_deadline_at_ms": worker.drain_deadline_at_ms,
        "drained_at_ms": worker.drained_at_ms,
        "drained_by": worker.drained_by,
        "drain_checkpoint": worker.drain_checkpoint,
        "drain_waits_for": worker.drain_waits_for,
        "refused": worker.refused.as_ref().map(error),
        "tier": worker.tier,
        "python_versions": worker.python_versions,
        "sessions_refused": worker.sessions_refused.as_ref().map(error),
    })
}

pub fn token(token: &v1::Token) -> Value {
    json!({
        "token_id": token.id,
        "tenant": token.tenant,
        "scope": token.scope,
        "name": token.name,
        "created_at_ms": token.created_at_ms,
        "expires_at_ms": token.expires_at_ms,
        "revoked": token.revoked,
        "last_used_at_ms": token.last_used_at_ms,
        "previous_until_ms": token.previous_until_ms,
    })
}

pub fn file(stat: &v1::FileStat) -> Value {
    let mut document = json!({
        "path": stat.path,
        "size_bytes": stat.size_bytes,
        "mode": format!("{:04o}", stat.mode),
        "modified_at_ms": stat.modified_at_ms,
        "kind": stat.kind,
    });
    let more = [("etag", &stat.etag), ("sha256", &stat.sha256), ("link_target", &stat.link_target)];
    for (name, text) in more.into_iter().filter(|(_, text)| !text.is_empty()) {
        document[name] = text.as_str().into();
    }
    if stat.not_utf8 {
        document["not_utf8"] = true.into();
    }
    document
}

pub fn event(event: &v1::Event) -> Value {
    let body = serde_json::from_str(&event.body).unwrap_or_else(|_| Value::from(event.body.as_str()));
    json!({
        "seq": event.seq,
        "at_ms": event.at_ms,
        "tenant": event.tenant,
        "kind": event.kind,
        "subject": event.subject,
        "body": body,
    })
}

pub fn info(info: &v1::Info) -> Value {
    json!({
        "version": info.version,
        "coordinator_epoch": info.coordinator_epoch,
        "workers_attached": info.workers_attached,
        "sessions_live": info.sessions_live,
        "tasks_queued": info.tasks_queued,
        "tasks_running": info.tasks_running,
        "tenant": info.tenant,
        "scope": info.scope,
        "last_event_seq": info.last_event_seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_words_of_the_design() {
        assert_eq!(run_state(v1::RunState::AwaitingApproval), "awaiting_approval");
        assert_eq!(task_state(v1::TaskState::TimedOut), "timed_out");
        assert_eq!(session_state(v1::SessionState::Ready), "ready");
        assert_eq!(step_state(v1::StepState::Skipped), "skipped");
    }

    #[test]
    fn output_that_is_not_text_is_base64_under_a_name_that_says_so() {
        let mut value = json!({});
        add_stream(&mut value, "stdout", b"hi\n");
        add_stream(&mut value, "stderr", &[0xff, 0]);
        assert_eq!(value, json!({"stdout": "hi\n", "stderr_base64": "/wA="}));
    }
}
