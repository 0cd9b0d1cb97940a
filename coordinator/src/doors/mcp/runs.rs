//! Tools for repairs of services of compose stacks.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use cooper_proto::v1::{self, RunState, watch_run_response::Event};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    artifacts,
    call::{Call, deadline, said},
    files::page,
    sessions::word,
    tool::{ADDS, Hints, READS, REPLACES, RUNS, Reply, Tool},
};

/// Makes a plan and touches nothing.
const PLANS: Hints = ADDS;

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "stack_list",
            READS,
            "List the Docker Compose stacks that can be repaired, and whether the worker that has them is there.",
            stacks,
        ),
        Tool::new(
            "repair_diagnose",
            PLANS,
            "Find out why a service of a stack fails, and what would repair it, without touching anything. Give `log` \
             to have that diagnosed instead of what is collected from the service. The answer has the `cause`, the files \
             that would change and the run's id: see repair_plan for the diff, repair_start to carry it out.",
            diagnose,
        ),
        Tool::new(
            "repair_plan",
            READS,
            "The plan of a run as a person reviews it: cause, diffs, steps with their commands, risk, who may approve, \
             how it is verified and what is done on failure.",
            plan,
        ),
        Tool::new(
            "repair_start",
            RUNS,
            "Repair a service of a stack: diagnose, patch a staged copy, build, restart, verify; anything that fails is \
             rolled back. Answers at once with a run; go on with run_wait. Plans that policy does not allow by \
             themselves wait for a person's approval (state awaiting_approval).",
            start,
        ),
        Tool::new("run_status", READS, "How a repair run is: its state, steps, cause, approval and artifacts.", status),
        Tool::new(
            "run_wait",
            READS,
            "Wait until a repair run has ended or waits for an approval, and say how it is then.",
            wait,
        ),
        Tool::new("run_list", READS, "List repair runs, newest first.", list),
        Tool::new(
            "run_artifact",
            READS,
            "Read an artifact of a repair run, e.g. plan.json, patch.diff, build.log or verify.log. run_status names \
             those that are there.",
            artifact,
        ),
        Tool::new(
            "run_cancel",
            REPLACES,
            "Cancel a repair run. What it has changed is rolled back.",
            cancel,
        ),
        Tool::new(
            "approval_list",
            READS,
            "List plans that wait for a person's approval, or that were decided. Only tokens of operators decide.",
            approvals,
        ),
        Tool::new(
            "approval_decide",
            RUNS,
            "Approve or reject the plan that a run waits for. Read it with repair_plan first and give its `plan_hash`.",
            decide,
        )
        .for_operators(),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Diagnose {
    /// Name of the service in the compose file.
    service: String,
    /// Name of the stack; by default the only one there is.
    stack: Option<String>,
    /// A log to diagnose.
    log: Option<String>,
    /// What to do instead of finding out, e.g. "add package requests".
    instruction: Option<String>,
    /// How long to wait for the diagnosis; 50000 by default, at most 600000.
    wait_ms: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Start {
    /// Name of the service in the compose file.
    service: String,
    /// Name of the stack; by default the only one there is.
    stack: Option<String>,
    /// A log to diagnose instead of what is collected.
    log: Option<String>,
    /// What to do instead of finding out, e.g. "add package requests".
    instruction: Option<String>,
    /// Starting again with the same key answers with the same run.
    idempotency_key: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    run_id: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wait {
    run_id: String,
    /// 50000 by default, at most 600000.
    wait_ms: Option<u64>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct List {
    /// At most so many; 20 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Decided {
    /// Also those that were decided.
    all: bool,
    /// At most so many; 20 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedArtifact {
    run_id: String,
    /// e.g. "patch.diff".
    name: String,
    /// First byte to read.
    #[serde(default)]
    offset_bytes: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Decide {
    run_id: String,
    /// true approves, false rejects.
    approve: bool,
    /// Why; shown with the decision.
    comment: Option<String>,
    /// Of the plan that was read: if the run has another by now, nothing is decided.
    plan_hash: String,
}

#[derive(Serialize, JsonSchema)]
struct Stacks {
    stacks: Vec<Stack>,
}
#[derive(Serialize, JsonSchema)]
struct Stack {
    name: String,
    /// Its worker is there.
    online: bool,
}
impl Reply for Stacks {}

#[derive(Serialize, JsonSchema)]
struct Run {
    run_id: String,
    stack: String,
    service: String,
    /// queued, planning, awaiting_approval, running, rolling_back, succeeded, rolled_back, rollback_failed, failed,
    /// rejected, expired, cancelled or refused.
    state: String,
    /// The state is one of an end.
    ended: bool,
    /// Nothing is touched: it ends with the plan.
    dry_run: bool,
    /// What is wrong, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    cause: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    rule_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    plan_hash: String,
    /// What the plan changes, relative to the stack.
    files: Vec<String>,
    steps: Vec<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<Approval>,
    /// Why it is in this state, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Why>,
    /// Names for run_artifact.
    artifacts: Vec<String>,
    created_at_ms: i64,
}
impl Reply for Run {}

#[derive(Serialize, JsonSchema)]
struct Step {
    name: String,
    /// pending, running, succeeded, failed or skipped.
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Serialize, JsonSchema)]
struct Approval {
    /// pending, approved, rejected, expired or cancelled.
    decision: String,
    /// Why one is needed.
    reasons: Vec<String>,
    /// Who may decide; none = any operator.
    approvers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    decided_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
    expires_at_ms: i64,
}

#[derive(Serialize, JsonSchema)]
struct Why {
    code: String,
    message: String,
    hint: String,
}

impl From<v1::Approval> for Approval {
    fn from(approval: v1::Approval) -> Self {
        let v1::Approval { decision, reasons, approvers, decided_by, comment, expires_at_ms, .. } = approval;
        Self { decision, reasons, approvers, decided_by, comment, expires_at_ms }
    }
}

impl From<v1::Run> for Run {
    fn from(run: v1::Run) -> Self {
        let state = run.state();
        let steps = run.steps.iter().map(|step| Step {
            name: step.name.clone(),
            state: word(step.state().as_str_name(), "STEP_STATE_"),
            message: step.message.clone(),
        });
        Self {
            state: word(state.as_str_name(), "RUN_STATE_"),
            ended: has_ended(state),
            steps: steps.collect(),
            run_id: run.id,
            stack: run.stack,
            service: run.service,
            dry_run: run.dry_run,
            cause: run.cause,
            rule_id: run.rule_id,
            plan_hash: run.plan_hash,
            files: run.files,
            approval: run.approval.map(Approval::from),
            error: run.error.map(|v1::Error { code, message, hint }| Why { code, message, hint }),
            artifacts: run.artifacts,
            created_at_ms: run.created_at_ms,
        }
    }
}

fn has_ended(state: RunState) -> bool {
    !matches!(
        state,
        RunState::Unspecified
            | RunState::Queued
            | RunState::Planning
            | RunState::AwaitingApproval
            | RunState::Running
            | RunState::RollingBack
    )
}

#[derive(Serialize, JsonSchema)]
struct Runs {
    runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Runs {}

#[derive(Serialize, JsonSchema)]
struct Plan {
    run_id: String,
    /// What an approval is bound to.
    plan_hash: String,
    review: Map<String, Value>,
}
impl Reply for Plan {}

#[derive(Serialize, JsonSchema)]
struct Approvals {
    approvals: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
#[derive(Serialize, JsonSchema)]
struct Listed {
    run_id: String,
    stack: String,
    service: String,
    cause: String,
    files: Vec<String>,
    plan_hash: String,
    /// This token may decide about it.
    may_decide: bool,
    approval: Approval,
}
impl Reply for Approvals {}

#[derive(Serialize, JsonSchema)]
struct Content {
    run_id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Where it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    size_bytes: u64,
    next_offset_bytes: u64,
    /// It goes on at `next_offset_bytes`.
    truncated: bool,
}
impl Reply for Content {
    fn content(&self) -> Vec<ContentBlock> {
        let mut said = self.text.clone().or_else(|| self.base64.clone()).unwrap_or_default();
        if self.truncated {
            let (next, size) = (self.next_offset_bytes, self.size_bytes);
            said.push_str(&format!("\n[cut at byte {next} of {size}: read on at offset_bytes {next}]"));
        }
        vec![ContentBlock::text(said)]
    }
}

async fn stacks(call: Call, _: Nothing) -> Result<Stacks> {
    let listed = call.runs().list_stacks(call.by(v1::ListStacksRequest {})).await.map_err(said)?.into_inner();
    let stacks = listed.stacks.into_iter().map(|stack| Stack { name: stack.name, online: stack.online });
    Ok(Stacks { stacks: stacks.collect() })
}

async fn diagnose(call: Call, asked: Diagnose) -> Result<Run> {
    let until = deadline(asked.wait_ms)?;
    let request = v1::CreateRunRequest {
        stack: asked.stack.unwrap_or_default(),
        service: asked.service,
        log: asked.log.unwrap_or_default().into_bytes(),
        instruction: asked.instruction.unwrap_or_default(),
        dry_run: true,
        ..Default::default()
    };
    let run = call.runs().create_run(call.by(request)).await.map_err(said)?.into_inner();
    settled(&call, run.id, until).await
}

async fn start(call: Call, asked: Start) -> Result<Run> {
    let request = v1::CreateRunRequest {
        idempotency_key: asked.idempotency_key.unwrap_or_default(),
        stack: asked.stack.unwrap_or_default(),
        service: asked.service,
        log: asked.log.unwrap_or_default().into_bytes(),
        instruction: asked.instruction.unwrap_or_default(),
        ..Default::default()
    };
    Ok(call.runs().create_run(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn status(call: Call, asked: Named) -> Result<Run> {
    let request = v1::GetRunRequest { run_id: asked.run_id };
    Ok(call.runs().get_run(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn wait(call: Call, asked: Wait) -> Result<Run> {
    let until = deadline(asked.wait_ms)?;
    settled(&call, asked.run_id, until).await
}

/// How a run is once it goes on by itself no more, or when this has waited long enough. What it says meanwhile is progress.
async fn settled(call: &Call, run_id: String, until: tokio::time::Instant) -> Result<Run> {
    let watch = v1::WatchRunRequest { run_id: run_id.clone(), resume: None };
    let mut events = call.runs().watch_run(call.by(watch)).await.map_err(said)?.into_inner();
    let mut told = String::new();
    loop {
        let event = tokio::select! {
            () = call.cancelled.cancelled() => {
                return Err(Error::new(Code::Cancelled, "the call was cancelled; the run goes on"));
            }
            event = events.message() => event.map_err(said)?,
            () = tokio::time::sleep_until(until) => break,
        };
        let Some(event) = event else { break };
        if let Some(Event::Run(run)) = event.event {
            if has_ended(run.state()) || run.state() == RunState::AwaitingApproval {
                return Ok(run.into());
            }
            let step = run.steps.iter().rev().find(|step| step.state() == v1::StepState::Running);
            let state = word(run.state().as_str_name(), "RUN_STATE_");
            let now = step.map_or(state, |step| step.name.clone());
            if told != now {
                call.progress(Some(now.clone())).await;
                told = now;
            }
        }
    }
    let request = v1::GetRunRequest { run_id };
    Ok(call.runs().get_run(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn plan(call: Call, asked: Named) -> Result<Plan> {
    let request = v1::GetPlanRequest { run_id: asked.run_id, attempt: 0 };
    let plan = call.runs().get_plan(call.by(request)).await.map_err(said)?.into_inner();
    let review =
        serde_json::from_str(&plan.review_json).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Plan { run_id: plan.run_id, plan_hash: plan.plan_hash, review })
}

async fn list(call: Call, asked: List) -> Result<Runs> {
    let limit = page(asked.limit, 20, limits::mcp::LISTED_MAX)?;
    let request = v1::ListRunsRequest {
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        ..Default::default()
    };
    let listed = call.runs().list_runs(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    Ok(Runs { runs: listed.runs.into_iter().map(Run::from).collect(), next_cursor })
}

async fn artifact(call: Call, asked: NamedArtifact) -> Result<Content> {
    let request = v1::ReadArtifactRequest {
        run_id: asked.run_id.clone(),
        name: asked.name.clone(),
        ..Default::default()
    };
    let all = artifacts::read(&call, request, usize::MAX).await?.1;
    let first = usize::try_from(asked.offset_bytes).map_or(all.len(), |first| first.min(all.len()));
    let last = (first + limits::mcp::READ_BYTES_MAX).min(all.len());
    let (text, base64) = match std::str::from_utf8(&all) {
        Ok(_) => (Some(String::from_utf8_lossy(&all[first..last]).into_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(&all[first..last]))),
    };
    Ok(Content {
        run_id: asked.run_id,
        name: asked.name,
        text,
        base64,
        size_bytes: all.len() as u64,
        next_offset_bytes: last as u64,
        truncated: last < all.len(),
    })
}

async fn cancel(call: Call, asked: Named) -> Result<Run> {
    let request = v1::CancelRunRequest { run_id: asked.run_id, ..Default::default() };
    Ok(call.runs().cancel_run(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn approvals(call: Call, asked: Decided) -> Result<Approvals> {
    let limit = page(asked.limit, 20, limits::mcp::LISTED_MAX)?;
    let request = v1::ListApprovalsRequest {
        page: Some(v1::Page { limit, cursor: asked.cursor.unwrap_or_default() }),
        decisions: if asked.all { Vec::new() } else { vec!["pending".to_owned()] },
    };
    let listed = call.runs().list_approvals(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    let approvals = listed.approvals.into_iter().map(|listed| {
        let approval = listed.approval.unwrap_or_default();
        Listed {
            run_id: listed.run_id,
            stack: listed.stack,
            service: listed.service,
            cause: listed.cause,
            files: listed.files,
            plan_hash: approval.plan_hash.clone(),
            may_decide: listed.may_decide,
            approval: approval.into(),
        }
    });
    Ok(Approvals { approvals: approvals.collect(), next_cursor })
}

async fn decide(call: Call, asked: Decide) -> Result<Run> {
    let request = v1::DecideRunRequest {
        run_id: asked.run_id,
        approve: asked.approve,
        comment: asked.comment.unwrap_or_default(),
        plan_hash: asked.plan_hash,
        ..Default::default()
    };
    Ok(call.runs().decide_run(call.by(request)).await.map_err(said)?.into_inner().into())
}
