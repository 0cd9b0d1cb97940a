//! A client that was generated from `proto/` alone, in another language.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use cooper_tests::{
    program::{Running, command},
    seconds, shared,
};

/// Made once, beside the other tools; another list of requirements is another directory.
pub fn environment(scripts: &Path) -> std::path::PathBuf {
    static ONE_AFTER_THE_OTHER: Mutex<()> = Mutex::new(());
    let _turn = ONE_AFTER_THE_OTHER.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = std::fs::read_to_string(scripts.join("requirements.txt")).expect("the requirements");
    let name: String = wanted.split_whitespace().collect::<Vec<_>>().join("-").replace("==", "-");
    let made = scripts.join("../../../target/tools/python-clients").join(name);
    let python = made.join("bin/python");
    if made.join("complete").exists() {
        return python;
    }
    let _ = std::fs::remove_dir_all(&made);
    let mut venv = command("python3");
    venv.args(["-m", "venv"]).arg(&made);
    Running::start(venv, b"").finish(seconds(120)).expect(0);
    let mut pip = command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(scripts.join("requirements.txt"));
    Running::start(pip, b"").finish(seconds(300)).expect(0);
    std::fs::write(made.join("complete"), "").expect("a mark");
    python
}

#[test]
fn a_python_client_made_from_the_proto_files_alone_uses_sessions() {
    let cluster = shared();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    let mut client = command(environment(&scripts));
    client
        .arg(scripts.join("client.py"))
        .arg(scripts.join("../../../proto"))
        .env("COOPER_URL", &cluster.url)
        .env("COOPER_TOKEN", cluster.admin_token())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let done = Running::start(client, b"").finish(seconds(120)).expect(0);
    let features = done.out().lines().count();
    assert!(features >= 12, "{done}");
}
