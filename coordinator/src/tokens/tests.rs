//! Claims about tokens.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{bootstrap::bootstrap, *};
use crate::{bus::Bus, store::sqlite::Sqlite};

async fn tokens() -> Tokens {
    Tokens::load(Arc::new(Sqlite::memory(Bus::default()).unwrap()), Allowance::default()).await.unwrap()
}

fn admin(tenant: &str) -> Caller {
    Caller {
        tenant: tenant.into(),
        scope: Scope::Admin,
        token_id: "tok_0".into(),
        name: "root".into(),
        from: None,
    }
}

fn request(tenant: &str, scope: &str) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest {
        tenant: tenant.into(),
        scope: scope.into(),
        name: "ci".into(),
        ..Default::default()
    }
}

async fn create(tokens: &Tokens, tenant: &str) -> (String, Secret) {
    let created = tokens.create(&admin(tenant), request("", "client")).await.unwrap();
    (created.token.unwrap().id, Secret::from_text(&created.secret))
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn a_token_lets_in_who_it_was_made_for_until_it_is_revoked() {
    let tokens = tokens().await;
    let (id, secret) = create(&tokens, "a").await;
    let caller = tokens.authenticate(&secret).unwrap();
    assert_eq!((&*caller.tenant, caller.scope, caller.name.as_str()), ("a", Scope::Client, "ci"));
    assert_eq!(code(tokens.authenticate(&Secret::generate())), Code::Unauthenticated);
    assert!(tokens.revoke(&admin("a"), &id).await.unwrap().revoked);
    assert!(tokens.revoke(&admin("a"), &id).await.unwrap().revoked);
    assert_eq!(code(tokens.authenticate(&secret)), Code::Unauthenticated);
    // What a restart loads is the same.
    let tokens = Tokens::load(Arc::clone(&tokens.store), Allowance::default()).await.unwrap();
    assert_eq!(code(tokens.authenticate(&secret)), Code::Unauthenticated);
}

#[tokio::test]
async fn the_secret_is_stored_nowhere() {
    let tokens = tokens().await;
    let (_, secret) = create(&tokens, "a").await;
    let record = tokens.store.live(Aggregate::Token).await.unwrap().remove(0);
    let events = tokens.store.events(None, 1, 10).await.unwrap().events;
    assert!(!format!("{record:?} {events:?}").contains(secret.expose()));
    assert!(!format!("{events:?}").contains(&secret.hash()));
}

#[tokio::test]
async fn an_expired_token_lets_nobody_in() {
    let tokens = tokens().await;
    let asked = v1::CreateTokenRequest { ttl_ms: 1, ..request("", "client") };
    let created = tokens.create(&admin("a"), asked).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let refused = tokens.authenticate(&Secret::from_text(&created.secret)).unwrap_err();
    assert!(refused.message.contains("expired"));
}

#[tokio::test]
async fn tenants_neither_see_nor_revoke_nor_make_each_others_tokens() {
    let tokens = tokens().await;
    let (of_a, _) = create(&tokens, "a").await;
    create(&tokens, "b").await;
    assert_eq!(tokens.list(&admin("b")).await.unwrap().len(), 1);
    assert_eq!(code(tokens.revoke(&admin("b"), &of_a).await), Code::TokenNotFound);
    assert_eq!(code(tokens.revoke(&admin("b"), "tok_absent").await), Code::TokenNotFound);
    assert_eq!(code(tokens.create(&admin("b"), request("a", "client")).await), Code::Forbidden);
    // The installation's admin administers all of them.
    let root = admin(DEFAULT_TENANT);
    assert_eq!(tokens.list(&root).await.unwrap().len(), 2);
    tokens.create(&root, request("c", "admin")).await.unwrap();
    assert!(tokens.revoke(&root, &of_a).await.unwrap().revoked);
    assert_eq!(tokens.list(&admin("a")).await.unwrap()[0].id, of_a);
}

#[tokio::test]
async fn what_no_token_may_be_is_refused() {
    let tokens = tokens().await;
    let root = admin(DEFAULT_TENANT);
    for bad in [
        request("Upper", "client"),
        request("-a", "client"),
        request(&"a".repeat(64), "client"),
        request("", "root"),
        v1::CreateTokenRequest { name: "a\nb".into(), ..request("", "client") },
        v1::CreateTokenRequest { ttl_ms: u64::MAX, ..request("", "client") },
    ] {
        assert_eq!(code(tokens.create(&root, bad.clone()).await), Code::InvalidArgument, "{bad:?}");
    }
}

#[tokio::test]
async fn a_repeated_request_makes_no_second_token() {
    let tokens = tokens().await;
    let asked = v1::CreateTokenRequest { idempotency_key: "once".into(), ..request("", "client") };
    tokens.create(&admin("a"), asked.clone()).await.unwrap();
    assert_eq!(code(tokens.create(&admin("a"), asked.clone()).await), Code::IdempotencyConflict);
    tokens.create(&admin("b"), asked).await.unwrap();
    assert_eq!(tokens.list(&admin("a")).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_first_start_makes_both_files_and_a_fresh_store_learns_them() {
    let data = tempfile::tempdir().unwrap();
    let read = |file: &str| Secret::read(&data.path().join(file)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let first = tokens().await;
    bootstrap(data.path(), &first).await.unwrap();
    bootstrap(data.path(), &first).await.unwrap();
    assert_eq!(first.list(&admin(DEFAULT_TENANT)).await.unwrap().len(), 2);
    for (file, scope) in [(ADMIN_FILE, Scope::Admin), (WORKER_FILE, Scope::Worker)] {
        assert_eq!(mode(&data.path().join(file)), 0o600);
        let caller = first.authenticate(&read(file)).unwrap();
        assert_eq!((&*caller.tenant, caller.scope), (DEFAULT_TENANT, scope));
    }
    let fresh = tokens().await;
    let old = read(ADMIN_FILE);
    bootstrap(data.path(), &fresh).await.unwrap();
    assert_eq!(fresh.authenticate(&old).unwrap().scope, Scope::Admin);
    // A revoked one stays revoked; a file that was never finished is made anew.
    let id = fresh.authenticate(&old).unwrap().token_id;
    fresh.revoke(&admin(DEFAULT_TENANT), &id).await.unwrap();
    fs::write(data.path().join(WORKER_FILE), "").unwrap();
    bootstrap(data.path(), &fresh).await.unwrap();
    assert_eq!(code(fresh.authenticate(&old)), Code::Unauthenticated);
    assert_eq!(fresh.authenticate(&read(WORKER_FILE)).unwrap().scope, Scope::Worker);
}

#[tokio::test]
async fn a_rotated_token_keeps_its_id_and_its_old_secret_opens_for_the_grace_alone() {
    let tokens = tokens().await;
    let (id, old) = create(&tokens, "a").await;
    assert_eq!(code(tokens.rotate(&admin("b"), &id, None).await), Code::TokenNotFound);
    let rotated = tokens.rotate(&admin("a"), &id, Some(60_000)).await.unwrap();
    let new = Secret::from_text(&rotated.secret);
    assert_eq!(rotated.token.unwrap().id, id);
    for secret in [&old, &new] {
        assert_eq!(tokens.authenticate(secret).unwrap().token_id, id);
    }
    // What a restart loads is the same, and no event tells a hash.
    let again = Tokens::load(Arc::clone(&tokens.store), Allowance::default()).await.unwrap();
    assert_eq!(again.authenticate(&old).unwrap().token_id, id);
    let events = tokens.store.events(None, 1, 10).await.unwrap().events;
    assert!(!format!("{events:?}").contains(&old.hash()) && !format!("{events:?}").contains(&new.hash()));

    let newest = tokens.rotate(&admin("a"), &id, Some(0)).await.unwrap();
    for gone in [&old, &new] {
        assert_eq!(code(tokens.authenticate(gone)), Code::Unauthenticated);
    }
    tokens.revoke(&admin("a"), &id).await.unwrap();
    assert_eq!(code(tokens.authenticate(&Secret::from_text(&newest.secret))), Code::Unauthenticated);
    assert_eq!(code(tokens.rotate(&admin("a"), &id, None).await), Code::TokenNotFound);
}

#[tokio::test]
async fn when_a_token_was_used_last_is_known_at_once_and_written_within_a_minute() {
    let tokens = tokens().await;
    let (id, secret) = create(&tokens, "a").await;
    let shown = tokens.list(&admin("a")).await.unwrap();
    assert_eq!(shown[0].last_used_at_ms, 0);
    tokens.admit(&secret).unwrap();
    let used = tokens.list(&admin("a")).await.unwrap()[0].last_used_at_ms;
    assert!(used > 0);
    tokens.write_use().await;
    let again = Tokens::load(Arc::clone(&tokens.store), Allowance::default()).await.unwrap();
    assert_eq!(again.list(&admin("a")).await.unwrap()[0].last_used_at_ms, used, "{id}");
}
