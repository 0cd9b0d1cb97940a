//! Executions that are spoken with: input, signals, background, terminals, and what a session remembers of them.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
};

use cooper_proto::v1::{ReadOutputRequest, Signal, SignalExecutionRequest, WriteStdinRequest};
use cooper_tests::{
    Cooper, binary, fleet::Fleet, grpc::Client, program::command, seconds, shared, wait::until_true,
};
use rustix::{
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

#[test]
fn what_is_piped_into_an_interactive_execution_reaches_its_code() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let sum = "import sys; sum(int(line) for line in sys.stdin)";
    let done = cooper.run_with(["exec", &session, "-i", "-c", sum], b"1\n2\n39\n").expect(0);
    assert_eq!(done.out(), "42\n");
    let much = vec![b'x'; 300_000];
    let done = cooper.run_with(["sh", "-i", &session, "--", "sh", "-c", "sleep 0.2; wc -c"], &much).expect(0);
    assert_eq!(done.out(), "300000\n");
    // Nobody reads it: the end of the execution is the end.
    cooper.run_with(["sh", "-i", &session, "--", "true"], &much).expect(0);
    let done =
        cooper.run_with(["exec", &session, "--fresh", "-i", "-c", "input('? ')"], b"fresh\n").expect(0);
    assert_eq!(done.out(), "? 'fresh'\n");
}

#[test]
fn an_execution_in_the_background_is_listed_read_written_to_and_killed() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let program =
        "while True:\n  line = input()\n  print('heard', line, flush=True)\n  if line == 'end': break\nline";
    let task = cooper.ok(["exec", &session, "--background", "-i", "-c", program]);
    cooper.ok(["tasks", "write", &task, "one"]);
    let document = cooper.until_json("output", seconds(10), &["tasks", "output", &task], |document| {
        document["data"] == "heard one\n"
    });
    assert_eq!((&document["state"], &document["complete"]), (&"running".into(), &false.into()));
    let listed = cooper.json(["tasks", "list", "--session", &session, "--state", "running"]);
    assert_eq!(listed["tasks"][0]["task_id"], *task);
    cooper.run_with(["tasks", "write", &task], b"two\nend\n").expect(0);
    cooper.ok(["tasks", "follow", &task]);
    let offset = document["next_offset"].to_string();
    let rest = cooper.json(["tasks", "output", &task, "--offset", &offset]);
    assert_eq!((&rest["data"], &rest["complete"]), (&"heard two\nheard end\n".into(), &true.into()));
    assert_eq!(cooper.error(["tasks", "write", &task, "late"]).code, "stdin_not_open");
    assert_eq!(cooper.error(["tasks", "signal", &task, "INT"]).code, "not_running");
    let task = cooper.ok(["sh", &session, "--background", "--", "sh", "-c", "sleep 60 & sleep 60"]);
    cooper.ok(["tasks", "kill", &task]);
    let shown = cooper
        .until_json("its end", seconds(10), &["tasks", "show", &task], |task| task["state"] == "failed");
    assert_eq!((&shown["error"]["code"], &shown["exit_code"]), (&"killed".into(), &137.into()));
}

#[test]
fn an_interrupt_keeps_the_state_and_a_kill_says_that_it_is_gone() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "kept = 42");
    let sleep =
        ["exec", &session, "--background", "-c", "import time; print('up', flush=True); time.sleep(60)"];
    let ended = |signal: &str| {
        let task = cooper.ok(sleep);
        cooper.until_json("output", seconds(10), &["tasks", "output", &task], |out| out["data"] == "up\n");
        cooper.ok(["tasks", "signal", &task, signal]);
        cooper.until_json("its end", seconds(10), &["tasks", "show", &task], |task| task["state"] == "failed")
    };
    let interrupted = ended("int");
    assert_eq!(interrupted["exception"]["name"], "KeyboardInterrupt");
    assert_eq!(cooper.exec(&session, "kept"), "42");
    let killed = ended("KILL");
    assert_eq!(
        (&killed["error"]["code"], &killed["interpreter_restarted"]),
        (&"killed".into(), &true.into())
    );
    let gone = cooper.run(["exec", &session, "-c", "kept"]).expect(1);
    assert!(gone.err().contains("NameError"), "{gone}");
}

/// What was shown on a terminal, as it comes.
type Text = Arc<Mutex<Vec<u8>>>;

