//! Packages of a session: what changes them, what does not, and who learns what of it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use cooper_proto::{
    host::{self as wire, to_host, to_link},
    v1::{self, TaskState, call, call_result, task_spec::Kind},
};
use prost::Message as _;
use rustix::process::Signal;

use crate::{
    claims::claims,
    worker::{Done, Worker, eventually, in_workspace, signal},
};

/// A place that packages come from.
pub struct Wheels(tempfile::TempDir);

impl Wheels {
    pub fn new(wheels: &[(&str, &str, &str)]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let made = Self(tempfile::tempdir().unwrap());
        std::fs::set_permissions(made.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for (name, version, files) in wheels {
            made.make(&["wheel", made.dir(), name, version, files]);
        }
        made
    }

    fn make(&self, arguments: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/packages.py");
        assert!(Command::new("python3").arg(script).args(arguments).status().unwrap().success());
    }

    fn dir(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn worker(&self) -> Worker {
        self.worker_with(&[])
    }

    pub fn worker_with(&self, more: &[(&str, &str)]) -> Worker {
        let settings =
            [("PIP_FIND_LINKS", self.dir()), ("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", "/dev/null")];
        Worker::start_in(&[&settings[..], more].concat())
    }
}

fn of(packages: &[&str]) -> Vec<String> {
    packages.iter().map(|package| (*package).to_owned()).collect()
}

pub fn install(packages: &[&str]) -> Kind {
    Kind::Install(v1::InstallSpec { packages: of(packages), ..v1::InstallSpec::default() })
}

fn uninstall(packages: &[&str]) -> Kind {
    Kind::Uninstall(v1::UninstallSpec { packages: of(packages) })
}

fn ran(worker: &mut Worker, session: &str, kind: Kind) -> Done {
    let task = worker.start_task(session, kind, 0);
    worker.link.wait(&task)
}

pub fn well(worker: &mut Worker, session: &str, kind: Kind) -> Done {
    let done = ran(worker, session, kind);
    assert_eq!(done.state, TaskState::Succeeded, "{}", said(&done));
    done
}

fn said(done: &Done) -> String {
    format!("{}{} {:?}", done.out(), String::from_utf8_lossy(&done.stderr), done.outcome)
}

/// Name, version, from, imported.
fn listed(worker: &mut Worker, session: &str) -> Vec<(String, String, String, bool)> {
    let op = call::Op::Packages(v1::ListPackagesRequest { session_id: session.to_owned() });
    let call = v1::Call { call_id: 9, session_id: session.to_owned(), op: Some(op) };
    let work = wire::FileWork { call_id: 9, call: Some(call), archive_path: String::new() };
    worker.link.send(to_host::Message::FileWork(work));
    let fd = loop {
        if let (to_link::Message::FileOpened(opened), mut fds) = worker.link.receive(20_000).unwrap() {
            assert_eq!(opened.error, None);
            break fds.pop().unwrap();
        }
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes).unwrap();
    match v1::CallResult::decode(&*bytes).unwrap().result {
        Some(call_result::Result::Packages(list)) => {
            list.packages.into_iter().map(|it| (it.name, it.version, it.from, it.imported)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Everything in the session's venv, with what it holds.
fn venv(worker: &Worker, session: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => walk(&path, found),
                kind if kind.is_file() => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
                _ => drop(found.insert(path.clone(), Vec::new())),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&worker.workspace(session).join(".venv"), &mut found);
    found
}

claims! {
    fn packages_are_installed_with_the_workers_settings_and_only_into_their_session() {
        let wheels = Wheels::new(&[("staves", "1.0", "1"), ("staves", "2.0", "1")]);
        let index = "https://user:canary-of-an-index@index.test/simple";
        let mut worker = wheels.worker_with(&[("PIP_INDEX_URL", index)]);
        let (session, other) = (worker.create_session(v1::Limits::default()), worker.create_session(v1::Limits::default()));
        assert_eq!(worker.python(&session, "import staves").outcome.exception.unwrap().name, "ModuleNotFoundError");
        let done = well(&mut worker, &session, install(&["staves==1.0"]));
        assert_eq!(worker.python(&session, "import staves; staves.VERSION").value(), "'1.0'");
        assert_eq!(worker.python(&other, "import staves").outcome.exception.unwrap().name, "ModuleNotFoundError");
        let told = worker.shell(&session, &["env"], b"").out();
        assert!(!told.contains(wheels.dir()), "a directory of the worker's is for installs only");
        assert!(!told.contains("canary-of-an-index"), "what is secret is for installs only");
        assert!(!done.outcome.restart_required, "nobody had imported it");
        let done = ran(&mut worker, &session, install(&["no-such-thing"]));
        assert_eq!((done.state, done.error()), (TaskState::Failed, "install_failed"));
        let done = ran(&mut worker, &session, install(&["--index-url=x"]));
        assert_eq!(done.error(), "invalid_argument");
    }

    fn packages_are_listed_upgraded_and_removed_and_what_is_imported_is_named() {
        let wheels = Wheels::new(&[("staves", "1.0", "1"), ("staves", "2.0", "1"), ("hoops", "1.0", "1"), ("hoops", "1.1", "1")]);
        let mut worker = wheels.worker();
        let session = worker.create_session(v1::Limits::default());
        well(&mut worker, &session, install(&["staves[hoops]==1.0", "hoops<1.1"]));
        assert_eq!(worker.python(&session, "import staves; staves.VERSION").value(), "'1.0'");
        let entry = |name: &str, version: &str, imported| (name.to_owned(), version.to_owned(), "session".to_owned(), imported);
        assert_eq!(listed(&mut worker, &session), [entry("hoops", "1.0", false), entry("staves", "1.0", true)]);

        let requirements = "# what is made of wood\nhoops\nstaves ; python_version > '3'\n".to_owned();
        let asked = v1::InstallSpec { requirements, upgrade: true, ..v1::InstallSpec::default() };
        let done = well(&mut worker, &session, Kind::Install(asked));
        assert!(done.outcome.restart_required, "{}", said(&done));
        assert_eq!(done.outcome.restart_modules, ["staves"], "hoops was not imported");
        assert_eq!(worker.python(&session, "staves.VERSION").value(), "'1.0'", "what is imported stays");
        assert_eq!(worker.python(&session, "import hoops; hoops.VERSION").value(), "'1.1'");
        let script = worker.shell(&session, &["sh", "-c", "head -1 .venv/bin/staves; .venv/bin/python -c 'import staves; print(staves.VERSION)'"], b"");
        let workspace = worker.workspace(&session);
        assert_eq!(script.out(), format!("#!{}/.venv/bin/python\n2.0\n", workspace.display()), "{}", said(&script));

        let before = venv(&worker, &session);
        let done = ran(&mut worker, &session, uninstall(&["hoops", "rivets"]));
        assert_eq!(done.error(), "install_failed", "{}", said(&done));
        assert!(said(&done).contains("rivets is not installed"), "{}", said(&done));
        assert!(before == venv(&worker, &session), "all or none");
        let done = well(&mut worker, &session, uninstall(&["staves", "Hoops"]));
        assert_eq!(done.outcome.restart_modules, ["hoops", "staves"]);
        assert_eq!(listed(&mut worker, &session), []);
        assert!(!workspace.join(".venv/bin/staves").exists() && !workspace.join(".cooper-venv.part").exists());
    }

    fn an_installer_that_is_killed_in_the_middle_leaves_the_packages_as_they_were() {
        let wheels = Wheels::new(&[("staves", "1.0", "2"), ("staves", "2.0", "6000")]);
        let mut worker = wheels.worker();
        let session = worker.create_session(v1::Limits::default());
        well(&mut worker, &session, install(&["staves==1.0"]));
        let workspace = worker.workspace(&session);
        let copy = workspace.join(".cooper-venv.part");
        let version = worker.hello.python_version.clone();
        let site = copy.join(format!("lib/python{}/site-packages", version.rsplit_once('.').unwrap().0));
        // As soon as some of the new files are there, and as soon as the copy is begun.
        for (kind, middle) in [(install(&["staves==2.0"]), site.join("staves/part1000.py")), (uninstall(&["staves"]), site)] {
            let before = venv(&worker, &session);
            let _ = std::fs::remove_dir_all(&copy);
            let task = worker.start_task(&session, kind, 0);
            eventually("it is in the middle", || middle.exists().then_some(()));
            let interpreter = worker.python(&session, "import os; os.getpid()").value();
            let of_installer = |pid: &i32| pid.to_string() != interpreter;
            in_workspace(&worker.dir, &session).into_iter().filter(of_installer).for_each(|pid| signal(pid, Signal::KILL));
            let done = worker.link.wait(&task);
            assert_eq!(done.state, TaskState::Failed, "{}", said(&done));
            assert!(before == venv(&worker, &session), "the venv has changed");
        }
        well(&mut worker, &session, install(&["staves==2.0"]));
        assert_eq!(worker.python(&session, "import staves; staves.VERSION").value(), "'2.0'");
        assert!(!workspace.join(".cooper-venv.part").exists(), "what was left is gone");
    }

    fn pip_typed_in_a_session_installs_through_the_worker_under_the_same_rules() {
        let wheels = Wheels::new(&[("staves", "1.0", "1"), ("staves", "2.0", "1"), ("hoops", "1.0", "1")]);
        let mut worker = wheels.worker();
        let session = worker.create_session(v1::Limits::default());
        let sh = |worker: &mut Worker, line: &str| worker.shell(&session, &["sh", "-c", line], b"");
        for line in [
            "pip install staves==1.0",
            "python -m pip install -q 'staves>=2'",
            ".venv/bin/pip install --upgrade --no-cache-dir hoops",
            "printf 'staves<2\n# cheaper\n' > wanted.txt; cd tmp 2>/dev/null; mkdir -p deep; cd deep; pip3 install -r ../wanted.txt",
        ] {
            let done = sh(&mut worker, line);
            assert_eq!(done.outcome.exit_code, 0, "{line}: {}", said(&done));
        }
        let code = "import subprocess, sys\nprint(subprocess.run([sys.executable, '-m', 'pip', 'install', 'staves==2.0'], capture_output=True, text=True))\n\
            import staves; staves.VERSION";
        let done = worker.python(&session, code);
        assert_eq!(done.value(), "'2.0'", "installed and imported by the same execution: {}", said(&done));
        // The installer's words are where pip's would be.
        let again = worker.python(&session, "import pip; pip.main(['install', 'staves==1.0'])");
        assert!(said(&again).contains("staves") && said(&again).contains("restart required"), "{}", said(&again));

        let looked = sh(&mut worker, "pip list; pip freeze; pip show staves; pip --version; pip list --format json");
        for expected in ["hoops   1.0", "staves==1.0", "Name: staves\nVersion: 1.0", "+cooper", "{\"name\": \"hoops\""] {
            assert!(looked.out().contains(expected), "{expected}: {}", said(&looked));
        }
        let before = venv(&worker, &session);
        for (line, why) in [
            ("pip install nothing-like-it", "nothing-like-it"),
            ("pip install --target x staves", "--target is not supported in a session"),
            ("pip download staves", "pip download is not supported in a session"),
            ("pip install", "name at least one"),
            ("pip uninstall -y staves rivets", "rivets is not installed"),
            ("pip install -i http://elsewhere.test/simple staves", "network policy does not allow the package index elsewhere.test"),
            ("pip install -i file:///etc staves", "is no index"),
        ] {
            let done = sh(&mut worker, line);
            assert_ne!(done.outcome.exit_code, 0, "{line}");
            assert!(said(&done).contains(why), "{line}: {}", said(&done));
        }
        assert!(before == venv(&worker, &session), "what was refused changed nothing");
        let done = sh(&mut worker, "pip uninstall -y staves hoops && pip list && pip install -U pip");
        assert!(done.outcome.exit_code == 0 && done.out().ends_with("stays as it is\n"), "{}", said(&done));
        assert_eq!(listed(&mut worker, &session), []);
    }

    fn who_asks_the_installer_from_inside_gets_nothing_that_its_rules_do_not_give() {
        let wheels = Wheels::new(&[("staves", "1.0", "1")]);
        let mut worker = wheels.worker();
        let (session, other) = (worker.create_session(v1::Limits::default()), worker.create_session(v1::Limits::default()));
        let ask = "import json, socket\n\
            def ask(body, length=None):\n    \
                s = socket.create_connection(('127.0.0.1', 3128))\n    \
                body = body if isinstance(body, bytes) else json.dumps(body).encode()\n    \
                s.sendall(b'POST / HTTP/1.1\\r\\nHost: pip.cooper.internal\\r\\nContent-Length: %d\\r\\n\\r\\n' % (length or len(body)) + body)\n    \
                return b''.join(iter(lambda: s.recv(4096), b'')).decode('latin1')\n";
        worker.python(&session, ask);
        let outside = worker.dir.join("sessions").join(&other);
        for (order, why) in [
            ("{'Install': {'packages': ['--index-url=http://x.test']}}".to_owned(), "options are refused"),
            ("{'Install': {'packages': ['staves'], 'editable': ['--x']}}".to_owned(), "is no path"),
            ("{'Install': {'packages': ['staves'], 'cwd': 7}}".to_owned(), "does not understand"),
            ("{'Session': 'x'}".to_owned(), "does not understand"),
            ("{'Uninstall': []}".to_owned(), "name 1 to"),
            ("b'\\xff\\xfe'".to_owned(), "400"),
            ("b'x', 1 << 40".to_owned(), "400"),
            // Its own rights, in whatever directory it says it stands.
            (format!("{{'Install': {{'packages': ['staves'], 'cwd': {:?}}}}}", outside.display().to_string()), "denied"),
            (format!("{{'Install': {{'requirement_files': ['{}/workspace/x']}}}}", outside.display()), "x"),
        ] {
            let done = worker.python(&session, &format!("ask({order})"));
            assert!(done.value().contains(why), "{order}: {} {}", done.value(), said(&done));
            assert!(!done.value().contains("\"exit_code\":0"), "{order}: {}", done.value());
        }
        assert_eq!(listed(&mut worker, &session), []);
        // Many at once: a few are served, the others are told so.
        let code = "import threading\nheard = []\n\
            threads = [threading.Thread(target=lambda: heard.append(ask({'Install': {'packages': ['staves']}}))) for _ in range(6)]\n\
            [t.start() for t in threads]; [t.join() for t in threads]\n\
            (sum('\"exit_code\":0' in h for h in heard) >= 1, all('\"exit_code\":0' in h or 'at work already' in h for h in heard))";
        assert_eq!(worker.python(&session, code).value(), "(True, True)");
        assert_eq!(listed(&mut worker, &other), []);
    }

    fn a_pip_that_is_interrupted_takes_its_installer_along() {
        let wheels = Wheels::new(&[]);
        let hang = "import os, time\ndef build_wheel(*a, **k):\n    open(os.path.expanduser('~/begun'), 'w').close()\n    time.sleep(600)\n\
            prepare_metadata_for_build_wheel = build_wheel\n";
        wheels.make(&["source", wheels.dir(), "slow", hang]);
        let mut worker = wheels.worker();
        let session = worker.create_session(v1::Limits::default());
        let begun = worker.workspace(&session).join("begun");
        let task = worker.start_shell(&session, &["pip", "install", "slow"], b"", 0);
        eventually("it builds", || begun.exists().then_some(()));
        worker.cancel(&task, 100);
        let done = worker.link.wait(&task);
        assert_eq!(done.state, TaskState::Cancelled);
        let interpreter = worker.python(&session, "import os; os.getpid()").value();
        eventually("nothing of it is left", || {
            let left = in_workspace(&worker.dir, &session);
            left.iter().all(|pid| pid.to_string() == interpreter).then_some(())
        });
        assert_eq!(listed(&mut worker, &session), []);
    }

    fn the_password_of_an_index_is_nowhere_that_the_code_of_packages_can_look() {
        password_is_kept(false, &[]);
    }

    fn the_password_of_an_index_over_tls_is_kept_too() {
        password_is_kept(true, &[]);
    }
}

/// An index that takes a password, until it is dropped.
struct Index {
    process: std::process::Child,
    port: u16,
}

impl Index {
    fn start(wheels: &Wheels, user: &str, certificate: &str) -> Self {
        use std::io::BufRead as _;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/packages.py");
        let mut command = Command::new("python3");
        command
            .arg(script)
            .args(["serve", wheels.dir(), user])
            .args((!certificate.is_empty()).then_some(certificate));
        let mut process = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn password_is_kept(tls: bool, more: &[(&str, &str)]) {
    const CANARY: &str = "canary-of-an-index";
    let wheels = Wheels::new(&[("staves", "1.0", "1")]);
    wheels.make(&["source", wheels.dir(), "greedy", include_str!("greedy.py")]);
    let own = tempfile::tempdir().unwrap();
    let certificate = own.path().join("certificate.pem").display().to_string();
    if tls {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=index.test"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", "subjectAltName=DNS:index.test", "-keyout", &certificate, "-out"])
            .arg(format!("{certificate}.only"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let both =
            [&certificate, &format!("{certificate}.only")].map(|file| std::fs::read(file).unwrap()).concat();
        std::fs::write(&certificate, both).unwrap();
    }
    let index = Index::start(&wheels, &format!("us@er:{CANARY}"), if tls { &certificate } else { "" });
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://us%40er:{CANARY}@index.test:{}/team/simple", index.port);
    let authority = format!("{certificate}.only");
    let mut settings = vec![
        ("PIP_INDEX_URL", url.as_str()),
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("PIP_FIND_LINKS", ""),
        ("TEST_EGRESS_HOSTS", "index.test=127.0.0.1"),
    ];
    settings.extend(tls.then_some(("PIP_CERT", authority.as_str())));
    settings.extend(more);
    let mut worker = Worker::start_in(&settings);
    let session = worker.create_session(v1::Limits::default());
    // A program that every installer runs: the venv's Python itself.
    let code = "import glob, os\nsite = glob.glob('.venv/lib/*/site-packages')[0]\n\
        spy = \"import os; open(os.environ['HOME'] + '/spied', 'a').write(repr(dict(os.environ)))\"\n\
        open(site + '/spy.pth', 'w').write(spy + chr(10))";
    assert_eq!(worker.python(&session, code).state, TaskState::Succeeded);

    let first = well(&mut worker, &session, install(&["staves"]));
    let built = worker.shell(&session, &["pip", "install", "--no-cache-dir", "greedy"], b"");
    assert_eq!(built.outcome.exit_code, 0, "{}", said(&built));
    let missing = ran(&mut worker, &session, install(&["no-such-thing"]));
    let read = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(worker.workspace(&session).join(name)).unwrap()).into_owned()
    };
    let (seen, spied) = (read("seen"), read("spied"));
    for beyond in ["/api/v4/user", "/team/%2e%2e/api", "/team/simple/greedy/"] {
        assert!(
            seen.contains(&format!("refused {beyond}")),
            "{beyond}: {}",
            &seen[seen.len().saturating_sub(600)..]
        );
    }
    for text in [&seen, &spied, &said(&first), &said(&built), &said(&missing)] {
        assert!(text.len() > 20, "it looked");
        assert!(!text.contains(CANARY) && !text.contains("dXNAZXI6"), "the password was seen");
    }
    let kept = Command::new("grep")
        .args(["-rlaE", "canary-of-an-index|dXNAZXI6"])
        .arg(worker.dir.join("sessions"))
        .output();
    assert_eq!(String::from_utf8_lossy(&kept.unwrap().stdout), "", "in a cache");
}
