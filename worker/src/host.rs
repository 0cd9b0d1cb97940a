//! The host process of a worker: parent of everything that runs, single-threaded, one epoll loop, no listener.
//!
//! It holds every pipe, control socket, deadline and kill ladder; its child, the link, talks to the coordinator. What
//! happens is decided by events only: `session.rs` for sessions, `attempt.rs` for what runs in them, `trees.rs` for
//! their processes, `stop.rs` for the end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    telemetry,
};
use cooper_proto::{
    host::{self as wire, open_file::Mode, to_host, to_link},
    v1,
};
use rustix::{
    event::{Timespec, epoll},
    process::{Pid, Signal},
};

use crate::{
    config::Config,
    confine::{Confiner, uids::Uids},
    egress::authority::Authority,
};
use attempt::Attempt;
use dir::Dir;
use interpreter::PlainChild;
use link::{Heard, Link};
use python::Pythons;
use session::{Interpreter, Session};
use stacks::Stacks;
use timers::Timers;
use trees::Tree;

pub mod archive;
mod artifacts;
mod attempt;
mod attributes;
mod beneath;
mod berth;
mod checkpoint;
mod dir;
pub mod doctor;
mod files;
mod globals;
mod helper;
mod home;
pub mod install;
mod interpreter;
mod ladder;
mod launch;
mod layers;
mod link;
mod listing;
mod network;
mod observer;
mod outcome;
mod pip;
mod pool;
mod ports;
mod python;
mod reach;
mod reaper;
mod session;
mod signal;
mod spawn;
mod spool;
mod stacks;
mod start;
mod stdin;
mod stop;
mod sys;
mod terminal;
mod timers;
mod tree;
mod trees;
mod watchdog;
mod zygote;

/// Hidden first argument of a process that installs packages.
pub const INSTALL_ARGV: &str = "worker-install";
/// Hidden first argument of a process that performs one step.
pub const STEP_ARGV: &str = "worker-step";
/// Events taken in one round.
const EVENTS_MAX: usize = 256;
/// Messages of the link served in one round.
const MESSAGES_MAX: usize = 64;
/// Pipes of ended executions whose children still hold them; beyond it the oldest is closed.
const LEFTOVERS_MAX: usize = 256;

/// Runs the host until it is told to stop (SIGTERM, SIGINT) and nothing of it is left. Must be called by a process with
/// one thread: it forks.
pub fn run(config: Config) -> Result<()> {
    telemetry::init(&config.log_level);
    let internal = |what: &str, e: io::Error| Error::internal(format!("{what}: {e}"));
    if std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) != 1 {
        return Err(Error::internal("the host must be started before any other thread"));
    }
    // Before anything else: later the file may have been replaced by an upgrade.
    let exe = File::open("/proc/self/exe").map_err(|e| internal("this program cannot be opened", e))?.into();
    let mut host = Host::new(config, exe)?;
    host.serve().map_err(|e| internal("the event loop broke", e))
}

struct Host {
    config: Config,
    exe: OwnedFd,
    /// Where that was: an upgrade puts the next link's program there.
    exe_path: PathBuf,
    dir: Dir,
    epoll: OwnedFd,
    signals: OwnedFd,
    null: File,
    /// Room for what interpreters say.
    control_buffer: crate::frame::Buffer,
    pythons: Pythons,
    plain: PlainChild,
    pool: pool::Pool,
    /// Interpreters of the pool that have to end with this host.
    ending: HashSet<Pid>,
    capacity: v1::Capacity,
    stacks: Stacks,
    compose: Compose,
    link: Link,
    egress: network::Egress,
    observer: observer::Observer,
    /// Where connections into sessions come from; made with the first.
    gate: Option<ports::Gate>,
    /// Where packages come from.
    index: install::Reached,
    /// How programs of sessions find the proxy and the package index.
    reach_env: Vec<(String, String)>,
    /// By which the proxy is a host that secrets are put in for; where sessions can have a network.
    authority: Option<Authority>,
    /// The event loop waits for room in the link's socket.
    link_watched_for_room: bool,
    sessions: BTreeMap<String, Session>,
    interpreters: BTreeMap<u64, Interpreter>,
    attempts: BTreeMap<u64, Attempt>,
    pips: pip::Pips,
    by_key: BTreeMap<attempt::Key, u64>,
    trees: BTreeMap<u64, Tree>,
    by_reaper: HashMap<Pid, u64>,
    helpers: HashMap<Pid, helper::Task>,
    leftovers: BTreeMap<u64, (OwnedFd, String)>,
    writing: files::Writing,
    work: files::work::Work,
    checkpoints: checkpoint::Checkpoints,
    layers: layers::Layers,
    /// Attempts whose spools grew in this round.
    grown: BTreeSet<u64>,
    timers: Timers<Due>,
    next_id: u64,
    stopping: Option<stop::Phase>,
    /// While draining: until when.
    drain_until_ms: u64,
    reach: reach::Reach,
    /// None where the host may not give sessions uids of their own.
    uids: Option<Uids>,
    confiner: Confiner,
    /// The next look at what sessions use.
    watching: Option<timers::Timer>,
    /// Sessions that were ended because the disk is nearly full, until it is not.
    out_of_space: BTreeSet<String>,
}

