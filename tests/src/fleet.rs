//! A coordinator and workers as processes of their own, as on several machines.

use std::time::Duration;

use rustix::process::Signal;

use crate::{
    cooper::Cooper,
    grpc, http,
    processes::{self, Process},
    program::{Finished, Running},
    scratch::Scratch,
    seconds,
    wait::{until, until_true},
};

pub struct Fleet {
    pub scratch: Scratch,
    pub port: u16,
    pub coordinator: Option<Running>,
    env: Vec<(String, String)>,
    workers: Vec<Running>,
}

impl Fleet {
    /// A coordinator, the workers `left` and `right`, and a session on each, in this order.
    pub fn of_two() -> (Self, [String; 2]) {
        let mut fleet = Self::new();
        fleet.start_coordinator();
        for (index, id) in ["left", "right"].into_iter().enumerate() {
            fleet.start_worker(id);
            fleet.await_registered(index);
        }
        let cooper = fleet.cooper();
        let mut sessions = [cooper.session(), cooper.session()];
        sessions.sort_by_key(|session| {
            cooper.json(["session", "show", session])["worker_id"].as_str().expect("a worker").to_owned()
        });
        (fleet, sessions)
    }

    /// Nothing runs yet.
    pub fn new() -> Self {
        Self {
            scratch: Scratch::new("fleet"),
            port: http::free_port(),
            coordinator: None,
            env: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// A setting of the coordinator.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Commands with the coordinator's admin token.
    pub fn cooper(&self) -> Cooper {
        Cooper::at(&self.scratch.join("coordinator"))
    }

    pub fn start_coordinator(&mut self) {
        let data = self.scratch.join("coordinator");
        let port = self.port.to_string();
        let cooper = Cooper::at(&data).env("GRPC_PORT", &port);
        let cooper = self.env.iter().fold(cooper, |cooper, (name, value)| cooper.env(name, value));
        let mut coordinator = cooper.dir(self.scratch.path()).start(["coordinator"], b"");
        let url = self.url();
        coordinator.await_said("an answer at /health", seconds(30), |_| {
            http::try_get(&url, "/health", None).is_ok_and(|answer| answer.status == 200).then_some(())
        });
        self.coordinator = Some(coordinator);
    }

    /// One that kills itself at a failpoint.
    pub fn start_failing_coordinator(&mut self, failpoint: &str) {
        self.env.push(("FAILPOINTS".to_owned(), failpoint.to_owned()));
        self.start_coordinator();
        self.env.pop();
    }

    /// Waits until the coordinator is dead.
    pub fn await_dead_coordinator(&mut self, within: Duration) {
        let coordinator = self.coordinator.take().expect("it runs");
        coordinator.finish(within);
    }

    /// Waits until `/ready` answers with this status; its document.
    #[track_caller]
    pub fn await_ready(&self, status: u16) -> serde_json::Value {
        let url = self.url();
        until(&format!("{status} at /ready"), seconds(30), || {
            let answer = http::try_get(&url, "/ready", None).ok().filter(|answer| answer.status == status);
            answer.map(|answer| answer.json())
        })
    }

    /// Starts a worker with two rooms that joins by token file. Its health listener is on the port returned.
    pub fn start_worker(&mut self, id: &str) -> u16 {
        self.start_worker_in(id, &[])
    }

    pub fn start_labelled_worker(&mut self, id: &str, labels: &str) -> u16 {
        self.start_worker_in(id, &[("COOPER_LABELS", labels)])
    }

    /// With more in its environment.
    pub fn start_worker_in(&mut self, id: &str, environment: &[(&str, &str)]) -> u16 {
        let port = http::free_port();
        let token = self.scratch.join("coordinator/worker.token");
        let cooper = Cooper::at(&self.scratch.join(id))
            .env("COORDINATOR_ADDR", &format!("127.0.0.1:{}", self.port))
            .env("COOPER_JOIN_TOKEN_FILE", &token.to_string_lossy())
            .env("WORKER_ID", id)
            .env("MAX_SESSIONS", "2")
            .env("GRPC_PORT", &port.to_string())
            .env("COOPER_COMPOSE", "off");
        let cooper = environment.iter().fold(cooper, |cooper, (name, value)| cooper.env(name, value));
        self.workers.push(cooper.dir(self.scratch.path()).start(["worker"], b""));
        port
    }

    /// SIGTERM for the coordinator; it ends in order and in time.
    pub fn end_coordinator(&mut self) {
        let coordinator = self.coordinator.take().expect("it runs");
        coordinator.signal(Signal::TERM);
        coordinator.finish(seconds(5)).expect(0);
    }

    /// SIGTERM for a worker, which drains; what it said.
    pub fn end_worker(&mut self, index: usize, within: Duration) -> Finished {
        let worker = self.workers.remove(index);
        worker.signal(Signal::TERM);
        worker.finish(within).expect(0)
    }

    /// Waits until a worker that kills itself at a failpoint is dead.
    pub fn await_dead_worker(&mut self, index: usize, within: Duration) {
        self.workers.remove(index).finish(within);
    }

    /// The link of the worker with this id.
    pub fn link(&self, id: &str) -> Process {
        let data = self.scratch.join(id);
        until(&format!("the link of {id}"), seconds(20), || {
            let mut all = processes::of(&data);
            all.retain(|process| process.args.get(1).is_some_and(|arg| arg == "worker-link"));
            all.into_iter().next()
        })
    }

    /// A client with the coordinator's admin token.
    pub async fn client(&self) -> grpc::Client {
        let token = std::fs::read_to_string(self.scratch.join("coordinator/admin.token")).expect("a token");
        grpc::Client::connect(&self.url(), Some(token.trim())).await
    }

    pub fn worker(&mut self, index: usize) -> &mut Running {
        &mut self.workers[index]
    }

    /// Waits until the worker's log says that it is registered; all such lines.
    pub fn await_registered(&mut self, index: usize) -> Vec<String> {
        let lines = |worker: &Running| -> Vec<String> {
            let said = format!("{}{}", worker.stdout(), worker.stderr());
            said.lines().filter(|line| line.contains("registered")).map(str::to_owned).collect()
        };
        self.workers[index].await_said("`registered`", seconds(30), |worker| {
            Some(lines(worker)).filter(|lines| !lines.is_empty())
        })
    }

    pub fn processes(&self) -> Vec<Process> {
        processes::of(self.scratch.path())
    }

    /// SIGTERM for everything, workers first; nothing may be left.
    pub fn stop(&mut self) {
        for worker in self.workers.drain(..) {
            worker.signal(Signal::TERM);
            worker.finish(seconds(5)).expect(0);
        }
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.signal(Signal::TERM);
            coordinator.finish(seconds(5)).expect(0);
        }
        until_true("the end of every process", seconds(2), || self.processes().is_empty());
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.workers.clear();
        self.coordinator = None;
        for process in self.processes() {
            let _ = rustix::process::kill_process(process.pid(), Signal::KILL);
        }
    }
}
