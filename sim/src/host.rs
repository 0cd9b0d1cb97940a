//! A worker's host as a simulation: takes what the host of a real worker takes over `cooper.host.v1`, runs jobs instead of
//! processes, spools into memory files, keeps results until they are acked, and outlives its link.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use cooper_common::{clock, limits};
use cooper_proto::{
    host::{Ended, Grew, HostHello, to_host, to_link},
    v1::{self, TaskState, task_spec},
};
use prost::Message as _;
use rand::Rng;

use crate::{
    cheat::Cheat,
    job::Job,
    witness::{Start, Witness},
};

pub const SESSIONS_MAX: u32 = 6;
pub const TASKS_MAX: u32 = 10;
/// How often output of a running job appears.
const OUTPUT_EVERY_MS: u64 = 60;

/// What the machine of a worker keeps over its crashes.
#[derive(Default)]
pub struct Home {
    pub incarnation: u64,
    sessions: BTreeMap<String, v1::Fence>,
    /// What ran when the host died. Only a cheating host looks at it.
    running: Vec<v1::Assign>,
}

/// Task, epoch, attempt.
type Key = (String, u64, u32);

struct Session {
    fence: v1::Fence,
    /// None = ready.
    ready_at: Option<u64>,
    restarted: bool,
}

#[derive(Default)]
struct Spool {
    file: Option<File>,
    bytes: u64,
    announced: u64,
    /// This link has its descriptor.
    named: bool,
}

struct Attempt {
    assign: v1::Assign,
    session: String,
    job: Job,
    python: bool,
    from: Option<u64>,
    /// When it is to end, and how.
    to: u64,
    state: TaskState,
    spools: [Spool; 2],
    truncated: [bool; 2],
    ended: bool,
}

pub struct Host {
    pub name: String,
    home: std::rc::Rc<std::cell::RefCell<Home>>,
    witness: Witness,
    cheat: Option<Cheat>,
    sessions: BTreeMap<String, Session>,
    attempts: BTreeMap<Key, Attempt>,
    /// For the link, once it has been greeted.
    greeted: bool,
    outbox: VecDeque<(to_link::Message, Vec<OwnedFd>)>,
}

fn key(task: &str, fence: Option<v1::Fence>) -> Key {
    let fence = fence.unwrap_or_default();
    (task.to_owned(), fence.epoch, fence.attempt)
}

impl Host {
    pub fn start(
        name: String,
        home: std::rc::Rc<std::cell::RefCell<Home>>,
        witness: Witness,
        cheat: Option<Cheat>,
    ) -> Self {
        let now = clock::mono_ms();
        let (sessions, again) = {
            let mut home = home.borrow_mut();
            home.incarnation += 1;
            let session = |fence: &v1::Fence| Session {
                fence: *fence,
                ready_at: Some(now + rand::rng().random_range(10..200)),
                restarted: true,
            };
            let sessions = home.sessions.iter().map(|(id, fence)| (id.clone(), session(fence))).collect();
            (sessions, std::mem::take(&mut home.running))
        };
        let attempts = BTreeMap::new();
        let mut host =
            Self { name, home, witness, cheat, sessions, attempts, greeted: false, outbox: VecDeque::new() };
        if cheat == Some(Cheat::RunAgain) {
            again.into_iter().for_each(|assign| host.take(assign));
        }
        host
    }

    pub fn hears(&mut self, message: to_host::Message) {
        use to_host::Message as M;
        match message {
            M::Hello(_) => self.greet(),
            M::SessionCreate(grant) => self.create_session(&grant),
            M::SessionDestroy(end) => self.destroy_session(&end),
            M::Start(assign) => self.take(assign),
            M::Stop(cancel) => self.cancel(&key(&cancel.task_id, cancel.fence)),
            M::Forget(forget) => {
                let key = key(&forget.task_id, forget.fence);
                if self.attempts.get(&key).is_some_and(|attempt| attempt.ended) {
                    self.attempts.remove(&key);
                }
            }
            // Files, calls to executions and stacks are not simulated, and this host speaks version 1.
            M::OpenFile(_)
            | M::CloseFile(_)
            | M::FileWork(_)
            | M::ExecutionCall(_)
            | M::StackAdd(_)
            | M::Observe(_)
            | M::TroubleHeard(_)
            | M::Drained(_)
            | M::Reach(_) => {}
        }
    }

