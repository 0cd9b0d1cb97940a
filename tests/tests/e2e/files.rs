//! Files of a session: in, out and listed; nothing beside the workspace.

use std::fs;

use cooper_tests::{Scratch, shared};

/// A worker serves 32 calls at once: one that has ended must not count.
#[test]
fn files_come_out_more_often_than_a_worker_serves_at_once() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.run_with(["files", "put", &session, "-", "small"], b"kept").expect(0);
    for _ in 0..40 {
        assert_eq!(cooper.run(["files", "get", &session, "small", "-"]).expect(0).stdout, b"kept");
    }
}

#[test]
fn a_file_goes_in_and_comes_out_as_it_was() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("files");
    let session = cooper.session();
    let mut bytes: Vec<u8> = vec![0; 20 << 20];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    let local = scratch.write("big file ü.bin", &bytes);
    let put = cooper.json(["files", "put", &session, local.to_str().expect("plain"), "data/"]);
    assert_eq!((&put["path"], &put["size_bytes"]), (&"data/big file ü.bin".into(), &bytes.len().into()));
    let seen = cooper.exec(
        &session,
        "import hashlib; print(hashlib.sha256(open('data/big file ü.bin','rb').read()).hexdigest())",
    );
    let mut sha = cooper_tests::program::command("sha256sum");
    sha.arg(&local);
    let expected = cooper_tests::Running::start(sha, b"").finish(cooper_tests::seconds(20)).expect(0).out();
    assert!(expected.starts_with(seen.trim()), "{seen} {expected}");

    let back = scratch.join("back.bin");
    cooper.ok(["files", "get", &session, "data/big file ü.bin", back.to_str().expect("plain")]);
    assert!(fs::read(&back).expect("it is there") == bytes);
    let through = cooper.run(["files", "get", &session, "data/big file ü.bin", "-"]).expect(0);
    assert!(through.stdout == bytes);
}

#[test]
fn what_the_session_wrote_comes_out_and_a_mode_is_kept() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("modes");
    let session = cooper.session();
    let script = scratch.write("run.sh", "#!/bin/sh\necho it ran\n");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    cooper.ok(["files", "put", &session, script.to_str().expect("plain")]);
    assert_eq!(cooper.ok(["sh", "-n", &session, "--", "./run.sh"]), "it ran");
    cooper.exec(&session, "open('made here', 'w').write('by the session')");
    let inside = cooper.clone().dir(scratch.path());
    inside.ok(["files", "get", &session, "made here"]);
    assert_eq!(fs::read_to_string(scratch.join("made here")).expect("it is there"), "by the session");
    cooper.run_with(["files", "put", &session, "-", "empty"], b"").expect(0);
    assert_eq!(cooper.run(["files", "get", &session, "empty", "-"]).expect(0).out(), "");
}

#[test]
fn a_directory_is_listed_by_name() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let code = "import os; os.makedirs('d/inner'); open('d/b','w').write('12345'); open('d/a b','w'); os.symlink('b','d/link')";
    cooper.exec(&session, code);
    let listed = cooper.json(["files", "ls", &session, "d"]);
    let rows: Vec<(String, String, u64)> = listed["files"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|f| {
            (
                f["path"].as_str().unwrap_or_default().to_owned(),
                f["kind"].as_str().unwrap_or_default().to_owned(),
                if f["kind"] == "file" { f["size_bytes"].as_u64().unwrap_or(u64::MAX) } else { 0 },
            )
        })
        .collect();
    let row = |path: &str, kind: &str, size| (path.to_owned(), kind.to_owned(), size);
    assert_eq!(
        rows,
        [
            row("d/a b", "file", 0),
            row("d/b", "file", 5),
            row("d/inner", "dir", 0),
            row("d/link", "symlink", 0)
        ]
    );
    assert!(cooper.ok(["files", "ls", &session]).contains("d/"));
    assert_eq!(cooper.error(["files", "ls", &session, "absent"]).code, "file_not_found");
}