/// A terminal with a command on its other side.
struct Terminal {
    user: File,
    theirs: OwnedFd,
    text: Text,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&user).expect("granted");
        unlockpt(&user).expect("unlocked");
        let theirs =
            ioctl_tiocgptpeer(&user, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the other side");
        let (user, text) = (File::from(user), Text::default());
        let (mut reader, shown) = (user.try_clone().expect("a descriptor"), text.clone());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut piece) {
                shown.lock().expect("text").extend_from_slice(&piece[..read]);
            }
        });
        Self { user, theirs, text }
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.user, size).expect("a size");
    }

    /// Whether the line discipline edits lines, as between commands.
    fn is_as_usual(&self) -> bool {
        let modes = tcgetattr(&self.theirs).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Starts a command on it; what is shown comes with the process.
    fn start(&self, cooper: &Cooper, args: &[&str]) -> Shown {
        let mut process = command("setsid");
        process.arg("--ctty").arg(binary()).args(args).env("TERM", "dumb");
        process.envs(cooper.environment());
        for stdio in [Command::stdin, Command::stdout, Command::stderr] {
            stdio(&mut process, self.theirs.try_clone().expect("a descriptor"));
        }
        let from = self.text.lock().expect("text").len();
        Shown { child: process.spawn().expect("setsid"), text: self.text.clone(), from }
    }

    fn type_in(&self, text: &str) {
        (&self.user).write_all(text.as_bytes()).expect("typed");
    }
}

/// A command on a terminal, and what was shown since it started.
struct Shown {
    child: Child,
    text: Text,
    from: usize,
}

impl Shown {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("text")[self.from..]).into_owned()
    }
    #[track_caller]
    fn wait_for(&self, wanted: &str) {
        let start = cooper_common::clock::since_start();
        while !self.text().contains(wanted) {
            assert!(
                cooper_common::clock::since_start() - start < seconds(20),
                "no {wanted:?} in {:?}",
                self.text()
            );
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    fn status(&mut self) -> i32 {
        until_true("its end", seconds(20), || self.child.try_wait().expect("a child").is_some());
        self.child.wait().expect("a child").code().unwrap_or(-1)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn attach_lends_this_terminal_to_a_shell_and_gives_it_back() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let terminal = Terminal::new();
    terminal.resize(101, 31);
    let mut shown = terminal.start(&cooper, &["attach", &session, "--env", "PS1=ready> "]);
    shown.wait_for("ready> ");
    assert!(!terminal.is_as_usual(), "keys go to the session one by one");
    terminal.type_in("stty size; echo $((6 * 7))-\n");
    shown.wait_for("31 101\r\n42-");
    terminal.resize(77, 22);
    // The size gets there on its own; the shell's next look sees it.
    let start = cooper_common::clock::since_start();
    while !shown.text().contains("22 77") {
        assert!(cooper_common::clock::since_start() - start < seconds(20), "{:?}", shown.text());
        terminal.type_in("stty size\n");
        thread::sleep(std::time::Duration::from_millis(50));
    }
    terminal.type_in("echo sleeping-$((1 + 1)); sleep 60\n");
    shown.wait_for("sleeping-2");
    terminal.type_in("\x03");
    terminal.type_in("echo alive-$((1 + 2))\n");
    shown.wait_for("alive-3");
    terminal.type_in("exit 7\n");
    assert_eq!(shown.status(), 7, "{}", shown.text());
    assert!(terminal.is_as_usual());
}

#[test]
fn who_detaches_may_come_back_where_he_left() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let terminal = Terminal::new();
    let mut shown = terminal.start(&cooper, &["attach", &session, "--env", "PS1=ready> "]);
    shown.wait_for("ready> ");
    terminal.type_in("kept=$((40 + 2)); echo first-$kept\n");
    shown.wait_for("first-42");
    terminal.type_in("\x10\x11");
    assert_eq!(shown.status(), 0);
    assert!(terminal.is_as_usual());
    shown.wait_for("detached; go back with: cooper attach tsk_");
    let text = shown.text();
    let way_back: Vec<&str> = text.split("cooper attach ").nth(1).expect("how").split_whitespace().collect();
    let mut shown = terminal.start(&cooper, &["attach", way_back[0], way_back[1], way_back[2]]);
    terminal.type_in("echo again-$kept; exit\n");
    assert_eq!(shown.status(), 0, "{}", shown.text());
    assert!(shown.text().contains("again-42") && !shown.text().contains("first-42"), "{}", shown.text());
}

#[test]
fn a_terminal_is_given_back_whatever_ends_the_command() {
    let cooper = shared().cooper();
    for end in ["kill -TERM", "kill -HUP", "session destroy"] {
        let session = cooper.session();
        let terminal = Terminal::new();
        let mut shown = terminal.start(&cooper, &["attach", &session, "--env", "PS1=ready> "]);
        shown.wait_for("ready> ");
        match end.strip_prefix("kill ") {
            Some(signal) => {
                let pid = shown.child.id().to_string();
                command("kill").args([signal, &pid]).status().expect("kill");
            }
            None => drop(cooper.ok(["session", "destroy", &session])),
        }
        assert_ne!(shown.status(), 0, "{end}: {}", shown.text());
        assert!(terminal.is_as_usual(), "{end}");
    }
}

#[test]
fn python_on_a_terminal_sees_the_sessions_variables_and_leaves_none() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "kept = 41");
    let terminal = Terminal::new();
    let mut shown = terminal.start(&cooper, &["attach", "--python", &session]);
    shown.wait_for(">>> ");
    terminal.type_in("kept += 1; print('it is', kept)\n");
    shown.wait_for("it is 42");
    terminal.type_in("import time; time.sleep(60)\n");
    terminal.type_in("\x03");
    shown.wait_for("KeyboardInterrupt");
    terminal.type_in("exit()\n");
    assert_eq!(shown.status(), 0, "{}", shown.text());
    assert_eq!(cooper.exec(&session, "kept"), "41");
}

