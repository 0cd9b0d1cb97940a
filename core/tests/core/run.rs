//! Runs: whatever order steps fail, people decide and cancel, a run ends in a true state and never acts unapproved.

use cooper_common::ids::{ApprovalId, RunId, TaskId};
use cooper_core::{
    Now,
    run::{Approver, Create, Next, Planned, Run, State, StepEnd, StepKind, StepState, Verdict},
};
use proptest::prelude::*;

const NOW: Now = Now { mono_ms: 0, wall_ms: 1_000 };

fn run() -> Run {
    Run::new(
        NOW,
        Create {
            id: RunId::from_u128(1),
            tenant: "t".into(),
            key: String::new(),
            stack: "s".into(),
            dir: "/s".into(),
            worker: "w".into(),
            service: "web".into(),
            instruction: String::new(),
            dry_run: false,
            spec: vec![],
        },
    )
}

fn planned(protected: bool) -> Planned {
    use StepKind::{Build, Patch, Promote, Restart, Verify};
    Planned {
        hash: "h".into(),
        cause: "c".into(),
        rule_id: "r".into(),
        files: vec!["f".into()],
        steps: [Patch, Build, Restart, Verify, Promote].map(|kind| (kind, 1)).to_vec(),
        verdict: if protected {
            Verdict::NeedsApproval {
                id: ApprovalId::from_u128(1),
                reasons: vec![],
                approvers: vec!["ann".into()],
                ttl_ms: 86_400_000,
            }
        } else {
            Verdict::Allowed
        },
    }
}

fn ann(may_approve: bool) -> Approver<'static> {
    Approver { name: "ann", may_approve }
}

/// Performs what is next; `fails` says which steps do.
fn perform(run: &mut Run, fails: &[StepKind], restored: bool) {
    run.begin();
    loop {
        match run.next() {
            Next::Start(kind) => {
                run.step_started(NOW, kind, TaskId::from_u128(kind as u128 + 1));
                let ok = !fails.contains(&kind);
                run.step_ended(NOW, kind, StepEnd { ok, restored, ..StepEnd::default() });
            }
            Next::Plan => run.planned(NOW, planned(false)),
            Next::Wait | Next::Done => return,
        }
    }
}

#[test]
fn a_run_whose_steps_succeed_succeeds() {
    let mut run = run();
    perform(&mut run, &[], true);
    assert_eq!(run.body.state, State::Succeeded);
}

#[test]
fn a_failed_step_rolls_back_and_a_failed_rollback_says_so() {
    for kind in [StepKind::Build, StepKind::Restart, StepKind::Verify, StepKind::Promote] {
        let mut restored = run();
        perform(&mut restored, &[kind], true);
        assert_eq!(restored.body.state, State::RolledBack, "{kind:?}");
        let mut not = run();
        perform(&mut not, &[kind], false);
        assert_eq!(not.body.state, State::RollbackFailed, "{kind:?}");
    }
}

#[test]
fn i8_nothing_starts_before_the_named_approver_decided_about_this_plan() {
    let mut run = run();
    run.begin();
    run.step_started(NOW, StepKind::Analyze, TaskId::from_u128(1));
    run.step_ended(NOW, StepKind::Analyze, StepEnd { ok: true, ..StepEnd::default() });
    run.planned(NOW, planned(true));
    assert_eq!(run.next(), Next::Wait);
    let bob = Approver { name: "bob", may_approve: true };
    assert!(run.decide(NOW, true, bob, "", "").is_err(), "not named");
    assert!(run.decide(NOW, true, ann(false), "", "").is_err(), "without the role");
    assert!(run.decide(NOW, true, ann(true), "", "another").is_err(), "about another plan");
    assert_eq!(run.next(), Next::Wait);
    run.decide(NOW, true, ann(true), "", "h").expect("named, with the role, about this plan");
    assert_eq!(run.next(), Next::Start(StepKind::Patch));
}

#[test]
fn an_approval_that_nobody_gave_expires_and_cannot_be_given_after() {
    let mut run = run();
    run.begin();
    run.step_started(NOW, StepKind::Analyze, TaskId::from_u128(1));
    run.step_ended(NOW, StepKind::Analyze, StepEnd { ok: true, ..StepEnd::default() });
    run.planned(NOW, planned(true));
    let late = Now { mono_ms: 0, wall_ms: i64::MAX };
    assert!(run.decide(late, true, ann(true), "", "").is_err());
    assert_eq!(run.body.state, State::Expired);
}

proptest! {
    /// Terminal states absorb; a run that touched something ends restored, succeeded, or says that it could not restore.
    #[test]
    fn a_run_ends_in_a_true_state(
        fails in prop::collection::vec(0usize..7, 0..3),
        cancel_after in 0usize..8,
        cancels in any::<bool>(),
        protected in any::<bool>(),
        approve in any::<bool>(),
        restored in any::<bool>(),
    ) {
        let fails: Vec<StepKind> = fails.into_iter().map(|i| StepKind::ALL[i]).collect();
        let mut run = run();
        run.begin();
        let mut touched = false;
        for turn in 0..32 {
            if cancels && turn == cancel_after && let Some(_task) = run.cancel() {}
            match run.next() {
                Next::Start(kind) => {
                    touched |= kind == StepKind::Restart;
                    prop_assert!(run.approval.as_ref().is_none_or(|a| a.decision == cooper_core::run::Decision::Approved
                        || kind == StepKind::Analyze));
                    run.step_started(NOW, kind, TaskId::from_u128(turn as u128 + 1));
                    if cancels && turn == cancel_after {
                        run.cancel();
                    }
                    run.step_ended(NOW, kind, StepEnd { ok: !fails.contains(&kind), restored, ..StepEnd::default() });
                }
                Next::Plan => run.planned(NOW, planned(protected)),
                Next::Wait if run.body.state == State::AwaitingApproval => {
                    run.decide(NOW, approve, ann(true), "", "h").expect("it waits");
                }
                Next::Wait | Next::Done => break,
            }
        }
        let state = run.body.state;
        prop_assert!(state.ended(), "{state:?}: {:?}", run.steps);
        prop_assert!(run.steps.iter().all(|s| !matches!(s.state, StepState::Pending | StepState::Running)));
        if touched && state != State::Succeeded {
            prop_assert!(
                run.step(StepKind::Rollback).is_some_and(|s| s.state != StepState::Skipped),
                "{state:?} after a restart, and no rollback"
            );
        }
        let before = state;
        run.cancel();
        run.begin();
        run.fail("x", "x");
        prop_assert_eq!(run.body.state, before);
    }
}