#[test]
fn paths_that_leave_the_workspace_are_refused() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("escape");
    let session = cooper.session();
    let outside = scratch.write("secret", "nobody's business");
    let outside = outside.to_str().expect("plain");
    let code = format!(
        "import os; os.symlink({outside:?}, 'out'); os.symlink({:?}, 'dir-out'); os.symlink('../..', 'up'); os.mkdir('a')",
        scratch.path().to_str().expect("plain")
    );
    cooper.exec(&session, &code);
    let local = scratch.write("mine", "overwritten");
    let local = local.to_str().expect("plain");
    for path in
        ["../x", "../../session.json", "/etc/passwd", "a/../../x", outside, "out", "dir-out/secret", "up/x"]
    {
        assert_eq!(cooper.error(["files", "get", &session, path, "-"]).code, "path_escapes", "{path}");
        assert_eq!(cooper.error(["files", "ls", &session, path]).code, "path_escapes", "{path}");
        // A link's name may be taken by a file: that replaces the link, and follows it nowhere.
        if path != "out" {
            let write = cooper.error(["files", "put", &session, local, path]);
            assert_eq!(write.code, "path_escapes", "{path}");
        }
    }
    cooper.run(["files", "put", &session, local, "out"]);
    assert_eq!(fs::read_to_string(outside).expect("it is there"), "nobody's business");
    assert!(!scratch.join("x").exists());
}

#[test]
fn what_is_no_file_is_said_to_be_none() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(&session, "import os; os.makedirs('d'); os.mkfifo('pipe')");
    for path in ["d", "pipe"] {
        assert_eq!(cooper.error(["files", "get", &session, path, "-"]).code, "not_a_file", "{path}");
    }
    assert_eq!(cooper.error(["files", "get", &session, "absent", "-"]).code, "file_not_found");
    assert_eq!(cooper.error(["files", "get", "nobody", "absent", "-"]).code, "session_not_found");
}

