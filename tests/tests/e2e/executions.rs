//! Executions: output byte for byte, values, exit statuses, time limits, order.

use cooper_common::clock;
use cooper_tests::{processes, seconds, shared, until, wait::until_true};

#[test]
fn variables_persist_and_the_last_expression_is_shown() {
    let cooper = shared().cooper();
    let session = cooper.session();
    assert_eq!(cooper.exec(&session, "x = 20 + 1"), "");
    assert_eq!(cooper.exec(&session, "x * 2"), "42");
    assert_eq!(cooper.exec(&session, "None"), "");
    assert_eq!(cooper.exec(&session, "print('said'); 'shown'"), "said\n'shown'");
    let document =
        cooper.json(["exec", &session, "-c", "import sys; print(x); print('e', file=sys.stderr); x"]);
    assert_eq!((&document["stdout"], &document["stderr"]), (&"21\n".into(), &"e\n".into()));
    assert_eq!(document["result"]["text/plain"], "21");
    assert_eq!((&document["state"], &document["exit_code"]), (&"succeeded".into(), &0.into()));
}

#[test]
fn code_comes_from_a_file_and_from_standard_input_with_arguments() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    let script = cluster.scratch.write("a script.py", "import sys\nprint(sys.argv[1:])\n");
    let script = script.to_str().expect("plain");
    assert_eq!(cooper.ok(["exec", &session, script, "--", "a b", "-c"]), "['a b', '-c']");
    assert_eq!(cooper.run_with(["exec", &session, "-"], b"print('piped')").expect(0).out(), "piped\n");
    let failing = cluster.scratch.write("failing.py", "def f():\n    1 / 0\nf()\n");
    let failed = cooper.run(["exec", &session, failing.to_str().expect("plain")]).expect(1);
    assert!(
        failed.err().contains("failing.py\", line 2") && failed.err().contains("ZeroDivisionError"),
        "{failed}"
    );
    assert!(!failed.err().contains("runner"), "no frames of Cooper's\n{failed}");
}

#[test]
fn five_megabytes_of_random_bytes_arrive_on_each_stream_as_they_were_written() {
    let cooper = shared().cooper();
    let session = cooper.session();
    // The same generator here and there: any byte that differs shows.
    let code = "
import os, random, threading
def write(fd, seed):
    data = random.Random(seed).randbytes(5_000_000)
    while data: data = data[os.write(fd, data[:70_001]):]
threads = [threading.Thread(target=write, args=pair) for pair in [(1, 'out'), (2, 'err')]]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
    let done = cooper.run(["exec", &session, "-c", code]).expect(0);
    for (name, bytes) in [("out", &done.stdout), ("err", &done.stderr)] {
        let script = format!(
            "import random, sys; sys.stdout.buffer.write(random.Random('{name}').randbytes(5_000_000))"
        );
        let mut python = cooper_tests::program::command("python3");
        python.args(["-c", &script]);
        let expected = cooper_tests::Running::start(python, b"").finish(seconds(20)).expect(0).stdout;
        assert_eq!(bytes.len(), expected.len(), "std{name}");
        assert!(*bytes == expected, "std{name} is not what was written");
    }
}

#[test]
fn a_command_ends_with_the_status_of_what_it_ran() {
    let cooper = shared().cooper();
    let session = cooper.session();
    for (code, status) in [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit(0)", 0),
        ("raise ValueError('no')", 1),
        ("syntax error", 1),
        ("import sys; sys.exit('a word')", 1),
    ] {
        cooper.run(["exec", &session, "-c", code]).expect(status);
    }
    let killed = cooper.run(["exec", &session, "-c", "import os; os.kill(os.getpid(), 9)"]).expect(137);
    assert_eq!(killed.error_line().0, "interpreter_died");
    assert_eq!(cooper.exec(&session, "print('a new one')"), "a new one");
    for (argv, status) in
        [(["sh", "-c", "exit 4"], 4), (["sh", "-c", "kill -9 $$"], 137), (["sh", "-c", "kill -15 $$"], 143)]
    {
        cooper.run(["sh", "-n", &session, "--"].into_iter().chain(argv)).expect(status);
    }
    let missing = cooper.run(["sh", "-n", &session, "--", "no-such-command"]).expect(127);
    assert_eq!(missing.error_line().0, "spawn_failed");
    for command in ["exec", "sh"] {
        let rest: &[&str] = if command == "exec" { &["-c", "1"] } else { &["--", "true"] };
        let absent = cooper.run([&[command, "nobody"], rest].concat()).expect(125);
        assert_eq!(absent.error_line().0, "session_not_found");
    }
}