#[test]
fn a_command_on_a_terminal_is_confined_like_any_other() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let inside = "id -u; cat /proc/self/status | grep -c '^Seccomp:.*[12]$'; ls /root 2>/dev/null | wc -l; test -t 1 && echo terminal; true";
    let plain = cooper.ok(["sh", &session, "--", "sh", "-c", inside]);
    let on_terminal = cooper.ok(["sh", "--tty", &session, "--", "sh", "-c", inside]).replace('\r', "");
    assert_eq!(on_terminal, format!("{plain}\nterminal"));
}

#[test]
fn the_contract_serves_a_client_of_its_own() {
    let cluster = shared();
    let (cooper, session) = (cluster.cooper(), cluster.cooper().session());
    let task = cooper.ok([
        "sh",
        "-i",
        "--background",
        &session,
        "--",
        "sh",
        "-c",
        "trap 'echo usr; exit 4' USR1; echo up; cat; sleep 60 & wait",
    ]);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let client = Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
        let mut executions = client.executions();
        let write = |offset, data: &[u8], eof| WriteStdinRequest {
            task_id: task.clone(),
            offset_bytes: Some(offset),
            data: data.to_vec(),
            eof,
        };
        // Repeated, as after a cut: given once.
        for _ in 0..2 {
            let given = executions.write_stdin(write(0, b"abc", false)).await.expect("written").into_inner();
            assert_eq!((given.offset_bytes, given.incomplete), (3, false));
        }
        executions.write_stdin(write(3, b"\n", true)).await.expect("written");
        let read =
            ReadOutputRequest { task_id: task.clone(), offset_bytes: 3, ..ReadOutputRequest::default() };
        let mut seen = Vec::new();
        while seen != b"abc\n" {
            seen = executions.read_output(read.clone()).await.expect("output").into_inner().data;
        }
        let signal = SignalExecutionRequest { task_id: task.clone(), signal: Signal::Usr1.into() };
        executions.signal_execution(signal).await.expect("signalled");
    });
    let done = cooper.run(["tasks", "follow", &task]).expect(4);
    assert_eq!(done.out(), "up\nabc\nusr\n");
    assert_eq!(
        cooper.error(["tasks", "signal", "tsk_01ARZ3NDEKTSV4RRFFQ69G5FAV", "INT"]).code,
        "task_not_found"
    );
}

