//! TLS on the one port, and workers that show a certificate.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use cooper_tests::{
    Cooper, Scratch, binary, http,
    program::{Finished, Running, command},
    seconds,
    wait::until_true,
};

/// What curl says: the way of browsers and scripts, which have no client certificate.
fn curl(args: &[&str]) -> Finished {
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20"]).args(args);
    Running::start(curl, b"").finish(seconds(30))
}

/// A coordinator with certificates of its own.
struct Secured {
    scratch: Scratch,
    coordinator: Option<Running>,
    port: u16,
}

impl Secured {
    fn start(env: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new("tls");
        let certs = scratch.join("certs");
        let certs = certs.to_str().expect("a path");
        Cooper::default().ok(["certs", "init", "--dir", certs, "--host", "cooper.test"]);
        let mut secured = Self { scratch, coordinator: None, port: http::free_port() };
        let cooper = secured.cooper().env("COOPER_LISTEN", &format!("127.0.0.1:{}", secured.port));
        let cooper = env.iter().fold(cooper, |cooper, (name, value)| cooper.env(name, value));
        let coordinator = cooper.dir(secured.scratch.path()).start(["coordinator"], b"");
        until_true("a coordinator", seconds(30), || {
            secured.cooper().run(["health"]).status == 0 && secured.cooper().run(["status"]).status == 0
        });
        secured.coordinator = Some(coordinator);
        secured
    }

    fn file(&self, name: &str) -> String {
        self.scratch.join("certs").join(name).to_string_lossy().into_owned()
    }

    /// On this machine, with every setting of the coordinator.
    fn cooper(&self) -> Cooper {
        Cooper::at(&self.scratch.join("data"))
            .env("COOPER_TLS_CERT", &self.file("server.crt"))
            .env("COOPER_TLS_KEY", &self.file("server.key"))
            .env("COOPER_TLS_CLIENT_CA", &self.file("ca.crt"))
            .env("COOPER_TLS_CA", &self.file("ca.crt"))
    }

