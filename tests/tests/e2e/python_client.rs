//! Clients in Python: one that was generated from `proto/` alone, and the package `clients/python`.

use std::{fs, path::Path, process::Command};

use cooper_tests::{
    Cluster, Scratch, cluster::shared_compose, docker, docker::Stack, program, program::Running, seconds,
    shared, venv,
};

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A program of a client, told where the cluster is.
fn client(python: &Path, cluster: &Cluster) -> Command {
    let mut client = program::command(python);
    client
        .env("COOPER_URL", &cluster.url)
        .env("COOPER_TOKEN", cluster.admin_token())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    client
}

#[test]
fn a_python_client_made_from_the_proto_files_alone_uses_sessions() {
    let scripts = repository().join("tests/clients/python");
    let wanted = fs::read_to_string(scripts.join("requirements.txt")).expect("the requirements");
    let mut client = client(&venv::python("generated", &wanted), &shared());
    client.arg(scripts.join("client.py")).arg(repository().join("proto"));
    let done = Running::start(client, b"").finish(seconds(120)).expect(0);
    let features = done.out().lines().count();
    assert!(features >= 12, "{done}");
}

/// The package as `pip` installs it, in a directory of its own beside what it depends on.
struct Package {
    python: std::path::PathBuf,
    /// A copy of `clients/python`, with the contract as a source distribution has it.
    sources: std::path::PathBuf,
    installed: std::path::PathBuf,
    _scratch: Scratch,
}

impl Package {
    fn install() -> Self {
        let scratch = Scratch::new("python-package");
        let (sources, installed) = (scratch.join("python"), scratch.join("installed"));
        let copy = |from: &str, to: &Path| {
            let mut copy = program::command("cp");
            copy.arg("-r").arg(repository().join(from)).arg(to);
            Running::start(copy, b"").finish(seconds(10)).expect(0);
        };
        copy("clients/python", &sources);
        copy("proto", &sources.join("proto"));
        let python = venv::python("package", &requirements(&sources));
        let mut pip = program::command(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--no-build-isolation", "--target"])
            .args([&installed, &sources]);
        Running::start(pip, b"").finish(seconds(120)).expect(0);
        Self { python, sources, installed, _scratch: scratch }
    }

    fn client(&self, cluster: &Cluster) -> Command {
        let mut client = client(&self.python, cluster);
        client.env("PYTHONPATH", &self.installed).current_dir(&self.sources);
        client
    }

    /// What an example prints.
    fn example(&self, name: &str, args: &[&str], cluster: &Cluster) -> String {
        let mut example = self.client(cluster);
        example.arg(self.sources.join("examples").join(name)).args(args);
        Running::start(example, b"").finish(seconds(300)).expect(0).out()
    }
}

/// What the package says it needs to be built, used and tested.
fn requirements(sources: &Path) -> String {
    let text = fs::read_to_string(sources.join("pyproject.toml")).expect("pyproject.toml");
    let project: toml::Table = text.parse().expect("TOML");
    let needs = [
        &project["build-system"]["requires"],
        &project["project"]["dependencies"],
        &project["project"]["optional-dependencies"]["test"],
    ];
    let lines = needs.iter().flat_map(|list| list.as_array().expect("a list"));
    lines.map(|line| format!("{}\n", line.as_str().expect("a requirement"))).collect()
}

#[test]
fn the_python_package_does_what_it_says_blocking_and_asynchronous() {
    let package = Package::install();
    let mut types = program::command(&package.python);
    types
        .args(["-m", "mypy", "--cache-dir", "mypy-cache", "-p", "cooper"])
        .env("MYPYPATH", &package.installed)
        .current_dir(&package.sources);
    Running::start(types, b"").finish(seconds(300)).expect(0);

    let mut tests = package.client(&shared());
    tests.args(["-m", "pytest", "-p", "no:cacheprovider", "tests"]);
    Running::start(tests, b"").finish(seconds(300)).expect(0);

    let quickstart = package.example("quickstart.py", &[], &shared());
    assert_eq!(quickstart, "42\nhello\nZeroDivisionError\n3\n'1.0 GB'\n");
    let stream = package.example("stream.py", &[], &shared());
    assert_eq!(stream, "step 0\nstep 1\nstep 2\nwho? hello cooper\nended by KeyboardInterrupt\n");
    assert_eq!(package.example("parallel.py", &[], &shared()), "[0, 1, 4, 9, 16]\n");
    // Its front page shows the first of them.
    let readme = fs::read_to_string(package.sources.join("README.md")).expect("README.md");
    let shown = fs::read_to_string(package.sources.join("examples/quickstart.py")).expect("the example");
    assert!(
        readme.contains(&shown[shown.find("from cooper").expect("it imports")..]),
        "README.md shows quickstart.py"
    );
}

#[test]
fn the_python_package_repairs_a_service_and_approves_its_plan() {
    if !docker::wanted("the_python_package_repairs_a_service_and_approves_its_plan") {
        return;
    }
    let package = Package::install();
    let stack = Stack::broken("python-package", &["missing-apt-package"]);
    let cluster = shared_compose();
    let registered = cluster.cooper().json(["stacks", "add", stack.arg()]);
    let name = registered["name"].as_str().expect("a name");
    let said = package.example("repair.py", &[name, "web"], &cluster);
    assert!(said.contains("cause: ") && said.contains("+++"), "{said}");
    assert!(said.contains("state: succeeded") && said.contains("patch.diff"), "{said}");
    assert_eq!(stack.health("web"), "healthy");
}
