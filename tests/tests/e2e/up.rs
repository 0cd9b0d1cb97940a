//! `cooper up`: what it says, what it refuses, how it ends, and what it finds again.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use cooper_tests::{Cluster, Cooper, Scratch, processes, seconds, shared, until};
use rustix::process::Signal;

/// `up` in a fresh directory, for starts that are to fail.
fn refused(scratch: &Scratch, more: &[&str]) -> (String, String) {
    let data = scratch.join("data");
    let args = [&["up", "--no-compose", "--data", data.to_str().expect("plain")], more].concat();
    let done = Cooper::default().run(args).expect(1);
    assert_eq!(done.out(), "", "nothing on standard output\n{done}");
    let lines: Vec<String> = done.err().lines().map(str::to_owned).collect();
    assert!(lines.len() <= 2, "one line and a hint\n{done}");
    assert!(lines.get(1).is_none_or(|hint| hint.starts_with("  hint: ")), "{done}");
    done.error_line()
}

#[test]
fn up_says_what_runs_where_and_three_commands_to_try() {
    let scratch = Scratch::new("banner");
    let cooper = Cooper::default().dir(scratch.path()).env("GRPC_PORT", "0");
    let mut up = cooper.start(["up", "--no-compose"], b"");
    let text = up.await_said("how to stop it", seconds(60), |up| {
        Some(up.stdout()).filter(|text| text.contains("Ctrl-C stops everything."))
    });
    let url = fs::read_to_string(scratch.join(".cooper/endpoint")).expect("the endpoint");
    assert!(text.lines().next().is_some_and(|line| line.ends_with(url.trim())), "{text}");
    assert!(text.contains(".cooper") && text.contains("python    3."), "{text}");
    let commands: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("Try")).skip(1).collect();
    let commands: Vec<&str> = commands.into_iter().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(commands.len(), 3, "{text}");

    // Each of them works where it is said to: in the same directory.
    for command in &commands {
        let args = command.trim().split_once(' ').expect("a command").1;
        let mut shell = cooper_tests::program::command("sh");
        shell
            .args(["-c", &format!("exec \"$0\" {args}")])
            .arg(cooper_tests::binary())
            .current_dir(scratch.path());
        cooper_tests::Running::start(shell, b"").finish(seconds(30)).expect(0);
    }
    up.signal(Signal::INT);
    up.finish(seconds(5)).expect(0);
    assert_eq!(processes::of(&scratch.join(".cooper")), []);
}

#[test]
fn the_admin_token_is_for_its_owner_alone() {
    let cluster = shared();
    for name in ["admin.token", "worker.token"] {
        let mode = fs::metadata(cluster.data.join(name)).expect("made at first start").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let data = fs::metadata(&cluster.data).expect("the data directory").permissions().mode();
    assert_eq!(data & 0o066, 0, "nobody else lists the data directory");
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let cluster = shared();
    let data = cluster.data.to_str().expect("plain");
    let done =
        Cooper::default().run(["up", "--no-compose", "--data", data, "--listen", "127.0.0.1:0"]).expect(1);
    let (code, message) = done.error_line();
    assert_eq!(code, "data_busy");
    assert!(message.contains(data) && message.contains("pid"), "{message}");
    assert_eq!(cluster.cooper().json(["health"])["status"], "healthy", "the first one goes on");
}

#[test]
fn a_taken_port_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let (code, message) = refused(&Scratch::new("port"), &["--listen", &address]);
    assert_eq!(code, "port_taken");
    assert!(message.contains(&address), "{message}");
}

#[test]
fn an_unusable_data_directory_is_one_clear_line() {
    let scratch = Scratch::new("unusable");
    // Where root may write everything, too, nothing can be made below a file.
    scratch.write("data", "a file");
    let (code, message) = refused(&scratch, &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, "data_unusable");
    assert!(message.contains(scratch.join("data").to_str().expect("plain")), "{message}");
}

#[test]
fn a_machine_without_python_is_one_clear_line() {
    let scratch = Scratch::new("no-python");
    let data = scratch.join("data");
    let cooper = Cooper::default().env("PATH", scratch.path().to_str().expect("plain"));
    let args = ["up", "--no-compose", "--listen", "127.0.0.1:0", "--data", data.to_str().expect("plain")];
    let (code, message) = cooper.run(args).expect(1).error_line();
    assert_eq!((code.as_str(), message.as_str()), ("python_missing", "there is no python3 in PATH"));
    assert_eq!(processes::of(&data), []);
}

