//! The tier `science` with the real packages, under confinement: numpy, pandas and matplotlib in a layer.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use cooper_proto::v1::{self, TaskState, task_spec::Kind};

use crate::{
    claims::claims,
    worker::{Worker, eventually},
};

const WANTED: [&str; 3] = ["numpy==2.2.6", "pandas==2.2.3", "matplotlib==3.10.3"];

/// Installed once, beside the other tools, by pip of the Python that sessions will have; another list or another Python is
/// another directory. It is passed and read by the uids of sessions.
fn layer() -> PathBuf {
    let question =
        "import sys, sysconfig; print('%d.%d-%s' % (sys.version_info[:2] + (sysconfig.get_platform(),)))";
    let python = Command::new("python3").args(["-c", question]).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let name = format!("science-{}-{}", python.trim(), WANTED.join("-").replace("==", "-"));
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    std::fs::create_dir_all(&tools).unwrap();
    let layer = std::fs::canonicalize(tools).unwrap().join(name);
    if !layer.join("complete").exists() {
        let _ = std::fs::remove_dir_all(&layer);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&layer);
        assert!(pip.args(WANTED).status().unwrap().success());
        std::fs::write(layer.join("complete"), "").unwrap();
    }
    layer
}

claims! {
    fn science_is_there_before_it_is_imported_and_siblings_differ() {
        let layer = layer();
        let mut worker = Worker::start_in(&[("TEST_PRELOAD", "science"), ("TEST_LAYER", layer.to_str().unwrap())]);
        let zygote = worker.zygote();
        worker.wait_for_pool(2);
        let threads = std::fs::read_dir(format!("/proc/{zygote}/task")).unwrap().count();
        assert_eq!(threads, 1, "numeric libraries started no thread in what is forked");
        let sessions = [worker.create_session(v1::Limits::default()), worker.create_session(v1::Limits::default())];
        let mut drawn = Vec::new();
        for session in &sessions {
            let there = worker.python(session, "import sys; [name in sys.modules for name in ('numpy', 'pandas', 'matplotlib.pyplot')]");
            assert_eq!(there.value(), "[True, True, True]");
            let took = worker.python(session, "import time; t = time.perf_counter(); import numpy, pandas; time.perf_counter() - t").value();
            println!("warm import of numpy and pandas: {took} s");
            assert!(took.parse::<f64>().unwrap() < 0.05, "{took}: they were imported already");
            drawn.push(worker.python(session, "numpy.random.random(), numpy.random.default_rng().random(), numpy.random.randint(1 << 60)").value());
        }
        assert_ne!(drawn[0], drawn[1]);

        let session = &sessions[0];
        let table = worker.python(session, "pandas.DataFrame({'wood': ['oak', 'ash'], 'staves': [30, 28]})").outcome.result.unwrap();
        let text = |mime: &str| String::from_utf8(table.data[mime].clone()).unwrap();
        assert!(text("text/html").contains("<table") && text("text/plain").contains("oak"));
        assert!(text("application/json").contains("\"total_rows\": 2") || text("application/json").contains("\"total_rows\":2"));
        let drawing = worker.python(session, "import matplotlib.pyplot as plt\nplt.plot(numpy.arange(9) ** 2)\nNone");
        assert_eq!(drawing.outcome.displays.len(), 1, "{:?}", drawing.outcome.exception);
        assert!(drawing.outcome.displays[0].data["image/png"].starts_with(b"\x89PNG"));

        let work = "from concurrent.futures import ThreadPoolExecutor\nimport subprocess, sys\n\
            a = numpy.random.default_rng(1).random((400, 400))\n\
            def trace(_): return round(float(numpy.trace(a @ numpy.linalg.inv(a))), 3)\n\
            with ThreadPoolExecutor(4) as pool: inside = set(pool.map(trace, range(8)))\n\
            code = 'import numpy; a = numpy.eye(500); print(int((a @ a).sum()))'\n\
            (inside, subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)";
        let done = worker.python(session, work);
        assert_eq!(done.value(), "({400.0}, '500\\n')", "{:?}", done.outcome.exception);
        let pool = "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as pool: sums = pool.map(numpy.sum, [numpy.ones(9), numpy.ones(5)])\n\
            [int(s) for s in sums]";
        let done = worker.python(session, pool);
        assert_eq!(done.value(), "[9, 5]", "{:?}", done.outcome.exception);
    }

    fn a_package_of_the_workers_that_is_installed_anew_needs_a_restart() {
        use std::os::unix::fs::PermissionsExt as _;
        let layer = layer();
        let wheels = tempfile::tempdir().unwrap();
        std::fs::set_permissions(wheels.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/packages.py");
        let dir = wheels.path().to_str().unwrap();
        assert!(Command::new("python3").arg(script).args(["wheel", dir, "numpy", "1.0"]).status().unwrap().success());
        let mut worker = Worker::start_in(&[
            ("TEST_PRELOAD", "science"),
            ("TEST_LAYER", layer.to_str().unwrap()),
            ("PIP_FIND_LINKS", dir),
            ("PIP_NO_INDEX", "1"),
            ("PIP_CONFIG_FILE", "/dev/null"),
        ]);
        worker.wait_for_pool(1);
        let session = eventually("a session that was forked", || {
            let session = worker.create_session(v1::Limits::default());
            let there = worker.python(&session, "import sys; 'numpy' in sys.modules").value();
            (there == "True").then_some(session)
        });
        let install = v1::InstallSpec { packages: vec!["numpy==1.0".to_owned()], ..v1::InstallSpec::default() };
        let task = worker.start_task(&session, Kind::Install(install), 0);
        let done = worker.link.wait(&task);
        assert_eq!(done.state, TaskState::Succeeded, "{}", String::from_utf8_lossy(&done.stderr));
        assert!(done.outcome.restart_required, "{:?}", done.outcome);
        assert_eq!(done.outcome.restart_modules, ["numpy"]);
        let kept = worker.python(&session, "import numpy; numpy.__version__").value();
        assert_eq!(kept, "'2.2.6'", "what is imported stays");
        let new = worker.shell(&session, &["python", "-c", "import numpy; print(numpy.VERSION)"], b"").out();
        assert_eq!(new, "1.0\n", "what starts anew has the session's");
    }
}
