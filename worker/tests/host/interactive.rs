//! Executions that are written to, signalled, and run on a terminal.

use cooper_proto::{
    host::{to_host, to_link},
    v1::{self, TaskState, call::Op, call_result::Result as Reply, task_spec::Kind},
};

use crate::worker::{Worker, eventually, fence, is_alive};

pub const ALL: &[(&str, fn())] = &[
    ("input_reaches_stateful_code_while_it_runs", input_reaches_stateful_code_while_it_runs),
    ("without_input_standard_input_is_at_its_end", without_input_standard_input_is_at_its_end),
    (
        "a_command_reads_what_is_written_and_ends_with_its_end",
        a_command_reads_what_is_written_and_ends_with_its_end,
    ),
    ("a_write_nobody_reads_waits_and_the_host_does_not", a_write_nobody_reads_waits_and_the_host_does_not),
    ("a_repeated_write_is_given_once", a_repeated_write_is_given_once),
    ("an_interrupt_keeps_variables_a_kill_does_not", an_interrupt_keeps_variables_a_kill_does_not),
    (
        "a_signal_reaches_the_group_of_a_command_and_nobody_else",
        a_signal_reaches_the_group_of_a_command_and_nobody_else,
    ),
    ("a_kill_leaves_no_descendant", a_kill_leaves_no_descendant),
    ("a_terminal_is_one_in_every_respect", a_terminal_is_one_in_every_respect),
    ("fresh_code_has_a_terminal_and_its_ctrl_c", fresh_code_has_a_terminal_and_its_ctrl_c),
    ("a_terminal_hangs_up_when_its_command_ends", a_terminal_hangs_up_when_its_command_ends),
    ("code_runs_where_it_was_told_and_goes_back", code_runs_where_it_was_told_and_goes_back),
    ("what_a_session_takes_of_the_disk_is_in_the_usage", what_a_session_takes_of_the_disk_is_in_the_usage),
];

fn spec(session: &str, kind: Kind) -> v1::TaskSpec {
    v1::TaskSpec { kind: Some(kind), session_id: session.to_owned(), ..v1::TaskSpec::default() }
}

fn python(code: &str) -> Kind {
    Kind::Python(v1::PythonSpec { code: code.to_owned(), ..v1::PythonSpec::default() })
}

fn shell(command: &str) -> Kind {
    let argv = ["sh", "-c", command].map(str::to_owned).to_vec();
    Kind::Shell(v1::ShellSpec { argv, stdin: Vec::new() })
}

trait Interactive {
    fn open(&mut self, session: &str, kind: Kind) -> String;
    fn on_terminal(&mut self, session: &str, kind: Kind) -> String;
    fn begin_call(&mut self, call_id: u64, op: Op);
    fn answer(&mut self, call_id: u64) -> Reply;
    fn call(&mut self, op: Op) -> Reply;
    fn write(&mut self, task: &str, data: &[u8], eof: bool) -> Reply;
    fn signal(&mut self, task: &str, signal: v1::Signal) -> Reply;
    fn says(&mut self, task: &str, text: &str);
}

impl Interactive for Worker {
    fn open(&mut self, session: &str, kind: Kind) -> String {
        self.assign(v1::TaskSpec { stdin_open: true, ..spec(session, kind) }, 0, 0)
    }
    fn on_terminal(&mut self, session: &str, kind: Kind) -> String {
        let terminal = Some(v1::Terminal { columns: 100, rows: 30 });
        self.assign(v1::TaskSpec { terminal, ..spec(session, kind) }, 0, 0)
    }
    fn begin_call(&mut self, call_id: u64, op: Op) {
        let call = v1::Call { call_id, session_id: String::new(), op: Some(op) };
        self.link.send(to_host::Message::ExecutionCall(call));
    }
    fn answer(&mut self, call_id: u64) -> Reply {
        loop {
            if let to_link::Message::ExecutionAnswer(answer) = self.link.step().expect("an answer")
                && answer.call_id == call_id
            {
                return answer.result.unwrap();
            }
        }
    }
    fn call(&mut self, op: Op) -> Reply {
        self.begin_call(7, op);
        self.answer(7)
    }
    fn write(&mut self, task: &str, data: &[u8], eof: bool) -> Reply {
        self.call(Op::WriteStdin(write(task, None, data, eof)))
    }
    fn signal(&mut self, task: &str, signal: v1::Signal) -> Reply {
        let op = v1::ExecutionSignal { task_id: task.to_owned(), fence: fence(), signal: signal.into() };
        self.call(Op::Signal(op))
    }
    fn says(&mut self, task: &str, text: &str) {
        while !String::from_utf8_lossy(&self.link.output(task, 1)).contains(text) {
            self.link.step().unwrap_or_else(|| panic!("{task} does not say {text:?}"));
        }
    }
}