    /// The link is gone; the next one gets everything anew.
    pub fn link_died(&mut self) {
        self.greeted = false;
        self.outbox.clear();
        if self.cheat == Some(Cheat::ForgetResults) {
            self.attempts.retain(|_, attempt| !attempt.ended);
        }
    }

    /// What is to be told next. Whoever cannot be told puts it back.
    pub fn next_for_link(&mut self) -> Option<(to_link::Message, Vec<OwnedFd>)> {
        self.outbox.pop_front()
    }
    pub fn not_told(&mut self, message: (to_link::Message, Vec<OwnedFd>)) {
        self.outbox.push_front(message);
    }
    /// A link that does not read is ended by its host.
    pub fn link_is_deaf(&self) -> bool {
        self.outbox.len() > 4_096
    }

    fn tell(&mut self, message: to_link::Message, fds: Vec<OwnedFd>) {
        if self.greeted {
            self.outbox.push_back((message, fds));
        }
    }

    fn greet(&mut self) {
        self.greeted = true;
        let sessions = self.sessions.iter().map(|(id, session)| v1::SessionItem {
            session_id: id.clone(),
            fence: Some(session.fence),
            state: if session.ready_at.is_some() { "initializing" } else { "ready" }.to_owned(),
            interpreter_restarted: session.restarted,
            globals: None,
            sealed: false,
            python_version: String::new(),
        });
        let attempts = self.attempts.values().map(|attempt| v1::AttemptItem {
            task_id: attempt.assign.task_id.clone(),
            fence: attempt.assign.fence,
            running: !attempt.ended,
            stdout_bytes: attempt.spools[0].bytes,
            stderr_bytes: attempt.spools[1].bytes,
            result_pending: attempt.ended,
        });
        let hello = HostHello {
            version: 1,
            incarnation: self.home.borrow().incarnation,
            worker_id: self.name.clone(),
            python_version: "3.12.0".to_owned(),
            capabilities: vec!["python".to_owned()],
            tier: "T1".to_owned(),
            capacity: Some(v1::Capacity { sessions_max: SESSIONS_MAX, tasks_max: TASKS_MAX }),
            sessions: sessions.collect(),
            attempts: attempts.collect(),
            ..HostHello::default()
        };
        self.tell(to_link::Message::Hello(hello), Vec::new());
        let keys: Vec<Key> = self.attempts.keys().cloned().collect();
        for key in keys {
            if let Some(attempt) = self.attempts.get_mut(&key) {
                attempt.spools.iter_mut().for_each(|spool| (spool.named, spool.announced) = (false, 0));
            }
            self.tell_ended(&key);
            self.tell_grown(&key);
        }
    }

    // Sessions.

    fn tell_session(&mut self, id: &str) {
        let Some(session) = self.sessions.get(id).filter(|session| session.ready_at.is_none()) else {
            return;
        };
        let update = v1::SessionUpdate {
            session_id: id.to_owned(),
            fence: Some(session.fence),
            state: "ready".to_owned(),
            python_version: "3.12.0".to_owned(),
            ..v1::SessionUpdate::default()
        };
        self.tell(to_link::Message::Session(update), Vec::new());
    }

    fn create_session(&mut self, grant: &v1::SessionGrant) {
        let fence = grant.fence.unwrap_or_default();
        let id = &grant.session_id;
        if let Some(session) = self.sessions.get_mut(id) {
            if (fence.epoch, fence.attempt) > (session.fence.epoch, session.fence.attempt) {
                session.fence = fence;
                self.home.borrow_mut().sessions.insert(id.clone(), fence);
            }
            return self.tell_session(id);
        }
        if self.sessions.len() >= SESSIONS_MAX as usize {
            let update = v1::SessionUpdate {
                session_id: id.clone(),
                fence: grant.fence,
                state: "failed".to_owned(),
                error: Some(v1::Error { code: "no_capacity".to_owned(), ..v1::Error::default() }),
                ..v1::SessionUpdate::default()
            };
            return self.tell(to_link::Message::Session(update), Vec::new());
        }
        self.home.borrow_mut().sessions.insert(id.clone(), fence);
        let ready_at = Some(clock::mono_ms() + rand::rng().random_range(5..300));
        self.sessions.insert(id.clone(), Session { fence, ready_at, restarted: false });
    }

