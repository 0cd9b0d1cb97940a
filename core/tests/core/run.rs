//! Runs: whatever order steps fail, people decide and cancel, a run ends in a true state and never acts unapproved.

use std::collections::BTreeMap;

use cooper_common::ids::{ApprovalId, RunId, TaskId};
use cooper_core::{
    Now,
    change::{Aggregate, Row},
    run::{
        Approver, Create, Decision, Next, Origin, Planned, Run, State, StepEnd, StepKind, StepState, Verdict,
    },
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
            automatic: false,
            trigger: String::new(),
            recurring: 0,
            priority: 0,
            origin: Origin::Repair,
            needs_approval: false,
            spec: vec![],
        },
    )
}

fn planned(protected: bool) -> Planned {
    attempt(protected, 1, 1)
}

/// A plan whose fix has this number, in a run of at most so many attempts.
fn attempt(protected: bool, fix: u32, max_attempts: u32) -> Planned {
    use StepKind::{Build, Patch, Promote, Restart, Verify};
    Planned {
        hash: format!("h{fix}"),
        cause: "c".into(),
        rule_id: "r".into(),
        files: vec!["f".into()],
        fix: format!("fix {fix}"),
        max_attempts,
        approval: ApprovalId::from_u128(u128::from(fix)),
        approval_ttl_ms: 86_400_000,
        steps: [Patch, Build, Restart, Verify, Promote].map(|kind| (kind, 1)).to_vec(),
        verdict: if protected {
            Verdict::NeedsApproval { reasons: vec![], approvers: vec!["ann".into()] }
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
    run.decide(NOW, true, ann(true), "", "h1").expect("named, with the role, about this plan");
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

/// Performs the next step, which must be this one.
fn step(run: &mut Run, kind: StepKind, end: StepEnd) {
    assert_eq!(run.next(), Next::Start(kind));
    run.step_started(NOW, kind, TaskId::from_u128(1));
    run.step_ended(NOW, kind, end);
}

fn ok() -> StepEnd {
    StepEnd { ok: true, restored: true, ..StepEnd::default() }
}

/// Fails, and shows why.
fn shown(message: &str) -> StepEnd {
    StepEnd { code: "verify_failed".into(), message: message.into(), shown: true, ..StepEnd::default() }
}

/// An attempt up to its verification.
fn until_verify(run: &mut Run, planned: Planned) {
    step(run, StepKind::Analyze, ok());
    run.planned(NOW, planned);
    for kind in [StepKind::Patch, StepKind::Build, StepKind::Restart] {
        step(run, kind, ok());
    }
}

#[test]
fn what_failed_is_rolled_back_and_followed_by_an_attempt_with_a_plan_of_its_own() {
    let mut run = run();
    run.begin();
    until_verify(&mut run, attempt(false, 1, 3));
    step(&mut run, StepKind::Verify, shown("it died"));
    assert_eq!(run.body.state, State::RollingBack);
    step(&mut run, StepKind::Rollback, ok());
    assert_eq!((run.body.state, run.body.attempt), (State::Planning, 2));
    until_verify(&mut run, attempt(false, 2, 3));
    step(&mut run, StepKind::Verify, ok());
    step(&mut run, StepKind::Promote, StepEnd { promotion: "promoted".into(), ..ok() });
    assert_eq!(run.body.state, State::Succeeded);
    assert_eq!(run.body.plan_hash, "h2");
    let of_first = run.steps.iter().filter(|step| step.attempt == 1).map(|step| step.kind);
    use StepKind::{Analyze, Build, Patch, Promote, Restart, Rollback, Verify};
    assert_eq!(of_first.collect::<Vec<_>>(), [Analyze, Patch, Build, Restart, Verify, Promote, Rollback]);
    assert_eq!(run.artifact_name("patch.diff"), "attempt-2/patch.diff");
}

#[test]
fn a_run_without_a_new_idea_ends_with_its_first_reason_and_what_was_tried() {
    for last in ["refused", "failed", "the same fix", "policy"] {
        let mut run = run();
        run.begin();
        until_verify(&mut run, attempt(false, 1, 3));
        step(&mut run, StepKind::Verify, shown("it died"));
        step(&mut run, StepKind::Rollback, ok());
        step(&mut run, StepKind::Analyze, ok());
        match last {
            "refused" => run.refuse(cooper_common::error::Code::NoDiagnosis, "nothing explains it"),
            "failed" => run.fail("internal", "it could not be planned"),
            "policy" => {
                let verdict = Verdict::Refused(vec!["never".into()]);
                run.planned(NOW, Planned { verdict, ..attempt(false, 2, 3) });
            }
            _ => run.planned(NOW, attempt(false, 1, 3)),
        }
        assert_eq!(run.body.state, State::RolledBack, "{last}");
        let reason = run.body.reason.clone().expect("a reason");
        assert_eq!(reason.code, "verify_failed", "{last}");
        assert!(reason.message.starts_with("it died; attempt 2 was not made: "), "{}", reason.message);
    }
}

#[test]
fn i8_where_the_first_attempt_needed_an_approval_so_does_the_next_although_policy_alone_would_not() {
    let mut run = run();
    run.begin();
    step(&mut run, StepKind::Analyze, ok());
    run.planned(NOW, attempt(true, 1, 3));
    run.decide(NOW, true, ann(true), "", "h1").expect("it waits");
    for kind in [StepKind::Patch, StepKind::Build, StepKind::Restart] {
        step(&mut run, kind, ok());
    }
    step(&mut run, StepKind::Verify, shown("it died"));
    step(&mut run, StepKind::Rollback, ok());
    step(&mut run, StepKind::Analyze, ok());
    run.planned(NOW, attempt(false, 2, 3));
    assert_eq!((run.body.state, run.next()), (State::AwaitingApproval, Next::Wait));
    assert!(run.decide(NOW, true, ann(true), "", "h1").is_err(), "that was the plan before");
    let bob = Approver { name: "bob", may_approve: true };
    assert!(run.decide(NOW, true, bob, "", "h2").is_err(), "the same people decide");
    run.decide(NOW, true, ann(true), "", "h2").expect("about this plan");
    assert_eq!(run.approvals.len(), 2);
    step(&mut run, StepKind::Patch, ok());
}

#[test]
fn nothing_follows_a_cancel_nor_a_failure_that_shows_nothing() {
    let mut cancelled = run();
    cancelled.begin();
    until_verify(&mut cancelled, attempt(false, 1, 3));
    step(&mut cancelled, StepKind::Verify, shown("it died"));
    cancelled.cancel();
    step(&mut cancelled, StepKind::Rollback, ok());
    assert_eq!(cancelled.body.state, State::RolledBack);
    let mut lost = run();
    lost.begin();
    until_verify(&mut lost, attempt(false, 1, 3));
    step(&mut lost, StepKind::Verify, StepEnd { shown: false, ..shown("lost") });
    step(&mut lost, StepKind::Rollback, ok());
    assert_eq!(lost.body.state, State::RolledBack);
    let mut last = run();
    last.begin();
    until_verify(&mut last, attempt(false, 1, 1));
    step(&mut last, StepKind::Verify, shown("it died"));
    step(&mut last, StepKind::Rollback, ok());
    assert_eq!(last.body.state, State::RolledBack, "the policy allows one attempt");
}

fn undo() -> Run {
    let mut run = run();
    run.body.origin = Origin::Undo { of: RunId::from_u128(2) };
    run.begin();
    run
}

#[test]
fn an_undo_that_meets_a_changed_file_is_refused_and_one_that_fails_later_is_rolled_back() {
    let planned = || {
        use StepKind::{Promote, Restart, Verify};
        Planned { steps: [Promote, Restart, Verify].map(|kind| (kind, 1)).to_vec(), ..attempt(false, 1, 1) }
    };
    let mut early = undo();
    let conflict = StepEnd { code: "promotion_conflict".into(), ..StepEnd::default() };
    step(&mut early, StepKind::Analyze, conflict);
    assert_eq!(early.body.state, State::Refused);

    let mut meanwhile = undo();
    step(&mut meanwhile, StepKind::Analyze, ok());
    meanwhile.planned(NOW, planned());
    step(&mut meanwhile, StepKind::Promote, StepEnd { promotion: "conflict".into(), ..ok() });
    assert_eq!(meanwhile.body.state, State::Refused, "files come first: nothing was touched");

    let mut fails = undo();
    step(&mut fails, StepKind::Analyze, ok());
    fails.planned(NOW, planned());
    step(&mut fails, StepKind::Promote, StepEnd { promotion: "promoted".into(), ..ok() });
    step(&mut fails, StepKind::Restart, ok());
    step(&mut fails, StepKind::Verify, shown("it is not as it was"));
    step(&mut fails, StepKind::Rollback, ok());
    assert_eq!(fails.body.state, State::RolledBack, "an undo is not tried in another way");
}

/// The run as a coordinator that starts anew loads it.
fn reload(run: &mut Run, rows: &mut BTreeMap<(Aggregate, String), (u64, Row)>) -> Run {
    for change in run.take_changes(NOW) {
        let known = rows.entry((change.aggregate, change.id)).or_default();
        assert_eq!(known.0, change.expected, "decided on what is stored");
        *known = (change.expected + 1, change.row);
    }
    let of = |aggregate| {
        let rows = rows.iter().filter(move |((of, _), _)| *of == aggregate);
        rows.map(|((_, id), (version, row))| (id.clone(), *version, row.clone())).collect::<Vec<_>>()
    };
    let (_, version, row) = of(Aggregate::Run).remove(0);
    let approvals = of(Aggregate::Approval).into_iter().map(|(_, version, row)| (version, row)).collect();
    Run::restore(run.id, version, row, of(Aggregate::Step), approvals).expect("what was stored")
}

#[test]
fn steps_of_a_record_from_before_there_were_attempts_are_those_of_the_first_and_keep_their_rows() {
    let mut rows = BTreeMap::new();
    let mut run = run();
    run.begin();
    step(&mut run, StepKind::Analyze, ok());
    run.planned(NOW, planned(true));
    reload(&mut run, &mut rows);
    let mut older = BTreeMap::new();
    for ((aggregate, id), (version, mut row)) in rows {
        let mut body: serde_json::Value = serde_json::from_str(&row.body).expect("JSON");
        let fields = body.as_object_mut().expect("an object");
        for new in ["attempt", "place", "origin", "max_attempts", "needs_approval", "tries_again", "tried"] {
            fields.remove(new);
        }
        row.body = body.to_string();
        older.insert((aggregate, id.replace("/1/", "/")), (version, row));
    }
    let ids: Vec<String> = older.keys().map(|(_, id)| id.clone()).collect();
    let mut run = reload(&mut run.clone(), &mut older);
    assert_eq!((run.body.attempt, run.approvals[0].attempt), (1, 1));
    run.decide(NOW, true, ann(true), "", "h1").expect("it waits");
    for kind in [StepKind::Patch, StepKind::Build, StepKind::Restart, StepKind::Verify, StepKind::Promote] {
        step(&mut run, kind, ok());
    }
    assert_eq!(run.body.state, State::Succeeded);
    reload(&mut run, &mut older);
    assert_eq!(older.keys().map(|(_, id)| id.clone()).collect::<Vec<_>>(), ids);
}

/// What may happen to a run.
#[derive(Debug, Clone, Copy)]
enum Input {
    Begin,
    /// Whatever is next is done: a step starts, or a plan is made with this fix.
    Goes {
        fix: u32,
        protected: bool,
        refused: bool,
    },
    /// The step that is on ends.
    Ends {
        ok: bool,
        shown: bool,
        restored: bool,
        conflict: bool,
    },
    Decides {
        approves: bool,
        named: bool,
    },
    Cancels,
    Expires,
    Restarts,
}

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        1 => Just(Input::Begin),
        8 => (0u32..4, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(fix, protected, refused)| Input::Goes { fix, protected, refused }),
        8 => (prop::bool::weighted(0.75), any::<bool>(), prop::bool::weighted(0.9), any::<bool>())
            .prop_map(|(ok, shown, restored, conflict)| Input::Ends { ok, shown, restored, conflict }),
        4 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(approves, named)| Input::Decides { approves, named }),
        1 => Just(Input::Cancels),
        1 => Just(Input::Expires),
        2 => Just(Input::Restarts),
    ]
}