#[test]
fn ctrl_c_ends_everything_that_runs_in_under_five_seconds() {
    let mut cluster = Cluster::start();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let loops = "import subprocess\nsubprocess.Popen(['setsid', 'sleep', '1000'])\nprint('up', flush=True)\nwhile True: pass";
    let mut busy = cooper.start(["exec", &session, "-c", loops], b"");
    busy.await_said("that it runs", seconds(20), |busy| busy.stdout().contains("up").then_some(()));
    assert!(cluster.processes().len() >= 6, "{:?}", cluster.processes());
    drop(busy);
    cluster.stop().expect(0);
}

#[test]
fn a_second_start_on_the_same_data_has_everything() {
    let mut cluster = Cluster::start();
    let cooper = cluster.cooper();
    let session = cooper.ok(["session", "create", "--name", "kept"]);
    cooper.ok(["packages", "install", "kept", "six"]);
    cooper.exec("kept", "open('note.txt', 'w').write('still here')");
    let tasks = cooper.json(["tasks", "list"])["tasks"].as_array().expect("a list").len();
    let token = cluster.admin_token();
    let epoch = cooper.json(["status"])["coordinator_epoch"].as_u64();
    cluster.stop().expect(0);

    cluster.start_up();
    assert_eq!(cluster.admin_token(), token);
    assert!(
        cooper.json(["status"])["coordinator_epoch"].as_u64() > epoch,
        "each start has an epoch of its own"
    );
    let found = cooper.json(["session", "show", "kept"]);
    assert_eq!(found["session_id"], session.as_str());
    assert_eq!(found["state"], "ready");
    assert_eq!(found["interpreter_restarted"], true);
    assert_eq!(cooper.json(["tasks", "list"])["tasks"].as_array().map(Vec::len), Some(tasks));
    let code = "import six; print(open('note.txt').read(), six.__name__)";
    assert_eq!(cooper.exec("kept", code), "still here six");
}

#[test]
fn after_a_kill_of_everything_the_next_start_sweeps_and_works() {
    let mut cluster = Cluster::start();
    let cooper = cluster.cooper();
    cooper.ok(["session", "create", "--name", "survivor"]);
    cooper.exec("survivor", "open('kept', 'w').write('bytes')");
    // One that would go on: it left its session's process group.
    let daemon = "import os, subprocess; print(subprocess.Popen(['setsid', 'sleep', '1000']).pid)";
    let daemon: i32 = cooper.exec("survivor", daemon).trim().parse().expect("a pid");
    assert!(processes::is_alive(daemon), "it outlives its execution, as any child may");
    let up_only = cluster.pid();
    cluster.kill_everything_but(|process| process.pid == daemon);
    assert!(processes::is_alive(daemon) && !processes::is_alive(up_only.as_raw_pid()));

    cluster.start_up();
    until("the sweep of what the dead start left", seconds(10), || {
        (!processes::is_alive(daemon)).then_some(())
    });
    assert_eq!(cooper.exec("survivor", "print(open('kept').read())"), "bytes");
    cluster.stop().expect(0);
}

#[test]
fn what_a_kill_of_up_alone_leaves_does_not_keep_the_next_start_from_working() {
    let mut cluster = Cluster::start();
    let session = cluster.cooper().session();
    cluster.kill_up();
    cluster.start_up();
    assert_eq!(cluster.cooper().exec(&session, "print(6 * 7)"), "42");
}

#[test]
fn a_data_directory_can_be_passed_and_nothing_in_it_read_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = cooper_tests::Setup::python().start();
    cluster.cooper().session();
    let mode =
        |path: &std::path::Path| path.symlink_metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&cluster.data), 0o711);
    for entry in std::fs::read_dir(&cluster.data).expect("it can be listed") {
        let (path, of_worker) = entry.map(|it| (it.path(), it.file_name() == "worker")).expect("an entry");
        // Where the coordinator is is no secret, and neither is that `up` runs.
        if of_worker || ["endpoint", "up.lock", ".gitignore"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
}
