//! Copies of the example stack on a real engine, each a compose project of its own that leaves nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Condvar, Mutex, PoisonError},
};

use cooper_common::clock;
use serde_json::Value;

use crate::{
    program::{self, Finished, Running},
    scratch::Scratch,
    seconds,
    tree::{self, Tree},
    wait::until_true,
};

/// Stacks at once: an engine on two cores builds no faster with more.
const AT_ONCE: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

struct Turn;

impl Turn {
    fn take() -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= AT_ONCE {
            taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

/// False when the caller asked to skip what needs Docker; then a line says so.
pub fn wanted(test: &str) -> bool {
    let skip = std::env::var("COOPER_TEST_SKIP").unwrap_or_default();
    let skipped = skip.split(',').any(|name| name.trim() == "docker");
    if skipped {
        // Past the capture of the test's output: whoever runs the tests shall see it.
        let line = format!("skipped by request: {test} (COOPER_TEST_SKIP={skip})\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes());
        return false;
    }
    let answers = docker(&["version", "--format", "{{.Server.Version}}"]).status == 0;
    assert!(
        answers,
        "no Docker engine answers: scripts/ensure-engine.sh starts one; COOPER_TEST_SKIP=docker skips"
    );
    true
}

pub fn docker(args: &[&str]) -> Finished {
    docker_in(Path::new("/"), args)
}

fn docker_in(dir: &Path, args: &[&str]) -> Finished {
    let mut docker = program::command("docker");
    docker.args(args).current_dir(dir);
    Running::start(docker, b"").finish(seconds(300))
}

/// What of a container must be the same when nobody touched it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub image: String,
    /// Everything it was created with, but for what no two containers share.
    pub configuration: Value,
}

/// A copy of `examples/stack`.
pub struct Stack {
    scratch: Scratch,
    pub dir: PathBuf,
    pub project: String,
    _turn: Turn,
}

impl Stack {
    /// Healthy: built and up.
    pub fn healthy(name: &str) -> Self {
        let stack = Self::files(name);
        stack.compose(&["up", "-d", "--build", "--wait"]).expect(0);
        stack
    }

    /// Healthy first, then broken and deployed, as a user does who has not noticed yet: the build may fail.
    pub fn broken(name: &str, how: &[&str]) -> Self {
        let stack = Self::healthy(name);
        for how in how {
            stack.break_it(how);
        }
        stack.compose(&["up", "-d", "--build"]);
        stack
    }

    /// The files only.
    pub fn files(name: &str) -> Self {
        Self::of(name, &[&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/stack")])
    }

    /// A place for one: its directory is not there yet.
    pub fn place(name: &str) -> Self {
        let turn = Turn::take();
        let scratch = Scratch::new(name);
        let project = format!("e2e-{name}-{:08x}", rand::random::<u32>());
        let dir = scratch.join(&project);
        Self { scratch, dir, project, _turn: turn }
    }

    /// The files of these directories, later ones over earlier ones.
    pub fn of(name: &str, layers: &[&Path]) -> Self {
        let stack = Self::place(name);
        fs::create_dir(&stack.dir).expect("made");
        for layer in layers {
            stack.lay(layer);
        }
        stack
    }

    /// Puts a copy of these files over those that are there, with modes and symbolic links.
    pub fn lay(&self, layer: &Path) {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--remove-destination", "-T"]).arg(layer).arg(&self.dir);
        Running::start(copy, b"").finish(seconds(10)).expect(0);
    }

    pub fn break_it(&self, how: &str) {
        let mut script = program::command(self.dir.join("break.sh"));
        script.arg(how).current_dir(&self.dir);
        Running::start(script, b"").finish(seconds(10)).expect(0);
    }

    pub fn append(&self, file: &str, text: &str) {
        let mut file = std::fs::File::options().append(true).open(self.dir.join(file)).expect("a file");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("it is written");
    }

    pub fn arg(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }

    pub fn compose(&self, args: &[&str]) -> Finished {
        let all: Vec<&str> = [&["compose", "--progress", "plain"], args].concat();
        docker_in(&self.dir, &all)
    }

    pub fn tree(&self) -> Tree {
        tree::read(&self.dir)
    }

    /// What this checkout was with a patch applied, as `git apply` does it.
    pub fn patched(&self, before: &Tree, patch: &[u8]) -> Tree {
        let dir = self.scratch.join("patched");
        for (path, entry) in before.iter().filter(|(_, entry)| entry.mode & 0o170000 == 0o100000) {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("it is in there")).expect("directories");
            fs::write(&path, &entry.bytes).expect("written");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(entry.mode);
            fs::set_permissions(&path, mode).expect("its mode");
        }
        let mut git = program::command("git");
        git.args(["apply", "-"]).current_dir(&dir).env("GIT_CEILING_DIRECTORIES", self.scratch.path());
        Running::start(git, patch).finish(seconds(10)).expect(0);
        tree::read(&dir)
    }

    fn inspect(&self, service: &str) -> Option<Value> {
        let id = self.compose(&["ps", "-a", "-q", service]).expect(0).out();
        let id = id.lines().next()?;
        let all: Value = serde_json::from_slice(&docker(&["inspect", id]).expect(0).stdout).expect("JSON");
        Some(all[0].clone())
    }

    #[track_caller]
    pub fn container(&self, service: &str) -> Container {
        self.find_container(service).unwrap_or_else(|| panic!("no container of {service}"))
    }

    pub fn find_container(&self, service: &str) -> Option<Container> {
        let found = self.inspect(service)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Container {
            id: text(&found["Id"]),
            image: text(&found["Image"]),
            configuration: configuration(&found),
        })
    }

    /// Where a service's container is reached from this machine.
    pub fn address(&self, service: &str) -> Option<String> {
        let found = self.inspect(service)?;
        let mut networks = found["NetworkSettings"]["Networks"].as_object()?.values();
        let addresses = networks.find_map(|network| network["IPAddress"].as_str().map(str::to_owned));
        addresses.filter(|address| !address.is_empty())
    }

    /// `healthy` or `unhealthy` where it runs and is checked; `running` where nothing checks it; `down` where it dies or
    /// died.
    pub fn health(&self, service: &str) -> String {
        let Some(found) = self.inspect(service) else { return "absent".to_owned() };
        let state = &found["State"];
        match (state["Status"].as_str(), state["Health"]["Status"].as_str()) {
            (Some("running"), Some("starting")) if found["RestartCount"] != 0 => "down".to_owned(),
            (Some("running"), Some(health)) => health.to_owned(),
            (Some("running"), None) if found["RestartCount"] == 0 => "running".to_owned(),
            _ => "down".to_owned(),
        }
    }

    pub fn await_health(&self, service: &str, wanted: &str) {
        until_true(&format!("{service} {wanted}"), seconds(60), || self.health(service) == wanted);
    }

    /// Image behind the tag that compose runs a service from; empty if there is none.
    pub fn image(&self, service: &str) -> String {
        let tag = format!("{}-{service}", self.project);
        docker(&["image", "inspect", "--format", "{{.Id}}", &tag]).out().trim().to_owned()
    }

    /// What the store counted: it forgets when its container is replaced.
    pub fn visits(&self) -> u64 {
        let ask =
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:7000/visits').read().decode())";
        let said = self.compose(&["exec", "-T", "store", "python", "-c", ask]).expect(0).out();
        said.trim().parse().unwrap_or_else(|error| panic!("{error}: {said:?}"))
    }

    /// A visitor of the site.
    pub fn visit(&self) {
        let ask = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/')";
        self.compose(&["exec", "-T", "web", "python", "-c", ask]).expect(0);
    }
}

fn configuration(inspected: &Value) -> Value {
    let mut config = inspected["Config"].clone();
    if let Some(config) = config.as_object_mut() {
        // Its own id, and the name that its image (compared by id) went by.
        config.retain(|part, _| !["Hostname", "Image"].contains(&part.as_str()));
    }
    if let Some(labels) = config["Labels"].as_object_mut() {
        // Compose's own notes: some versions sum up the same definition in different ways.
        labels.retain(|name, _| !name.starts_with("com.docker.compose."));
    }
    let networks = inspected["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    let networks: Vec<&String> = networks.map(|(name, _)| name).collect();
    serde_json::json!({"config": config, "host": inspected["HostConfig"], "networks": networks})
}

impl Drop for Stack {
    fn drop(&mut self) {
        if !self.dir.exists() {
            return;
        }
        if std::thread::panicking() {
            let logs = self.compose(&["logs", "--no-color", "--tail", "50"]);
            let _ = fs::write(self.scratch.join("compose.log"), logs.stdout);
        }
        let start = clock::mono_ms();
        self.compose(&["down", "-v", "--remove-orphans", "--rmi", "local", "-t", "0"]);
        let label = format!("label=com.docker.compose.project={}", self.project);
        let listed = docker(&["image", "ls", "-aq", "--filter", &label]).out();
        let images: Vec<&str> = listed.lines().collect();
        if !images.is_empty() {
            docker(&[&["image", "rm", "-f"], images.as_slice()].concat());
        }
        if clock::mono_ms() - start > 30_000 {
            eprintln!("note: removing {} took long", self.project);
        }
    }
}