#[test]
fn a_session_remembers_what_ran_in_it_and_says_it_as_a_notebook() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.exec(&session, "x = 20\nprint('said')\nx + 1");
    cooper.run(["exec", &session, "-c", "1 / 0"]).expect(1);
    cooper.ok(["sh", &session, "--", "echo", "from a shell"]);
    cooper.exec(&session, "display({'a': 1}, x)");
    let history = cooper.json(["session", "history", &session]);
    let executions = history["executions"].as_array().expect("executions");
    let codes: Vec<_> = executions.iter().map(|it| it["code"].as_str().unwrap_or("-")).collect();
    assert_eq!(codes, ["x = 20\nprint('said')\nx + 1", "1 / 0", "-", "display({'a': 1}, x)"]);
    assert_eq!(
        (&executions[0]["result"]["text/plain"], &executions[1]["state"]),
        (&"21".into(), &"failed".into())
    );
    let table = cooper.ok(["session", "history", &session]);
    assert!(table.contains("ZeroDivisionError: division by zero") && table.lines().count() == 5, "{table}");
    cooper.ok(["session", "destroy", &session]);
    let file = cluster.scratch.write("history.ipynb", "");
    let file = file.to_str().expect("plain");
    cooper.ok(["session", "history", &session, "--ipynb", file]);
    let notebook: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    assert_eq!((&notebook["nbformat"], &notebook["nbformat_minor"]), (&4.into(), &5.into()));
    let cells = notebook["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 4);
    for (n, cell) in cells.iter().enumerate() {
        assert_eq!((&cell["cell_type"], &cell["execution_count"]), (&"code".into(), &(n + 1).into()));
        let id = cell["id"].as_str().expect("an id");
        assert!((1..=64).contains(&id.len()) && cell["metadata"].is_object() && cell["source"].is_array());
    }
    let kinds = |cell: usize| -> Vec<&str> {
        let outputs = cells[cell]["outputs"].as_array().expect("outputs");
        outputs.iter().map(|output| output["output_type"].as_str().expect("a type")).collect()
    };
    assert_eq!(kinds(0), ["stream", "execute_result"]);
    assert_eq!(cells[0]["outputs"][0]["text"], serde_json::json!(["said\n"]));
    assert_eq!(kinds(1), ["error"]);
    assert_eq!((kinds(2), kinds(3)), (vec!["stream"], vec!["display_data", "display_data"]));
}

#[test]
fn code_runs_in_the_directory_it_was_told_with_its_arguments_environment_and_input() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.ok(["files", "mkdir", &session, "deep/er"]);
    let script = cluster.scratch.write("all.py", "import os, sys\nprint(os.path.relpath('.', os.environ['HOME']), sys.argv[1:], os.environ['KIND'], sys.stdin.read())");
    let script = script.to_str().expect("plain");
    for mode in [&[][..], &["--fresh"]] {
        let args = ["exec", &session, script, "-i", "--cwd", "deep/er", "--env", "KIND=x"];
        let args = args.iter().chain(mode).chain(&["--", "a", "b"]);
        assert_eq!(cooper.run_with(args, b"input").expect(0).out(), "deep/er ['a', 'b'] x input\n");
    }
    assert_eq!(cooper.exec(&session, "import os; os.path.relpath('.', os.environ['HOME'])"), "'.'");
    cooper.run(["exec", &session, "--cwd", "nowhere", "-c", "1"]).expect(125);
    assert_eq!(cooper.error(["exec", &session, "--tty", "-c", "1"]).code, "invalid_argument");
}

#[test]
fn a_terminal_survives_a_restart_of_the_coordinator() {
    let mut fleet = Fleet::new();
    fleet.start_coordinator();
    fleet.start_worker("only");
    fleet.await_registered(0);
    let cooper = fleet.cooper();
    let session = cooper.session();
    let terminal = Terminal::new();
    let mut shown = terminal.start(&cooper, &["attach", &session, "--env", "PS1=ready> "]);
    shown.wait_for("ready> ");
    terminal.type_in("kept=42; echo before-$kept\n");
    shown.wait_for("before-42");
    fleet.end_coordinator();
    terminal.type_in("echo meanwhile-$kept\n");
    fleet.start_coordinator();
    fleet.await_ready(200);
    shown.wait_for("meanwhile-42");
    terminal.type_in("echo after-$kept; exit 3\n");
    assert_eq!(shown.status(), 3, "{}", shown.text());
    for once in ["before-42", "meanwhile-42", "after-42"] {
        assert_eq!(shown.text().matches(once).count(), 1, "{once}: {}", shown.text());
    }
    assert!(terminal.is_as_usual());
}
