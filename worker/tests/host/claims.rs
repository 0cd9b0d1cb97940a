//! What the host promises.

use cooper_proto::{
    host::{self as wire, open_file::Mode, to_host, to_link},
    v1::{self, TaskState, task_spec},
};
use prost::Message as _;
use rustix::process::Signal;

use crate::worker::{self, Worker, eventually, is_alive, signal};

macro_rules! claims {
    ($($(#[$doc:meta])* fn $name:ident() $body:block)*) => {
        pub const ALL: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
        $($(#[$doc])* fn $name() $body)*
    };
}
pub(crate) use claims;

claims! {
    fn a_session_gets_an_interpreter_that_was_forked_before_it_was_wanted() {
        let (mut worker, session) = Worker::with_session();
        let zygote = worker.zygote();
        let pid: i32 = worker.python(&session, "import os; os.getpid()").value().parse().unwrap();
        let exe = |pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert_eq!(exe(pid), exe(zygote), "a fork, not a program of its own");
        // It looks as one that was started in the venv.
        let question = "import sys, os, site, json\njson.dumps([sys.prefix, sys.exec_prefix, sys.executable, sys.path, \
            sys.flags[:], sorted(os.environ), os.getcwd(), sys.stdin.read(), os.umask(0), os.getsid(0) == os.getpid(), \
            site.ENABLE_USER_SITE, __import__('resource').getrlimit(7), \
            sys.getrecursionlimit(), __name__, sorted(globals()), __import__('gc').isenabled(), \
            __import__('sysconfig').get_paths()['purelib'], __import__('tempfile').gettempdir(), sys.argv, \
            __import__('subprocess')._args_from_interpreter_flags(), __import__('locale').getpreferredencoding()])";
        let forked = worker.python(&session, question).value();
        let mut plain_worker = Worker::start_in(&[("TEST_PRELOAD", "off")]);
        let plain_session = plain_worker.create_session(v1::Limits::default());
        let plain = plain_worker.python(&plain_session, question).value();
        let here = |text: String, worker: &Worker, session: &str| {
            text.replace(&worker.dir.display().to_string(), "WORKER").replace(session, "SESSION")
        };
        assert_eq!(here(forked, &worker, &session), here(plain, &plain_worker, &plain_session));
        assert_eq!(plain_worker.zygotes(), Vec::<i32>::new());
    }

    fn with_an_empty_pool_a_session_waits_for_a_fork_and_without_a_zygote_it_gets_a_program() {
        let mut worker = Worker::start_in(&[("TEST_POOL_HIGH", "0")]);
        // Not ready yet, or not able to: the session does not wait for it.
        let zygote = worker.zygote();
        signal(zygote, Signal::STOP);
        let before = worker.create_session(v1::Limits::default());
        assert_eq!(worker.python(&before, "40 + 2").value(), "42");
        signal(zygote, Signal::CONT);
        let cmdline = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let session = eventually("a session of the zygote's", || {
            let session = worker.create_session(v1::Limits::default());
            let pid = worker.python(&session, "import os; os.getpid()").value().parse().unwrap();
            let forked = cmdline(pid) == cmdline(worker.zygote());
            if !forked {
                worker.destroy(&session);
            }
            forked.then_some(session)
        });
        assert_eq!(worker.python(&session, "40 + 2").value(), "42");
        // A variable that Python reads at its start needs a start.
        let fixed = worker.create_session_with(&[("PYTHONHASHSEED", "7")]);
        assert_eq!(worker.python(&fixed, "import sys; sys.flags.hash_randomization, hash('a')").value(),
            worker.python(&fixed, "import subprocess, sys; eval(subprocess.run([sys.executable, '-c', \
                'import sys; print((sys.flags.hash_randomization, hash(\"a\")))'], capture_output=True).stdout)").value());
    }

    fn a_zygote_that_hangs_holds_nobody_up_for_long() {
        let mut worker = Worker::start_in(&[("TEST_POOL_HIGH", "1")]);
        worker.wait_for_pool(1);
        signal(worker.zygote(), Signal::STOP);
        for _ in 0..3 {
            let session = worker.create_session(v1::Limits::default());
            assert_eq!(worker.python(&session, "1").value(), "1");
        }
    }

    fn a_zygote_that_is_killed_is_replaced_and_takes_no_session_along() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "x = 1");
        let before = worker.zygote();
        signal(before, Signal::KILL);
        eventually("another zygote", || worker.zygotes().iter().any(|pid| *pid != before).then_some(()));
        // The first come out of the pool that is left.
        let seed = worker.python(&session, "hash('cooper')").value();
        let seeds: Vec<String> = (0..6)
            .map(|_| {
                worker.wait_for_pool(1);
                let session = worker.create_session(v1::Limits::default());
                worker.python(&session, "hash('cooper')").value()
            })
            .collect();
        assert_ne!(seeds[5], seed, "another zygote has another hash seed: {seeds:?}");
        let kept = worker.python(&session, "x");
        assert_eq!((kept.value(), kept.outcome.interpreter_restarted), ("1".to_owned(), false));
    }

    fn what_ends_in_a_session_leaves_the_pool_alone() {
        let (mut worker, session) = Worker::with_session();
        worker.wait_for_pool(4);
        let mut pool = worker.pooled();
        let zygote = worker.zygote();
        worker.python(&session, "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)");
        assert_eq!(worker.python(&session, "1").value(), "1");
        worker.python(&session, "import os; os._exit(0)");
        assert_eq!(worker.python(&session, "1").value(), "1");
        worker.destroy(&session);
        // Each new interpreter was the oldest that waited.
        pool.drain(..2);
        let now = worker.pooled();
        assert!(pool.iter().all(|pid| now.contains(pid)), "{pool:?} {now:?}");
        assert_eq!(worker.zygote(), zygote);
        // One of the pool that dies is not handed out.
        for pid in now {
            signal(pid, Signal::KILL);
        }
        let session = worker.create_session(v1::Limits::default());
        assert_eq!(worker.python(&session, "1").value(), "1");
    }

    fn siblings_draw_different_numbers() {
        let (mut worker, session) = Worker::with_session();
        let question = "import random, uuid, ssl, tempfile, os, secrets\n(random.random(), uuid.uuid4(), uuid.uuid1(), \
            ssl.RAND_bytes(8), next(tempfile._get_candidate_names()), os.urandom(8), secrets.token_hex())";
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..4 {
            worker.wait_for_pool(1);
            let session = if n == 0 { session.clone() } else { worker.create_session(v1::Limits::default()) };
            seen.insert(worker.python(&session, question).value());
        }
        let columns = (0..7).map(|column| seen.iter().map(|row| row.split(", ").nth(column)).collect::<std::collections::BTreeSet<_>>());
        assert!(columns.into_iter().all(|column| column.len() == 4), "{seen:?}");
    }

    fn a_fresh_execution_sees_the_variables_and_leaves_none() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "x = [1]\nimport os");
        let done = worker.fresh(&session, "x.append(2)\ny = 3\nprint('out')\ndisplay('shown')\nx");
        assert_eq!((done.state, done.value(), done.out()), (TaskState::Succeeded, "[1, 2]".to_owned(), "out\n".to_owned()));
        assert_eq!(done.outcome.displays.len(), 1);
        assert_eq!(worker.python(&session, "x, 'y' in globals()").value(), "([1], False)");
        let failed = worker.fresh(&session, "1 / 0");
        assert_eq!((failed.state, failed.outcome.exception.unwrap().name), (TaskState::Failed, "ZeroDivisionError".to_owned()));
        assert_eq!(worker.fresh(&session, "import sys; sys.exit(3)").outcome.exit_code, 3);
        let died = worker.fresh(&session, "print('last words', flush=True)\nos._exit(7)");
        assert_eq!((died.state, died.error(), died.outcome.exit_code), (TaskState::Failed, "interpreter_died", 7));
        assert_eq!((died.out(), died.outcome.interpreter_restarted), ("last words\n".to_owned(), false));
        assert_eq!(worker.fresh(&session, "os.kill(os.getpid(), 11)").outcome.exit_code, 128 + 11);
        assert!(worker.fresh(&session, "bytearray(50_000_000)[0]").outcome.usage.unwrap().peak_memory_bytes > 50_000_000);
        assert_eq!(worker.python(&session, "x").value(), "[1]");
        eventually("nothing of them is left", || {
            (worker::in_workspace(&worker.dir, &session).len() == 1).then_some(())
        });
    }

    fn while_a_fresh_execution_runs_others_go_on() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "import time");
        let fresh = worker.start_fresh(&session, "print('up', flush=True)\ntime.sleep(60)", 0);
        worker.link.wait_for_output(&fresh);
        assert_eq!(worker.python(&session, "'meanwhile'").value(), "'meanwhile'");
        assert_eq!(worker.fresh(&session, "'another'").value(), "'another'");
        worker.cancel(&fresh, 0);
        assert_eq!(worker.link.wait(&fresh).state, TaskState::Cancelled);
        assert_eq!(worker.python(&session, "'after'").value(), "'after'");
    }

    fn a_fresh_execution_is_interrupted_then_killed_with_what_it_started_and_nothing_else() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "import subprocess, os, signal, time\nmine = subprocess.Popen(['sleep', '60'])");
        let kept = worker.python(&session, "mine.pid").value().parse().unwrap();
        let polite = worker.start_fresh(&session, "print('up', flush=True)\ntime.sleep(60)", 300);
        let done = worker.link.wait(&polite);
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::TimedOut, 130));
        assert_eq!(done.outcome.exception.unwrap().name, "KeyboardInterrupt");
        let code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nfor _ in range(2):\n    if os.fork() == 0:\n        \
            os.setsid()\n        if os.fork() == 0: break\n        os._exit(0)\n\
            open(f'pid-{os.getpid()}', 'w')\nprint('up', flush=True)\ntime.sleep(60)";
        let rude = worker.start_fresh(&session, code, 300);
        assert_eq!(worker.link.wait(&rude).state, TaskState::TimedOut);
        let pids: Vec<i32> = std::fs::read_dir(worker.workspace(&session)).unwrap().flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("pid-")?.parse().ok()).collect();
        assert!(!pids.is_empty() && pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
        assert!(is_alive(kept), "what others started goes on");
        assert_eq!(worker.python(&session, "mine.poll()").value(), "");
    }

    fn a_session_cannot_make_the_host_kill_what_is_not_its_own() {
        let (mut worker, session) = Worker::with_session();
        let victim = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let lie = format!("import sys, gc\nrunner = display.__self__\nmodule = sys._getframe(1).f_globals\n\
            honest = module['report']\n\
            def report(fd, kind, *words):\n    honest(fd, kind, *(words if kind == 3 else ({},)))\n\
            module['report'] = report", victim.id());
        worker.python(&session, &lie);
        let fresh = worker.start_fresh(&session, "print('up', flush=True)\nimport time; time.sleep(60)", 0);
        worker.link.wait_for_output(&fresh);
        worker.cancel(&fresh, 100);
        assert_eq!(worker.link.wait(&fresh).state, TaskState::Cancelled);
        let mut victim = victim;
        assert!(victim.try_wait().unwrap().is_none(), "another's process was killed");
        victim.kill().unwrap();
        victim.wait().unwrap();
        // It loses its interpreter for it, perhaps while it is at something else.
        eventually("an honest interpreter", || (worker.python(&session, "1").value() == "1").then_some(()));
    }

    fn figures_that_are_left_open_become_displays() {
        let (mut worker, session) = Worker::with_session();
        let fake = "import sys, types\nopen_now = [1, 2]\nplt = types.ModuleType('matplotlib.pyplot')\n\
            plt.get_fignums = lambda: list(open_now)\n\
            class Figure:\n    def savefig(self, file, format, **_): file.write(b'\\x89PNG' + format.encode())\n\
            plt.figure = lambda number: Figure()\nplt.close = lambda which: open_now.clear()\n\
            sys.modules['matplotlib.pyplot'] = plt\n'drawn'";
        let drawn = worker.python(&session, fake);
        assert_eq!((drawn.value(), drawn.outcome.displays.len()), ("'drawn'".to_owned(), 2));
        assert_eq!(drawn.outcome.displays[0].data["image/png"], b"\x89PNGpng");
        assert_eq!(worker.python(&session, "open_now").outcome.displays.len(), 0);
        assert_eq!(worker.python(&session, "import os; os.environ['MPLBACKEND']").value(), "'Agg'");
    }

    fn a_data_frame_is_text_and_html_and_data() {
        let (mut worker, session) = Worker::with_session();
        let fake = "import sys, types\npandas = types.ModuleType('pandas')\n\
            class DataFrame:\n    def __init__(self, n): self.n = n\n    def __len__(self): return self.n\n    \
            def head(self, n): return DataFrame(min(n, self.n))\n    def _repr_html_(self): return '<table>'\n    \
            def to_json(self, orient, **_): return '{\"data\": [' + ', '.join(['{}'] * self.n) + ']}'\n\
            pandas.DataFrame = DataFrame\nsys.modules['pandas'] = pandas\nDataFrame(5000)";
        let result = worker.python(&session, fake).outcome.result.unwrap();
        assert_eq!(result.data["text/html"], b"<table>");
        let json: serde_json::Value = serde_json::from_slice(&result.data["application/json"]).unwrap();
        assert_eq!((json["data"].as_array().unwrap().len(), json["total_rows"].as_u64()), (1000, Some(5000)));
    }

    fn a_forked_interpreter_has_nothing_of_the_workers() {
        let (mut worker, session) = Worker::with_session();
        let seen = worker.python(&session, "import os, gc\nfds = {os.readlink(f'/proc/self/fd/{fd}').partition(':')[0] \
            for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')}\n\
            raw = open('/proc/self/environ').read() + open('/proc/self/maps').read() + repr(dict(os.environ))\n\
            (sorted(fds), 'canary' in raw, 'TOKEN' in raw)").value();
        assert!(seen.ends_with("False, False)"), "{seen}");
        let zygote = worker.zygote();
        let environ = std::fs::read(format!("/proc/{zygote}/environ")).unwrap();
        let names: Vec<_> = environ.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok())
            .filter_map(|entry| entry.split('=').next()).filter(|name| !name.is_empty()).collect();
        assert_eq!(names, ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "LANG",
            "MPLBACKEND", "MPLCONFIGDIR", "COOPER_HOST_DIR"]);
        assert_eq!(std::fs::read_dir(format!("/proc/{zygote}/task")).unwrap().count(), 1);
    }

    fn variables_persist_and_the_last_expression_is_the_value() {
        let (mut worker, session) = Worker::with_session();
        assert_eq!(worker.python(&session, "x = 41").value(), "");
        let done = worker.python(&session, "import sys\nprint('out')\nprint('err', file=sys.stderr)\nx + 1");
        assert_eq!((done.state, done.value()), (TaskState::Succeeded, "42".to_owned()));
        assert_eq!((done.stdout, done.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
    }

    fn an_exception_has_its_source_lines_and_no_frames_of_the_runner() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "def f():\n    return 1 / 0");
        let done = worker.python(&session, "f()");
        let exception = done.outcome.exception.clone().unwrap();
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::Failed, 1));
        assert_eq!((&*exception.name, &*exception.value), ("ZeroDivisionError", "division by zero"));
        assert!(exception.traceback.contains("return 1 / 0"), "{}", exception.traceback);
        assert!(!exception.traceback.contains("<cooper>"), "{}", exception.traceback);
        assert_eq!(worker.python(&session, "import sys; sys.exit(3)").outcome.exit_code, 3);
        assert_eq!(worker.python(&session, "await __import__('asyncio').sleep(0, 'later')").value(), "'later'");
    }

    fn rich_values_and_displays_come_as_mime_bundles() {
        let (mut worker, session) = Worker::with_session();
        let done = worker.python(&session, "class T:\n    def _repr_html_(self): return '<b>'\n    \
            def _repr_png_(self): return b'\\x89PNG'\ndisplay(1, {'a': 2})\nT()");
        let result = done.outcome.result.unwrap();
        assert_eq!((&*result.data["text/html"], &*result.data["image/png"]), (&b"<b>"[..], &b"\x89PNG"[..]));
        assert_eq!(done.outcome.displays.len(), 2);
        assert_eq!(done.outcome.displays[1].data["text/plain"], b"{'a': 2}");
        // Too large for a packet, and too large altogether.
        assert_eq!(worker.python(&session, "'x' * 200_000").value().len(), 200_002);
        let cut = worker.python(&session, "'x' * 2_000_000").outcome.result.unwrap();
        assert_eq!(cut.truncated, ["text/plain"]);
    }

    fn five_megabytes_of_binary_output_arrive_byte_for_byte() {
        let (mut worker, session) = Worker::with_session();
        let code = "import sys, random\nd = random.Random(7).randbytes(5_000_000)\nsys.stdout.buffer.write(d)\n\
                    open('copy', 'wb').write(d)\nsys.stderr.write('side')\nNone";
        let done = worker.python(&session, code);
        assert!(done.stdout == std::fs::read(worker.workspace(&session).join("copy")).unwrap());
        assert_eq!((done.stdout.len(), done.stderr), (5_000_000, b"side".to_vec()));
        let cat = worker.shell(&session, &["cat", "copy"], b"");
        assert!(cat.stdout == done.stdout);
    }

    fn what_a_leftover_child_writes_stays_out_of_the_next_execution() {
        let (mut worker, session) = Worker::with_session();
        let first = worker.python(&session, "import subprocess\np = subprocess.Popen(['sh', '-c', \
            'while :; do echo child; sleep 0.01; done'])\nprint('first', flush=True)\n\
            import time; time.sleep(0.1)");
        let second = worker.python(&session, "import time; time.sleep(0.2)\nprint('second')");
        assert!(first.out().contains("first") && first.out().contains("child"), "{}", first.out());
        assert_eq!(second.out(), "second\n");
        // Read and dropped, not blocked nor broken.
        assert_eq!(worker.python(&session, "p.poll()").value(), "");
        assert_eq!(worker.python(&session, "print(p.poll())").out(), "None\n");
    }

    fn an_interpreter_that_exits_takes_only_its_execution_along() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "import subprocess, os\nx = 1\np = subprocess.Popen(['sleep', '60'])\n\
            open('pid', 'w').write(str(p.pid))");
        let done = worker.python(&session, "print('last words', flush=True)\nos._exit(7)");
        assert_eq!((done.state, done.error(), done.outcome.exit_code), (TaskState::Failed, "interpreter_died", 7));
        assert!(done.outcome.interpreter_restarted);
        assert_eq!(done.out(), "last words\n");
        let pid = std::fs::read_to_string(worker.workspace(&session).join("pid")).unwrap();
        assert!(is_alive(pid.parse().unwrap()), "what it started goes on");
        let next = worker.python(&session, "'x' in globals()");
        assert_eq!((next.value(), next.outcome.interpreter_restarted), ("False".to_owned(), true));
        assert!(!worker.python(&session, "1").outcome.interpreter_restarted);
        let killed = worker.python(&session, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)");
        assert_eq!((killed.error(), killed.outcome.exit_code), ("interpreter_died", 128 + 11));
        let deaf = worker.python(&session, "import os\nos.closerange(3, 1024)\n1");
        assert_eq!(deaf.error(), "interpreter_died");
        assert_eq!(worker.python(&session, "2").value(), "2");
    }

    fn a_forked_child_does_not_answer_for_its_parent() {
        let (mut worker, session) = Worker::with_session();
        let done = worker.python(&session, "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint(pid > 0)\npid > 0");
        assert_eq!((done.state, done.value()), (TaskState::Succeeded, "True".to_owned()));
        assert_eq!(done.out(), "False\nTrue\n");
        assert_eq!(worker.python(&session, "'next'").value(), "'next'");
    }

    fn a_time_out_interrupts_first_and_keeps_the_interpreter() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "x = 1\nimport time, subprocess");
        let task = worker.start_python(&session, "p = subprocess.Popen(['sleep', '60'])\n\
            open('pid', 'w').write(str(p.pid))\ntime.sleep(60)", 200);
        let done = worker.link.wait(&task);
        assert_eq!((done.state, done.error(), done.outcome.exit_code), (TaskState::TimedOut, "timed_out", 130));
        let pid = std::fs::read_to_string(worker.workspace(&session).join("pid")).unwrap();
        assert!(!is_alive(pid.parse().unwrap()), "what it started goes with it");
        let next = worker.python(&session, "x");
        assert_eq!((next.value(), next.outcome.interpreter_restarted), ("1".to_owned(), false));
    }

    fn a_time_out_takes_daemons_that_forked_twice_and_ignore_every_signal() {
        let (mut worker, session) = Worker::with_session();
        let code = "import os, signal, time\nfor s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n    \
            signal.signal(s, signal.SIG_IGN)\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
            os.environ.clear()\n        open('daemon', 'w').write(str(os.getpid()))\n        time.sleep(60)\n    \
            os._exit(0)\ntime.sleep(60)";
        let task = worker.start_python(&session, code, 300);
        let done = worker.link.wait(&task);
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::TimedOut, 137));
        let daemon = std::fs::read_to_string(worker.workspace(&session).join("daemon")).unwrap();
        assert!(!is_alive(daemon.parse().unwrap()));
        assert_eq!(worker.python(&session, "'alive'").value(), "'alive'");
        let shell = ["sh", "-c", "trap '' INT; setsid sleep 60 & echo $! > daemon; echo; wait; wait"];
        let task = worker.start_shell(&session, &shell, b"", 300);
        let done = worker.link.wait(&task);
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::TimedOut, 137));
        let daemon = std::fs::read_to_string(worker.workspace(&session).join("daemon")).unwrap();
        assert!(!is_alive(daemon.trim().parse().unwrap()));
    }

    fn cancelling_ends_what_runs_and_what_waits() {
        let (mut worker, session) = Worker::with_session();
        let running = worker.start_python(&session, "print('on', flush=True)\nimport time\ntime.sleep(60)", 0);
        let waiting = worker.start_python(&session, "open('never', 'w')", 0);
        worker.link.wait_for_output(&running);
        worker.cancel(&waiting, 0);
        worker.cancel(&running, 0);
        assert_eq!(worker.link.wait(&waiting).state, TaskState::Cancelled);
        let done = worker.link.wait(&running);
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::Cancelled, 130));
        assert!(!worker.workspace(&session).join("never").exists());
        let next = worker.python(&session, "1");
        assert_eq!((next.value(), next.outcome.interpreter_restarted), ("1".to_owned(), false));
    }

    fn a_command_runs_in_the_workspace_with_its_input_and_status() {
        let (mut worker, session) = Worker::with_session();
        let done = worker.shell(&session, &["sh", "-c", "cat; pwd; echo $GREETING; exit 3"], b"given\n");
        let workspace = worker.workspace(&session);
        assert_eq!(done.out(), format!("given\n{}\nhello\n", workspace.display()));
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::Failed, 3));
        assert_eq!(worker.shell(&session, &["sh", "-c", "kill -9 $$"], b"").outcome.exit_code, 137);
        let missing = worker.shell(&session, &["no-such-program"], b"");
        assert_eq!((missing.error(), missing.outcome.exit_code), ("spawn_failed", 127));
        std::fs::write(workspace.join("text"), "no program").unwrap();
        assert_eq!(worker.shell(&session, &["./text"], b"").outcome.exit_code, 126);
        let python = worker.shell(&session, &["python", "-c", "import sys; print(sys.prefix)"], b"");
        assert_eq!(python.out().trim(), workspace.join(".venv").display().to_string());
        let outside = v1::TaskSpec {
            kind: Some(task_spec::Kind::Shell(v1::ShellSpec { argv: vec!["true".into()], stdin: Vec::new() })),
            session_id: session,
            cwd: "..".into(),
            ..v1::TaskSpec::default()
        };
        let task = worker.assign(outside, 0, 0);
        assert_eq!(worker.link.wait(&task).error(), "path_escapes");
    }

    fn nothing_of_the_workers_environment_reaches_a_session() {
        let (mut worker, session) = Worker::with_session();
        let mine = worker.python(&session, "import os\nprint(sorted(os.environ), os.environ)\n\
            print(open('/proc/self/environ').read())\nprint(os.listdir('/proc/self/fd'))");
        let shell = worker.shell(&session, &["env"], b"");
        assert!(!mine.out().contains(worker::CANARY) && !shell.out().contains(worker::CANARY));
        assert!(shell.out().contains("GREETING=hello") && mine.out().contains("'GREETING': 'hello'"));
        for name in ["USER=", "LOGNAME=", "SHELL=", "OLDPWD="] {
            assert!(!shell.out().lines().any(|line| line.starts_with(name)), "{}", shell.out());
        }
        let fds = worker.shell(&session, &["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"], b"").out();
        assert_eq!(fds.trim(), "0 1 2 3", "the listing itself is 3");
        let limits = worker.shell(&session, &["sh", "-c", "ulimit -c; ulimit -n"], b"").out();
        assert_eq!(limits, "0\n1024\n");
    }

    fn output_beyond_the_limit_is_cut_and_said_to_be() {
        let (mut worker, session) = Worker::with_session();
        let python = v1::PythonSpec { code: "print('x' * 300_000)\n'done'".into(), ..v1::PythonSpec::default() };
        let spec = v1::TaskSpec {
            kind: Some(task_spec::Kind::Python(python)),
            session_id: session.clone(),
            ..v1::TaskSpec::default()
        };
        let task = worker.assign(spec, 0, 100_000);
        let done = worker.link.wait(&task);
        assert_eq!((done.stdout.len(), done.outcome.stdout_truncated), (100_000, true));
        assert_eq!((done.state, done.outcome.stderr_truncated), (TaskState::Succeeded, false));
        assert!(!worker.python(&session, "print('x' * 300_000)").outcome.stdout_truncated);
    }

    fn killing_the_link_loses_no_byte_and_no_result() {
        let (mut worker, session) = Worker::with_session();
        let code = "import time\nfor i in range(2000):\n    print(i)\n    time.sleep(0.0005)\n'end'";
        let running = worker.start_python(&session, code, 0);
        let ended = worker.start_shell(&session, &["sh", "-c", "echo early; exit 5"], b"", 0);
        assert_eq!(worker.link.wait(&ended).outcome.exit_code, 5);
        worker.link.wait_for_output(&running);
        signal(worker.link.pid, Signal::KILL);
        worker.next_link();
        let item = |task: &str| worker.hello.attempts.iter().find(|item| item.task_id == task).cloned().unwrap();
        assert!(item(&ended).result_pending && item(&ended).stdout_bytes == 6);
        assert!(!item(&running).result_pending || item(&running).stdout_bytes == 8890);
        assert_eq!(worker.hello.sessions[0].session_id, session);
        let again = worker.link.wait(&ended);
        assert_eq!((again.outcome.exit_code, again.out()), (5, "early\n".to_owned()));
        let done = worker.link.wait(&running);
        let expected: String = (0..2000).map(|i| format!("{i}\n")).collect();
        assert!(done.out() == expected && done.value() == "'end'");
        // Once forgotten it is not listed again, and its spool is gone.
        let forget = wire::Forget { task_id: ended.clone(), fence: worker::fence() };
        worker.link.send(to_host::Message::Forget(forget));
        signal(worker.link.pid, Signal::KILL);
        worker.next_link();
        assert!(worker.hello.attempts.iter().all(|item| item.task_id != ended));
        assert_eq!(std::fs::read_dir(worker.dir.join("spool")).unwrap().count(), 1);
    }

    fn an_assignment_that_comes_twice_runs_once() {
        let (mut worker, session) = Worker::with_session();
        let python = v1::PythonSpec { code: "open('ran', 'a').write('x')".into(), ..v1::PythonSpec::default() };
        let spec = v1::TaskSpec {
            kind: Some(task_spec::Kind::Python(python)),
            session_id: session.clone(),
            ..v1::TaskSpec::default()
        };
        let assign =
            v1::Assign { task_id: "tsk_1".into(), fence: worker::fence(), spec: spec.encode_to_vec().into(), ..v1::Assign::default() };
        worker.link.send(to_host::Message::Start(assign.clone()));
        worker.link.wait("tsk_1");
        worker.link.send(to_host::Message::Start(assign));
        assert!(matches!(worker.link.step(), Some(to_link::Message::Ended(_))));
        assert_eq!(std::fs::read(worker.workspace(&session).join("ran")).unwrap(), b"x");
    }

    fn files_go_in_and_out_beneath_the_workspace_only() {
        let (mut worker, session) = Worker::with_session();
        let open = |path: &str, mode: Mode| {
            to_host::Message::OpenFile(wire::OpenFile {
                call_id: 9,
                session_id: session.clone(),
                path: path.into(),
                mode: mode.into(),
                ..wire::OpenFile::default()
            })
        };
        worker.link.send(open("note", Mode::Write));
        let Some((to_link::Message::FileOpened(_), mut fds)) = worker.link.receive(5_000) else { panic!() };
        std::io::Write::write_all(&mut std::fs::File::from(fds.pop().unwrap()), b"hello").unwrap();
        worker.link.send(to_host::Message::CloseFile(wire::CloseFile { call_id: 9, commit: true }));
        let Some(to_link::Message::FileClosed(closed)) = worker.link.step() else { panic!() };
        assert_eq!(closed.stat.unwrap().size_bytes, 5);
        assert_eq!(worker.python(&session, "open('note').read()").value(), "'hello'");
        worker.python(&session, "import os\nos.symlink('/etc', 'out')\nos.symlink('../../..', 'up')");
        for (path, code) in [("out/passwd", "path_escapes"), ("up/host.lock", "path_escapes"), ("no", "file_not_found")]
        {
            worker.link.send(open(path, Mode::Read));
            let Some(to_link::Message::FileOpened(opened)) = worker.link.step() else { panic!() };
            assert_eq!(opened.error.unwrap().code, code, "{path}");
        }
    }

    fn destroying_a_session_leaves_no_process_and_no_file() {
        let (mut worker, session) = Worker::with_session();
        let other = worker.create_session(v1::Limits::default());
        let code = "import os, subprocess\nif os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '61'])\n\
            subprocess.Popen(['sleep', '62'])\nprint('up', flush=True)\nimport time; time.sleep(60)";
        let running = worker.start_python(&session, code, 0);
        worker.link.wait_for_output(&running);
        let dir = worker.dir.clone();
        let of_session = || worker::in_workspace(&dir, &session);
        eventually("all three run", || (of_session().len() >= 3).then_some(()));
        worker.destroy(&session);
        assert_eq!(of_session(), Vec::<i32>::new());
        let done = worker.link.wait(&running);
        assert_eq!((done.state, done.error()), (TaskState::Cancelled, "session_ended"));
        let left = std::fs::read_dir(worker.dir.join("sessions")).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert_eq!(left.iter().filter(|name| !name.starts_with(".berth-")).count(), 1, "{left:?}");
        assert_eq!(worker.python(&other, "'untouched'").value(), "'untouched'");
        let late = worker.python(&session, "1");
        assert_eq!((late.state, late.error()), (TaskState::Failed, "session_not_found"));
        // Destroying what is not there succeeds.
        worker.destroy(&session);
    }

    fn a_stop_leaves_no_process_and_is_quick() {
        let (mut worker, session) = Worker::with_session();
        worker.start_shell(&session, &["sh", "-c", "trap '' TERM INT; setsid sleep 60 & sleep 60"], b"", 0);
        let running = worker.start_python(&session, "print('on', flush=True)\nimport time; time.sleep(60)", 0);
        worker.link.wait_for_output(&running);
        let link = worker.link.pid;
        let before = cooper_common::clock::mono_ms();
        signal(worker.host.id() as i32, Signal::TERM);
        while !matches!(worker.link.step(), Some(to_link::Message::Drain(_))) {}
        worker.link.send(to_host::Message::Drained(wire::Drained {}));
        assert!(worker.terminate().success());
        assert!(cooper_common::clock::mono_ms() - before < 5_000, "far below what it would wait for code that does not end");
        assert!(worker.processes().is_empty());
        // It ends by itself, at the end of its socket.
        eventually("the link has ended", || (!is_alive(link)).then_some(()));
    }

    fn a_stop_without_an_answering_link_ends_too() {
        let (mut worker, session) = Worker::with_session();
        worker.start_python(&session, "import time; time.sleep(60)", 0);
        assert!(worker.terminate().success());
        assert!(worker.processes().is_empty());
    }

    fn told_to_stop_the_host_waits_for_what_runs_and_for_its_result_to_be_delivered() {
        let mut worker = Worker::start_in(&[("TEST_DRAIN_MS", "60000")]);
        let session = worker.create_session(v1::Limits::default());
        let running = worker.start_python(&session, "print('on', flush=True)\nimport time; time.sleep(1)\n'done'", 0);
        worker.link.wait_for_output(&running);
        signal(worker.host.id() as i32, Signal::TERM);
        let drain = loop {
            if let Some(to_link::Message::Drain(drain)) = worker.link.step() {
                break drain;
            }
        };
        assert!((50_000..=60_000).contains(&drain.deadline_in_ms), "{drain:?}");
        // A link that dies meanwhile costs nothing: the next is told of the drain, and of what runs.
        signal(worker.link.pid, Signal::KILL);
        worker.next_link();
        assert!(worker.hello.attempts.iter().any(|item| item.task_id == running));
        assert_eq!(worker.link.wait(&running).value(), "'done'");
        assert!(worker.host.try_wait().unwrap().is_none(), "it is not delivered yet");
        worker.link.send(to_host::Message::Drained(wire::Drained {}));
        assert!(eventually("the host ends", || worker.host.try_wait().unwrap()).success());
        assert!(worker.processes().is_empty());
    }

    fn a_second_signal_does_not_wait_for_what_runs() {
        let mut worker = Worker::start_in(&[("TEST_DRAIN_MS", "60000")]);
        let session = worker.create_session(v1::Limits::default());
        let running = worker.start_python(&session, "print('on', flush=True)\nimport time; time.sleep(60)", 0);
        worker.link.wait_for_output(&running);
        signal(worker.host.id() as i32, Signal::INT);
        while !matches!(worker.link.step(), Some(to_link::Message::Drain(_))) {}
        assert!(worker.terminate().success());
        assert!(worker.processes().is_empty());
    }

    fn host_and_link_speak_the_newest_version_that_both_know() {
        let mut worker = Worker::start();
        assert_eq!(worker.hello.version, 3);
        // A link of before an upgrade, on a host of after it.
        signal(worker.link.pid, Signal::KILL);
        worker.next_silent_link();
        assert_eq!(worker.link.greet_in(wire::LinkHello { version_max: 1, version_min: 1, secrets: false, inject: false }).version, 1);
        // One that is too new is sent away; the next may be another.
        signal(worker.link.pid, Signal::KILL);
        worker.next_silent_link();
        worker.link.send(to_host::Message::Hello(wire::LinkHello { version_min: 4, version_max: 9, secrets: true, inject: true }));
        worker.next_link();
        assert_eq!(worker.hello.version, 3);

        let mut old = Worker::start_in(&[("TEST_HOST_PROTOCOL", "1")]);
        assert_eq!(old.hello.version, 1);
        let session = old.create_session(v1::Limits::default());
        assert_eq!(old.python(&session, "6 * 7").value(), "42");
        signal(old.host.id() as i32, Signal::TERM);
        while !matches!(old.link.step(), Some(to_link::Message::Drain(wire::Drain { deadline_in_ms: 0, .. }))) {}
        old.link.send(to_host::Message::Drained(wire::Drained {}));
        assert!(old.terminate().success());
    }

    fn cut_off_for_too_long_a_worker_ends_steps_and_nothing_else() {
        let mut worker = Worker::start_in(&[("TEST_DETACH_MAX_MS", "300")]);
        let session = worker.create_session(v1::Limits::default());
        let sleeps = v1::StepSpec { run_id: "run".into(), step: "sleep".into(), input_json: vec![] };
        let step = worker.start_task("", task_spec::Kind::Step(sleeps), 0);
        worker.link.wait_for_output(&step);
        let code = worker.start_python(&session, "import time; time.sleep(2)\n'went on'", 0);
        let reach = |attached| to_host::Message::Reach(wire::Reach { attached, lease_ms: 100 });
        worker.link.send(reach(true));
        worker.link.send(reach(false));
        // Reached again in time, nothing happens.
        worker.link.send(reach(true));
        std::thread::sleep(std::time::Duration::from_millis(600));
        worker.link.send(reach(false));
        let ended = worker.link.wait(&step);
        assert_eq!((ended.state, ended.error()), (TaskState::Lost, "worker_lost"));
        assert_eq!(worker.link.wait(&code).value(), "'went on'");
    }

    fn told_to_replace_its_link_the_host_does_and_nothing_else_ends() {
        let (mut worker, session) = Worker::with_session();
        let running = worker.start_python(&session, "import time; time.sleep(1)\n'done'", 0);
        let before = worker.link.pid;
        signal(worker.host.id() as i32, Signal::USR2);
        worker.next_link();
        assert!(worker.link.pid != before && worker.hello.attempts.len() == 1);
        assert_eq!(worker.link.wait(&running).value(), "'done'");
    }

    fn killing_the_host_ends_everything_and_the_next_goes_on_with_the_sessions() {
        let (mut worker, session) = Worker::with_session();
        worker.python(&session, "x = 1\nopen('kept', 'w').write('y')\nimport subprocess\n\
            subprocess.Popen(['setsid', 'sleep', '60'])");
        let incarnation = worker.hello.incarnation;
        worker.host.kill().unwrap();
        eventually("everything is dead", || worker.processes().is_empty().then_some(()));
        worker.start_again();
        assert_eq!(worker.hello.incarnation, incarnation + 1);
        assert!(worker.hello.attempts.is_empty());
        assert!(worker.hello.sessions[0].interpreter_restarted);
        let done = worker.python(&session, "'x' in globals(), open('kept').read()");
        assert_eq!((done.value(), done.outcome.interpreter_restarted), ("(False, 'y')".to_owned(), true));
    }

    fn a_second_host_takes_the_directory_over() {
        let (mut worker, session) = Worker::with_session();
        worker.start_python(&session, "import time; time.sleep(60)", 0);
        let first = worker.host.id() as i32;
        worker.start_again();
        assert!(!is_alive(first));
        assert_eq!(worker.hello.sessions[0].session_id, session);
        assert_eq!(worker.python(&session, "1").value(), "1");
    }

    fn executions_of_one_session_run_in_their_order_and_commands_beside_them() {
        let (mut worker, session) = Worker::with_session();
        let first = worker.start_python(&session, "import time; time.sleep(0.3)\nx = 1", 0);
        let second = worker.start_python(&session, "x += 1\nx", 0);
        let third = worker.start_python(&session, "x * 10", 0);
        assert_eq!(worker.shell(&session, &["echo", "beside"], b"").out(), "beside\n");
        assert_eq!(worker.link.wait(&second).value(), "2");
        assert_eq!(worker.link.wait(&third).value(), "20");
        assert_eq!(worker.link.wait(&first).state, TaskState::Succeeded);
    }

    fn a_subreaper_that_is_killed_takes_its_tree_along() {
        let (mut worker, session) = Worker::with_session();
        let task = worker.start_python(&session, "import os, subprocess\n\
            p = subprocess.Popen(['setsid', 'sleep', '63'])\nopen('new', 'w').write(f'{os.getppid()} {p.pid}')\n\
            os.rename('new', 'pids')\nimport time; time.sleep(60)", 0);
        let file = worker.workspace(&session).join("pids");
        let pids = eventually("the pids", || std::fs::read_to_string(&file).ok());
        let (reaper, child) = pids.split_once(' ').unwrap();
        signal(reaper.parse().unwrap(), Signal::KILL);
        assert_eq!(worker.link.wait(&task).error(), "interpreter_died");
        let child: i32 = child.parse().unwrap();
        eventually("the stray is dead", || (!is_alive(child)).then_some(()));
        assert_eq!(worker.python(&session, "1").value(), "1");
    }

    fn a_step_reports_and_one_that_says_nothing_failed() {
        let mut worker = Worker::start();
        let step = |name: &str| {
            task_spec::Kind::Step(v1::StepSpec {
                run_id: "run".into(),
                step: name.into(),
                input_json: b"{\"a\":1}".to_vec(),
            })
        };
        let task = worker.start_task("", step("analyze"), 0);
        let done = worker.link.wait(&task);
        assert_eq!((done.state, &*done.outcome.step_json), (TaskState::Succeeded, &b"{\"a\":1}"[..]));
        assert_eq!(done.out().trim(), worker.dir.join("stacks.json").display().to_string());
        let task = worker.start_task("", step("silent"), 0);
        assert_eq!(worker.link.wait(&task).error(), "step_failed");
        let task = worker.start_task("", step("sleep"), 200);
        let done = worker.link.wait(&task);
        assert_eq!((done.state, done.outcome.exit_code), (TaskState::TimedOut, 143));
    }

    fn sessions_beyond_the_capacity_are_refused() {
        let mut worker = Worker::start();
        for _ in 0..worker.hello.capacity.unwrap().sessions_max {
            worker.create_session(v1::Limits::default());
        }
        let id = cooper_common::ids::SessionId::new().to_string();
        let grant = v1::SessionGrant { session_id: id.clone(), fence: worker::fence(), ..v1::SessionGrant::default() };
        worker.link.send(to_host::Message::SessionCreate(grant));
        let update = worker.link.session_update(&id);
        assert_eq!((&*update.state, &*update.error.unwrap().code), ("failed", "no_capacity"));
    }

    fn limits_of_a_session_hold() {
        let mut worker = Worker::start();
        let limits = v1::Limits {
            memory_bytes: 64 << 20,
            file_size_bytes: 1 << 20,
            open_files: 64,
            exec_timeout_ms: 300,
            ..v1::Limits::default()
        };
        let session = worker.create_session(limits);
        let memory = worker.python(&session, "b = b'x' * (1 << 30)");
        let refused = memory.outcome.exception.is_some_and(|exception| exception.name == "MemoryError");
        assert!(refused || memory.outcome.oom, "{:?}", memory.outcome.error);
        let file = worker.python(&session, "open('big', 'wb').write(bytes(2 << 20))");
        assert_eq!(file.outcome.exception.unwrap().name, "OSError");
        let files = worker.python(&session, "f = [open('/dev/null') for _ in range(100)]");
        assert_eq!(files.outcome.exception.unwrap().name, "OSError");
        assert_eq!(worker.python(&session, "f = None\nwhile True: pass").state, TaskState::TimedOut);
    }

    fn a_link_that_does_not_read_stops_nobody() {
        let (mut worker, session) = Worker::with_session();
        // Each write is worth a message; far more of them than a socket holds.
        let code = "import os, time\nfor i in range(2_000):\n    os.write(1, b'%099d\\n' % i)\n    time.sleep(0.0005)\n\
            open('done', 'w')";
        let task = worker.start_python(&session, code, 0);
        let done = worker.workspace(&session).join("done");
        eventually("it ended", || done.exists().then_some(()));
        let expected: String = (0..2_000).map(|i| format!("{i:099}\n")).collect();
        assert!(worker.link.wait(&task).out() == expected);
    }
}
