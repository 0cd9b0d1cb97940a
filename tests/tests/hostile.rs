//! Hostile code through the whole cluster, at each isolation tier, beside a session that wants to go on working. A binary
//! of its own: how long the neighbour waits for an answer can only be told where nothing else runs.

#[path = "hostile/cases.rs"]
mod cases;
#[path = "hostile/doors.rs"]
mod doors;

mod e2e {
    use std::{
        num::NonZero,
        path::{Path, PathBuf},
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use cooper_common::clock;
    use cooper_proto::v1::{
        self, CreateSessionRequest, DestroySessionRequest, PythonSpec, Session, SubmitTaskRequest, Task,
        TaskSpec, execute_response::Event, task_spec::Kind,
    };
    use cooper_tests::{
        binary, docker, grpc,
        program::{Running, command},
        scratch::Scratch,
        seconds,
    };
    use serde_json::Value;

    use super::{
        cases::{AFTER_A_SIBLING, ALL, Case, DOORS, PRELUDE, SHELL_BOMB, Then},
        doors,
    };

    const CANARY: &str = "canary-5f1c0d";
    /// Where everybody may read it; the one that is found first may lie in somebody's home.
    const PYTHON: &str = "/usr/bin/python3";
    /// Nobody's.
    const UID: &str = "53124";
    /// In a container.
    const PORT: &str = "50051";
    const PROBES: usize = 50;
    const P95_MS: u64 = 100;
    const CASE: Duration = seconds(60);

    /// What the bomb's processes are called.
    const BOMB: &str = "b() { b | b & }; b";
    /// As many at a time say that it went off: its shells end as soon as one cannot fork, so that one who looks sees few.
    const BOMB_SEEN: usize = 2;
    const BOMBS: u32 = 5;
    /// What it leaves is gone so soon after its session.
    const GONE_MS: u64 = 5_000;
    /// Processes that others of the machine may start meanwhile; it also has those that are dead and have no name any more.
    const OTHERS: usize = 200;
    const LOOK: Duration = Duration::from_millis(5);

    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// A cluster of one, without some facilities, as root or as nobody in particular.
    struct Place {
        _up: Running,
        url: String,
        token: String,
        /// As hostile code there would name them.
        data: PathBuf,
        layer: PathBuf,
        pid: NonZero<i32>,
        container: Option<String>,
        _scratch: Scratch,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            if let Some(container) = &self.container {
                docker::docker(&["rm", "-f", container]);
            }
        }
    }