/// Whether Docker Compose works here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compose {
    /// Asked at start; the link's greeting waits for the answer.
    Unknown,
    Works,
    Missing,
}

/// What a deadline is for. Ids that no longer exist are ignored.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// An attempt's time limit.
    TimeOut(u64),
    /// The time between interrupt and kill of an attempt.
    Grace(u64),
    /// Look again what lives beneath a tree that is to die.
    KillRound(u64),
    /// A write to standard input that waits is answered.
    Stdin(u64),
    /// An interpreter should have said hello.
    Hello(u64),
    /// An interpreter should have saved or loaded variables, under this number.
    Globals(u64, u64),
    StartLink,
    StartEgress,
    StartObserver,
    StartZygote(usize),
    Refill,
    Helper(Pid),
    FileWork(Pid),
    Strays,
    Watch,
    /// Look which layers are still used.
    Layers,
    Stop(stop::Phase),
    /// No coordinator was reached for too long.
    Unreached,
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Link,
    Signals,
    Reports(u64),
    Control(u64),
    Output(u64, usize),
    Leftover(u64),
    Zygote(u64),
    /// The fork of a fresh execution.
    Branch(u64),
    Egress,
    Connects(u64),
    /// Room for a write that waits.
    Stdin(u64),
    Observer,
}

impl Source {
    fn pack(self) -> epoll::EventData {
        let (kind, id) = match self {
            Source::Link => (0, 0),
            Source::Signals => (1, 0),
            Source::Reports(id) => (2, id),
            Source::Control(id) => (3, id),
            Source::Output(id, stream) => (4 + stream as u64, id),
            Source::Leftover(id) => (6, id),
            Source::Zygote(n) => (7, n),
            Source::Branch(id) => (8, id),
            Source::Egress => (9, 0),
            Source::Connects(tree) => (10, tree),
            Source::Stdin(id) => (11, id),
            Source::Observer => (12, 0),
        };
        epoll::EventData::new_u64(id << 8 | kind)
    }
    fn unpack(data: epoll::EventData) -> Option<Self> {
        let (kind, id) = (data.u64() & 0xff, data.u64() >> 8);
        Some(match kind {
            0 => Source::Link,
            1 => Source::Signals,
            2 => Source::Reports(id),
            3 => Source::Control(id),
            4 | 5 => Source::Output(id, kind as usize - 4),
            6 => Source::Leftover(id),
            7 => Source::Zygote(id),
            8 => Source::Branch(id),
            9 => Source::Egress,
            10 => Source::Connects(id),
            11 => Source::Stdin(id),
            12 => Source::Observer,
            _ => return None,
        })
    }
}

