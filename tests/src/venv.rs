//! Virtual environments with the packages that clients under test need: made once, kept beside the other tools.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::{
    program::{Running, command},
    seconds,
};

/// The Python of an environment that has these requirements, a line each; other requirements are another environment.
pub fn python(name: &str, requirements: &str) -> PathBuf {
    // Tests that want the same one wait for who makes it.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let digest: String =
        Sha256::digest(requirements).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/venvs");
    let made = tools.join(format!("{name}-{digest}"));
    let python = made.join("bin/python");
    if made.join("complete").exists() {
        return python;
    }
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&tools).expect("a directory of the target's");
    let mut venv = command("python3");
    venv.args(["-m", "venv"]).arg(&made);
    Running::start(venv, b"").finish(seconds(120)).expect(0);
    let wanted = made.join("requirements.txt");
    fs::write(&wanted, requirements).expect("written");
    let mut pip = command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&wanted);
    Running::start(pip, b"").finish(seconds(300)).expect(0);
    fs::write(made.join("complete"), "").expect("a mark");
    python
}