    fn destroy_session(&mut self, end: &v1::SessionEnd) {
        let id = &end.session_id;
        self.sessions.remove(id);
        self.home.borrow_mut().sessions.remove(id);
        let of_it = self.attempts.iter().filter(|(_, attempt)| attempt.session() == id);
        for key in of_it.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.end(&key, TaskState::Cancelled);
        }
        let update = v1::SessionUpdate {
            session_id: id.clone(),
            fence: end.fence,
            state: "destroyed".to_owned(),
            ..v1::SessionUpdate::default()
        };
        self.tell(to_link::Message::Session(update), Vec::new());
    }

    // Attempts.

    fn take(&mut self, assign: v1::Assign) {
        let key = key(&assign.task_id, assign.fence);
        if self.attempts.contains_key(&key) {
            // Assigned again: it is said again how it stands.
            return self.tell_ended(&key);
        }
        let spec = v1::TaskSpec::decode(&*assign.spec).unwrap_or_default();
        let (code, python) = match &spec.kind {
            Some(task_spec::Kind::Python(python)) => (python.code.clone(), true),
            Some(task_spec::Kind::Shell(shell)) => (shell.argv.join(" "), false),
            _ => (String::new(), false),
        };
        let known = self.sessions.contains_key(&spec.session_id);
        let job = code.parse().unwrap_or(Job { number: 0, ms: 0, bytes: [0, 0], exit: 1, again: false });
        let attempt = Attempt {
            assign,
            session: spec.session_id,
            job,
            python,
            from: None,
            to: u64::MAX,
            state: if job.exit == 0 { TaskState::Succeeded } else { TaskState::Failed },
            spools: Default::default(),
            truncated: [false; 2],
            ended: false,
        };
        self.attempts.insert(key.clone(), attempt);
        if !known {
            return self.end(&key, TaskState::Failed);
        }
        self.start_waiting();
    }

    /// Starts what may start: in a ready session, one piece of Python at a time.
    fn start_waiting(&mut self) {
        let now = clock::mono_ms();
        let mut busy: Vec<String> = self
            .attempts
            .values()
            .filter(|attempt| attempt.python && attempt.from.is_some() && !attempt.ended)
            .map(|attempt| attempt.session().to_owned())
            .collect();
        let mut started = Vec::new();
        for (key, attempt) in &mut self.attempts {
            let session = attempt.session().to_owned();
            let ready = self.sessions.get(&session).is_some_and(|session| session.ready_at.is_none());
            if attempt.from.is_some()
                || attempt.ended
                || !ready
                || (attempt.python && busy.contains(&session))
            {
                continue;
            }
            if attempt.python {
                busy.push(session);
            }
            let (ms, timeout) = (attempt.job.ms, attempt.assign.timeout_ms);
            attempt.from = Some(now);
            attempt.to = now + if timeout > 0 { ms.min(timeout) } else { ms };
            if timeout > 0 && ms > timeout {
                attempt.state = TaskState::TimedOut;
            }
            started.push((key.clone(), attempt.job.again));
        }
        for (key, again) in started {
            let start = Start { worker: self.name.clone(), fence: (key.1, key.2) };
            self.witness.started(&key.0, start, again);
            let fence = Some(v1::Fence { epoch: key.1, attempt: key.2 });
            self.tell(to_link::Message::Started(v1::Started { task_id: key.0, fence }), Vec::new());
        }
        let running =
            self.attempts.values().filter(|attempt| attempt.from.is_some() && !attempt.ended).count();
        if running > TASKS_MAX as usize {
            self.witness.violated(format!("I12: {} runs {running} attempts at once", self.name));
        }
        self.remember();
    }

    fn remember(&self) {
        let running = self.attempts.values().filter(|attempt| attempt.from.is_some() && !attempt.ended);
        self.home.borrow_mut().running = running.map(|attempt| attempt.assign.clone()).collect();
    }

    fn cancel(&mut self, key: &Key) {
        let now = clock::mono_ms();
        let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| !attempt.ended) else { return };
        if attempt.from.is_none() {
            return self.end(key, TaskState::Cancelled);
        }
        let to = now + rand::rng().random_range(0..300);
        if to < attempt.to {
            (attempt.to, attempt.state) = (to, TaskState::Cancelled);
        }
    }

    fn end(&mut self, key: &Key, state: TaskState) {
        let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| !attempt.ended) else { return };
        (attempt.ended, attempt.state) = (true, state);
        self.tell_ended(key);
        self.remember();
    }

    /// Time passes.
    pub fn advance(&mut self) {
        let now = clock::mono_ms();
        let ready = self.sessions.iter_mut().filter(|(_, s)| s.ready_at.is_some_and(|at| at <= now));
        let ready: Vec<String> = ready
            .map(|(id, session)| {
                session.ready_at = None;
                id.clone()
            })
            .collect();
        ready.iter().for_each(|id| self.tell_session(id));
        for key in self.attempts.keys().cloned().collect::<Vec<_>>() {
            let Some(attempt) = self.attempts.get_mut(&key).filter(|attempt| !attempt.ended) else {
                continue;
            };
            let Some(from) = attempt.from else { continue };
            attempt.print(from, now, self.cheat).expect("memory files do not fail");
            if attempt.to <= now {
                let state = attempt.state;
                self.end(&key, state);
            } else {
                self.tell_grown(&key);
            }
        }
        self.start_waiting();
    }

    /// When something happens next.
    pub fn due(&self) -> u64 {
        let now = clock::mono_ms();
        let sessions = self.sessions.values().filter_map(|session| session.ready_at);
        let running = self.attempts.values().filter(|attempt| attempt.from.is_some() && !attempt.ended);
        let attempts = running.map(|attempt| match attempt.job.bytes {
            [0, 0] => attempt.to,
            _ => attempt.to.min(now + OUTPUT_EVERY_MS),
        });
        sessions.chain(attempts).min().unwrap_or(now + 1_000)
    }

    fn tell_grown(&mut self, key: &Key) {
        let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| !attempt.ended && self.greeted)
        else {
            return;
        };
        let mut messages = Vec::new();
        for (number, spool) in attempt.spools.iter_mut().enumerate() {
            if spool.bytes > spool.announced {
                spool.announced = spool.bytes;
                let grew = Grew {
                    task_id: key.0.clone(),
                    fence: attempt.assign.fence,
                    stream: number as i32 + 1,
                    bytes: spool.bytes,
                };
                messages.push((to_link::Message::Grew(grew), spool.name()));
            }
        }
        messages.into_iter().for_each(|(message, fds)| self.tell(message, fds));
    }

    fn tell_ended(&mut self, key: &Key) {
        let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| attempt.ended && self.greeted) else {
            return;
        };
        let fds = attempt.spools.iter_mut().filter(|spool| spool.bytes > 0).flat_map(Spool::name).collect();
        let outcome = v1::Outcome {
            exit_code: attempt.job.exit,
            stdout_bytes: attempt.spools[0].bytes,
            stderr_bytes: attempt.spools[1].bytes,
            stdout_truncated: attempt.truncated[0],
            stderr_truncated: attempt.truncated[1],
            ..v1::Outcome::default()
        };
        let (fence, state) = (attempt.assign.fence, attempt.state.into());
        let ended = Ended { task_id: key.0.clone(), fence, state, outcome: Some(outcome), artifacts: vec![] };
        self.tell(to_link::Message::Ended(ended), fds);
    }
}