fn write(task: &str, offset_bytes: Option<u64>, data: &[u8], eof: bool) -> v1::StdinWrite {
    v1::StdinWrite { task_id: task.to_owned(), fence: fence(), offset_bytes, data: data.to_vec(), eof }
}

fn given(bytes: u64) -> Reply {
    Reply::StdinWritten(v1::WriteStdinResponse { offset_bytes: bytes, ..v1::WriteStdinResponse::default() })
}

fn code(reply: Reply) -> String {
    match reply {
        Reply::Error(error) => error.code,
        other => panic!("expected an error, got {other:?}"),
    }
}

fn input_reaches_stateful_code_while_it_runs() {
    let (mut worker, session) = Worker::with_session();
    let program = "name = input('who? ')\nimport sys\nrest = sys.stdin.read()\n(name, rest)";
    let task = worker.open(&session, python(program));
    worker.says(&task, "who? ");
    assert_eq!(worker.write(&task, b"Ada\nand ", false), given(8));
    assert_eq!(worker.write(&task, b"others", true), given(14));
    assert_eq!(worker.link.wait(&task).value(), "('Ada', 'and others')");
    assert_eq!(code(worker.write(&task, b"late", false)), "not_running");
    // Of the one before nothing is left, and its variables are.
    assert_eq!(worker.python(&session, "import sys; (name, sys.stdin.read())").value(), "('Ada', '')");
}

fn without_input_standard_input_is_at_its_end() {
    let (mut worker, session) = Worker::with_session();
    let done = worker.python(&session, "input()");
    assert_eq!(done.outcome.exception.unwrap().name, "EOFError");
    let fixed = v1::PythonSpec {
        code: "import subprocess; (input(), subprocess.run(['cat'], capture_output=True).stdout)".to_owned(),
        stdin: b"one\n".to_vec(),
        ..v1::PythonSpec::default()
    };
    let task = worker.start_task(&session, Kind::Python(fixed), 0);
    assert_eq!(worker.link.wait(&task).value(), "('one', b'')");
    let task = worker.start_python(&session, "import time; print(1); time.sleep(60)", 0);
    worker.link.wait_for_output(&task);
    assert_eq!(code(worker.write(&task, b"x", false)), "stdin_not_open");
}

fn a_command_reads_what_is_written_and_ends_with_its_end() {
    let (mut worker, session) = Worker::with_session();
    // Before it may have started: what is written waits for it.
    let task = worker.open(&session, shell("read a; echo \"<$a>\"; exec cat"));
    assert_eq!(worker.write(&task, b"first\nsecond", false), given(12));
    worker.says(&task, "second");
    assert_eq!(worker.write(&task, b"", true), given(12));
    assert_eq!(worker.link.wait(&task).out(), "<first>\nsecond");
    let task = worker.open(&session, shell("exec <&-; echo closed; sleep 60"));
    worker.says(&task, "closed");
    assert_eq!(code(worker.write(&task, b"x", false)), "stdin_not_open");
}

fn a_write_nobody_reads_waits_and_the_host_does_not() {
    let (mut worker, session) = Worker::with_session();
    let task = worker.open(&session, shell("echo up; while [ ! -e go ]; do sleep 0.02; done; wc -c"));
    worker.says(&task, "up");
    let piece = vec![b'x'; 64 << 10];
    assert_eq!(worker.write(&task, &piece, false), given(64 << 10), "the pipe holds as much");
    worker.begin_call(8, Op::WriteStdin(write(&task, None, &piece, false)));
    assert_eq!(code(worker.write(&task, b"more", false)), "stdin_busy");
    assert_eq!(worker.python(&session, "1 + 1").value(), "2");
    worker.python(&session, "open('go', 'w').close()");
    assert_eq!(worker.answer(8), given(128 << 10));
    worker.write(&task, b"", true);
    assert_eq!(worker.link.wait(&task).out(), "up\n131072\n");
}

fn a_repeated_write_is_given_once() {
    let (mut worker, session) = Worker::with_session();
    let task = worker.open(&session, shell("exec cat"));
    let at = |offset, data: &[u8], eof| Op::WriteStdin(write(&task, Some(offset), data, eof));
    assert_eq!(worker.call(at(0, b"abc", false)), given(3));
    assert_eq!(worker.call(at(0, b"abc", false)), given(3));
    assert_eq!(worker.call(at(1, b"bcd", false)), given(4));
    assert_eq!(code(worker.call(at(9, b"gap", false))), "invalid_argument");
    worker.says(&task, "abcd");
    assert_eq!(worker.call(at(4, b"e", true)), given(5));
    assert_eq!(worker.link.wait(&task).out(), "abcde");
}

