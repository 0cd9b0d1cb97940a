use std::{fs, os::unix::fs::PermissionsExt as _};

use cooper_common::token::Scope;

use super::*;
use crate::{
    bus::Bus,
    store::sqlite::{DATABASE, Sqlite},
};

const VALUE: &[u8] = b"a value that is nowhere in plain";

fn caller(tenant: &str) -> Caller {
    Caller {
        tenant: tenant.into(),
        scope: Scope::Operator,
        token_id: String::new(),
        name: "ada".to_owned(),
        from: None,
    }
}

async fn open(data: &Path) -> (Arc<dyn Store>, Arc<Secrets>) {
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(data, Bus::default()).unwrap());
    let secrets = Secrets::open(store.clone(), data).await.unwrap();
    (store, secrets)
}

fn set(name: &str, value: &[u8]) -> v1::SetSecretRequest {
    v1::SetSecretRequest { name: name.to_owned(), value: value.to_vec() }
}

fn granted(secrets: &Secrets, tenant: &str, name: &str) -> Vec<v1::GrantedSecret> {
    let spec = v1::CreateSessionRequest { secrets: vec![name.to_owned()], ..Default::default() };
    secrets.of_grant(tenant, &spec.encode_to_vec()).files
}

#[tokio::test]
async fn a_value_comes_back_in_grants_of_its_tenant_after_a_restart_and_is_in_no_file_in_plain() {
    let dir = tempfile::tempdir().unwrap();
    let ada = caller("ada");
    let (store, secrets) = open(dir.path()).await;
    secrets.set(&ada, set("KEY", b"first")).await.unwrap();
    secrets.set(&ada, set("KEY", VALUE)).await.unwrap();
    store.close().await.unwrap();
    drop((store, secrets));

    let (store, secrets) = open(dir.path()).await;
    let expected = v1::GrantedSecret { name: "KEY".to_owned(), value: VALUE.to_vec() };
    assert_eq!(granted(&secrets, "ada", "KEY"), [expected]);
    assert!(granted(&secrets, "bob", "KEY").is_empty());
    assert_eq!(secrets.usable("bob", &["KEY".to_owned()]).unwrap_err().code, Code::SecretNotFound);
    assert_eq!(secrets.list(&caller("bob")), []);
    assert_eq!(secrets.list(&ada).len(), 1);
    let events = store.events(None, 1, 10).await.unwrap().events;
    assert_eq!(events.len(), 2);
    assert!(
        events.iter().all(|event| event.kind == "secret.set" && event.body.contains("KEY")),
        "{events:?}"
    );
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap().path();
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(!bytes.windows(VALUE.len()).any(|part| part == VALUE), "{}", file.display());
    }
    let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_deleted_secret_is_given_to_nobody_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let ada = caller("ada");
    let (store, secrets) = open(dir.path()).await;
    secrets.set(&ada, set("KEY", VALUE)).await.unwrap();
    assert_eq!(secrets.delete(&caller("bob"), "KEY").await.unwrap_err().code, Code::SecretNotFound);
    secrets.delete(&ada, "KEY").await.unwrap();
    assert!(granted(&secrets, "ada", "KEY").is_empty());
    assert_eq!(secrets.known("ada", vec!["KEY".to_owned()]), [""; 0]);
    let rows = store.list(Aggregate::Secret, crate::store::Filter { limit: 10, ..Default::default() });
    assert_eq!(rows.await.unwrap().records[0].row.spec, Some(Vec::new()), "the sealed value is gone too");
    secrets.set(&ada, set("KEY", b"anew")).await.unwrap();
    assert_eq!(granted(&secrets, "ada", "KEY")[0].value, b"anew");
    store.close().await.unwrap();
}

#[tokio::test]
async fn without_its_key_or_in_another_row_a_value_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let ada = caller("ada");
    let (store, secrets) = open(dir.path()).await;
    secrets.set(&ada, set("KEY", VALUE)).await.unwrap();
    // Whoever can write rows makes no other tenant's secret of it.
    let mut stolen = secrets.get("ada", "KEY").unwrap();
    stolen.row.tenant = "bob".to_owned();
    assert!(secrets.key.open(&stolen).is_none());
    store.close().await.unwrap();
    drop((store, secrets));

    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    let (store, secrets) = open(dir.path()).await;
    assert_eq!(secrets.usable("ada", &["KEY".to_owned()]).unwrap_err().code, Code::DataUnusable);
    assert!(granted(&secrets, "ada", "KEY").is_empty());
    secrets.set(&ada, set("KEY", b"anew")).await.unwrap();
    secrets.usable("ada", &["KEY".to_owned()]).unwrap();
    store.close().await.unwrap();
    assert!(dir.path().join(DATABASE).exists());
}

#[tokio::test]
async fn names_sizes_and_numbers_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let ada = caller("ada");
    let (store, secrets) = open(dir.path()).await;
    for name in ["", "1A", "../a", "a-b", "a/b", &"a".repeat(64)] {
        assert_eq!(
            secrets.set(&ada, set(name, b"x")).await.unwrap_err().code,
            Code::InvalidArgument,
            "{name}"
        );
    }
    assert_eq!(secrets.set(&ada, set("A", b"")).await.unwrap_err().code, Code::InvalidArgument);
    let large = vec![0; limits::VALUE_BYTES_MAX + 1];
    assert_eq!(secrets.set(&ada, set("A", &large)).await.unwrap_err().code, Code::TooLarge);
    for n in 0..limits::PER_TENANT_MAX {
        secrets.set(&ada, set(&format!("A{n}"), b"x")).await.unwrap();
    }
    assert_eq!(secrets.set(&ada, set("B", b"x")).await.unwrap_err().code, Code::QuotaExceeded);
    secrets.set(&ada, set("A0", b"another")).await.unwrap();
    let many: Vec<_> = (0..=limits::PER_SESSION_MAX).map(|n| format!("A{n}")).collect();
    assert_eq!(secrets.usable("ada", &many).unwrap_err().code, Code::InvalidArgument);
    let twice = ["A0".to_owned(), "A0".to_owned()];
    assert_eq!(secrets.usable("ada", &twice).unwrap_err().code, Code::InvalidArgument);
    store.close().await.unwrap();
}
