//! Runs that begin another over again, or take it back. Each is a run of its own that names the other: the other's end,
//! its approvals and its artifacts stay what they are.

use cooper_common::{
    error::{Code, Error, Result},
    ids::RunId,
};
use cooper_core::{
    change::Aggregate,
    run::{Origin, Run, State, StepKind},
};
use cooper_proto::v1;
use prost::Message as _;

use super::{Beginning, Loaded, Runs};
use crate::{caller::Caller, store::Filter};

/// Runs that are looked through at once for what came after one.
const LOOKED_THROUGH: usize = 100;

fn not_retryable(message: String) -> Error {
    Error::new(Code::NotRetryable, message)
}

fn not_undoable(message: String) -> Error {
    Error::new(Code::NotUndoable, message)
}

/// From which step on, if that is safe.
fn from_step(run: &Run, name: &str) -> Result<Option<StepKind>> {
    let id = run.id;
    let conflicts = run.body.state == State::Succeeded && run.body.promotion == "conflict";
    let kind = StepKind::ALL.iter().find(|kind| kind.as_str() == name);
    match (kind, run.body.state) {
        _ if !run.body.state.ended() => Err(not_retryable(format!("run {id} has not ended"))),
        _ if matches!(run.body.origin, Origin::Undo { .. }) => {
            Err(not_retryable(format!("run {id} is an undo: undo that run once more")))
        }
        (_, State::RollbackFailed) => Err(not_retryable(format!(
            "run {id} could not restore everything: first put right by hand what its error says"
        ))),
        (None, _) if !name.is_empty() => {
            let known: Vec<_> = StepKind::ALL.iter().map(|kind| kind.as_str()).collect();
            Err(Error::invalid(format!("{name:?} is no step; there are {}", known.join(", "))))
        }
        (Some(StepKind::Verify | StepKind::Promote), _) if conflicts => Ok(kind.copied()),
        (Some(StepKind::Verify | StepKind::Promote), _) => Err(not_retryable(format!(
            "run {id} is {} and left nothing that could be gone on with from {name}: that is so after a promotion conflict",
            run.body.state.as_str()
        ))),
        (Some(_), _) => Err(not_retryable(format!(
            "a run cannot be gone on with from {name}: what that needs is removed when a run ends"
        ))),
        (None, State::Succeeded) if !run.body.dry_run && !conflicts => {
            Err(not_retryable(format!("run {id} has succeeded: there is nothing to do again")))
        }
        (None, _) => Ok(None),
    }
}

impl Runs {
    /// Begins a run that has ended over again.
    pub async fn retry(&self, caller: &Caller, request: v1::RetryRunRequest) -> Result<Loaded> {
        let run = self.get(caller, &request.run_id).await?.run;
        let from = from_step(&run, &request.from_step)?;
        let record = self.cluster.store.get(Aggregate::Run, &run.id.to_string()).await?;
        let spec = record.and_then(|record| record.row.spec).unwrap_or_default();
        let asked = v1::CreateRunRequest::decode(&*spec).unwrap_or_default();
        let asked = v1::CreateRunRequest {
            stack: run.body.stack.clone(),
            service: run.body.service.clone(),
            idempotency_key: request.idempotency_key,
            dry_run: asked.dry_run && from.is_none(),
            // A person asks.
            automatic: false,
            recurring: 0,
            ..asked
        };
        let needs_approval = run.body.needs_approval;
        let origin = Origin::Retry { of: run.id, from };
        self.begin(caller, asked, Beginning { origin, needs_approval, ..Beginning::default() }).await
    }

    /// Takes a run back that has succeeded.
    pub async fn undo(&self, caller: &Caller, request: v1::UndoRunRequest) -> Result<Loaded> {
        let run = self.get(caller, &request.run_id).await?.run;
        let (id, key) = (run.id, request.idempotency_key);
        let state = run.body.state;
        if matches!(run.body.origin, Origin::Undo { .. }) {
            return Err(not_undoable(format!("run {id} is an undo itself: repair the service again")));
        }
        if state != State::Succeeded || run.body.dry_run {
            let is = if run.body.dry_run { "a dry run" } else { state.as_str() };
            return Err(not_undoable(format!("run {id} is {is}: it has changed nothing that stayed")));
        }
        let begun = if key.is_empty() {
            None
        } else {
            self.cluster.store.by_key(Aggregate::Run, Some(&caller.tenant), &key).await?
        };
        if begun.is_none() {
            self.check_newest(caller, &run).await?;
        }
        let asked = v1::CreateRunRequest {
            stack: run.body.stack.clone(),
            service: run.body.service.clone(),
            idempotency_key: key,
            ..v1::CreateRunRequest::default()
        };
        let (origin, needs_approval) = (Origin::Undo { of: id }, run.body.needs_approval);
        self.begin(caller, asked, Beginning { origin, needs_approval, ..Beginning::default() }).await
    }

    /// Refuses where another run has changed the service since.
    async fn check_newest(&self, caller: &Caller, run: &Run) -> Result<()> {
        let mut undone: Vec<RunId> = Vec::new();
        let mut before = None;
        loop {
            let filter = Filter {
                tenant: Some(caller.tenant.to_string()),
                parent: Some(run.body.stack.clone()),
                states: vec![State::Succeeded.as_str().to_owned()],
                before,
                limit: LOOKED_THROUGH,
                ..Filter::default()
            };
            let page = self.cluster.store.list(Aggregate::Run, filter).await?;
            for record in page.records {
                let later = super::load(&*self.cluster.store, record).await?.run;
                if later.id <= run.id {
                    return Ok(());
                }
                if later.lock() != run.lock() || later.body.dry_run {
                    continue;
                }
                match later.body.origin {
                    Origin::Undo { of } if of == run.id => {
                        return Err(not_undoable(format!("run {of} was taken back by run {}", later.id)));
                    }
                    Origin::Undo { of } => undone.push(of),
                    Origin::Repair | Origin::Retry { .. } if undone.contains(&later.id) => {}
                    Origin::Repair | Origin::Retry { .. } => {
                        return Err(not_undoable(format!(
                            "run {} has changed {} since: take that back first",
                            later.id, run.body.service
                        )));
                    }
                }
            }
            before = page.next;
            if before.is_none() {
                return Ok(());
            }
        }
    }

    /// The undo that an instruction asks for, if it asks for one.
    pub(super) fn undo_asked(&self, request: &v1::CreateRunRequest) -> Option<v1::UndoRunRequest> {
        let run_id = cooper_repair::diagnosis::undo_asked(self.settings.rules.set(), &request.instruction)?;
        Some(v1::UndoRunRequest { run_id, idempotency_key: request.idempotency_key.clone() })
    }
}