#[test]
fn a_time_limit_ends_the_code_and_what_it_left_in_another_session_of_processes() {
    let cooper = shared().cooper();
    let session = cooper.session();
    // A daemon as they are made: forked twice, a session of its own, every descriptor closed.
    let code = "
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 20)
        with open('daemon.pid', 'w') as file: file.write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
while not os.path.exists('daemon.pid') or not open('daemon.pid').read(): time.sleep(0.01)
print(open('daemon.pid').read(), flush=True)
while True: pass
";
    let start = clock::mono_ms();
    let done = cooper.run(["exec", &session, "--timeout", "2s", "-c", code]).expect(124);
    assert!(clock::mono_ms() - start < 10_000, "limit 2 s, and a second to say goodbye");
    assert_eq!(done.error_line().0, "timed_out");
    let daemon: i32 = done.out().trim().parse().unwrap_or_else(|_| panic!("a pid\n{done}"));
    until_true("the daemon's end", seconds(5), || !processes::is_alive(daemon));
    assert_eq!(cooper.exec(&session, "print('ready again')"), "ready again");
}

#[test]
fn an_interpreter_that_listens_to_sigint_survives_a_time_limit_and_one_that_does_not_is_replaced() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "kept = 'yes'");
    cooper.run(["exec", &session, "--timeout", "1s", "-c", "while True: pass"]).expect(124);
    assert_eq!(cooper.json(["session", "show", &session])["interpreter_restarted"], false);
    assert_eq!(cooper.exec(&session, "print(kept)"), "yes");

    let deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let (status, ended) = cooper.run_json(["exec", &session, "--timeout", "1s", "-c", deaf]);
    assert_eq!((status, &ended["interpreter_restarted"]), (124, &true.into()), "{ended}");
    let gone = cooper.run(["exec", &session, "-c", "print(kept)"]).expect(1);
    assert!(gone.err().contains("NameError"), "{gone}");
}

#[test]
fn a_command_past_its_time_limit_ends_with_124() {
    let cooper = shared().cooper();
    let session = cooper.ok(["session", "create", "--exec-timeout", "1s"]);
    cooper.exec(&session, "kept = 'yes'");
    let done = cooper.run(["sh", "-n", &session, "--", "sh", "-c", "echo begun; sleep 1000"]).expect(124);
    assert_eq!(done.out(), "begun\n");
    assert_eq!(cooper.exec(&session, "print(kept)"), "yes", "the interpreter had no part in it");
}

#[test]
fn sh_has_standard_input_a_directory_and_an_environment() {
    let cooper = shared().cooper();
    let session = cooper.ok(["session", "create", "--env", "A=session"]);
    cooper.exec(&session, "import os; os.makedirs('some dir')");
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let echoed = cooper.run_with(["sh", &session, "--", "cat"], &bytes).expect(0);
    assert!(echoed.stdout == bytes, "{} of {} bytes came back", echoed.stdout.len(), bytes.len());
    let pwd = cooper.ok([
        "sh",
        "-n",
        &session,
        "--cwd",
        "some dir",
        "--env",
        "B=own",
        "--",
        "sh",
        "-c",
        "basename \"$PWD\"; echo $A $B",
    ]);
    assert_eq!(pwd, "some dir\nsession own");
    for outside in ["..", "/", "some dir/../.."] {
        let refused = cooper.run(["sh", "-n", &session, "--cwd", outside, "--", "pwd"]).expect(125);
        assert_eq!(refused.error_line().0, "path_escapes", "{outside}");
    }
}

