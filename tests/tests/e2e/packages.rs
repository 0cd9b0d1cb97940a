//! Packages over the whole cluster, from a directory of wheels.

use std::{fs, path::Path, process::Command};

use cooper_tests::{Cluster, Setup};

/// Wheels that a worker finds without a network.
pub fn wheels(wheels: &[(&str, &str)]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/host/packages.py");
    for (name, version) in wheels {
        let mut command = Command::new("python3");
        command.arg(&script).arg("wheel").arg(dir.path()).args([name, version]);
        assert!(command.status().expect("python3").success());
    }
    dir
}

fn cluster(wheels: &Path) -> Cluster {
    Setup::python()
        .env("PIP_FIND_LINKS", &wheels.to_string_lossy())
        .env("PIP_NO_INDEX", "1")
        .env("PIP_CONFIG_FILE", "/dev/null")
        .start()
}

#[test]
fn packages_come_change_and_go_without_a_network_and_a_failed_install_changes_nothing() {
    let wheels = wheels(&[("staves", "1.0"), ("staves", "2.0"), ("hoops", "1.0")]);
    let cluster = cluster(wheels.path());
    let cooper = cluster.cooper();
    let s = cooper.session();
    let list = || {
        let listed = cooper.json(["packages", "list", &s]);
        let of = |it: &serde_json::Value| format!("{} {}", it["name"], it["version"]).replace('"', "");
        listed["packages"].as_array().expect("a list").iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(list(), [""; 0]);
    cooper.ok(["packages", "install", &s, "staves==1.0"]);
    assert_eq!(list(), ["staves 1.0"]);
    assert_eq!(cooper.exec(&s, "import staves; print(staves.VERSION)"), "1.0");

    // All or nothing: what can be installed beside what cannot is not.
    let failed = cooper.run(["--json", "packages", "install", &s, "hoops", "no-such-thing"]);
    assert_eq!(failed.status, 1, "{failed}");
    assert_eq!(list(), ["staves 1.0"]);
    assert_eq!(cooper.exec(&s, "import importlib.util as u; print(u.find_spec('hoops'))"), "None");

    // What is imported stays until the interpreter is another one, and that is said.
    let file = cluster.scratch.write("requirements.txt", "# of wood\nstaves\nhoops\n");
    let file = file.to_string_lossy();
    let upgraded = cooper.json(["packages", "install", &s, "-U", "-r", &file]);
    let outcome = upgraded.to_string();
    assert!(outcome.contains("\"restart_required\":true") && outcome.contains("\"staves\""), "{outcome}");
    assert_eq!(list(), ["hoops 1.0", "staves 2.0"]);
    assert_eq!(cooper.exec(&s, "print(staves.VERSION)"), "1.0");
    assert_eq!(
        cooper.ok(["sh", "-n", &s, "--", "python", "-c", "import staves; print(staves.VERSION)"]),
        "2.0"
    );

    // Typed in the session, where there is no network, it goes the same way.
    cooper.ok(["packages", "uninstall", &s, "hoops"]);
    assert_eq!(list(), ["staves 2.0"]);
    cooper.ok(["sh", "-n", &s, "--", "pip", "install", "hoops"]);
    assert_eq!(list(), ["hoops 1.0", "staves 2.0"]);
    let option = cooper.run(["packages", "install", &s, "--", "--index-url=http://x.test"]);
    assert_ne!(option.status, 0, "{option}");
}
