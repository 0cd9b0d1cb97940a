//! A run as rows: itself, its steps and its approvals, each with a version of its own.

use cooper_common::ids::RunId;

use super::{Approval, Decision, Run, Step, StepState};
use crate::{
    Now,
    change::{Aggregate, Change, NewEvent, Row, Version},
};

impl Run {
    /// A run as it was stored, with the rows whose parent it is.
    pub fn restore(
        id: RunId,
        version: Version,
        row: Row,
        steps: Vec<(String, Version, Row)>,
        approvals: Vec<(Version, Row)>,
    ) -> Result<Self, serde_json::Error> {
        let mut loaded = Vec::new();
        for (id, version, row) in steps {
            // Older rows are called `run/kind`, and stay so.
            loaded.push(Step { row: id, version, ..serde_json::from_str(&row.body)? });
        }
        loaded.sort_by_key(|step: &Step| (step.attempt, step.place, step.kind));
        let mut decided = Vec::new();
        for (version, row) in approvals {
            decided.push(Approval { version, ..serde_json::from_str(&row.body)? });
        }
        decided.sort_by_key(|approval: &Approval| approval.attempt);
        Ok(Self {
            id,
            tenant: row.tenant.into(),
            key: row.key,
            created_ms: row.created_ms,
            version,
            body: serde_json::from_str(&row.body)?,
            steps: loaded,
            approvals: decided,
            spec: None,
            events: Vec::new(),
        })
    }

    /// Everything since the last call: the run's row, and those of its steps and approvals that changed.
    pub fn take_changes(&mut self, now: Now) -> Vec<Change> {
        let run = self.id.to_string();
        let tenant = self.tenant.to_string();
        let row = |id: &str, expected: Version, state: &str, ended: bool, body: String, aggregate| Change {
            aggregate,
            id: id.to_owned(),
            expected,
            row: Row {
                tenant: tenant.clone(),
                state: state.to_owned(),
                ended,
                parent: run.clone(),
                created_ms: now.wall_ms,
                updated_ms: now.wall_ms,
                body,
                ..Row::default()
            },
            events: Vec::new(),
            output: Vec::new(),
        };
        let mut changes = Vec::new();
        let ended = self.body.state.ended();
        let mut own = row(
            &run,
            self.version,
            self.body.state.as_str(),
            ended,
            serde_json::to_string(&self.body).unwrap_or_default(),
            Aggregate::Run,
        );
        own.row.parent = self.body.stack.clone();
        own.row.key = self.key.clone();
        own.row.created_ms = self.created_ms;
        own.row.spec = self.spec.take();
        own.events = self.events.drain(..).map(|(kind, body)| NewEvent { kind, body }).collect();
        self.version += 1;
        changes.push(own);
        for step in &mut self.steps {
            if std::mem::take(&mut step.touched) {
                let body = serde_json::to_string(step).unwrap_or_default();
                let over =
                    matches!(step.state, StepState::Succeeded | StepState::Failed | StepState::Skipped);
                changes.push(row(&step.row, step.version, step.state.as_str(), over, body, Aggregate::Step));
                step.version += 1;
            }
        }
        for approval in &mut self.approvals {
            if !std::mem::take(&mut approval.touched) {
                continue;
            }
            let body = serde_json::to_string(approval).unwrap_or_default();
            let over = approval.decision != Decision::Pending;
            let mut change = row(
                &approval.id.to_string(),
                approval.version,
                approval.decision.as_str(),
                over,
                body,
                Aggregate::Approval,
            );
            change.events.push(NewEvent {
                kind: format!("approval.{}", approval.decision.as_str()),
                body: serde_json::json!({"run": run, "plan_hash": approval.plan_hash, "by": approval.decided_by})
                    .to_string(),
            });
            changes.push(change);
            approval.version += 1;
        }
        changes
    }
}