fn an_interrupt_keeps_variables_a_kill_does_not() {
    let (mut worker, session) = Worker::with_session();
    worker.python(&session, "kept = 42");
    let sleep = "import time; print('up'); time.sleep(60)";
    let task = worker.start_python(&session, sleep, 0);
    worker.link.wait_for_output(&task);
    worker.signal(&task, v1::Signal::Int);
    let done = worker.link.wait(&task);
    assert_eq!((done.state, done.outcome.exit_code, done.error()), (TaskState::Failed, 130, ""));
    assert_eq!(worker.python(&session, "kept").value(), "42");
    let handled = "import signal\ngot = []\nsignal.signal(signal.SIGUSR1, lambda *_: got.append(1))\nprint('up')\n\
                   while not got: signal.sigtimedwait([], 0.01)\n'handled'";
    let task = worker.start_python(&session, handled, 0);
    worker.link.wait_for_output(&task);
    worker.signal(&task, v1::Signal::Usr1);
    assert_eq!(worker.link.wait(&task).value(), "'handled'");
    let task = worker.start_python(&session, sleep, 0);
    worker.link.wait_for_output(&task);
    worker.signal(&task, v1::Signal::Kill);
    let done = worker.link.wait(&task);
    assert_eq!((done.state, done.outcome.exit_code, done.error()), (TaskState::Failed, 137, "killed"));
    assert!(done.outcome.interpreter_restarted);
    let done = worker.python(&session, "kept");
    assert_eq!(done.outcome.exception.unwrap().name, "NameError");
}

fn a_signal_reaches_the_group_of_a_command_and_nobody_else() {
    let (mut worker, session) = Worker::with_session();
    let trap = "trap 'echo got; exit 9' TERM; sleep 60 & echo up; wait";
    let other = worker.start_shell(&session, &["sh", "-c", trap], b"", 0);
    let apart = "setsid sleep 60 & echo $!; trap 'echo usr; exit 3' USR1; (trap 'echo child; exit' USR1; sleep 60 & wait) & \
                 echo up; wait";
    let task = worker.start_shell(&session, &["sh", "-c", apart], b"", 0);
    worker.says(&other, "up");
    worker.says(&task, "up");
    // The inner shell has set its trap when it has a child of its own.
    let apart: i32 =
        String::from_utf8(worker.link.output(&task, 1)).unwrap().lines().next().unwrap().parse().unwrap();
    worker.signal(&task, v1::Signal::Usr1);
    let done = worker.link.wait(&task);
    assert_eq!((done.outcome.exit_code, done.out().contains("usr")), (3, true), "{}", done.out());
    assert!(is_alive(apart), "a process that left the group is not meant");
    assert_eq!(worker.link.output(&other, 1), b"up\n");
    worker.signal(&other, v1::Signal::Term);
    let done = worker.link.wait(&other);
    assert_eq!((done.outcome.exit_code, done.out().as_str()), (9, "up\ngot\n"));
    // At once, perhaps before there is a process: it waits for that.
    let task = worker.start_shell(&session, &["sleep", "60"], b"", 0);
    worker.signal(&task, v1::Signal::Hup);
    assert_eq!(worker.link.wait(&task).outcome.exit_code, 129);
    let task = worker.start_fresh(&session, "import time; print('up'); time.sleep(60)", 0);
    worker.says(&task, "up");
    worker.signal(&task, v1::Signal::Int);
    assert_eq!(worker.link.wait(&task).outcome.exit_code, 130);
}

