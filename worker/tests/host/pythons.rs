//! Several Pythons on one worker: each session has its own, and keeps it.

use std::{fs, path::PathBuf, process::Command};

use cooper_proto::v1::TaskState;
use rustix::process::Signal;

use crate::{
    claims::claims,
    packages::{Wheels, install, well},
    worker::{Worker, eventually, signal},
};

/// Where Pythons beside the first one are looked for: PATH, and where version managers put theirs.
fn places() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    for versions in [home.join(".pyenv/versions"), home.join(".local/share/uv/python"), PathBuf::from("/opt")]
    {
        places.extend(
            fs::read_dir(versions).into_iter().flatten().flatten().map(|entry| entry.path().join("bin")),
        );
    }
    places
}

/// Two Pythons of different minor versions: path, `3.12.1` and `3.12` of each.
fn two(test: &str) -> Option<[(String, String, String); 2]> {
    let asked = |program: &PathBuf| {
        let question = "import sys; print(sys.executable, '%d.%d.%d' % sys.version_info[:3])";
        let answer = Command::new(program).args(["-I", "-c", question]).output().ok()?;
        let answer = String::from_utf8(answer.stdout).ok()?;
        let (path, version) = answer.trim().rsplit_once(' ')?;
        let (minor, _) = version.rsplit_once('.')?;
        Some((path.to_owned(), version.to_owned(), minor.to_owned()))
    };
    let first = asked(&PathBuf::from("python3"))?;
    let names = (9..16).map(|minor| format!("python3.{minor}"));
    let all: Vec<PathBuf> =
        names.flat_map(|name| places().into_iter().map(move |dir| dir.join(&name))).collect();
    let second = all.iter().filter(|path| path.is_file()).filter_map(asked).find(|other| other.2 != first.2);
    if second.is_none() {
        println!("test {test} is skipped: there is no second Python here");
    }
    Some([first, second?])
}

const WHICH: &str = "import sys; '%d.%d.%d' % sys.version_info[:3]";

claims! {
    fn sessions_run_on_the_python_that_they_name_and_keep_it() {
        let Some([first, second]) = two("sessions_run_on_the_python_that_they_name_and_keep_it") else { return };
        let wheels = Wheels::new(&[("oak", "1.0", "1")]);
        let both = format!("{},{}", first.0, second.0);
        let mut worker = wheels.worker_with(&[("TEST_PYTHON", &both)]);
        assert_eq!(worker.hello.python_versions, [&*first.1, &*second.1]);
        assert_eq!(worker.hello.python_version, first.1);
        worker.zygote();
        worker.wait_for_pool(4);
        assert_eq!(worker.zygotes().len(), 1, "nobody wanted the other yet");

        let mut sessions = Vec::new();
        for (wanted, there) in [("", &first.1), (&*second.2, &second.1), (&second.1, &second.1), (&first.1, &first.1)] {
            let made = worker.try_python(wanted);
            assert_eq!((&*made.state, &made.python_version), ("ready", there), "{:?}", made.error);
            let seen = worker.python(&made.session_id, WHICH).value();
            assert_eq!(seen, format!("'{there}'"));
            let typed = worker.shell(&made.session_id, &["sh", "-c", "python -V; .venv/bin/python3 -V"], b"");
            assert_eq!(typed.out(), format!("Python {there}\nPython {there}\n"));
            sessions.push((made.session_id, there.clone()));
        }
        let refused = worker.try_python("3.99");
        assert_eq!((&*refused.state, &*refused.error.unwrap().code), ("failed", "python_missing"));
        assert_eq!(worker.try_python("3").state, "failed");

        // What is installed in one is built for its Python, and another session does not have it.
        let (session, _) = sessions[1].clone();
        well(&mut worker, &session, install(&["oak"]));
        let site = worker.workspace(&session).join(format!(".venv/lib/python{}/site-packages/oak", second.2));
        assert!(site.exists() || site.with_extension("py").exists(), "{}", site.display());
        assert_eq!(worker.python(&session, "import oak").state, TaskState::Succeeded);

        // With the other one first after a restart, each goes on with its own; what an older host left, with the first.
        let old = worker.workspace(&sessions[3].0).parent().unwrap().join("session.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&old).unwrap()).unwrap();
        worker.host.kill().unwrap();
        eventually("everything is dead", || worker.processes().is_empty().then_some(()));
        assert_eq!(record["python"], *first.1);
        record.as_object_mut().unwrap().remove("python");
        fs::write(&old, record.to_string()).unwrap();
        worker.start_again_in(&[("TEST_PYTHON", &both)]);
        for (session, there) in &sessions {
            let seen = worker.python(session, WHICH).value();
            assert_eq!(seen, format!("'{there}'"));
        }
        worker.host.kill().unwrap();
        eventually("everything is dead", || worker.processes().is_empty().then_some(()));
        worker.start_again_in(&[("TEST_PYTHON", &first.0)]);
        let state = |id: &str| worker.hello.sessions.iter().find(|it| it.session_id == id).unwrap().state.clone();
        assert_eq!([0, 1, 2, 3].map(|n| state(&sessions[n].0)), ["ready", "failed", "failed", "ready"]);
    }

    fn the_zygote_of_another_python_starts_when_a_session_wants_it_and_keeps_few_places() {
        let Some([first, second]) =
            two("the_zygote_of_another_python_starts_when_a_session_wants_it_and_keeps_few_places")
        else {
            return;
        };
        let both = format!("{},{}", first.0, second.0);
        let mut worker = Worker::start_in(&[("TEST_PYTHON", &both)]);
        worker.wait_for_pool(4);
        assert_eq!(worker.try_python(&second.2).state, "ready");
        eventually("two zygotes and both their pools", || {
            (worker.zygotes().len() == 2 && worker.pooled().len() == 4 + 2).then_some(())
        });
        let waiting = worker.pooled();
        let session = worker.try_python(&second.1).session_id;
        let pid: i32 = worker.python(&session, "import os; os.getpid()").value().parse().unwrap();
        assert!(waiting.contains(&pid), "its interpreter was there before");
        assert_eq!(worker.python(&session, WHICH).value(), format!("'{}'", second.1));
        // Killed, it comes back like the first.
        let before = worker.zygotes();
        before.iter().for_each(|pid| signal(*pid, Signal::KILL));
        eventually("both are replaced", || {
            let now = worker.zygotes();
            (now.len() == 2 && now.iter().all(|pid| !before.contains(pid))).then_some(())
        });
    }
}
