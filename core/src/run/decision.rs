//! Decisions of people about plans (I8).

use cooper_common::{
    error::{Code, Error, Result},
    ids::ApprovalId,
};
use serde::{Deserialize, Serialize};

use super::{Decision, Run, State};
use crate::{Now, change::Version};

/// A decision bound to one plan hash (I8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub id: ApprovalId,
    /// The attempt whose plan it is.
    #[serde(default = "super::first")]
    pub attempt: u32,
    pub plan_hash: String,
    pub decision: Decision,
    pub reasons: Vec<String>,
    pub approvers: Vec<String>,
    #[serde(default)]
    pub decided_by: String,
    #[serde(default)]
    pub comment: String,
    #[serde(default)]
    pub decided_ms: i64,
    pub expires_ms: i64,
    #[serde(skip)]
    pub(super) version: Version,
    #[serde(skip)]
    pub(super) touched: bool,
}

/// Who decides about a plan.
#[derive(Debug, Clone, Copy)]
pub struct Approver<'a> {
    pub name: &'a str,
    /// Scope operator or admin.
    pub may_approve: bool,
}

impl Approval {
    pub(super) fn new(
        id: ApprovalId,
        attempt: u32,
        plan_hash: String,
        reasons: Vec<String>,
        approvers: Vec<String>,
        expires_ms: i64,
    ) -> Self {
        Self {
            id,
            attempt,
            plan_hash,
            decision: Decision::Pending,
            reasons,
            approvers,
            decided_by: String::new(),
            comment: String::new(),
            decided_ms: 0,
            expires_ms,
            version: 0,
            touched: true,
        }
    }
}

impl Run {
    /// The newest approval: of the attempt that goes on, if that needs one.
    pub fn approval(&self) -> Option<&Approval> {
        self.approvals.last()
    }

    fn pending(&mut self) -> Option<&mut Approval> {
        let waits = self.body.state == State::AwaitingApproval;
        self.approvals.last_mut().filter(|_| waits)
    }

    /// A person decides (I8).
    ///
    /// # Errors
    /// `not_awaiting_approval`, `plan_changed`, `forbidden`.
    pub fn decide(
        &mut self,
        now: Now,
        approve: bool,
        approver: Approver<'_>,
        comment: &str,
        plan_hash: &str,
    ) -> Result<()> {
        self.expire(now);
        let state = self.body.state;
        let id = self.id;
        let Some(approval) = self.pending() else {
            return Err(Error::new(
                Code::NotAwaitingApproval,
                format!("run {id} is {} and waits for no decision", state.as_str()),
            ));
        };
        if !plan_hash.is_empty() && plan_hash != approval.plan_hash {
            return Err(Error::new(Code::PlanChanged, format!("the plan of run {id} is another one now")));
        }
        let named =
            approval.approvers.is_empty() || approval.approvers.iter().any(|name| name == approver.name);
        if !approver.may_approve || !named {
            return Err(Error::new(
                Code::Forbidden,
                format!("{:?} may not decide about run {id}", approver.name),
            )
            .with_hint(if approval.approvers.is_empty() {
                "use a token with scope operator or admin".to_owned()
            } else {
                format!("one of these may: {}", approval.approvers.join(", "))
            }));
        }
        approval.decision = if approve { Decision::Approved } else { Decision::Rejected };
        approval.decided_by = approver.name.to_owned();
        approval.comment = comment.to_owned();
        approval.decided_ms = now.wall_ms;
        approval.touched = true;
        if approve {
            self.to(State::Running);
        } else {
            let reason = format!("rejected by {}", approver.name);
            self.end(State::Rejected, "rejected", reason);
        }
        Ok(())
    }

    /// When the approval that the run waits for expires, if it waits for one.
    pub fn expires_ms(&self) -> Option<i64> {
        let waits = self.body.state == State::AwaitingApproval;
        self.approval().filter(|_| waits).map(|approval| approval.expires_ms)
    }

    /// The run ends before anybody has decided.
    pub(super) fn cancel_approval(&mut self) {
        let pending = |it: &&mut Approval| it.decision == Decision::Pending;
        if let Some(approval) = self.approvals.last_mut().filter(pending) {
            approval.decision = Decision::Cancelled;
            approval.touched = true;
        }
    }

    /// Ends a run whose approval nobody gave in time. True if it did.
    pub fn expire(&mut self, now: Now) -> bool {
        let Some(approval) = self.pending().filter(|approval| now.wall_ms >= approval.expires_ms) else {
            return false;
        };
        approval.decision = Decision::Expired;
        approval.touched = true;
        self.end(State::Expired, "expired", "nobody decided in time");
        true
    }
}
