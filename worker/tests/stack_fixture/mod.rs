//! A copy of the example stack as a compose project of its own, and what a test does with it. Removed with all its
//! containers and images at the end, however the test ends.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use cooper_common::ids::RunId;
use cooper_proto::v1::StepSpec;
use cooper_repair::diagnosis::{Diagnosis, Remedy, Repair};
use cooper_repair::edit::Root;
use cooper_repair::step::{Analysis, Input, Report, StackRef};
use cooper_repair::{Class, Edit, FileChange, RepairPlan, RuleSet, diagnose};
use cooper_worker::stack::{Context, Log, perform};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};

/// The steps of a repair, in order.
pub const STEPS: [&str; 5] = ["patch", "build", "restart", "verify", "promote"];

/// The example stack; `None`, with a word, if Docker is away and the test may be skipped for that.
pub fn example_or_skip(name: &str) -> Option<Fixture> {
    docker_or_skip().then(|| Fixture::example(name))
}

/// A small stack, likewise.
pub fn small_or_skip(name: &str) -> Option<Fixture> {
    docker_or_skip().then(|| Fixture::small(name))
}

fn docker_or_skip() -> bool {
    let answers =
        Command::new("docker").args(["compose", "version"]).output().is_ok_and(|out| out.status.success())
            && Command::new("docker").arg("info").output().is_ok_and(|out| out.status.success());
    if !answers {
        let skip = std::env::var("COOPER_TEST_SKIP")
            .is_ok_and(|names| names.split(',').any(|name| name == "docker"));
        assert!(
            skip,
            "Docker does not answer: scripts/ensure-engine.sh starts it; COOPER_TEST_SKIP=docker skips"
        );
        println!("skipped: Docker does not answer and COOPER_TEST_SKIP names it");
    }
    answers
}

const SMALL: &str = "services:
  web:
    build: ./web
    init: true
    stop_grace_period: 1s
    restart: unless-stopped
    expose: [8000]
    environment:
      API_TOKEN: planted-secret-value
      MODE: live
    x-cooper:
      stable_for: 1s
  store:
    build: ./store
    init: true
    stop_grace_period: 1s
";
const APP: &str = "import http.server, os, sys, threading, time
print('token', os.environ['API_TOKEN'])
if os.environ.get('DIES') == 'at-once':
    sys.exit('it died')
if os.environ.get('DIES') == 'soon':
    threading.Thread(target=lambda: (time.sleep(0.6), os._exit(3))).start()
