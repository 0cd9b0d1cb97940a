//! Calls that processes of the host serve: nothing they do reaches beside the workspace, whatever the session does
//! meanwhile, and none outlives its session.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cooper_proto::{
    host::{self as wire, to_host, to_link},
    v1::{self, call::Op, call_result},
};
use prost::Message;

use crate::{claims::claims, worker::Worker};

/// The answer of one call.
fn call(worker: &mut Worker, session: &str, op: Op) -> Result<call_result::Result, v1::Error> {
    let call_id = rand::random();
    let call = v1::Call { call_id, session_id: session.to_owned(), op: Some(op) };
    worker.link.send(to_host::Message::FileWork(wire::FileWork {
        call_id,
        call: Some(call),
        ..Default::default()
    }));
    loop {
        let (message, fds) = worker.link.receive(60_000).expect("an answer");
        let to_link::Message::FileOpened(opened) = message else { continue };
        assert_eq!(opened.call_id, call_id);
        if let Some(error) = opened.error {
            return Err(error);
        }
        let answer = cooper_worker::frame::read_sealed(&fds[0]).expect("a sealed answer");
        match v1::CallResult::decode(&*answer).expect("an answer").result.expect("a result") {
            call_result::Result::Error(error) => return Err(error),
            result => return Ok(result),
        }
    }
}

/// A write of one byte through the way the link goes.
fn write(worker: &mut Worker, session: &str, path: &str) -> Result<(), v1::Error> {
    let call_id = rand::random();
    let open = wire::OpenFile {
        call_id,
        session_id: session.to_owned(),
        path: path.to_owned(),
        mode: wire::open_file::Mode::Write.into(),
        ..wire::OpenFile::default()
    };
    worker.link.send(to_host::Message::OpenFile(open));
    loop {
        let (message, _) = worker.link.receive(60_000).expect("an answer");
        match message {
            to_link::Message::FileOpened(opened) => match opened.error {
                Some(error) => return Err(error),
                None => {
                    worker.link.send(to_host::Message::CloseFile(wire::CloseFile { call_id, commit: true }))
                }
            },
            to_link::Message::FileClosed(closed) => return closed.error.map_or(Ok(()), Err),
            _ => {}
        }
    }
}

fn read(worker: &mut Worker, session: &str, path: &str) -> Option<Vec<u8>> {
    let open = wire::OpenFile {
        call_id: rand::random(),
        session_id: session.to_owned(),
        path: path.to_owned(),
        mode: wire::open_file::Mode::Read.into(),
        ..wire::OpenFile::default()
    };
    worker.link.send(to_host::Message::OpenFile(open));
    loop {
        let (message, fds) = worker.link.receive(60_000).expect("an answer");
        let to_link::Message::FileOpened(_) = message else { continue };
        let fd = fds.into_iter().next()?;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut fs::File::from(fd), &mut content).expect("a file");
        return Some(content);
    }
}

/// What is beside the workspace, which a link in it leads to.
const SECRET: &str = "nobody's business";

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(walk(&path).into_iter().map(|below| format!("{name}/{below}")));
        }
        found.push(name);
    }
    found
}