#[test]
fn executions_of_a_session_come_one_after_the_other_and_a_command_runs_beside_them() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "order = []");
    let slow = "
import os, time
order.append('first'); print('runs', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
order.append('first ends')
";
    let mut first = cooper.start(["exec", &session, "-c", slow], b"");
    first.await_said("that it runs", seconds(20), |first| first.stdout().contains("runs").then_some(()));
    let second = cooper.start(["exec", &session, "-c", "order.append('second'); order"], b"");
    until("the second one to wait", seconds(20), || {
        let list = cooper.json(["tasks", "list", "--session", &session]);
        let states = list["tasks"].as_array().expect("a list").iter().map(|task| task["state"].clone());
        Some(()).filter(|()| states.filter(|state| state == "queued" || state == "assigned").count() == 1)
    });
    cooper.ok(["sh", "-n", &session, "--", "touch", "go"]);
    first.finish(seconds(20)).expect(0);
    assert_eq!(second.finish(seconds(20)).expect(0).out(), "['first', 'first ends', 'second']\n");
}

#[test]
fn an_interrupt_of_the_command_cancels_what_it_started_and_keeps_the_variables() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "kept = 7");
    let mut busy =
        cooper.start(["exec", &session, "-c", "import time; print('on', flush=True); time.sleep(1000)"], b"");
    busy.await_said("that it runs", seconds(20), |busy| busy.stdout().contains("on").then_some(()));
    busy.signal(rustix::process::Signal::INT);
    busy.finish(seconds(10)).expect(130);
    assert_eq!(cooper.exec(&session, "print(kept)"), "7", "SIGINT was enough");
}

#[test]
fn an_ended_task_can_be_followed_again_from_its_first_byte() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let done = cooper.json(["exec", &session, "-c", "for i in range(1000): print(i)\nraise SystemExit(9)"]);
    let task = done["task_id"].as_str().unwrap_or_default().to_owned();
    assert_eq!(done["exit_code"], 9);
    let again = cooper.run(["tasks", "follow", &task]).expect(9);
    assert_eq!(Some(again.out().as_str()), done["stdout"].as_str());
    assert_eq!(cooper.json(["tasks", "show", &task])["stdout_bytes"], done["stdout_bytes"]);
}

#[test]
fn output_past_the_limit_is_cut_and_says_so() {
    use cooper_proto::v1::{CreateSessionRequest, Limits};
    let cluster = shared();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let session = runtime.block_on(async {
        let client = cooper_tests::grpc::Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
        let limits = Some(Limits { output_bytes: 100_000, ..Limits::default() });
        let request = CreateSessionRequest { limits, ..CreateSessionRequest::default() };
        client.sessions().create_session(request).await.expect("a session").into_inner().id
    });
    let done = cluster.cooper().json(["exec", &session, "-c", "print('x' * 1_000_000)"]);
    assert_eq!(done["stdout"].as_str().map(str::len), Some(100_000), "its first bytes");
    assert_eq!((&done["stdout_truncated"], &done["stderr_truncated"]), (&true.into(), &false.into()));
    assert_eq!(done["exit_code"], 0);
}

#[test]
fn a_fresh_execution_sees_the_variables_and_leaves_none() {
    let cooper = shared().cooper();
    let session = cooper.ok(["session", "create"]);
    cooper.exec(&session, "barrels = ['oak']");
    let fresh = cooper.json(["exec", "--fresh", &session, "-c", "barrels.append('ash')\nbarrels"]);
    assert_eq!(fresh["result"]["text/plain"], "['oak', 'ash']", "{fresh}");
    assert_eq!(cooper.exec(&session, "print(barrels)"), "['oak']");
}