impl Attempt {
    fn session(&self) -> &str {
        &self.session
    }

    /// Prints as much as it would have printed by `now`.
    fn print(&mut self, from: u64, now: u64, cheat: Option<Cheat>) -> io::Result<()> {
        let ran = now.min(self.to) - from;
        let limit = match self.assign.output_limit_bytes {
            0 => limits::exec::OUTPUT_BYTES,
            limit => limit,
        };
        for (number, spool) in self.spools.iter_mut().enumerate() {
            let printed = match self.job.ms {
                0 => self.job.bytes[number],
                ms => self.job.bytes[number] * ran.min(ms) / ms,
            };
            self.truncated[number] = printed > limit;
            let whole = self.job.bytes[number];
            let printed = match cheat {
                Some(Cheat::DropByte) if printed == whole && whole > 0 => whole - 1,
                _ => printed,
            };
            let to = printed.min(limit).max(spool.bytes);
            if to > spool.bytes {
                let mut data: Vec<u8> =
                    (spool.bytes..to).map(|offset| self.job.byte(number, offset)).collect();
                if cheat == Some(Cheat::FlipByte) && rand::random_bool(0.05) {
                    data[0] ^= 1;
                }
                let from = spool.bytes;
                spool.file()?.write_all_at(&data, from)?;
                spool.bytes = to;
            }
        }
        Ok(())
    }
}

impl Spool {
    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            self.file = Some(File::from(rustix::fs::memfd_create("cooper-sim", flags)?));
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Its descriptor, the first time this link hears of it.
    fn name(&mut self) -> Vec<OwnedFd> {
        if self.bytes == 0 || std::mem::replace(&mut self.named, true) {
            return Vec::new();
        }
        self.file.iter().filter_map(|file| file.as_fd().try_clone_to_owned().ok()).collect()
    }
}