/// Whether the step changes what is the user's: its failure has to be followed by a rollback.
fn changes(kind: StepKind) -> bool {
    matches!(kind, StepKind::Build | StepKind::Restart | StepKind::Verify | StepKind::Promote)
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
                    prop_assert!(run.approval().is_none_or(|a| a.decision == Decision::Approved
                        || kind == StepKind::Analyze));
                    run.step_started(NOW, kind, TaskId::from_u128(turn as u128 + 1));
                    if cancels && turn == cancel_after {
                        run.cancel();
                    }
                    run.step_ended(NOW, kind, StepEnd { ok: !fails.contains(&kind), restored, ..StepEnd::default() });
                }
                Next::Plan => run.planned(NOW, planned(protected)),
                Next::Wait if run.body.state == State::AwaitingApproval => {
                    run.decide(NOW, approve, ann(true), "", "h1").expect("it waits");
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

    /// Whatever comes in whatever order, restarts of the coordinator included.
    #[test]
    fn i7_i8_a_run_ends_once_one_step_at_a_time_approved_and_restored(
        inputs in prop::collection::vec(inputs(), 1..120),
        undo in prop::bool::weighted(0.2),
    ) {
        let mut rows = BTreeMap::new();
        let mut run = run();
        if undo {
            run.body.origin = Origin::Undo { of: RunId::from_u128(2) };
        }
        let mut ended: Option<State> = None;
        let mut owes_rollback = false;
        let mut needed_approval = false;
        let mut tasks = 0u128;
        for input in inputs {
            let before = run.running_step().map(|step| (step.attempt, step.kind));
            match input {
                Input::Begin => run.begin(),
                Input::Goes { fix, protected, refused } => match run.next() {
                    Next::Start(kind) => {
                        prop_assert!(before.is_none(), "one step at a time");
                        if changes(kind) || kind == StepKind::Patch {
                            let approved = run.approvals.iter().any(|approval| {
                                approval.attempt == run.body.attempt
                                    && approval.decision == Decision::Approved
                                    && approval.plan_hash == run.body.plan_hash
                            });
                            prop_assert!(approved || !needed_approval, "I8");
                            prop_assert!(!owes_rollback, "nothing is built upon what is left of a failure");
                        }
                        tasks += 1;
                        run.step_started(NOW, kind, TaskId::from_u128(tasks));
                    }
                    Next::Plan => {
                        let mut planned = attempt(protected, fix, 3);
                        if refused {
                            planned.verdict = Verdict::Refused(vec!["never".into()]);
                        } else if run.body.attempt == 1 || protected {
                            needed_approval |= protected;
                        }
                        run.planned(NOW, planned);
                    }
                    Next::Wait | Next::Done => {}
                },
                Input::Ends { ok, shown, restored, conflict } => {
                    let Some((_, kind)) = before else { continue };
                    let conflict = conflict && ok && kind == StepKind::Promote;
                    let promotion = if conflict { "conflict" } else { "" }.to_owned();
                    run.step_ended(NOW, kind, StepEnd { ok, shown, restored, promotion, ..StepEnd::default() });
                    if kind == StepKind::Rollback {
                        owes_rollback = false;
                    } else if changes(kind) && !ok {
                        owes_rollback = true;
                    }
                }
                Input::Decides { approves, named } => {
                    let name = if named { "ann" } else { "bob" };
                    let _ = run.decide(NOW, approves, Approver { name, may_approve: true }, "", "");
                }
                Input::Cancels => drop(run.cancel()),
                Input::Expires => drop(run.expire(Now { mono_ms: 0, wall_ms: i64::MAX })),
                Input::Restarts => run = reload(&mut run, &mut rows),
            }
            prop_assert!(run.steps.iter().filter(|step| step.state == StepState::Running).count() <= 1);
            prop_assert!(run.body.attempt <= 3);
            let state = run.body.state;
            if let Some(ended) = ended {
                prop_assert_eq!(state, ended, "an end is one");
            } else if state.ended() {
                prop_assert!(!owes_rollback, "{:?} owes a rollback: {:?}", state, run.steps);
                prop_assert!(run.steps.iter().all(|s| !matches!(s.state, StepState::Pending | StepState::Running)));
                ended = Some(state);
            }
        }
        // And with good will it comes to an end.
        run.begin();
        for _ in 0..64 {
            match run.next() {
                Next::Start(kind) => {
                    tasks += 1;
                    run.step_started(NOW, kind, TaskId::from_u128(tasks));
                    run.step_ended(NOW, kind, ok());
                }
                Next::Plan => run.planned(NOW, attempt(false, 9, 3)),
                Next::Wait => match run.running_step().map(|step| step.kind) {
                    Some(kind) => run.step_ended(NOW, kind, ok()),
                    None => run.decide(NOW, true, ann(true), "", "").expect("it waits for a decision"),
                },
                Next::Done => break,
            }
        }
        prop_assert!(run.body.state.ended());
    }
}