#[tokio::test]
async fn a_cut_upload_leaves_the_old_file_as_it_was() {
    use cooper_proto::v1::{WriteFileHeader, WriteFileRequest, write_file_request::Part};
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.exec(&session, "open('kept', 'w').write('old')");
    let client = cooper_tests::grpc::Client::connect(&cluster.url, Some(&cluster.admin_token())).await;
    let (parts, receiver) = tokio::sync::mpsc::channel(4);
    let header = WriteFileHeader {
        session_id: session.clone(),
        path: "kept".to_owned(),
        ..WriteFileHeader::default()
    };
    parts.send(WriteFileRequest { part: Some(Part::Header(header)) }).await.expect("sent");
    let data = WriteFileRequest { part: Some(Part::Data(b"half of the new".to_vec())) };
    parts.send(data).await.expect("sent");
    let mut sessions = client.sessions();
    let call = sessions.write_file(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let cut = tokio::time::timeout(std::time::Duration::from_millis(500), call).await;
    assert!(cut.is_err(), "it waits for the rest, and is dropped: {cut:?}");
    drop(parts);
    assert_eq!(
        cooper.exec(
            &session,
            "import os; print(open('kept').read(), [name for name in os.listdir('.') if name[0] != '.'])"
        ),
        "old ['kept']"
    );
}

/// Paths of a listing.
fn paths(listing: &serde_json::Value) -> Vec<String> {
    let files = listing["files"].as_array().expect("a list");
    files.iter().map(|file| file["path"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_tree_is_listed_page_by_page_and_every_page_goes_on_where_the_last_ended() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
for d in ('a/b', 'a/.git', 'c'):
    os.makedirs('t/' + d)
    for n in range(30): open(f't/{d}/f{n:02}.py', 'w').write('x' * n)
os.symlink('a', 't/link')",
    );
    let all = paths(&cooper.json(["files", "ls", &session, "t", "-r"]));
    assert_eq!(all.len(), 65, "{all:?}");
    assert_eq!(all[..4], ["t/a", "t/a/.git", "t/a/b", "t/a/b/f00.py"]);
    assert!(all.contains(&"t/link".to_owned()) && !all.contains(&"t/link/b".to_owned()));
    let (mut cursor, mut pages) = (String::new(), Vec::new());
    loop {
        let page = cooper.json(["files", "ls", &session, "t", "-r", "--limit", "10", "--cursor", &cursor]);
        let more = paths(&page);
        assert!(more.len() <= 10);
        pages.extend(more);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(pages, all);
    assert_eq!(paths(&cooper.json(["files", "ls", &session, "t", "-r", "--hidden"])).len(), 95);
    let found = cooper.ok(["files", "find", &session, "a/**/f0[12].py", "t"]);
    assert_eq!(found, "t/a/b/f01.py\nt/a/b/f02.py");
    assert_eq!(cooper.ok(["files", "find", &session, "f00.py"]), "t/a/b/f00.py\nt/c/f00.py");
    assert_eq!(cooper.error(["files", "find", &session, "[", "t"]).code, "invalid_argument");
}

#[test]
fn names_of_any_bytes_are_listed_and_can_be_named_back() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(
        &session,
        r"import os
os.mkdir('n')
for name in (b'n/plain', b'n/\xff\xfe', b'n/' + b'y' * 255, 'n/\u202ertl'.encode(), b'n/new\nline'):
    open(name, 'wb').write(name)",
    );
    let listed = cooper.json(["files", "ls", &session, "n"]);
    let odd = listed["files"].as_array().expect("a list").iter().find(|file| file["not_utf8"] == true);
    let odd = odd.unwrap_or_else(|| panic!("flagged: {listed}"))["path"].as_str().expect("a path").to_owned();
    assert_eq!(paths(&listed).len(), 5);
    assert_eq!(cooper.run(["files", "cat", &session, &odd]).expect(0).stdout, b"n/\xff\xfe");
    cooper.ok(["files", "mv", &session, &odd, "n/named"]);
    assert_eq!(cooper.run(["files", "cat", &session, "n/named"]).expect(0).stdout, b"n/\xff\xfe");
    assert!(cooper.ok(["files", "ls", &session, "n"]).contains(r"\u{202e}rtl"), "shown, not obeyed");
    let long = "x".repeat(4_000);
    assert_eq!(cooper.error(["files", "stat", &session, &long]).code, "invalid_argument");
    let longer = "x/".repeat(2_100);
    assert_eq!(cooper.error(["files", "stat", &session, &longer]).code, "too_large");
}

#[test]
fn files_are_moved_copied_and_removed() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
os.makedirs('from/sub'); open('from/sub/x','w').write('1'); os.chmod('from/sub/x', 0o640)
os.symlink('/etc/passwd', 'from/link'); os.mkfifo('from/pipe'); open('other','w').write('2')",
    );
    let run = |args: &[&str]| cooper.json([&["files", args[0], &session], &args[1..]].concat());
    let refused = |args: &[&str]| cooper.error([&["files", args[0], &session], &args[1..]].concat()).code;
    let copied = run(&["cp", "from", "deep/er/"]);
    assert_eq!((&copied["path"], &copied["skipped"]), (&"deep/er/from".into(), &1.into()));
    assert_eq!(run(&["stat", "deep/er/from/sub/x"])["mode"], "0640");
    assert_eq!(run(&["stat", "deep/er/from/link"])["link_target"], "/etc/passwd");
    assert_eq!(refused(&["cp", "other", "from"]), "file_exists");
    assert_eq!(refused(&["cp", "from", "from/sub/again"]), "invalid_argument");
    assert_eq!(refused(&["mv", "from", "from/sub/again"]), "invalid_argument");
    assert_eq!(refused(&["mv", "other", "from/sub/x"]), "file_exists");
    run(&["mv", "other", "from/sub/x", "--overwrite"]);
    assert_eq!(cooper.ok(["files", "cat", &session, "from/sub/x"]), "2");
    assert_eq!(cooper.ok(["files", "cat", &session, "from/sub/x", "--offset", "1"]), "");
    assert_eq!(refused(&["rm", "from"]), "directory_not_empty");
    assert_eq!(run(&["rm", "-r", "from"])["entries"], 5);
    assert_eq!(refused(&["rm", "from"]), "file_not_found");
    run(&["rm", "-f", "from"]);
    run(&["mkdir", "p/q/r", "--mode", "750"]);
    assert_eq!(run(&["stat", "p/q/r"])["mode"], "0750");
    run(&["chmod", "700", "p/q/r"]);
    assert_eq!(run(&["stat", "p/q/r"])["mode"], "0700");
    for args in
        [["rm", ".."], ["rm", "."], ["stat", "../x"], ["mkdir", "/tmp/x"], ["rm", "deep/er/from/link/x"]]
    {
        assert!(
            ["invalid_argument", "path_escapes"].contains(&&*refused(&args)),
            "{args:?} {}",
            refused(&args)
        );
    }
    assert_eq!(
        cooper.exec(&session, "import os; print(sorted(n for n in os.listdir() if n[0] != '.'))"),
        "['deep', 'p']"
    );
}