fn a_kill_leaves_no_descendant() {
    let (mut worker, session) = Worker::with_session();
    let tree = "setsid sleep 61 & echo $!; (setsid sh -c 'sleep 62 & echo $!; wait' &) ; sleep 0.1; echo up; trap '' TERM INT; wait";
    let task = worker.start_shell(&session, &["sh", "-c", tree], b"", 0);
    worker.says(&task, "up");
    let said = String::from_utf8(worker.link.output(&task, 1)).unwrap();
    let pids: Vec<i32> = said.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(pids.len(), 2, "{said}");
    worker.signal(&task, v1::Signal::Kill);
    let done = worker.link.wait(&task);
    assert_eq!((done.outcome.exit_code, done.error()), (137, "killed"));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

fn a_terminal_is_one_in_every_respect() {
    let (mut worker, session) = Worker::with_session();
    let program = "test -t 0 && test -t 1 && test -t 2 && echo yes; stty size; trap 'stty size; exit' WINCH; \
                   read line; echo \"<$line>\" >&2; while :; do sleep 0.02; done";
    let task = worker.on_terminal(&session, shell(program));
    worker.says(&task, "30 100");
    worker.write(&task, b"typed\n", false);
    worker.says(&task, "<typed>");
    let size = Some(v1::Terminal { columns: 132, rows: 50 });
    let resize = v1::TerminalSize { task_id: task.clone(), fence: fence(), size };
    assert!(matches!(worker.call(Op::Resize(resize)), Reply::Resized(_)));
    let done = worker.link.wait(&task);
    assert_eq!(done.out(), "yes\r\n30 100\r\ntyped\r\n<typed>\r\n50 132\r\n");
    assert_eq!((done.state, done.stderr.len()), (TaskState::Succeeded, 0));
    let task = worker.open(&session, shell("echo up; cat"));
    let resize = v1::TerminalSize { task_id: task, fence: fence(), size };
    assert_eq!(code(worker.call(Op::Resize(resize))), "no_terminal");
    // The end of input: Ctrl-D.
    let task = worker.on_terminal(&session, shell("cat; echo over"));
    for _ in 0..2 {
        assert_eq!(worker.call(Op::WriteStdin(write(&task, Some(0), b"", true))), given(1));
    }
    assert!(worker.link.wait(&task).out().ends_with("over\r\n"));
}

fn fresh_code_has_a_terminal_and_its_ctrl_c() {
    let (mut worker, session) = Worker::with_session();
    worker.python(&session, "kept = 42");
    let fresh = |code: &str| {
        let mode = v1::ExecutionMode::Fresh.into();
        Kind::Python(v1::PythonSpec { code: code.to_owned(), mode, ..v1::PythonSpec::default() })
    };
    let program =
        "import os, sys\nprint(os.isatty(0), os.get_terminal_size(), kept)\nname = input('who? ')\nname";
    let task = worker.on_terminal(&session, fresh(program));
    worker.says(&task, "who? ");
    worker.write(&task, b"Ada\n", false);
    let done = worker.link.wait(&task);
    assert_eq!(done.value(), "'Ada'");
    assert!(done.out().starts_with("True os.terminal_size(columns=100, lines=30) 42\r\n"), "{}", done.out());
    let task = worker.on_terminal(&session, fresh("import time; print('up'); time.sleep(60)"));
    worker.says(&task, "up");
    worker.write(&task, b"\x03", false);
    assert_eq!(worker.link.wait(&task).outcome.exception.unwrap().name, "KeyboardInterrupt");
}

fn a_terminal_hangs_up_when_its_command_ends() {
    let (mut worker, session) = Worker::with_session();
    let task = worker.on_terminal(&session, shell("sleep 63 & echo $!"));
    let done = worker.link.wait(&task);
    let pid: i32 = done.out().trim().parse().unwrap();
    eventually("what it left in the foreground is gone", || (!is_alive(pid)).then_some(()));
    for _ in 0..5 {
        let task = worker.on_terminal(&session, shell("setsid sleep 64 & echo up"));
        worker.link.wait(&task);
    }
    let held = std::fs::read_dir(format!("/proc/{}/fd", worker.host.id())).unwrap().flatten();
    let held = held.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let terminals: Vec<_> = held.filter(|path| path.ends_with("ptmx")).collect();
    assert!(terminals.is_empty(), "{terminals:?}");
    // Output to the last byte, however fast it came.
    let task = worker.on_terminal(&session, shell("seq 1 50000"));
    let done = worker.link.wait(&task);
    assert!(
        done.out().ends_with("49999\r\n50000\r\n") && done.stdout.len() == 338_894,
        "{}",
        done.stdout.len()
    );
}

fn code_runs_where_it_was_told_and_goes_back() {
    let (mut worker, session) = Worker::with_session();
    worker.python(&session, "import os; os.makedirs('a/b'); os.chdir('a')");
    let spec =
        v1::TaskSpec { cwd: "a/b".to_owned(), ..spec(&session, python("os.path.basename(os.getcwd())")) };
    let task = worker.assign(spec.clone(), 0, 0);
    assert_eq!(worker.link.wait(&task).value(), "'b'");
    assert_eq!(worker.python(&session, "os.path.basename(os.getcwd())").value(), "'a'");
    let task = worker.assign(v1::TaskSpec { cwd: "../..".to_owned(), ..spec }, 0, 0);
    let done = worker.link.wait(&task);
    assert_eq!((done.state, done.outcome.exit_code), (TaskState::Failed, 125), "{:?}", done.outcome);
}

fn what_a_session_takes_of_the_disk_is_in_the_usage() {
    let (mut worker, session) = Worker::with_session();
    let code = "open('much', 'wb').write(bytes(20 << 20)); import time; time.sleep(2.5)";
    let usage = worker.python(&session, code).outcome.usage.unwrap();
    assert!((20 << 20..40 << 20).contains(&usage.disk_bytes), "{usage:?}");
}
