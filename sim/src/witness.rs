//! What was seen from outside: by clients, by hosts, by whoever broke things. Nothing of it comes from the coordinator's
//! own records; `check.rs` holds both against each other.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    rc::Rc,
};

use crate::job::Job;

/// A start of user code on a host.
#[derive(Debug, Clone)]
pub struct Start {
    pub worker: String,
    pub fence: (u64, u32),
}

/// Time in which something was broken for a machine.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub machine: String,
    pub from_ms: u64,
    pub to_ms: u64,
}

#[derive(Default)]
pub struct Seen {
    pub lines: Vec<String>,
    hash: std::hash::DefaultHasher,
    /// The first is what failed; the others may follow from it.
    pub violations: Vec<String>,
    /// Every acknowledged submit; `None` = a noop.
    pub acked: BTreeMap<String, Option<Job>>,
    /// Task of each idempotency key.
    pub keys: BTreeMap<String, String>,
    /// Starts by task.
    pub starts: BTreeMap<String, Vec<Start>>,
    /// The end that some client was told of.
    pub told: BTreeMap<String, i32>,
    /// Tasks somebody asked to cancel.
    pub cancelled: BTreeSet<String>,
    /// Deaths of hosts.
    pub deaths: Vec<(String, u64)>,
    pub troubles: Vec<Trouble>,
    next_job: u64,
}

/// Shared by all that happens on the one thread of a simulation.
#[derive(Clone, Default)]
pub struct Witness(Rc<RefCell<Seen>>);

impl Witness {
    pub fn look<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.0.borrow_mut())
    }

    /// Adds a line to the trace, which is the same whenever the seed is.
    pub fn say(&self, line: impl AsRef<str>) {
        let at = cooper_common::clock::mono_ms();
        let line = format!("{:>7}.{:03} {}", at / 1_000, at % 1_000, line.as_ref());
        self.look(|seen| {
            seen.hash.write(line.as_bytes());
            seen.lines.push(line);
        });
    }

    /// Something that must not be.
    pub fn violated(&self, what: impl AsRef<str>) {
        self.say(format!("VIOLATION {}", what.as_ref()));
        self.look(|seen| seen.violations.push(what.as_ref().to_owned()));
    }

    pub fn failed(&self) -> bool {
        self.look(|seen| !seen.violations.is_empty())
    }

    pub fn hash(&self) -> u64 {
        self.look(|seen| seen.hash.finish())
    }

    pub fn new_job_number(&self) -> u64 {
        self.look(|seen| {
            seen.next_job += 1;
            seen.next_job
        })
    }

    /// A submit was acknowledged.
    pub fn acked(&self, key: &str, task: &str, job: Option<Job>) {
        let other = self.look(|seen| {
            seen.acked.insert(task.to_owned(), job);
            if key.is_empty() {
                return None;
            }
            seen.keys.insert(key.to_owned(), task.to_owned()).filter(|before| before != task)
        });
        self.say(format!("acked {task} key={key}"));
        if let Some(before) = other {
            self.violated(format!("I3: the key {key} gave {before} and then {task}"));
        }
    }

    /// A client was told how a task ended.
    pub fn told(&self, task: &str, state: i32) {
        let before = self.look(|seen| seen.told.insert(task.to_owned(), state));
        match before {
            None => self.say(format!("told {task} state={state}")),
            Some(before) if before != state => {
                self.violated(format!("I3: {task} ended with state {before} and later with {state}"));
            }
            Some(_) => {}
        }
    }

    /// A host started a task, which may be started again only if it was submitted so.
    pub fn started(&self, task: &str, start: Start, again: bool) {
        self.say(format!("{} starts {task} under {:?}", start.worker, start.fence));
        let (times, newer) = self.look(|seen| {
            let starts = seen.starts.entry(task.to_owned()).or_default();
            let newer = starts.iter().all(|before| before.fence < start.fence);
            starts.push(start);
            (starts.len(), newer)
        });
        if !newer {
            self.violated(format!("I1: {task} was started under a fence that is not newer than the last"));
        }
        if times > 1 && !again {
            self.violated(format!("I1: {task} was started {times} times"));
        }
    }
}