#[test]
fn a_write_that_names_what_it_replaces_replaces_nothing_else() {
    let cooper = shared().cooper();
    let session = cooper.session();
    let put = |content: &[u8], if_match: &str| {
        cooper.run_with(["--json", "files", "put", &session, "-", "f", "--if-match", if_match], content)
    };
    assert_eq!(put(b"0", "00-0").error().code, "file_changed");
    let first = put(b"1", "none").expect(0).json();
    assert_eq!(put(b"2", "none").error().code, "file_exists");
    let stat = cooper.json(["files", "stat", &session, "f", "--sha256"]);
    assert_eq!(stat["etag"], first["etag"]);
    let etag = stat["etag"].as_str().expect("an etag");
    put(b"22", etag).expect(0);
    assert_eq!(put(b"3", etag).error().code, "file_changed");
    let sha = "785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09";
    assert_eq!(cooper.json(["files", "stat", &session, "f", "--sha256"])["sha256"], sha);
    put(b"333", sha).expect(0);
    assert_eq!(put(b"4", sha).error().code, "file_changed");
    assert_eq!(cooper.ok(["files", "cat", &session, "f"]), "333");
}

#[test]
fn an_edit_replaces_exactly_what_it_names_or_nothing() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.run_with(["files", "put", &session, "-", "f.py"], b"a = 1\nb = 1\n\tc = 2\n").expect(0);
    let edit = |args: &[&str]| {
        let all = [&["--json", "files", "edit", &session, "f.py"], args].concat();
        cooper.run(all)
    };
    assert_eq!(edit(&["--old", "d = 1", "--new", "x"]).error().code, "edit_no_match");
    let twice = edit(&["--old", "= 1", "--new", "= 3"]).error();
    assert_eq!(twice.code, "edit_ambiguous");
    assert!(twice.message.contains("2 times") && twice.message.contains("lines 1, 2"), "{}", twice.message);
    assert_eq!(edit(&["--old", "= 1", "--new", "= 3", "--count", "2"]).expect(0).json()["replaced"], 2);
    edit(&["--old", "\tc = 2\n", "--new", ""]).expect(0);
    edit(&["--old", "=", "--new", "==", "--all"]).expect(0);
    assert_eq!(cooper.ok(["files", "cat", &session, "f.py"]), "a == 3\nb == 3");
    assert_eq!(edit(&["--old", "a", "--new", "b", "--if-match", "0-0"]).error().code, "file_changed");
    cooper.exec(&session, "import os; os.symlink('f.py', 'l'); os.mkfifo('p')");
    for path in ["l", "p", "."] {
        let refused = cooper.error(["files", "edit", &session, path, "--old", "a", "--new", "b"]);
        assert!(["not_a_file", "invalid_argument"].contains(&&*refused.code), "{path} {refused:?}");
    }
}