claims! {
    fn no_call_follows_a_link_that_is_swapped_in_while_it_looks() {
        let (mut worker, session) = Worker::with_session();
        let workspace = worker.workspace(&session);
        let outside = worker.dir.parent().expect("a directory").join("outside");
        fs::create_dir_all(outside.join("sub")).expect("a directory");
        for name in ["f", "sub/f"] {
            fs::write(outside.join(name), SECRET).expect("written");
        }
        // The worst case of a session: it may do what the worker may, and swaps as fast as it can.
        let swaps = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        fs::create_dir_all(workspace.join("real/sub")).expect("a directory");
        fs::write(workspace.join("real/f"), "fine").expect("written");
        fs::write(workspace.join("real/sub/f"), "fine").expect("written");
        std::os::unix::fs::symlink(&outside, workspace.join("evil")).expect("a link");
        std::os::unix::fs::symlink("real", workspace.join("d")).expect("a link");
        let swapper = std::thread::spawn({
            let (swaps, stop, workspace) = (swaps.clone(), stop.clone(), workspace.clone());
            move || {
                let cwd = fs::File::open(&workspace).expect("a directory");
                // `d` is by turns a directory and a link that leads out.
                let _ = fs::remove_file(workspace.join("d"));
                fs::rename(workspace.join("real"), workspace.join("d")).expect("renamed");
                while !stop.load(Ordering::Relaxed) {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    if rustix::fs::renameat_with(&cwd, "d", &cwd, "evil", exchange).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let mut rounds = 0u64;
        while swaps.load(Ordering::Relaxed) < 10_000 || rounds < 60 {
            rounds += 1;
            for path in ["d/f", "d/sub/f"] {
                if let Some(content) = read(&mut worker, &session, path) {
                    assert_ne!(content, SECRET.as_bytes(), "{path}");
                }
            }
            let _ = write(&mut worker, &session, "d/f");
            let _ = write(&mut worker, &session, "d/planted");
            let request = v1::SearchFilesRequest { pattern: "business".into(), ..Default::default() };
            if let Ok(call_result::Result::Found(found)) = call(&mut worker, &session, Op::Search(request)) {
                assert!(found.matches.is_empty(), "{found:?}");
            }
            let to = format!("copy{rounds}");
            let request =
                v1::CopyFileRequest { from: "d".into(), to: to.clone(), ..Default::default() };
            if call(&mut worker, &session, Op::Copy(request)).is_ok() {
                for name in ["f", "sub/f"] {
                    let copied = fs::read_to_string(workspace.join(&to).join(name)).unwrap_or_default();
                    let link = workspace.join(&to).is_symlink();
                    assert!(link || copied != SECRET, "{to}/{name}");
                }
            }
            let edit = v1::Edit { old: b"nobody".to_vec(), new: b"body".to_vec(), ..Default::default() };
            let request = v1::EditFileRequest { path: "d/f".into(), edits: vec![edit], ..Default::default() };
            let _ = call(&mut worker, &session, Op::Edit(request));
            let request = v1::ChangeModeRequest { path: "d/f".into(), mode: 0o777, ..Default::default() };
            let _ = call(&mut worker, &session, Op::ChangeMode(request));
            let request = v1::MakeDirRequest { path: format!("d/new{rounds}/x"), ..Default::default() };
            let _ = call(&mut worker, &session, Op::MakeDir(request));
            let request = v1::DeleteFileRequest { path: "d/sub".into(), recursive: true, ..Default::default() };
            let _ = call(&mut worker, &session, Op::Delete(request));
            let request = v1::DeleteFileRequest { path: to, recursive: true, ..Default::default() };
            let _ = call(&mut worker, &session, Op::Delete(request));
            let request =
                v1::MoveFileRequest { from: "d/planted".into(), to: "d/moved".into(), overwrite: true, ..Default::default() };
            let _ = call(&mut worker, &session, Op::Move(request));
        }
        stop.store(true, Ordering::Relaxed);
        swapper.join().expect("the swapper");
        let mut left: Vec<String> = walk(&outside);
        left.sort();
        assert_eq!(left, ["f", "sub", "sub/f"]);
        for name in ["f", "sub/f"] {
            assert_eq!(fs::read_to_string(outside.join(name)).expect("there"), SECRET);
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(outside.join(name)).expect("there").permissions());
            assert_eq!(mode & 0o777, 0o644, "{name}");
        }
    }

    fn a_call_ends_with_its_session() {
        let (mut worker, session) = Worker::with_session();
        let workspace = worker.workspace(&session);
        // More than is searched in the time that the destruction takes.
        let file = fs::File::create(workspace.join("large")).expect("a file");
        std::io::Write::write_all(&mut &file, &b"a line\n".repeat(1 << 20)).expect("written");
        for n in 0..200 {
            fs::hard_link(workspace.join("large"), workspace.join(format!("link{n}"))).expect("a link");
        }
        if rustix::process::geteuid().is_root() {
            let own = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&workspace).expect("there"));
            std::os::unix::fs::chown(workspace.join("large"), Some(own), Some(own)).expect("owned");
        }
        let search = v1::SearchFilesRequest { pattern: "(b|a.*x)$".into(), regex: true, ..Default::default() };
        let call =
            |id| v1::Call { call_id: id, session_id: session.clone(), op: Some(Op::Search(search.clone())) };
        for id in 1..=6 {
            worker.link.send(to_host::Message::FileWork(wire::FileWork { call_id: id, call: Some(call(id)), ..Default::default() }));
        }
        let end = v1::SessionEnd { session_id: session.clone(), fence: crate::worker::fence() };
        worker.link.send(to_host::Message::SessionDestroy(end));
        let mut ended = Vec::new();
        loop {
            let (message, _) = worker.link.receive(20_000).expect("an answer");
            match message {
                to_link::Message::FileOpened(opened) => {
                    ended.push(opened.error.map(|error| error.code).unwrap_or_default());
                }
                to_link::Message::Session(update) if update.state == "destroyed" => break,
                _ => {}
            }
        }
        ended.sort();
        let expected = ["session_ended", "session_ended", "session_ended", "session_ended", "session_not_found", "session_not_found"];
        assert_eq!(ended, expected);
        assert!(!workspace.exists());
    }

    fn what_calls_of_a_killed_host_left_is_gone_after_the_next_starts_and_nothing_else() {
        let (mut worker, session) = Worker::with_session();
        let workspace = worker.workspace(&session);
        let outside = worker.dir.join("outside");
        fs::create_dir(&outside).expect("made");
        let draft = ".cooper-0123456789abcdef";
        fs::write(outside.join(format!("{draft}.part")), SECRET).expect("written");
        let make = format!(
            "import os\n\
            os.makedirs('a/.b')\n\
            for name in ('{draft}.part', 'a/{draft}.archive', 'a/.b/{draft}.part', '.cooper-globals', '.cooper-mine', 'a/.cooper-globals'):\n\
            \x20   open(name, 'w').write('x')\n\
            os.makedirs('{draft}.gone/0/deep'); open('{draft}.gone/0/deep/f', 'w'); os.chmod('{draft}.gone/0/deep', 0)\n\
            os.makedirs('a/{draft}.part/copied'); os.makedirs('.cooper-venv.part/bin'); os.makedirs('.cooper-venv.gone/bin')\n\
            os.symlink('{outside}', 'a/{draft}.gone'); os.symlink('{outside}', 'a/link')",
            outside = outside.display()
        );
        worker.python(&session, &make);
        // And one that is truly at work.
        let open = wire::OpenFile {
            call_id: 1,
            session_id: session.clone(),
            path: "a/written".to_owned(),
            mode: wire::open_file::Mode::Write.into(),
            ..wire::OpenFile::default()
        };
        worker.link.send(to_host::Message::OpenFile(open));
        while !matches!(worker.link.receive(60_000), Some((to_link::Message::FileOpened(_), _))) {}
        let left = |workspace: &std::path::Path| {
            let all = walk(workspace);
            all.into_iter().filter(|path| !path.starts_with(".venv/") && !path.starts_with("a/link/") && path.contains(".cooper-")).collect::<Vec<_>>()
        };
        assert!(left(&workspace).len() >= 13, "{:?}", left(&workspace));
        worker.host.kill().expect("killed");
        crate::worker::eventually("everything is dead", || worker.processes().is_empty().then_some(()));
        worker.start_again();
        crate::worker::eventually("what was left is gone", || {
            let mut found = left(&workspace);
            found.sort();
            (found == [".cooper-mine", "a/.cooper-globals"]).then_some(())
        });
        assert_eq!(fs::read_to_string(outside.join(format!("{draft}.part"))).expect("there"), SECRET);
        assert!(fs::symlink_metadata(workspace.join("a/link")).is_ok() && workspace.join(".venv").exists());
        write(&mut worker, &session, "a/written").expect("its files go on");
    }

    fn a_directory_of_very_many_files_is_listed_in_pages_that_hold_no_more_than_a_page() {
        const FILES: usize = 200_000;
        let mut worker = Worker::start();
        worker.wait_for_pool(1);
        let limits = v1::Limits { inodes_max: 2 * FILES as u64, ..v1::Limits::default() };
        let session = worker.create_session(limits);
        let wide = worker.workspace(&session).join("wide");
        fs::create_dir(&wide).expect("made");
        let dir = fs::File::open(&wide).expect("there");
        for n in 0..FILES {
            let kind = rustix::fs::FileType::RegularFile;
            rustix::fs::mknodat(&dir, format!("{n:07}"), kind, rustix::fs::Mode::RUSR, 0).expect("made");
        }
        // What the host and whatever serves its calls hold at the most.
        let (host, over) = (worker.host.id(), Arc::new(AtomicBool::new(false)));
        let peak = Arc::new(AtomicU64::new(0));
        let watch = std::thread::spawn({
            let (over, peak) = (over.clone(), peak.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    let children = fs::read_to_string(format!("/proc/{host}/task/{host}/children")).unwrap_or_default();
                    for pid in children.split_ascii_whitespace().chain([&*host.to_string()]) {
                        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                        // Interpreters and zygotes are not meant.
                        let ours = status.starts_with("Name:\thost-");
                        let line = status.lines().find(|line| ours && line.starts_with("VmHWM:")).unwrap_or_default();
                        let kib = line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
                        peak.fetch_max(kib, Ordering::Relaxed);
                    }
                }
            }
        });
        let (mut cursor, mut seen, mut pages, mut last) = (String::new(), 0, 0, String::new());
        loop {
            let request = v1::ListFilesRequest { path: "wide".into(), cursor, ..Default::default() };
            let Ok(call_result::Result::List(page)) = call(&mut worker, &session, Op::List(request)) else {
                panic!("no page")
            };
            (seen, pages) = (seen + page.files.len(), pages + 1);
            assert!(page.files.len() <= 10_000 && page.encoded_len() < 5 << 20);
            assert!(page.files.windows(2).all(|two| two[0].path < two[1].path) && page.files[0].path > last);
            last = page.files.last().map(|file| file.path.clone()).expect("a page has files");
            cursor = page.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        watch.join().expect("it ends");
        assert_eq!((seen, pages), (FILES, FILES / 10_000));
        let peak = peak.load(Ordering::Relaxed);
        assert!((1..64 << 10).contains(&peak), "{peak} KiB");
        println!("{pages} pages, at most {peak} KiB");
    }

    fn what_nobody_could_serve_is_refused() {
        let (mut worker, session) = Worker::with_session();
        let stat = |path: &str| Op::Stat(v1::StatFileRequest { path: path.into(), ..Default::default() });
        assert_eq!(call(&mut worker, "nobody", stat("f")).expect_err("refused").code, "session_not_found");
        for (path, code) in [
            ("../x", "path_escapes"),
            ("/etc/passwd", "path_escapes"),
            ("a\0b", "invalid_argument"),
            ("absent", "file_not_found"),
            (&"x".repeat(5_000), "invalid_argument"),
            (&"y".repeat(300), "invalid_argument"),
        ] {
            assert_eq!(call(&mut worker, &session, stat(path)).expect_err(path).code, code, "{path}");
        }
        let unknown = v1::Call { call_id: 7, session_id: session.clone(), op: None };
        worker.link.send(to_host::Message::FileWork(wire::FileWork { call_id: 7, call: Some(unknown), ..Default::default() }));
        let Some((to_link::Message::FileOpened(opened), fds)) = worker.link.receive(20_000) else { panic!("no answer") };
        assert_eq!(opened.call_id, 7);
        let answer = cooper_worker::frame::read_sealed(&fds[0]).expect("an answer");
        let Some(call_result::Result::Error(error)) = v1::CallResult::decode(&*answer).expect("an answer").result else {
            panic!("no error")
        };
        assert_eq!(error.code, "not_supported");
    }

    fn calls_have_the_rights_of_the_session_and_what_they_make_is_its_own() {
        let (mut worker, session) = Worker::with_session();
        let workspace = worker.workspace(&session);
        let owner = |path: &str| {
            std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(workspace.join(path)).expect("there"))
        };
        write(&mut worker, &session, "f").expect("written");
        let request = v1::MakeDirRequest { path: "made/too".into(), ..Default::default() };
        call(&mut worker, &session, Op::MakeDir(request)).expect("made");
        let request = v1::CopyFileRequest { from: "f".into(), to: "made/f".into(), ..Default::default() };
        call(&mut worker, &session, Op::Copy(request)).expect("copied");
        let own = owner(".");
        for path in ["f", "made", "made/too", "made/f"] {
            assert_eq!(owner(path), own, "{path}");
        }
        if !rustix::process::geteuid().is_root() {
            return;
        }
        assert_ne!(own, 0);
        fs::write(workspace.join("roots"), SECRET).expect("written");
        fs::set_permissions(workspace.join("roots"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
        assert_eq!(read(&mut worker, &session, "roots"), None);
        let request = v1::SearchFilesRequest { pattern: "business".into(), ..Default::default() };
        let Ok(call_result::Result::Found(found)) = call(&mut worker, &session, Op::Search(request)) else {
            panic!("no answer")
        };
        assert!(found.matches.is_empty() && found.files_skipped >= 1, "{found:?}");
    }
}