impl Host {
    fn new(config: Config, exe: OwnedFd) -> Result<Self> {
        let internal = |e: io::Error| Error::internal(format!("the host cannot start: {e}"));
        let signals =
            sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR2])
                .map_err(internal)?;
        let dir = Dir::open(&config.dir, config.base_workspace.as_deref(), config.worker_id.as_deref())?;
        let stacks = Stacks::open(&dir.path, &config.stacks)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| internal(e.into()))?;
        start::raise_open_files();
        let mut host = Self {
            capacity: start::capacity(&config),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| internal(e.into()))?,
            null: OpenOptions::new().read(true).write(true).open("/dev/null").map_err(internal)?,
            control_buffer: crate::frame::Buffer::default(),
            plain: PlainChild::new().map_err(internal)?,
            pool: pool::Pool::new(&config),
            ending: HashSet::new(),
            compose: Compose::Unknown,
            link: Link::default(),
            egress: network::Egress::default(),
            observer: observer::Observer::default(),
            gate: None,
            index: install::Reached::default(),
            reach_env: Vec::new(),
            authority: None,
            link_watched_for_room: false,
            pythons: Pythons::default(),
            sessions: BTreeMap::new(),
            interpreters: BTreeMap::new(),
            attempts: BTreeMap::new(),
            pips: pip::Pips::new(),
            by_key: BTreeMap::new(),
            trees: BTreeMap::new(),
            by_reaper: HashMap::new(),
            helpers: HashMap::new(),
            leftovers: BTreeMap::new(),
            writing: files::Writing::default(),
            work: files::work::Work::default(),
            checkpoints: checkpoint::Checkpoints::default(),
            layers: layers::Layers::default(),
            grown: BTreeSet::new(),
            timers: Timers::default(),
            next_id: 0,
            stopping: None,
            drain_until_ms: 0,
            reach: reach::Reach::default(),
            uids: None,
            confiner: Confiner::none(),
            watching: None,
            out_of_space: BTreeSet::new(),
            exe_path: std::fs::read_link("/proc/self/exe").unwrap_or_default(),
            config,
            exe,
            dir,
            signals,
            stacks,
        };
        host.watch(&host.signals, Source::Signals).map_err(internal)?;
        host.probe_compose();
        // The link dials while Python is asked where it is.
        host.start_link();
        if let Err(error) = host.find_pythons().and_then(|()| host.confine()) {
            host.link.end(Signal::KILL);
            return Err(error);
        }
        host.start_zygotes();
        host.find_sessions();
        host.sweep_workspaces();
        host.prepare_network();
        host.remove_what_was_destroyed();
        tracing::info!(
            worker = %host.dir.worker_id,
            incarnation = host.dir.incarnation,
            sessions = host.sessions.len(),
            pythons = ?host.pythons.versions(),
            "host started"
        );
        Ok(host)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let wait = self.timers.wait_ms(clock::mono_ms()).map(|ms| {
                let wait = Duration::from_millis(ms);
                Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
            });
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                // A packed struct: copy before use.
                let data = event.data;
                if let Some(source) = Source::unpack(data) {
                    self.on_event(source);
                }
            }
            while let Some(due) = self.timers.pop(clock::mono_ms()) {
                self.on_due(due);
            }
            self.announce();
            self.watch_link_for_room()?;
            self.watch_egress_for_room()?;
            if self.is_over() {
                return Ok(());
            }
        }
    }

    fn on_event(&mut self, source: Source) {
        match source {
            Source::Link => self.on_link(),
            Source::Signals => {
                while let Some(signal) = sys::next_signal(&self.signals) {
                    match signal {
                        libc::SIGCHLD => {}
                        libc::SIGUSR2 => self.replace_link(),
                        _ => self.stop(signal),
                    }
                }
                self.reap();
            }
            Source::Egress => self.on_egress(),
            Source::Observer => self.on_observer(),
            Source::Connects(tree) => self.on_connects(tree),
            Source::Reports(tree) => self.on_reports(tree),
            Source::Control(interpreter) => self.on_control(interpreter),
            Source::Output(attempt, stream) => self.on_output(attempt, stream),
            Source::Leftover(id) => self.on_leftover(id),
            Source::Zygote(n) => self.on_zygote(n as usize),
            Source::Branch(attempt) => self.on_branch(attempt),
            Source::Stdin(attempt) => self.on_stdin(attempt),
        }
    }

    fn on_due(&mut self, due: Due) {
        match due {
            Due::TimeOut(attempt) => self.on_time_out(attempt),
            Due::Grace(attempt) => self.kill(attempt),
            Due::KillRound(tree) => self.kill_round(tree),
            Due::Stdin(attempt) => self.stop_waiting(attempt, None),
            Due::Hello(interpreter) => self.on_late_hello(interpreter),
            Due::Globals(interpreter, id) => self.on_late_globals(interpreter, id),
            Due::StartLink => self.start_link(),
            Due::StartEgress => self.start_egress(),
            Due::StartObserver => self.start_observer(),
            Due::StartZygote(n) => self.start_zygote(n),
            Due::Refill => self.refill(),
            Due::Helper(pid) if self.helpers.contains_key(&pid) => helper::end(pid),
            Due::Helper(_) => {}
            Due::FileWork(pid) => self.on_late_file_work(pid),
            Due::Strays => self.kill_strays(),
            Due::Watch => self.on_watch(),
            Due::Layers => self.on_layers_due(),
            Due::Stop(phase) => self.on_stop_due(phase),
            Due::Unreached => self.on_unreached(),
        }
    }

    /// Collects every child that ended.
    fn reap(&mut self) {
        while let Ok(Some(dead)) = sys::reap() {
            if self.link.pid() == Some(dead.pid) {
                self.on_link_death();
            } else if self.egress.pid() == Some(dead.pid) {
                self.on_egress_death();
            } else if self.observer.pid() == Some(dead.pid) {
                self.on_observer_death();
            } else if let Some(tree) = self.by_reaper.get(&dead.pid) {
                self.on_reaper_death(*tree, dead.status == 0);
            } else if let Some(task) = self.helpers.remove(&dead.pid) {
                self.on_helper_done(task, dead.status == 0);
            } else if self.work.has(dead.pid) {
                self.file_work_done(dead.pid, dead.status);
            } else if !self.on_zygote_death(dead.pid) {
                // Anything else was adopted: its end is all that was wanted of it.
                self.ending.remove(&dead.pid);
            }
        }
    }

    fn on_link(&mut self) {
        self.link.flush();
        for _ in 0..MESSAGES_MAX {
            match self.link.hear() {
                Heard::Message(message) => self.on_message(message),
                Heard::Nothing => return,
                Heard::Gone => return self.link.end(Signal::KILL),
            }
        }
    }

    fn on_message(&mut self, message: to_host::Message) {
        use to_host::Message as M;
        match message {
            M::Hello(hello) => self.on_link_hello(&hello),
            M::SessionCreate(grant) => self.create_session(grant),
            M::SessionDestroy(end) => self.destroy_session(end),
            M::Start(assign) => self.start_attempt(assign),
            M::Stop(cancel) => self.cancel(&cancel),
            M::Forget(forget) => self.forget(&forget),
            M::OpenFile(call) => self.open_file(&call),
            M::CloseFile(call) => self.close_file(&call),
            M::FileWork(work) => self.file_work(work),
            M::ExecutionCall(call) => self.execution_call(call),
            M::StackAdd(add) => self.add_stack(&add),
            M::Observe(observe) => self.observe(observe),
            M::TroubleHeard(heard) => self.trouble_heard(heard),
            M::Drained(_) => self.on_drained(),
            M::Reach(reach) => self.on_reach(&reach),
        }
    }

    fn open_file(&mut self, call: &wire::OpenFile) {
        match call.mode() {
            Mode::Pack => return self.pack(call),
            Mode::Unpack => return self.unpack(call),
            Mode::Write => self.checkpoints.note_write(call),
            Mode::List | Mode::Read | Mode::Unspecified => {}
        }
        let mut answer = wire::FileOpened { call_id: call.call_id, ..wire::FileOpened::default() };
        let opened = match self.sessions.get(&call.session_id) {
            Some(session) => {
                answer.size_bytes_max = files::largest_file(session);
                self.writing.open(&session.home.workspace(), files::acting(session), call)
            }
            None => Err(unknown_session(&call.session_id)),
        };
        let mut fds = Vec::new();
        match opened {
            Ok(opened) => {
                answer.stat = opened.stat;
                fds.push(opened.fd);
            }
            Err(error) => answer.error = Some(to_wire(&error)),
        }
        self.link.tell(to_link::Message::FileOpened(answer), fds);
    }

    fn close_file(&mut self, call: &wire::CloseFile) {
        if self.unpack_received(call) {
            return;
        }
        let mut answer = wire::FileClosed { call_id: call.call_id, ..wire::FileClosed::default() };
        let refused = self.write_refused(call);
        let closed = self.writing.close(call.call_id, call.commit && refused.is_none());
        match refused.map_or(closed, Err) {
            Ok(stat) => answer.stat = stat,
            Err(error) => answer.error = Some(to_wire(&error)),
        }
        self.link.tell(to_link::Message::FileClosed(answer), Vec::new());
    }

    fn add_stack(&mut self, add: &v1::StackAdd) {
        let error = self.stacks.add(add).err().map(|e| to_wire(&e));
        let update = v1::StackUpdate { stacks: self.stacks.list(), error };
        self.link.tell(to_link::Message::Stacks(update), Vec::new());
        self.watch_stacks();
        if self.compose == Compose::Missing {
            self.probe_compose();
        }
    }

    fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, source.pack(), epoll::EventFlags::IN)?)
    }

    fn watch_link_for_room(&mut self) -> io::Result<()> {
        let behind = self.link.is_behind();
        if behind != self.link_watched_for_room
            && let Some(socket) = self.link.socket()
        {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, behind);
            epoll::modify(&self.epoll, socket, Source::Link.pack(), flags)?;
            self.link_watched_for_room = behind;
        }
        Ok(())
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn unknown_session(id: &str) -> Error {
    Error::new(Code::SessionNotFound, format!("session {id} is not on this worker"))
}

/// An error as it travels.
fn to_wire(error: &Error) -> v1::Error {
    v1::Error {
        code: error.code.as_str().to_owned(),
        message: error.message.clone(),
        hint: error.hint().to_owned(),
    }
}