#[test]
fn a_search_finds_lines_and_passes_over_what_is_binary() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
os.makedirs('s/.hidden')
open('s/a.py','w').write('import os\\nNEEDLE = 1\\n')
open('s/b.txt','w').write('x' * 5000 + ' needle ' + 'y' * 5000 + '\\n')
open('s/c.bin','wb').write(b'needle\\0')
open('s/.hidden/d','w').write('needle')
os.mkfifo('s/pipe')",
    );
    let found = cooper.run_json(["files", "grep", &session, "needle", "s", "-i"]).1;
    let at: Vec<(&str, u64)> = found["matches"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (it["path"].as_str().unwrap_or_default(), it["line"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(at, [("s/a.py", 2), ("s/b.txt", 1)]);
    assert!(found["matches"][1]["text"].as_str().expect("text").len() <= 1024);
    assert_eq!(found["files_skipped"], 1);
    assert_eq!(cooper.ok(["files", "grep", &session, r"^\w+ = \d", "--glob", "*.py"]), "s/a.py:2:NEEDLE = 1");
    assert_eq!(cooper.run(["files", "grep", &session, "-F", "[", "s"]).expect(1).out(), "");
    assert_eq!(cooper.error(["files", "grep", &session, "[", "s"]).code, "invalid_argument");
    let cut = cooper.json(["files", "grep", &session, "e", "s", "--limit", "1"]);
    assert_eq!((cut["matches"].as_array().map(Vec::len), &cut["truncated"]), (Some(1), &true.into()));
}

#[test]
fn a_deep_and_a_wide_tree_are_listed_copied_and_removed() {
    let cooper = shared().cooper();
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
os.mkdir('deep'); top = os.getcwd(); os.chdir('deep')
for n in range(5000): os.mkdir('d'); os.chdir('d')
os.chdir(top); os.mkdir('wide')
for n in range(30000): os.close(os.open(f'wide/{n:06}', os.O_CREAT | os.O_WRONLY))",
    );
    let deep = cooper.json(["files", "ls", &session, "deep", "-r"]);
    assert_eq!((&deep["truncated"], paths(&deep).len() > 1_000), (&true.into(), true));
    assert_eq!(cooper.error(["files", "cp", &session, "deep", "copy"]).code, "too_large");
    let page = cooper.json(["files", "ls", &session, "wide", "--cursor", "029990"]);
    assert_eq!(paths(&page).len(), 9);
    assert_eq!(paths(&cooper.json(["files", "ls", &session, "wide"])).len(), 10_000);
    assert_eq!(cooper.json(["files", "rm", &session, "-r", "deep"])["entries"], 5_001);
    assert_eq!(cooper.json(["files", "rm", &session, "-r", "wide"])["entries"], 30_001);
    assert_eq!(cooper.exec(&session, "import os; print([n for n in os.listdir() if n != '.venv'])"), "[]");
}

#[test]
fn files_of_a_session_that_is_another_tenants_or_gone_are_not_there() {
    let cluster = shared();
    let cooper = cluster.cooper();
    let session = cooper.session();
    cooper.run_with(["files", "put", &session, "-", "f"], b"mine").expect(0);
    let token = cooper.json(["token", "create", "--tenant", "stranger", "--scope", "client"]);
    let stranger =
        cooper_tests::Cooper::with_token(&cluster.url, token["secret"].as_str().expect("a secret"));
    let calls: [&[&str]; 9] = [
        &["ls", "SESSION"],
        &["stat", "SESSION", "f"],
        &["cat", "SESSION", "f"],
        &["mv", "SESSION", "f", "g"],
        &["cp", "SESSION", "f", "g"],
        &["rm", "SESSION", "f"],
        &["mkdir", "SESSION", "d"],
        &["grep", "SESSION", "m"],
        &["edit", "SESSION", "f", "--old", "m", "--new", "n"],
    ];
    let absent = "ses_00000000000000000000000000";
    for call in calls {
        let of = |id: &str| {
            let args: Vec<String> = call
                .iter()
                .map(|arg| if *arg == "SESSION" { id.to_owned() } else { (*arg).to_owned() })
                .collect();
            let args: Vec<&str> = ["files"].into_iter().chain(args.iter().map(String::as_str)).collect();
            let refused = stranger.error(args);
            (refused.code, refused.message.replace(id, "ID"), refused.hint)
        };
        assert_eq!(of(&session), of(absent), "{call:?}");
    }
    cooper.ok(["session", "destroy", &session]);
    assert_eq!(cooper.error(["files", "stat", &session, "f"]).code, "session_ended");
}

#[test]
fn a_directory_goes_out_and_in_as_an_archive_and_one_that_leads_out_is_refused() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("archives");
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
os.makedirs('d/sub'); open('d/sub/x','w').write('content'); os.chmod('d/sub/x', 0o750)
os.symlink('sub/x', 'd/link'); os.mkfifo('d/pipe')",
    );
    let archive = cooper.run(["files", "tar", &session, "d"]).expect(0).stdout;
    let local = scratch.write("a.tar", &archive);
    let mut tar = cooper_tests::program::command("tar");
    tar.args(["tf", local.to_str().expect("plain")]);
    let listed = cooper_tests::Running::start(tar, b"").finish(cooper_tests::seconds(20)).expect(0).out();
    assert!(listed.contains("sub/x") && listed.contains("link") && !listed.contains("pipe"), "{listed}");
    let unpacked =
        cooper.run_with(["--json", "files", "untar", &session, "in/there"], &archive).expect(0).json();
    assert_eq!((&unpacked["files"], &unpacked["links"]), (&1.into(), &1.into()));
    assert_eq!(cooper.json(["files", "stat", &session, "in/there/sub/x"])["mode"], "0750");
    assert_eq!(cooper.ok(["files", "cat", &session, "in/there/link"]), "content");

    let make = "import io, sys, tarfile
