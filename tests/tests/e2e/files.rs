//! Files of a session: in, out and listed; nothing beside the workspace.

use std::fs;

use cooper_tests::{Scratch, shared};

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
