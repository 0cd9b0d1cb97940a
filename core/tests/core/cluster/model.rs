//! What was asked of the cluster, and what follows from that alone: the reference that knows nothing of queues, credit,
//! timers or attaches.

use std::collections::BTreeMap;

use cooper_common::ids::TaskId;
use cooper_core::{
    retry::When,
    task::{End, Kind, Scheduling},
};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

pub const WORKERS: usize = 3;

/// What workers are labelled with, and what tasks and sessions ask for; nobody has the last.
pub fn labels(n: usize) -> BTreeMap<String, String> {
    let pairs: &[(&str, &str)] = match n {
        0 => &[],
        1 => &[("zone", "a")],
        2 => &[("zone", "b"), ("gpu", "yes")],
        _ => &[("zone", "nowhere")],
    };
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[derive(Debug, Clone)]
pub enum Action {
    CreateSession {
        labels: usize,
    },
    DestroySession(usize),
    Submit(Terms),
    Cancel(usize),
    Requeue(usize),
    /// The worker takes the oldest message of its stream.
    Deliver(usize),
    /// The worker sends the oldest of what it has to say.
    Say(usize),
    /// An attempt on the worker starts to run, in its own words.
    Start(usize, usize),
    /// An attempt on the worker ends.
    Finish(usize, usize, End),
    Grant(usize),
    Cut(usize),
    /// The stream stays, and nothing comes through any more.
    Mute(usize),
    Attach(usize),
    HostDies(usize),
    /// An operator wants it empty, within this time; an odd one: its sessions are to go on elsewhere.
    Drain(usize, u64),
    /// Somebody wants a checkpoint of a session; or it saved and destroyed.
    Save(usize, bool),
    /// A file call: nothing is recorded of it, but it wakes.
    Touch(usize),
    /// What is to be carried sets out.
    Carry,
    /// One of what is under way arrives, or is cut.
    Carried(usize, bool),
    Undrain(usize),
    CoordinatorDies,
    Pass(u64),
    /// The coordinator is stopped for a while.
    Stall(u64),
}

/// What a submit asks for.
#[derive(Debug, Clone)]
pub struct Terms {
    pub kind: Kind,
    pub target: usize,
    pub priority: i8,
    pub scheduling: Scheduling,
}

impl Terms {
    pub fn retried(&self) -> When {
        self.scheduling.retry.unwrap_or(match self.kind {
            Kind::Noop | Kind::Step => When::Lost,
            Kind::Python | Kind::Shell | Kind::Install => When::IfNotStarted,
        })
    }
    /// How often code may be started for one submit or requeue.
    pub fn starts_max(&self) -> usize {
        let named = self.scheduling.max_attempts as usize;
        match (self.retried(), named, self.kind) {
            (When::IfNotStarted, ..) => 1,
            (_, 0, Kind::Noop | Kind::Step) => 10,
            (_, 0, _) => 3,
            (_, named, _) => named,
        }
    }
}

fn terms() -> impl Strategy<Value = Terms> {
    let kind = prop_oneof![
        4 => Just(Kind::Noop),
        3 => Just(Kind::Python),
        2 => Just(Kind::Shell),
        1 => Just(Kind::Step),
    ];
    let retry = prop_oneof![4 => Just(None), 1 => Just(Some(When::IfNotStarted)), 2 => Just(Some(When::Lost)), 3 => Just(Some(When::Always))];
    let deadline = || prop_oneof![3 => Just(0u64), 1 => 500u64..60_000];
    let priority = prop_oneof![3 => Just(0i8), 2 => -2i8..3];
    let any = (kind, 0usize..8, priority, retry, 0u32..4, deadline(), deadline(), 0usize..8);
    any.prop_map(|(kind, target, priority, retry, max_attempts, to_start, to_close, wanted)| {
        let worker_labels = if kind == Kind::Noop && wanted < 4 { labels(wanted) } else { BTreeMap::new() };
        Terms {
            kind,
            target,
            priority,
            scheduling: Scheduling {
                worker_labels,
                retry,
                max_attempts,
                schedule_to_start_ms: to_start,
                schedule_to_close_ms: to_close,
                ..Scheduling::default()
            },
        }
    })
}

/// Everything that was submitted, in order, and the time.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub wall_ms: i64,
    pub tasks: Vec<(Terms, i64)>,
}

impl Model {
    /// The n-th submit's id.
    pub fn id(n: usize) -> TaskId {
        TaskId::from_u128(n as u128 + 1_000_000)
    }
    pub fn number(id: TaskId) -> usize {
        id.as_u128() as usize - 1_000_000
    }
    pub fn terms(&self, id: TaskId) -> &Terms {
        &self.tasks[Self::number(id)].0
    }
    /// Who goes first where two wait in the same place: the smaller.
    pub fn place(&self, id: TaskId) -> (i32, usize) {
        (-i32::from(self.terms(id).priority), Self::number(id))
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Action;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model { wall_ms: 1_000_000, ..Model::default() }).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Action> {
        let worker = || 0..WORKERS;
        let end = prop_oneof![
            5 => Just(End::Succeeded),
            3 => Just(End::Failed),
            1 => Just(End::TimedOut),
            1 => Just(End::Lost),
        ];
        let submitted = 0..model.tasks.len().max(1);
        prop_oneof![
            2 => (0usize..5).prop_map(|labels| Action::CreateSession { labels }),
            1 => (0usize..8).prop_map(Action::DestroySession),
            10 => terms().prop_map(Action::Submit),
            1 => submitted.clone().prop_map(Action::Cancel),
            1 => submitted.prop_map(Action::Requeue),
            14 => worker().prop_map(Action::Deliver),
            8 => worker().prop_map(Action::Say),
            2 => (worker(), 0usize..8).prop_map(|(w, i)| Action::Start(w, i)),
            8 => (worker(), 0usize..8, end).prop_map(|(w, i, end)| Action::Finish(w, i, end)),
            6 => worker().prop_map(Action::Grant),
            1 => worker().prop_map(Action::Cut),
            1 => worker().prop_map(Action::Mute),
            4 => worker().prop_map(Action::Attach),
            1 => worker().prop_map(Action::HostDies),
            1 => (worker(), 0u64..60_000).prop_map(|(w, ms)| Action::Drain(w, ms)),
            2 => worker().prop_map(Action::Undrain),
            1 => (0usize..8, any::<bool>()).prop_map(|(n, destroy)| Action::Save(n, destroy)),
            1 => (0usize..8).prop_map(Action::Touch),
            4 => Just(Action::Carry),
            4 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(n, well)| Action::Carried(n, well)),
            1 => Just(Action::CoordinatorDies),
            3 => (0u64..40_000).prop_map(Action::Pass),
            1 => (0u64..90_000).prop_map(Action::Stall),
        ]
        .boxed()
    }

    fn preconditions(model: &Model, action: &Action) -> bool {
        match action {
            Action::Cancel(n) | Action::Requeue(n) => *n < model.tasks.len(),
            _ => true,
        }
    }

    fn apply(mut model: Model, action: &Action) -> Model {
        match action {
            Action::Submit(terms) => model.tasks.push((terms.clone(), model.wall_ms)),
            Action::Pass(ms) | Action::Stall(ms) => model.wall_ms += *ms as i64,
            _ => {}
        }
        model
    }
}