out = tarfile.open(fileobj=sys.stdout.buffer, mode='w|')
def add(name, kind=tarfile.REGTYPE, link='', data=b'x'):
    it = tarfile.TarInfo(name); it.type = kind; it.linkname = link; it.size = len(data) if kind == tarfile.REGTYPE else 0
    out.addfile(it, io.BytesIO(data))
";
    let slips = [
        "add('../slip')",
        "add('/tmp/cooper-slip')",
        "add('l', tarfile.SYMTYPE, '..'); add('l/slip')",
        "add('l', tarfile.LNKTYPE, '../../session.json')",
    ];
    for slip in slips {
        let mut python = cooper_tests::program::command("python3");
        python.args(["-c", &format!("{make}{slip}\nout.close()")]);
        let tar =
            cooper_tests::Running::start(python, b"").finish(cooper_tests::seconds(20)).expect(0).stdout;
        let refused = cooper.run_with(["--json", "files", "untar", &session, "slips"], &tar).error();
        assert!(
            ["path_escapes", "invalid_argument", "file_not_found"].contains(&&*refused.code),
            "{slip} {refused:?}"
        );
    }
    let cut =
        cooper.run_with(["--json", "files", "untar", &session, "cut"], &archive[..archive.len() / 2]).error();
    assert_eq!(cut.code, "invalid_argument");
    let junk = cooper.run_with(["--json", "files", "untar", &session, "junk"], &[7; 4096]).error();
    assert_eq!(junk.code, "invalid_argument");
    let names = "import os; print(sorted(n for n in os.listdir() if n[0] != '.' or n.startswith('.cooper')))";
    assert!(!cooper.exec(&session, names).contains("slip'"), "nothing of a slip");
    assert!(!cooper.exec(&session, names).contains(".cooper"), "no draft stays");
    assert!(!std::path::Path::new("/tmp/cooper-slip").exists());
}

#[test]
fn an_archive_is_a_tar_a_tar_gz_or_a_zip_as_it_is_asked_for_and_as_it_is_found() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("formats");
    let session = cooper.session();
    cooper.exec(
        &session,
        "import os
os.makedirs('d/sub'); open('d/sub/x','w').write('content' * 1000); os.chmod('d/sub/x', 0o750); os.symlink('sub/x', 'd/link')",
    );
    for (name, format) in
        [("a.zip", ""), ("a.tar.gz", ""), ("a.tgz", ""), ("a.tar", ""), ("a", "zip"), ("b", "tar.gz")]
    {
        let local = scratch.join(name);
        let local = local.to_str().expect("plain");
        let args = ["files", "tar", &session, "d", "-o", local, "--format", format];
        cooper.ok(&args[..if format.is_empty() { 6 } else { 8 }]);
        let head = fs::read(local).expect("it is there");
        let packed = if name.contains("zip") || format == "zip" { &b"PK"[..] } else { &[0x1f, 0x8b] };
        assert_eq!(head.starts_with(packed), name != "a.tar", "{name}");
        assert!(head.len() < 2_000 || name == "a.tar", "{name} {}", head.len());
        let there = format!("in/{name}{format}");
        let unpacked = cooper.json(["files", "untar", &session, &there, "-i", local]);
        assert_eq!((&unpacked["files"], &unpacked["links"]), (&1.into(), &1.into()), "{name}");
        assert_eq!(cooper.json(["files", "stat", &session, &format!("{there}/sub/x")])["mode"], "0750");
        assert_eq!(cooper.ok(["files", "cat", &session, &format!("{there}/link")]).len(), 7_000);
    }
    let zip = fs::read(scratch.join("a.zip")).expect("it is there");
    let refused =
        cooper.run_with(["--json", "files", "untar", &session, "no", "--format", "tar"], &zip).error();
    assert_eq!(refused.code, "invalid_argument");
    let cut = cooper.run_with(["--json", "files", "untar", &session, "cut"], &zip[..zip.len() / 2]).error();
    assert_eq!(cut.code, "invalid_argument");
}

