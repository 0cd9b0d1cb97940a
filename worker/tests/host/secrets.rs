//! Secrets of sessions: files that one session may read, and nobody else.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use cooper_common::ids::SessionId;
use cooper_proto::{host::to_host, v1};

use crate::{
    claims::claims,
    worker::{self, Worker, eventually},
};

const VALUE: &str = "the value";

fn grant(worker: &mut Worker, session: &str, secrets: &[(&str, &str)]) -> v1::SessionUpdate {
    let secrets = secrets.iter().map(|(name, value)| v1::GrantedSecret {
        name: (*name).to_owned(),
        value: value.as_bytes().to_vec(),
    });
    let grant = v1::SessionGrant {
        session_id: session.to_owned(),
        fence: worker::fence(),
        secrets: secrets.collect(),
        ..v1::SessionGrant::default()
    };
    worker.link.send(to_host::Message::SessionCreate(grant));
    worker.link.session_update(session)
}

fn with_secrets(worker: &mut Worker, secrets: &[(&str, &str)]) -> (String, PathBuf) {
    let session = SessionId::new().to_string();
    assert_eq!(grant(worker, &session, secrets).state, "ready");
    let home = worker.workspace(&session).parent().unwrap().to_owned();
    (session, home)
}

const LOOK: &str = "import os\ndef look():\n    d = os.environ['COOPER_SECRETS']\n    \
    return {n: open(d + '/' + n).read() for n in sorted(os.listdir(d))}\nlook()";

claims! {
    fn secrets_are_files_of_their_session_alone_are_replaced_by_a_grant_and_go_with_it() {
        let mut worker = Worker::start();
        worker.wait_for_pool(4);
        let (session, home) = with_secrets(&mut worker, &[("KEY", VALUE), ("OTHER", "x")]);
        assert_eq!(worker.python(&session, LOOK).value(), "{'KEY': 'the value', 'OTHER': 'x'}");
        let file = home.join("secrets/KEY");
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o400);
        let command = worker.shell(&session, &["sh", "-c", "cat $COOPER_SECRETS/KEY; id -u"], b"").out();
        let uid = command.strip_prefix(VALUE).unwrap().trim().parse::<u32>().unwrap();
        assert_eq!(meta.uid(), uid);
        for wrong in ["open(d + '/NEW', 'w')", "os.remove(d + '/KEY')", "open(d + '/KEY', 'w')"] {
            let code = format!("d = os.environ['COOPER_SECRETS']\ntry: {wrong}\nexcept OSError: pass\nelse: 1 / 0");
            assert_eq!(worker.python(&session, &code).error(), "", "{wrong}");
        }
        // What is recorded of the session says nothing of them.
        let record = fs::read_to_string(home.join("session.json")).unwrap();
        assert!(!record.contains(VALUE) && !record.contains("KEY"), "{record}");
        let (other, _) = with_secrets(&mut worker, &[("MINE", "y")]);
        let reach = format!("try: print(open('{}').read())\nexcept OSError as e: print('refused')", file.display());
        if rustix::process::geteuid().is_root() {
            assert_eq!(worker.python(&other, &reach).out().trim(), "refused");
        }

        assert_eq!(grant(&mut worker, &session, &[("KEY", "another")]).state, "ready");
        assert_eq!(worker.python(&session, "look()").value(), "{'KEY': 'another'}");
        let end = v1::SessionEnd { session_id: session.clone(), fence: worker::fence() };
        worker.link.send(to_host::Message::SessionDestroy(end));
        eventually("its files are gone", || (!home.exists()).then_some(()));
    }

    fn a_grant_whose_secret_is_no_name_makes_no_session() {
        let mut worker = Worker::start();
        let session = SessionId::new().to_string();
        assert_eq!(grant(&mut worker, &session, &[("../KEY", VALUE)]).state, "failed");
        assert!(!worker.workspace(&session).parent().unwrap().exists());
    }
}