http.server.ThreadingHTTPServer(('', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
";

pub struct Fixture {
    dir: tempfile::TempDir,
    worker: tempfile::TempDir,
    pub project: String,
    pub run: RunId,
    log: Arc<Mutex<Vec<u8>>>,
    is_copy: bool,
}

/// A container as far as tests compare it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub image: String,
    pub status: String,
    pub started_at: String,
    pub health: String,
    pub config_hash: String,
}

/// A step in a process of its own.
pub struct Process {
    pub child: std::process::Child,
    tells: PathBuf,
}

impl Process {
    /// Waits for its end; no report if it wrote none.
    pub fn wait(mut self) -> (Option<Report>, String) {
        let mut log = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut log).unwrap();
        self.child.wait().unwrap();
        (serde_json::from_slice(&fs::read(&self.tells).unwrap()).ok(), log)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Fixture {
    /// The example stack, without an engine to run it.
    pub fn example(name: &str) -> Self {
        let fixture = Self::empty(name);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/stack");
        sh("cp", &["-r", &format!("{}/.", example.display()), &fixture.path("")], fixture.dir.path());
        fixture
    }

    /// A stack that is up in a second: `web` serves on port 8000 and dies as its environment says; `store` sleeps.
    fn small(name: &str) -> Self {
        let fixture = Self::empty(name);
        for service in ["web", "store"] {
            fs::create_dir(fixture.dir.path().join(service)).unwrap();
        }
        fixture.write("compose.yaml", SMALL);
        fixture.write(
            "web/Dockerfile",
            "FROM python:3.11-slim\nCOPY app.py .\nCMD [\"python\", \"-u\", \"app.py\"]\n",
        );
        fixture.write("web/app.py", APP);
        fixture.write("store/Dockerfile", "FROM python:3.11-slim\nCMD [\"sleep\", \"infinity\"]\n");
        fixture
    }

    fn empty(name: &str) -> Self {
        let run = RunId::new();
        // The end of the id is its random part.
        let project = format!("cooper-test-{name}-{}", &run.to_string()[20..]);
        let fixture = Self {
            dir: tempfile::tempdir().unwrap(),
            worker: tempfile::tempdir().unwrap(),
            project,
            run,
            log: Arc::default(),
            is_copy: false,
        };
        // As a user would: the stack's own .env names the project.
        fs::write(fixture.dir.path().join(".env"), format!("COMPOSE_PROJECT_NAME={}\n", fixture.project))
            .unwrap();
        fixture
    }

    pub fn path(&self, path: &str) -> String {
        self.dir.path().join(path).to_str().unwrap().to_owned()
    }

    pub fn compose(&self, args: &[&str]) -> String {
        let args: Vec<&str> = [&["compose", "--progress", "plain"], args].concat();
        sh("docker", &args, self.dir.path())
    }

    /// Healthy, before anything is broken.
    pub fn up(&self) {
        self.compose(&["up", "-d", "--build", "--wait"]);
    }

    pub fn break_it(&self, how: &str) {
        sh("bash", &["break.sh", how], self.dir.path());
    }

    /// What a user does who has not noticed yet; the build may fail.
    pub fn deploy_broken(&self) {
        let up = ["compose", "--progress", "plain", "up", "-d", "--build"];
        let _ = Command::new("docker").args(up).current_dir(self.dir.path()).output();
    }

    /// The same of a service that ends at once and is not started again; returns when it has ended.
    pub fn deploy_dying(&self) {
        let once = self.read("compose.yaml").replace("restart: unless-stopped", "restart: \"no\"");
        self.write("compose.yaml", &once);
        self.deploy_broken();
        sh("docker", &["wait", &self.container("web").id], self.dir.path());
    }

    /// Another run on the same stack.
    pub fn next_run(&mut self) {
        self.run = RunId::new();
    }

    pub fn perform(&self, input: &Input) -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let context = self.context();
        let report = runtime.block_on(perform(input, &context));
        context.log.flush().unwrap();
        report
    }

    fn context(&self) -> Context {
        Context {
            run: self.run,
            worker_dir: self.worker.path().to_path_buf(),
            stacks: BTreeMap::from([("example".to_owned(), self.dir.path().to_path_buf())]),
            log: Log::new(Shared(self.log.clone())),
        }
    }

    pub fn stack(&self) -> StackRef {
        StackRef { name: "example".to_owned(), dir: self.path("").trim_end_matches('/').to_owned() }
    }

    pub fn analyze(&self, log: Option<&str>) -> Report {
        let input = Input::Analyze {
            stack: self.stack(),
            service: "web".to_owned(),
            log: log.map(str::to_owned),
            instruction: None,
            mode: Analysis::Service,
            rules: Some(vec![]),
        };
        let report = self.perform(&input);
        assert!(report.ok, "{} {}\n{}", report.code, report.message, self.log());
        report
    }

    /// A plan that sets a variable in web's Dockerfile.
    pub fn plan_to_set(&self, analyzed: &Report, name: &str, value: &str) -> RepairPlan {
        let path = "Dockerfile";
        let edit = Edit::SetEnv { stage: 0, name: name.to_owned(), value: value.to_owned() };
        let change =
            FileChange::edit(path, &self.read("web/Dockerfile"), edit, format!("set {name}")).unwrap();
        self.plan_with(analyzed, vec![change])
    }

    /// A plan that gives web a variable in the compose file.
    pub fn plan_to_wire(&self, analyzed: &Report, name: &str, value: &str) -> RepairPlan {
        let (service, path) = ("web".to_owned(), "compose.yaml");
        let edit = Edit::SetEnvironment { service, name: name.to_owned(), value: value.to_owned() };
        let change = FileChange::edit(path, &self.read(path), edit, format!("set {name}")).unwrap();
        self.plan_with(analyzed, vec![FileChange { root: Root::Stack, ..change }])
    }

    pub fn plan_with(&self, analyzed: &Report, edits: Vec<FileChange>) -> RepairPlan {
        let diagnosis = Diagnosis {
            rule_id: "test".to_owned(),
            cause: "a test".to_owned(),
            confidence: 100,
            class: if edits.iter().any(|edit| edit.root == Root::Stack) {
                Class::Approve
            } else {
                Class::Auto
            },
            evidence_line: String::new(),
            remedy: if edits.is_empty() { Remedy::Restart } else { Remedy::Patch },
            repair: Repair { remedy: Remedy::Patch, edits: vec![] },
            edits,
            fingerprint: "0".repeat(64),
            at: String::new(),
            verified_by: None,
            builds_on: None,
        };
        let model = &analyzed.evidence.as_ref().expect("evidence").model;
        let mut plan = RepairPlan::new("example", model, "web", 1, &diagnosis).unwrap();
        plan.verify.become_well_ms = 15_000;
        plan
    }

    pub fn plan(&self, analyzed: &Report) -> RepairPlan {
        let evidence = analyzed.evidence.as_ref().expect("evidence");
        let diagnosis =
            diagnose(RuleSet::builtin(), evidence).unwrap_or_else(|why| panic!("{why}\n{}", self.log()));
        RepairPlan::new("example", &evidence.model, "web", 1, &diagnosis).unwrap()
    }

    pub fn input(&self, step: &str, plan: &RepairPlan) -> Input {
        let (stack, plan) = (self.stack(), plan.clone());
        match step {
            "patch" => Input::Patch { stack, plan },
            "build" => Input::Build { stack, plan },
            "restart" => Input::Restart { stack, plan },
            "verify" => Input::Verify { stack, plan },
            "promote" => Input::Promote { stack, plan },
            "rollback" => Input::Rollback { stack, plan },
            other => panic!("no step {other}"),
        }
    }

    pub fn step(&self, step: &str, plan: &RepairPlan) -> Report {
        self.perform(&self.input(step, plan))
    }

    /// The step as the host runs it: a process of its own, told on file descriptor 3 and telling on 4. `name` is the
    /// ignored test that is such a process.
    pub fn spawn(&self, name: &str, input: &Input, environment: &[(&str, &str)]) -> Process {
        let spec = StepSpec {
            run_id: self.run.to_string(),
            step: String::new(),
            input_json: serde_json::to_vec(input).unwrap(),
        };
        let path = |name: &str| self.worker.path().join(name);
        let (told, tells, stacks) = (path("spec"), path("report"), path("stacks.json"));
        fs::write(&told, spec.encode_to_vec()).unwrap();
        fs::write(&tells, "").unwrap();
        fs::write(&stacks, serde_json::to_vec(&self.context().stacks).unwrap()).unwrap();
        let child = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<"$TOLD" 4>"$TELLS""#, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env("TOLD", &told)
            .env("TELLS", &tells)
            .env("COOPER_WORKER_DIR", self.worker.path())
            .env("COOPER_STACKS_FILE", &stacks)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Process { child, tells }
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Every file's bytes, by path.
    pub fn checkout(&self) -> BTreeMap<String, Vec<u8>> {
        fn read(dir: &Path, at: &str, files: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path = format!("{at}{}", entry.file_name().to_str().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    read(&entry.path(), &format!("{path}/"), files);
                } else {
                    files.insert(path, fs::read(entry.path()).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        read(self.dir.path(), "", &mut files);
        files
    }

    /// A copy of the files alone.
    pub fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(
            "cp",
            &["-r", &format!("{}/.", self.dir.path().display()), dir.path().to_str().unwrap()],
            dir.path(),
        );
        Self {
            dir,
            worker: tempfile::tempdir().unwrap(),
            project: self.project.clone(),
            run: self.run,
            log: Arc::default(),
            is_copy: true,
        }
    }

    pub fn apply(&mut self, patch: &str) {
        let file = self.worker.path().join("patch.diff");
        fs::write(&file, patch).unwrap();
        sh("git", &["apply", "-p1", file.to_str().unwrap()], self.dir.path());
    }

    pub fn write(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.worker.path().join("runs").join(self.run.to_string())
    }

    /// The first container of a service; no id if there is none.
    pub fn container(&self, service: &str) -> Container {
        let id = self.compose(&["ps", "-a", "-q", service]);
        let id = id.lines().next().unwrap_or_default();
        if id.is_empty() {
            return Container::default();
        }
        let told = sh("docker", &["inspect", "--format", "{{json .}}", id], self.dir.path());
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let text =
            |pointer: &str| told.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        Container {
            id: text("/Id"),
            image: text("/Image"),
            status: text("/State/Status"),
            started_at: text("/State/StartedAt"),
            health: text("/State/Health/Status"),
            config_hash: text("/Config/Labels/com.docker.compose.config-hash"),
        }
    }

    /// A variable that a service's container was made with.
    pub fn variable(&self, service: &str, name: &str) -> Option<String> {
        let id = self.container(service).id;
        let told = sh("docker", &["inspect", "--format", "{{json .Config.Env}}", &id], self.dir.path());
        let all: Vec<String> = serde_json::from_str(&told).unwrap();
        all.iter().find_map(|set| Some(set.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    }

    /// The id behind a service's tag (or any other reference), empty if there is none.
    pub fn image(&self, service: &str) -> String {
        let reference =
            if service.contains('/') { service.to_owned() } else { format!("{}-{service}", self.project) };
        let out = Command::new("docker")
            .args(["image", "inspect", "--format", "{{.Id}}", &reference])
            .output()
            .unwrap();
        if out.status.success() {
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        } else {
            String::new()
        }
    }

    /// The tag that keeps the image from before this run.
    pub fn kept(&self) -> String {
        format!("cooper-prev/{}-web:{}", self.project, self.run)
    }

    /// Containers of the project beside those of its services.
    pub fn one_offs(&self) -> String {
        let ours = format!("label=com.docker.compose.project={}", self.project);
        let extra = "label=com.docker.compose.oneoff=True";
        sh("docker", &["ps", "-aq", "--filter", &ours, "--filter", extra], self.dir.path())
    }

    /// Makes the stack a repository with everything committed.
    pub fn commit(&self) {
        self.git(&["init", "--quiet"]);
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "--message", "first"]);
    }

    /// Git, as the user who owns the stack.
    pub fn git(&self, args: &[&str]) -> String {
        let who = ["-c", "user.name=ann", "-c", "user.email=ann@localhost", "-c", "init.defaultBranch=main"];
        sh("git", &[&who, args].concat(), self.dir.path())
    }

    /// Takes an image away, whatever uses it.
    pub fn remove_image(&self, reference: &str) {
        sh("docker", &["image", "rm", "--force", reference], self.dir.path());
    }

    /// Builds a context without a cache and throws the image away: what is built next is another one than before.
    pub fn build_anew(&self, context: &str) {
        let tag = format!("{}-anew", self.project);
        sh("docker", &["build", "--quiet", "--no-cache", "--tag", &tag, context], self.dir.path());
        self.remove_image(&tag);
    }

    /// Tags of images in the making of this run.
    pub fn run_tags(&self) -> Vec<String> {
        let prefix = format!("cooper-run/{}/", self.run.to_string().replace('_', "-"));
        self.tags().into_iter().filter(|tag| tag.starts_with(&prefix)).collect()
    }

    /// Images of the project without a name, unless a container runs from them.
    pub fn unnamed(&self) -> String {
        let ours = format!("label=com.docker.compose.project={}", self.project);
        sh("docker", &["images", "-q", "--filter", "dangling=true", "--filter", &ours], self.dir.path())
    }

    fn tags(&self) -> Vec<String> {
        let told = sh("docker", &["images", "--format", "{{.Repository}}:{{.Tag}}"], self.dir.path());
        told.lines().map(str::to_owned).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.is_copy {
            return;
        }
        if std::thread::panicking() {
            println!("--- log of the steps\n{}", self.log());
        }
        let quiet =
            |args: &[&str]| drop(Command::new("docker").args(args).current_dir(self.dir.path()).output());
        quiet(&["compose", "--progress", "quiet", "down", "--volumes", "--timeout", "1"]);
        let runs = self.worker.path().join("runs");
        let runs: Vec<String> = fs::read_dir(runs)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| format!("cooper-run/{}/", entry.file_name().to_string_lossy().replace('_', "-")))
            .collect();
        let ours = format!("label=com.docker.compose.project={}", self.project);
        quiet(&["image", "prune", "-f", "--filter", &ours]);
        for tag in self.tags() {
            if tag.contains(&self.project) || runs.iter().any(|run| tag.starts_with(run)) {
                quiet(&["rmi", "-f", &tag]);
            }
        }
    }
}

/// Runs a command that must succeed and returns what it printed.
pub fn sh(program: &str, args: &[&str], dir: &Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {}\n{stdout}\n{stderr}", out.status);
    stdout.into_owned()
}