#[test]
fn an_archive_that_grows_beyond_the_disk_of_its_session_is_refused() {
    let cooper = shared().cooper();
    let session = cooper.ok(["session", "create", "--disk", "64M"]);
    let make = "import io, sys, zipfile
out = io.BytesIO()
with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('f', bytes(80 << 20))
sys.stdout.buffer.write(out.getvalue())";
    let mut python = cooper_tests::program::command("python3");
    python.args(["-c", make]);
    let bomb = cooper_tests::Running::start(python, b"").finish(cooper_tests::seconds(20)).expect(0).stdout;
    let refused = cooper.run_with(["--json", "files", "untar", session.trim(), "in"], &bomb).error();
    assert_eq!(refused.code, "too_large");
    assert_eq!(cooper.exec(session.trim(), "import os; print(os.listdir('in'))"), "[]");
}

#[test]
fn a_directory_goes_in_and_comes_out_with_all_beneath_it_and_replaces_nothing_unasked() {
    let cooper = shared().cooper();
    let scratch = Scratch::new("directories");
    let session = cooper.session();
    let top = scratch.join("project");
    fs::create_dir_all(top.join(".git/deep")).expect("made");
    fs::write(top.join(".git/deep/x"), "kept").expect("written");
    let script = scratch.write("project/run.sh", "#!/bin/sh\necho ran\n");
    let mode = |path: &std::path::Path, bits| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(bits)).expect("its mode");
    };
    mode(&script, 0o755);
    std::os::unix::fs::symlink("run.sh", top.join("link")).expect("a link");
    std::os::unix::fs::symlink("/etc", top.join("out")).expect("a link");
    mode(&top, 0o750);
    let local = top.to_str().expect("plain");
    let put = cooper.json(["files", "put", &session, local, "in/"]);
    assert_eq!((&put["path"], &put["files"], &put["links"]), (&"in/project".into(), &2.into(), &2.into()));
    assert_eq!(cooper.ok(["sh", "-n", &session, "--", "in/project/link"]), "ran");
    assert_eq!(cooper.json(["files", "stat", &session, "in/project"])["mode"], "0750");

    // What is there is left alone, unless it is said.
    cooper.exec(&session, "open('in/project/mine', 'w').write('mine')");
    fs::write(top.join("new"), "new").expect("written");
    assert_eq!(cooper.error(["files", "put", &session, local, "in/"]).code, "file_exists");
    assert_eq!(cooper.error(["files", "stat", &session, "in/project/new"]).code, "file_not_found");
    cooper.ok(["files", "put", &session, local, "in/", "--overwrite"]);
    assert_eq!(cooper.ok(["files", "cat", &session, "in/project/mine"]), "mine");

    let back = scratch.join("back");
    let back = back.to_str().expect("plain");
    let got = cooper.json(["files", "get", &session, "in/project", back]);
    assert_eq!((&got["files"], &got["links"]), (&4.into(), &2.into()));
    let at = |path: &str| std::path::Path::new(back).join(path);
    assert_eq!(fs::read_to_string(at(".git/deep/x")).expect("there"), "kept");
    assert_eq!(fs::read_link(at("out")).expect("a link"), std::path::Path::new("/etc"));
    let bits = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("there").permissions()) & 0o777
    };
    assert_eq!((bits(&at("run.sh")), bits(std::path::Path::new(back))), (0o755, 0o750));
    // Into the directory that is there by its name; then it is there itself.
    cooper.ok(["files", "get", &session, "in/project", back]);
    assert!(at("project/mine").exists());
    assert_eq!(cooper.error(["files", "get", &session, "in/project", back]).code, "file_exists");
    cooper.exec(&session, "open('in/project/mine', 'w').write('newer')");
    cooper.ok(["files", "get", &session, "in/project", back, "--overwrite"]);
    assert_eq!(fs::read_to_string(at("project/mine")).expect("there"), "newer");
    let left = fs::read_dir(scratch.path()).expect("there").flatten();
    let drafts = left.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part")).count();
    assert_eq!(drafts, 0);
    assert_eq!(
        cooper.error(["files", "put", &session, local, "x", "--if-match", "none"]).code,
        "invalid_argument"
    );
}