    impl Place {
        /// None where the machine has not got what it takes; said by name.
        fn start(name: &'static str, mask: &str, as_root: bool, min_tier: &str) -> Option<Self> {
            let left_out = |why: &str| println!("left out: hostile code at {name}: {why}");
            if !rustix::process::geteuid().is_root() {
                left_out("it takes root to be somebody else");
                return None;
            }
            if !Path::new(PYTHON).exists() {
                left_out("there is no /usr/bin/python3");
                return None;
            }
            let scratch = Scratch::new(name);
            let data = scratch.join("data");
            // What sessions may read, and belongs to the worker.
            let layer = scratch.join("layer");
            std::fs::create_dir(&layer).expect("a directory");
            std::fs::write(layer.join("readable.py"), "").expect("a file");
            let mut up = if as_root {
                command(binary())
            } else {
                // What is tested may lie where only root gets.
                let copy = scratch.join("cooper");
                std::fs::copy(binary(), &copy).expect("a copy of the binary");
                std::fs::create_dir(&data).expect("a directory");
                for path in [scratch.path(), &data, &copy, &layer, &layer.join("readable.py")] {
                    let uid = UID.parse().ok();
                    std::os::unix::fs::chown(path, uid, uid).expect("an owner");
                }
                let mut up = command("setpriv");
                up.args(["--reuid", UID, "--regid", UID, "--clear-groups"]).arg(copy);
                up
            };
            up.args(["up", "--json", "--no-compose", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
            up.env("COOPER_LAYER", &layer)
                .env("COOPER_MASK_FACILITIES", mask)
                .env("COOPER_PYTHON", PYTHON)
                .env("CANARY", CANARY);
            up.env("COOPER_MIN_TIER", min_tier);
            up.env("MAX_SESSIONS", "64").env("COOPER_POOL_HIGH", "4").current_dir(scratch.path());
            let mut up = Running::start(up, b"");
            let line = up.await_said("what runs", seconds(60), |up| {
                up.stdout().split_once('\n').map(|(line, _)| line.to_owned())
            });
            let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            Some(Self {
                url: ready["url"].as_str().expect("a URL").to_owned(),
                token: std::fs::read_to_string(data.join("admin.token")).expect("a token"),
                pid: up.pid().as_raw_nonzero(),
                _up: up,
                data,
                layer,
                container: None,
                _scratch: scratch,
            })
        }

        /// The same in a container with Docker's default profile: nothing added, nothing mounted for it.
        fn start_in_container(name: &'static str) -> Self {
            let scratch = Scratch::new(name);
            let layer = scratch.join("layer");
            std::fs::create_dir(&layer).expect("a directory");
            std::fs::write(layer.join("readable.py"), "").expect("a file");
            let container = format!("cooper-{name}-{}", std::process::id());
            let mut up = command("docker");
            up.args(["run", "--rm", "--name", &container, "-e", &format!("CANARY={CANARY}")]);
            up.args(["-e", "COOPER_INSECURE_LISTEN=on"]);
            up.args(["-e", "MAX_SESSIONS=64", "-e", "COOPER_POOL_HIGH=4", "-e", "COOPER_LAYER=/layer"]);
            up.arg("-v").arg(format!("{}:/cooper:ro", binary().display()));
            up.arg("-v").arg(format!("{}:/layer:ro", layer.display()));
            up.args(["python:3.11-slim", "/cooper", "up", "--json", "--no-compose", "--data", "/data"]);
            up.args(["--listen", &format!("0.0.0.0:{PORT}")]);
            let mut up = Running::start(up, b"");
            up.await_said("what runs", seconds(60), |up| {
                up.stdout().split_once('\n').map(|(line, _)| line.to_owned())
            });
            let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
            let address = docker::docker(&["inspect", "-f", address, &container]).expect(0).out();
            let token = docker::docker(&["exec", &container, "cat", "/data/admin.token"]).expect(0).out();
            Self {
                url: format!("http://{}:{PORT}", address.trim()),
                token,
                data: "/data".into(),
                layer: "/layer".into(),
                pid: NonZero::new(1).expect("it is not zero"),
                _up: up,
                container: Some(container),
                _scratch: scratch,
            }
        }

        async fn client(&self) -> grpc::Client {
            grpc::Client::connect(&self.url, Some(self.token.trim())).await
        }

        /// What hostile code is told, as Python.
        fn known(&self, neighbour: &Session) -> String {
            let data = self.data.display();
            let layer = self.layer.display();
            let base = format!("{data}/worker/sessions");
            let port = self.url.rsplit(':').next().expect("a port");
            let up = self.pid;
            let private = neighbour.tier == "T3" || neighbour.facilities.iter().any(|name| name == "filter");
            let shared = if private { "False" } else { "True" };
            format!(
                "known = {{'canary': '-'.join(['canary', '5f1c0d']), 'data': '{data}', 'base': '{base}', 'layer': '{layer}', \
                 'sibling': '{base}/{}/workspace', 'port': {port}, 'worker': {up}, 'coordinator': {up}, \
                 'shared_network': {shared}}}\n",
                neighbour.id
            )
        }
    }

    async fn session(client: &grpc::Client, limits: v1::Limits) -> Session {
        let request = CreateSessionRequest { limits: Some(limits), ..Default::default() };
        client.sessions().create_session(request).await.expect("a session").into_inner()
    }

    async fn destroy(client: &grpc::Client, session: &Session) {
        let request = DestroySessionRequest { session_id: session.id.clone(), ..Default::default() };
        client.sessions().destroy_session(request).await.expect("it goes");
    }

    /// Runs code to its end: the task, and what it printed.
    async fn run(client: &grpc::Client, session: &Session, code: String, timeout_ms: u64) -> (Task, String) {
        let spec = TaskSpec {
            kind: Some(Kind::Python(PythonSpec { code, ..Default::default() })),
            session_id: session.id.clone(),
            timeout_ms,
            ..Default::default()
        };
        let request = SubmitTaskRequest { spec: Some(spec), ..Default::default() };
        let mut events = client.tasks().execute(request).await.expect("it is taken").into_inner();
        let mut printed = Vec::new();
        while let Some(message) = events.message().await.expect("a stream") {
            match message.event {
                Some(Event::Output(output)) if output.stream() == v1::Stream::Stdout => {
                    printed.extend_from_slice(&output.data[..output.data.len().min(1 << 16)]);
                    printed.truncate(1 << 20);
                }
                Some(Event::Ended(task)) => return (task, String::from_utf8_lossy(&printed).into_owned()),
                _ => {}
            }
        }
        panic!("the stream ended before the task")
    }

    /// How long the neighbour waits for its answers, in milliseconds, sorted. Asked at least so often, and `while_set`.
    async fn probe(client: &grpc::Client, neighbour: &Session, while_set: &AtomicBool) -> Vec<u64> {
        let mut waited = Vec::with_capacity(PROBES);
        while waited.len() < PROBES || while_set.load(Ordering::Relaxed) {
            let begin = clock::mono_ms();
            let (task, _) = run(client, neighbour, "6 * 7".to_owned(), 0).await;
            waited.push(clock::mono_ms() - begin);
            assert_eq!(task.state(), v1::TaskState::Succeeded, "{:?}", task.outcome);
        }
        waited.sort_unstable();
        waited
    }

    /// What is wrong with how a case ended, if anything.
    fn judge(case: &Case, task: &Task, printed: &str) -> Option<String> {
        let outcome = task.outcome.clone().unwrap_or_default();
        let code = outcome.error.as_ref().map_or("", |error| &*error.code);
        let contained = printed.trim_end().lines().last() == Some("contained");
        let short = outcome.exception.as_ref().is_some_and(|raised| raised.name == "MemoryError");
        let well = match case.then {
            Then::Contained => contained,
            Then::Over(codes) => contained || short || codes.contains(&code),
            Then::Truncated => outcome.stdout_truncated || code == "timed_out",
            Then::Ends => true,
        };
        let end = printed.char_indices().rev().nth(600).map_or(printed, |(at, _)| &printed[at..]);
        (!well).then(|| format!("{}: {:?} {code:?} {:?}\n{end}", case.name, task.state(), outcome.exception))
    }

    fn hostile_code_is_contained(name: &'static str, tier: &str, place: impl FnOnce() -> Option<Place>) {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = place() else { return };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let found = runtime.expect("a runtime").block_on(attempt_all(&place, tier));
        assert!(found.is_empty(), "at {name}:\n{}", found.join("\n"));
    }

    async fn attempt_all(place: &Place, tier: &str) -> Vec<String> {
        let client = place.client().await;
        let neighbour = session(&client, v1::Limits::default()).await;
        assert_eq!(neighbour.tier, tier, "{:?}", neighbour.facilities);
        run(&client, &neighbour, "open('secret', 'w').write('s'); kept = 41".to_owned(), 0).await;
        let known = place.known(&neighbour);
        let mut found = Vec::new();
        for case in ALL {
            for again in [true, false] {
                let (wrong, p95) = attempt(case, &client, &neighbour, &known).await;
                found.extend(wrong);
                if case.busy || p95 <= P95_MS {
                    break;
                }
                // The machine may have had something else to do; it has not every time.
                println!("{}: the neighbour waited {p95} ms", case.name);
                if !again {
                    found.push(format!("{}: the neighbour waited {p95} ms, as before", case.name));
                }
            }
        }
        found.extend(attempt_bomb(&client, &neighbour, &known).await);
        found.extend(attempt_doors(&client, &neighbour, &known).await);
        let after = session(&client, v1::Limits::default()).await;
        let (task, printed) =
            run(&client, &after, format!("{known}{PRELUDE}{}", AFTER_A_SIBLING.code), 0).await;
        found.extend(judge(&AFTER_A_SIBLING, &task, &printed));
        let (task, _) = run(&client, &neighbour, "open('secret').read(), kept + 1".to_owned(), 0).await;
        let (_, there) =
            run(&client, &neighbour, "import os; print(sorted(os.listdir()))".to_owned(), 0).await;
        if there.trim() != "['.venv', 'secret']" {
            found.push(format!("beside the neighbour's own file there is {there}"));
        }
        let value = task.outcome.and_then(|outcome| outcome.result);
        let value = value.and_then(|bundle| bundle.data.get("text/plain").cloned()).unwrap_or_default();
        if value != b"('s', 42)" {
            found.push(format!("the neighbour has {:?}", String::from_utf8_lossy(&value)));
        }
        found
    }

    /// What a case could do, and how long the neighbour waited meanwhile.
    async fn attempt(
        case: &Case,
        client: &grpc::Client,
        neighbour: &Session,
        known: &str,
    ) -> (Vec<String>, u64) {
        let (mut found, once) = (Vec::new(), AtomicBool::new(false));
        let victim = session(client, case.limits()).await;
        let code = format!("{known}{PRELUDE}{}", case.code);
        let attempt = tokio::time::timeout(CASE, run(client, &victim, code, case.timeout_ms));
        let (attempted, waited) = tokio::join!(attempt, probe(client, neighbour, &once));
        match attempted {
            Ok((task, printed)) => found.extend(judge(case, &task, &printed)),
            Err(_) => found.push(format!("{}: it does not end", case.name)),
        }
        found.extend(unusable(case, client, &victim).await);
        destroy(client, &victim).await;
        (found, waited[PROBES * 95 / 100])
    }

    /// A session can be used again, or has ended, whatever a case did.
    async fn unusable(case: &Case, client: &grpc::Client, victim: &Session) -> Option<String> {
        let (task, _) = run(client, victim, "1 + 1".to_owned(), 20_000).await;
        let told =
            task.outcome.as_ref().is_some_and(|outcome| outcome.result.is_some() || outcome.error.is_some());
        (!told).then(|| format!("{}: afterwards {:?}", case.name, task.outcome))
    }

    /// The machine's processes, and those of the bomb among them, wherever they are.
    fn processes() -> (usize, usize) {
        let entries = std::fs::read_dir("/proc").expect("processes").flatten();
        let pids = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
        pids.fold((0, 0), |(all, of_bomb), entry| {
            let said = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            (all + 1, of_bomb + usize::from(String::from_utf8_lossy(&said).contains(BOMB)))
        })
    }

    /// What goes on by itself when nobody waits for it: the neighbour is there all the time, and nothing of it in the end.
    async fn attempt_bomb(client: &grpc::Client, neighbour: &Session, known: &str) -> Vec<String> {
        let (before, _) = processes();
        let victim = session(client, SHELL_BOMB.limits()).await;
        let code = format!("{known}{PRELUDE}{}", SHELL_BOMB.code);
        let (mut found, mut most) = (Vec::new(), 0);
        // One that was over before anybody looked has shown nothing.
        for _ in 0..BOMBS {
            let goes_on = AtomicBool::new(true);
            let attempt = async {
                let attempt = run(client, &victim, code.clone(), SHELL_BOMB.timeout_ms);
                let attempted = tokio::time::timeout(CASE, attempt).await;
                goes_on.store(false, Ordering::Relaxed);
                attempted
            };
            let look = async {
                let mut most = 0;
                while goes_on.load(Ordering::Relaxed) {
                    most = most.max(processes().1);
                    tokio::time::sleep(LOOK).await;
                }
                most
            };
            let (attempted, _, seen) = tokio::join!(attempt, probe(client, neighbour, &goes_on), look);
            most = most.max(seen);
            match attempted {
                Ok((task, printed)) => {
                    println!("shell_bomb: {:?} with up to {seen} processes", task.state());
                    found.extend(judge(&SHELL_BOMB, &task, &printed));
                }
                Err(_) => found.push("shell_bomb: it does not end".to_owned()),
            }
            if most >= BOMB_SEEN || !found.is_empty() {
                break;
            }
        }
        if most < BOMB_SEEN {
            found.push(format!("shell_bomb: no more than {most} processes were seen"));
        }
        found.extend(unusable(&SHELL_BOMB, client, &victim).await);
        destroy(client, &victim).await;
        let begin = clock::mono_ms();
        loop {
            let (all, of_bomb) = processes();
            if of_bomb == 0 && all < before + OTHERS {
                break;
            }
            if clock::mono_ms() - begin > GONE_MS {
                found.push(format!(
                    "shell_bomb: {of_bomb} are left, of {all} processes; before there were {before}"
                ));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let p95 = probe(client, neighbour, &AtomicBool::new(false)).await[PROBES * 95 / 100];
        if p95 > P95_MS {
            found.push(format!("shell_bomb: the neighbour waited {p95} ms when it was over"));
        }
        found
    }

    /// What is asked of Cooper about a workspace that is a trap, beside the neighbour.
    async fn attempt_doors(client: &grpc::Client, neighbour: &Session, known: &str) -> Vec<String> {
        let victim = session(client, DOORS.limits()).await;
        let code = format!("{known}{PRELUDE}{}", DOORS.code);
        let (task, printed) = run(client, &victim, code, 30_000).await;
        let mut found: Vec<String> = judge(&DOORS, &task, &printed).into_iter().collect();
        let goes_on = AtomicBool::new(true);
        let asked = async {
            let possible = doors::attempts(client, &victim).await;
            goes_on.store(false, Ordering::Relaxed);
            possible
        };
        let (possible, waited) = tokio::join!(asked, probe(client, neighbour, &goes_on));
        found.extend(possible.into_iter().map(|what| format!("doors: {what}")));
        let p95 = waited[waited.len() * 95 / 100];
        if p95 > P95_MS {
            found.push(format!("doors: the neighbour waited {p95} ms"));
        }
        let look = "import os; print(os.path.exists('stolen'), os.listdir(known['layer']))";
        let (_, there) = run(client, &victim, format!("{known}{look}"), 20_000).await;
        if there.trim() != "False ['readable.py']" {
            found.push(format!(
                "doors: a sibling's file was read by a checkpoint, or the layer has more: {there}"
            ));
        }
        destroy(client, &victim).await;
        found
    }

    #[test]
    fn hostile_code_is_contained_with_everything_the_machine_has() {
        let name = "hostile-t3";
        hostile_code_is_contained(name, "T3", || Place::start(name, "", true, "T0"));
    }

    /// Where Docker is not wanted, beside the tests and without what a container has not got.
    #[test]
    fn hostile_code_is_contained_in_a_container_with_the_default_profile() {
        let wanted = docker::wanted("hostile_code_is_contained_in_a_container_with_the_default_profile");
        let name = "hostile-t1";
        hostile_code_is_contained(name, "T1", || match wanted {
            true => Some(Place::start_in_container(name)),
            false => Place::start(name, "namespaces,cgroup", true, "T0"),
        });
    }

    #[test]
    fn hostile_code_is_contained_where_nobody_is_root() {
        let name = "hostile-t0";
        hostile_code_is_contained(name, "T0", || Place::start(name, "", false, "T0"));
    }

    /// Holes that are there on purpose: facilities that are taken away, and the cases that have to notice, each by what it
    /// says then.
    const HOLES: &[(&str, &[(&str, &str)])] = &[
        (
            "landlock,seccomp",
            &[
                ("siblings_files", "read "),
                ("attributes", "fchmod "),
                ("secrets", "worker.token"),
                ("sockets", "coordinator at 127.0.0.1"),
                ("privileges", "unshare user"),
                ("shared_places", "shmget"),
            ],
        ),
        // What seccomp keeps out it keeps out alone.
        ("landlock", &[("siblings_files", "write "), ("secrets", "worker.token")]),
        ("seccomp", &[("attributes", "chmod "), ("shared_places", "msgget"), ("sockets", "kind 2")]),
    ];

    /// A suite that finds nothing where there is something would say nothing at all.
    #[test]
    fn hostile_code_that_gets_out_is_noticed() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for (mask, expected) in HOLES {
            let Some(place) = Place::start("hostile-hole", mask, false, "unconfined") else { return };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let found = runtime.block_on(async {
                let client = place.client().await;
                let neighbour = session(&client, v1::Limits::default()).await;
                assert_eq!(neighbour.tier, "unconfined", "{:?}", neighbour.facilities);
                let known = place.known(&neighbour);
                let mut found = Vec::new();
                for case in ALL.iter().filter(|case| expected.iter().any(|(name, _)| *name == case.name)) {
                    // Another case may have made off with it.
                    run(&client, &neighbour, "open('secret', 'w').write('s')".to_owned(), 0).await;
                    let victim = session(&client, case.limits()).await;
                    let code = format!("{known}{PRELUDE}{}", case.code);
                    let (task, printed) = run(&client, &victim, code, 30_000).await;
                    found.extend(
                        judge(case, &task, &printed).map(|what| (case.name, format!("{what}\n{printed}"))),
                    );
                }
                found
            });
            for (name, said) in *expected {
                let case = found.iter().find(|(case, _)| case == name);
                assert!(
                    case.is_some_and(|(_, printed)| printed.contains(said)),
                    "without {mask}: {name} does not say {said:?}: {case:?}"
                );
            }
        }
    }

    /// Not less safely and silently: not at all.
    #[test]
    fn a_worker_that_is_not_root_takes_no_sessions_with_an_older_landlock() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for mask in ["landlock", "landlock:1", "landlock:2", "landlock:4", "seccomp"] {
            let Some(place) = Place::start("hostile-less", mask, false, "T0") else { return };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let refused = runtime.block_on(async {
                let request = CreateSessionRequest::default();
                place.client().await.sessions().create_session(request).await.expect_err("refused")
            });
            let error = grpc::refusal(&refused);
            assert!(["isolation_unavailable", "no_capacity"].contains(&&*error.code), "{mask}: {error:?}");
            assert!(error.message.contains("T0") || error.hint.contains("doctor"), "{mask}: {error:?}");
        }
    }
}