    /// A worker with a good token, and these.
    fn worker(&self, id: &str, scheme: &str, env: &[(&str, String)]) -> Running {
        let token = self.scratch.join("data/worker.token");
        let cooper = Cooper::at(&self.scratch.join(id))
            .env("COORDINATOR_ADDR", &format!("{scheme}://127.0.0.1:{}", self.port))
            .env("COOPER_JOIN_TOKEN_FILE", &token.to_string_lossy())
            .env("COOPER_COMPOSE", "off")
            .env("COOPER_RECONNECT_BASE_MS", "50")
            .env("WORKER_ID", id);
        let cooper = env.iter().fold(cooper, |cooper, (name, value)| cooper.env(name, value));
        cooper.start(["worker"], b"")
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn workers(&self) -> Vec<String> {
        let workers = self.cooper().json(["workers"])["workers"].clone();
        let ids = workers.as_array().expect("a list").iter().map(|worker| worker["worker_id"].to_string());
        ids.map(|id| id.trim_matches('"').to_owned()).collect()
    }
}

#[test]
fn one_port_speaks_tls_to_everybody_and_asks_workers_alone_for_a_certificate() {
    let secured = Secured::start(&[]);
    let (url, ca) = (secured.url(), secured.file("ca.crt"));
    let token = fs::read_to_string(secured.scratch.join("data/admin.token")).expect("a token");
    let bearer = format!("authorization: Bearer {}", token.trim());
    for version in ["--http1.1", "--http2"] {
        let wanted = format!("{url}/sessions");
        let said =
            curl(&[version, "--cacert", &ca, "-H", &bearer, "-w", "%{http_version} %{http_code}", &wanted]);
        let said = said.expect(0).out();
        let expected = if version == "--http2" { "2 200" } else { "1.1 200" };
        assert!(said.ends_with(expected) && said.contains("sessions"), "{said}");
    }
    // Another authority's is not taken for it, and without TLS one is told what to do.
    let system = curl(&[&format!("{url}/health")]);
    assert_eq!(system.status, 60, "{system}");
    let plain = curl(&[&format!("http://localhost:{}/health", secured.port)]).expect(0).out();
    assert!(plain.contains("https://"), "{plain}");
    // Under the name for workers nobody comes in without a certificate.
    let resolve = format!("cooper-worker:{}:127.0.0.1", secured.port);
    let there = format!("https://cooper-worker:{}/health", secured.port);
    let bare = curl(&["--cacert", &ca, "--resolve", &resolve, &there]);
    assert_ne!(bare.status, 0, "{bare}");
    let (cert, key) = (secured.file("worker.crt"), secured.file("worker.key"));
    let shown = ["--cacert", &ca, "--cert", &cert, "--key", &key, "--resolve", &resolve, &there];
    assert!(curl(&shown).expect(0).out().contains("healthy"));

    let trust = ("COOPER_TLS_CA", ca.clone());
    // A good token alone.
    let mut bare = secured.worker("bare", "https", std::slice::from_ref(&trust));
    bare.await_said("a refusal", seconds(30), |worker| {
        worker.stderr().contains("client certificate").then_some(())
    });
    // A certificate of somebody else's authority, under the same names.
    let other = secured.scratch.join("other");
    Cooper::default().ok(["certs", "init", "--dir", other.to_str().expect("a path")]);
    let foreign = |name: &str| other.join(name).to_string_lossy().into_owned();
    let mut stranger = secured.worker(
        "stranger",
        "https",
        &[
            trust.clone(),
            ("COOPER_TLS_CLIENT_CERT", foreign("worker.crt")),
            ("COOPER_TLS_CLIENT_KEY", foreign("worker.key")),
        ],
    );
    stranger.await_said("a refusal", seconds(30), |worker| {
        let said = worker.stderr();
        (said.contains("certificate") || said.contains("transport error")).then_some(())
    });
    // Who has not the operator's authority does not give its token away.
    let mut deceived = secured.worker("deceived", "https", &[("COOPER_TLS_CA", foreign("ca.crt"))]);
    deceived.await_said("a refusal", seconds(30), |worker| {
        worker.stderr().contains("invalid peer certificate").then_some(())
    });
    let mut good = secured.worker(
        "good",
        "https",
        &[trust, ("COOPER_TLS_CLIENT_CERT", cert), ("COOPER_TLS_CLIENT_KEY", key)],
    );
    good.await_said("an attach", seconds(60), |_| (secured.workers() == ["good"]).then_some(()));
    assert_eq!(secured.cooper().exec(&secured.cooper().session(), "6 * 7"), "42");
}

#[test]
fn new_certificates_are_shown_without_a_restart_and_bad_ones_change_nothing() {
    let secured = Secured::start(&[]);
    let (url, ca) = (format!("{}/health", secured.url()), secured.file("ca.crt"));
    let serial = || {
        let shown =
            curl(&["--cacert", &ca, "--verbose", "-o", "/dev/null", "-w", "%{certs}", &url]).expect(0);
        let line = shown.out().lines().find(|line| line.starts_with("Serial Number")).map(str::to_owned);
        line.expect("a serial number")
    };
    let first = serial();
    fs::write(secured.file("server.crt"), "nothing of use").expect("written");
    let coordinator = secured.coordinator.as_ref().expect("it runs");
    until_true("a warning", seconds(20), || coordinator.stderr().contains("certificates of before"));
    assert_eq!(serial(), first);
    let certs = secured.scratch.join("certs");
    Cooper::default().ok([
        "certs",
        "issue",
        "--dir",
        certs.to_str().expect("a path"),
        "server",
        "--host",
        "cooper.test",
    ]);
    until_true("the new certificate", seconds(20), || serial() != first);
}

#[test]
fn certificates_are_made_for_their_owner_alone_and_nothing_that_others_trust_is_replaced() {
    let scratch = Scratch::new("certs");
    let dir = scratch.join("certs");
    let dir_text = dir.to_str().expect("a path");
    let cooper = Cooper::default();
    let made =
        cooper.json(["certs", "init", "--dir", dir_text, "--host", "10.1.2.3", "--host", "cooper.test"]);
    assert_eq!(made["files"].as_array().map(Vec::len), Some(6), "{made}");
    let mode = |name: &str| fs::metadata(dir.join(name)).expect(name).permissions().mode() & 0o777;
    for key in ["ca.key", "server.key", "worker.key"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    let refused = cooper.error(["certs", "init", "--dir", dir_text]);
    assert!(refused.code == "invalid_argument" && refused.hint.contains("certs issue"), "{refused:?}");
    assert_eq!(cooper.error(["certs", "issue", "--dir", dir_text, "ca"]).code, "invalid_argument");
    assert_eq!(cooper.error(["certs", "issue", "--dir", dir_text, "../x"]).code, "invalid_argument");
    cooper.ok(["certs", "issue", "--dir", dir_text, "worker-2"]);
    let mut openssl = command("openssl");
    openssl.args(["verify", "-CAfile"]).arg(dir.join("ca.crt"));
    openssl.args(["server.crt", "worker.crt", "worker-2.crt"].map(|name| dir.join(name)));
    Running::start(openssl, b"").finish(seconds(20)).expect(0);
}

#[test]
fn nothing_is_listened_on_beyond_this_machine_without_tls_unless_that_is_said() {
    let scratch = Scratch::new("insecure");
    let cooper = Cooper::at(&scratch.join("data")).env("COOPER_LISTEN", "0.0.0.0:0");
    let refused = cooper.error(["coordinator"]);
    assert_eq!(refused.code, "config_invalid");
    assert!(
        refused.hint.contains("cooper certs init") && refused.hint.contains("insecure_listen"),
        "{refused:?}"
    );
    let mut told = cooper.env("COOPER_INSECURE_LISTEN", "on").start(["coordinator"], b"");
    told.await_said("that it serves", seconds(30), |said| said.stderr().contains("serving").then_some(()));
}

/// A machine: a network of its own, a directory, and who is who.
struct Machine {
    name: String,
    dir: PathBuf,
}

impl Machine {
    fn new(scratch: &Scratch, which: &str, hosts: &str) -> Self {
        let name = format!("cooper-{which}-{}", std::process::id());
        let dir = scratch.join(which);
        fs::create_dir_all(&dir).expect("a directory");
        root(&["ip", "netns", "add", &name]);
        let etc = Path::new("/etc/netns").join(&name);
        fs::create_dir_all(&etc).expect("a directory");
        fs::write(etc.join("hosts"), hosts).expect("written");
        Self { name, dir }
    }

    /// Runs a block of the page.
    fn start(&self, block: &str, bin: &Path) -> Running {
        // What goes on until it is ended takes the shell's place, so that it is what is ended.
        let block = block.replace("\ncooper coordinator", "\nexec cooper coordinator");
        let block = block.replace("\ncooper worker", "\nexec cooper worker");
        let mut run = command("ip");
        run.args(["netns", "exec", &self.name, "bash", "-ec", &block]).current_dir(&self.dir);
        let binary = binary();
        let programs = binary.parent().expect("it lies in a directory").display();
        let path = std::env::var("PATH").unwrap_or_default();
        run.env("PATH", format!("{}:{programs}:{path}", bin.display())).env("COOPER_COMPOSE", "off");
        Running::start(run, b"")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut gone = command("ip");
        gone.args(["netns", "del", &self.name]);
        Running::start(gone, b"").finish(seconds(10));
        let _ = fs::remove_dir_all(Path::new("/etc/netns").join(&self.name));
    }
}

fn root(words: &[&str]) {
    let mut run = command(words[0]);
    run.args(&words[1..]);
    Running::start(run, b"").finish(seconds(10)).expect(0);
}

#[test]
fn a_worker_joins_from_another_network_over_mutual_tls_by_the_steps_of_the_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = fs::read_to_string(page).expect("the page");
    let section = page.split("\n## ").find(|part| part.starts_with("TLS, and workers")).expect("the section");
    let blocks: Vec<&str> =
        section.split("```sh run-by: e2e::tls\n").skip(1).filter_map(|it| it.split("```").next()).collect();
    let [serve, token, work] = blocks[..] else { panic!("three blocks: {blocks:?}") };

    let scratch = Scratch::new("machines");
    let hosts = "127.0.0.1 localhost\n10.213.7.1 cooper.example.org\n10.213.7.2 worker-1.example.org\n";
    let there = Machine::new(&scratch, "c", hosts);
    let here = Machine::new(&scratch, "w", hosts);
    root(&[
        "ip",
        "link",
        "add",
        "up0",
        "netns",
        &there.name,
        "type",
        "veth",
        "peer",
        "name",
        "up0",
        "netns",
        &here.name,
    ]);
    for (machine, address) in [(&there, "10.213.7.1/24"), (&here, "10.213.7.2/24")] {
        root(&["ip", "-n", &machine.name, "address", "add", address, "dev", "up0"]);
        for link in ["up0", "lo"] {
            root(&["ip", "-n", &machine.name, "link", "set", link, "up"]);
        }
    }
    // What carries files from one machine to the other is not Cooper's.
    let scp = scratch.write(
        "bin/scp",
        format!(
            "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = worker-1.example.org: ] || exit 1\n\
        while [ $# -gt 1 ]; do cp \"$1\" {}/ || exit 1; shift; done\n",
            here.dir.display()
        ),
    );
    fs::set_permissions(&scp, fs::Permissions::from_mode(0o755)).expect("a program");
    let bin = scp.parent().expect("its directory");

    let mut coordinator = there.start(serve, bin);
    coordinator
        .await_said("that it serves", seconds(60), |said| said.stderr().contains("serving").then_some(()));
    there.start(token, bin).finish(seconds(30)).expect(0);
    let mut worker = here.start(work, bin);
    worker.await_said("that it is registered", seconds(60), |said| {
        said.stderr().contains("registered").then_some(())
    });
    let commands = "cooper --config cooper.toml --data data exec $(cooper --config cooper.toml --data data \
        session create) -c 'print(6 * 7)'\n";
    assert_eq!(there.start(commands, bin).finish(seconds(60)).expect(0).out().trim(), "42");
}
