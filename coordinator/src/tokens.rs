//! Tokens: made, listed, revoked, and recognised when somebody comes with one.
//!
//! All tokens that are not revoked are held in memory (there are at most `limits::token::LIVE_MAX`), so that letting
//! somebody in, or turning away whoever guesses, costs no read of the store.

mod bootstrap;
#[cfg(test)]
mod tests;
mod usage;

pub use bootstrap::{ADMIN_FILE, WORKER_FILE};
use usage::Usage;
pub use usage::{Allowance, COME_BACK_AFTER, Share};

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::TokenId,
    limits,
    token::{Scope, Secret},
};
use cooper_core::change::{Aggregate, Change, NewEvent, Row, Version};
use cooper_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{
    caller::Caller,
    check,
    store::{self, Durability, Filter, Record, Store},
};

/// Who owns what is made without anybody having said so. Its admins administer the installation: they may make, see and
/// revoke the tokens of every tenant; the admins of other tenants only their own.
pub const DEFAULT_TENANT: &str = "default";

const ACTIVE: &str = "active";
const REVOKED: &str = "revoked";

/// What a token's row holds beside the hash of its secret, which is the row's key.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    scope: Scope,
    name: String,
    /// Unix milliseconds; 0 = never.
    expires_ms: i64,
    /// To within `limits::token::USED_WRITTEN_MS`; 0 = never.
    #[serde(default)]
    last_used_ms: i64,
    /// The secret of before a rotation, which opens for a while too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Previous>,
    /// Hashes of those before, the newest last: they never open again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Previous {
    hash: String,
    /// Unix milliseconds.
    until_ms: i64,
}

/// A secret that lets somebody in.
#[derive(Debug, Clone)]
struct Live {
    caller: Caller,
    expires_ms: i64,
    /// Shared by the secrets of one token.
    usage: Arc<Usage>,
}

/// One that was let in, and the share of its token that it takes while it lasts.
#[derive(Debug)]
pub struct Admitted {
    pub caller: Caller,
    pub share: Option<Share>,
}

/// Every token of the installation.
pub struct Tokens {
    store: Arc<dyn Store>,
    /// By the hash of the secret: looking for it tells nothing about how much of a guess was right.
    live: RwLock<HashMap<String, Live>>,
    allowance: Allowance,
}

impl Tokens {
    /// Knows every token of the store, and those in the two files of the data directory, which a first start makes.
    pub async fn open(store: Arc<dyn Store>, data: &Path, allowance: Allowance) -> Result<Arc<Self>> {
        let tokens = Self::load(store, allowance).await?;
        bootstrap::bootstrap(data, &tokens).await?;
        Ok(Arc::new(tokens))
    }

    async fn load(store: Arc<dyn Store>, allowance: Allowance) -> Result<Self> {
        let mut live = HashMap::new();
        for record in store.live(Aggregate::Token).await? {
            live.extend(Live::all_of(&record, Arc::default())?);
        }
        Ok(Self { store, live: RwLock::new(live), allowance })
    }

    /// Writes now and then when tokens were used last, until it is dropped. No request waits for that.
    pub async fn note_use(self: Arc<Self>) {
        let mut every = tokio::time::interval(Duration::from_millis(limits::token::USED_WRITTEN_MS));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.write_use().await;
        }
    }

    async fn write_use(&self) {
        let used: Vec<(String, i64)> = {
            let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
            live.values().filter_map(|it| Some((it.caller.token_id.clone(), it.usage.unwritten()?))).collect()
        };
        for (id, at_ms) in used {
            let written = self.change(&id, "", |body, _| body.last_used_ms = body.last_used_ms.max(at_ms));
            if let Err(error) = written.await {
                tracing::debug!(%error, id, "when a token was used is not written");
            }
        }
    }

    /// Whether a secret opened for a token once and was replaced since.
    async fn was_replaced(&self, secret: &Secret) -> Result<bool> {
        let hash = secret.hash();
        for record in self.store.live(Aggregate::Token).await? {
            let body = body(&record)?;
            if body.retired.contains(&hash) || body.previous.is_some_and(|previous| previous.hash == hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A row with another body, once it is recorded. No event where `kind` is empty.
    async fn change(&self, id: &str, kind: &str, how: impl Fn(&mut Body, &mut Row)) -> Result<Record> {
        loop {
            let record = self.store.get(Aggregate::Token, id).await?.filter(|record| !record.row.ended);
            let Some(Record { id, version, mut row }) = record else { return Err(absent(id)) };
            let mut body = body_of(&id, &row)?;
            how(&mut body, &mut row);
            row.body = json(&body)?;
            let mut change = change(&id, version, row.clone(), kind);
            if kind.is_empty() {
                change.events.clear();
            }
            match self.store.commit_wait(vec![change], Durability::Full).await {
                Ok(()) => return Ok(Record { id, version: version + 1, row }),
                Err(store::Error::Conflict(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Who comes with this secret.
    ///
    /// # Errors
    /// `unauthenticated` when it is unknown, revoked or expired.
    pub fn authenticate(&self, secret: &Secret) -> Result<Caller> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let Some(token) = live.get(&secret.hash()) else {
            return Err(Error::new(Code::Unauthenticated, "the token is not known here, or was revoked"));
        };
        if token.expires_ms != 0 && token.expires_ms <= clock::wall_ms() {
            return Err(Error::new(Code::Unauthenticated, "the token has expired"));
        }
        Ok(token.caller.clone())
    }

    /// The same, within what one token may ask for.
    ///
    /// # Errors
    /// Also `rate_limited`.
    pub fn admit(&self, secret: &Secret) -> Result<Admitted> {
        let caller = self.authenticate(secret)?;
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let Some(usage) = live.get(&secret.hash()).map(|token| token.usage.clone()) else {
            return Ok(Admitted { caller, share: None });
        };
        drop(live);
        usage.used();
        // Workers are as many as there are, and bounded by themselves.
        let share = match caller.scope {
            Scope::Worker => None,
            _ => Some(usage.take(&self.allowance)?),
        };
        Ok(Admitted { caller, share })
    }

    /// Names of the tenant's tokens that may approve.
    pub fn approvers(&self, tenant: &str) -> BTreeSet<String> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let callers = live.values().map(|token| &token.caller).filter(|caller| *caller.tenant == *tenant);
        let may = callers.filter(|caller| matches!(caller.scope, Scope::Admin | Scope::Operator));
        may.map(|caller| caller.name.clone()).collect()
    }

    /// Makes a token. Its secret is in the answer and nowhere else: with the idempotency key of an earlier request it
    /// cannot be shown again, and the request is refused rather than a second token made.
    pub async fn create(
        &self,
        caller: &Caller,
        request: v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse> {
        let tenant = tenant_for(caller, &request.tenant)?;
        let scope = Scope::parse(&request.scope).ok_or_else(|| {
            let known = Scope::ALL.map(Scope::as_str).join(", ");
            Error::invalid(format!("{:?} is no scope; there are {known}", request.scope))
        })?;
        check::size("name", request.name.len(), limits::request::NAME_BYTES_MAX)?;
        if request.name.chars().any(char::is_control) {
            return Err(Error::invalid("name holds a control character"));
        }
        check::at_most("ttl_ms", request.ttl_ms, limits::token::TTL_MS_MAX)?;
        check::idempotency_key(&request.idempotency_key)?;
        self.refuse_above_limit()?;

        let id = match request.idempotency_key.as_str() {
            "" => TokenId::new(),
            key => id_of_request(&caller.tenant, key),
        };
        let expires_ms = match request.ttl_ms {
            0 => 0,
            ttl => clock::wall_ms() + ttl as i64,
        };
        let secret = Secret::generate();
        let record = self.insert(id, &tenant, Body::new(scope, request.name, expires_ms), &secret).await?;
        Ok(v1::CreateTokenResponse { token: Some(self.shown(&record)?), secret: secret.expose().to_owned() })
    }

    /// Gives a token a new secret; the one of before opens for `grace_ms` longer.
    pub async fn rotate(
        &self,
        caller: &Caller,
        id: &str,
        grace_ms: Option<u64>,
    ) -> Result<v1::CreateTokenResponse> {
        let grace_ms = grace_ms.unwrap_or(limits::token::GRACE_MS);
        check::at_most("grace_ms", grace_ms, limits::token::GRACE_MS_MAX)?;
        let there = self.store.get(Aggregate::Token, id).await?;
        if !there.is_some_and(|record| may_see(caller, &record) && !record.row.ended) {
            return Err(absent(id));
        }
        let (secret, until_ms) = (Secret::generate(), clock::wall_ms() + grace_ms as i64);
        let record = self.change(id, "token.rotated", |body, row| {
            let hash = std::mem::replace(&mut row.key, secret.hash());
            let before = body.previous.replace(Previous { hash, until_ms });
            body.retired.extend(before.map(|previous| previous.hash));
            let surplus = body.retired.len().saturating_sub(limits::token::RETIRED_MAX);
            body.retired.drain(..surplus);
            row.updated_ms = clock::wall_ms();
        });
        let record = record.await?;
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let usage = live.values().find(|token| token.caller.token_id == record.id).map(|it| it.usage.clone());
        live.retain(|_, token| token.caller.token_id != record.id);
        live.extend(Live::all_of(&record, usage.unwrap_or_default())?);
        drop(live);
        Ok(v1::CreateTokenResponse { token: Some(self.shown(&record)?), secret: secret.expose().to_owned() })
    }

    /// With what is known of its use and not written yet.
    fn shown(&self, record: &Record) -> Result<v1::Token> {
        let mut token = shown(record)?;
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = live.get(&record.row.key) {
            token.last_used_at_ms = token.last_used_at_ms.max(known.usage.last_ms());
        }
        Ok(token)
    }

    /// The live tokens that the caller may see, newest first, then the last revoked ones.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<v1::Token>> {
        let filter = |ended| Filter {
            tenant: (!is_installation_admin(caller)).then(|| caller.tenant.to_string()),
            ended: Some(ended),
            limit: limits::request::PAGE_MAX as usize,
            ..Filter::default()
        };
        let mut tokens = Vec::new();
        let mut page = filter(false);
        loop {
            let answer = self.store.list(Aggregate::Token, page.clone()).await?;
            tokens
                .extend(answer.records.iter().map(|record| self.shown(record)).collect::<Result<Vec<_>>>()?);
            match answer.next {
                Some(next) => page.before = Some(next),
                None => break,
            }
        }
        let revoked = Filter { limit: limits::request::PAGE_DEFAULT as usize, ..filter(true) };
        let revoked = self.store.list(Aggregate::Token, revoked).await?;
        tokens.extend(revoked.records.iter().map(shown).collect::<Result<Vec<_>>>()?);
        Ok(tokens)
    }

    /// Nobody comes in with it once this returns. Revoking twice is fine.
    pub async fn revoke(&self, caller: &Caller, id: &str) -> Result<v1::Token> {
        loop {
            let record = self.store.get(Aggregate::Token, id).await?;
            let Some(Record { id, version, mut row }) = record.filter(|record| may_see(caller, record))
            else {
                return Err(absent(id));
            };
            if !row.ended {
                (row.state, row.ended, row.updated_ms) = (REVOKED.into(), true, clock::wall_ms());
                let change = change(&id, version, row.clone(), "token.revoked");
                match self.store.commit_wait(vec![change], Durability::Full).await {
                    Ok(()) => {}
                    // Somebody else revokes it at the same time.
                    Err(store::Error::Conflict(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            self.live
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|_, token| token.caller.token_id != id);
            return shown(&Record { id, version, row });
        }
    }

    async fn insert(&self, id: TokenId, tenant: &str, body: Body, secret: &Secret) -> Result<Record> {
        let now = clock::wall_ms();
        let row = Row {
            tenant: tenant.to_owned(),
            state: ACTIVE.into(),
            key: secret.hash(),
            created_ms: now,
            updated_ms: now,
            body: json(&body)?,
            ..Row::default()
        };
        let change = change(&id.to_string(), 0, row.clone(), "token.created");
        match self.store.commit_wait(vec![change], Durability::Full).await {
            Ok(()) => {}
            Err(store::Error::Conflict(_)) => {
                return Err(Error::new(
                    Code::IdempotencyConflict,
                    format!("this key made token {id}, whose secret was shown then"),
                )
                .with_hint("revoke that token and ask with a fresh key, if its secret was lost"));
            }
            Err(error) => return Err(error.into()),
        }
        let record = Record { id: id.to_string(), version: 1, row };
        let live = Live::all_of(&record, Arc::default())?;
        self.live.write().unwrap_or_else(PoisonError::into_inner).extend(live);
        Ok(record)
    }

    fn refuse_above_limit(&self) -> Result<()> {
        if self.live.read().unwrap_or_else(PoisonError::into_inner).len() < limits::token::LIVE_MAX {
            return Ok(());
        }
        let message = format!("there are {} tokens already", limits::token::LIVE_MAX);
        Err(Error::new(Code::Overloaded, message).with_hint("revoke tokens that nobody needs"))
    }
}

impl Body {
    fn new(scope: Scope, name: String, expires_ms: i64) -> Self {
        Self { scope, name, expires_ms, last_used_ms: 0, previous: None, retired: Vec::new() }
    }
}

impl Live {
    /// Every secret that opens for a token, by its hash.
    fn all_of(record: &Record, usage: Arc<Usage>) -> Result<Vec<(String, Self)>> {
        let body = body(record)?;
        let caller = Caller {
            tenant: record.row.tenant.as_str().into(),
            scope: body.scope,
            token_id: record.id.clone(),
            name: body.name,
            from: None,
        };
        usage.known(body.last_used_ms);
        let live = Self { caller, expires_ms: body.expires_ms, usage };
        let previous = body.previous.map(|previous| {
            let ends = [previous.until_ms, live.expires_ms].into_iter().filter(|end| *end != 0).min();
            (previous.hash, Self { expires_ms: ends.unwrap_or(0), ..live.clone() })
        });
        Ok([(record.row.key.clone(), live)].into_iter().chain(previous).collect())
    }
}

/// Whether a token is one of those the caller administers.
fn may_see(caller: &Caller, record: &Record) -> bool {
    is_installation_admin(caller) || record.row.tenant == *caller.tenant
}

fn absent(id: &str) -> Error {
    let shown: String = id.chars().take(80).collect();
    Error::new(Code::TokenNotFound, format!("there is no token {shown:?}"))
}

fn is_installation_admin(caller: &Caller) -> bool {
    caller.scope == Scope::Admin && *caller.tenant == *DEFAULT_TENANT
}

/// Whose token it becomes: the caller's own tenant's, unless the caller administers the installation.
fn tenant_for(caller: &Caller, asked: &str) -> Result<String> {
    if asked.is_empty() || asked == &*caller.tenant {
        return Ok(caller.tenant.to_string());
    }
    if !is_installation_admin(caller) {
        return Err(Error::new(
            Code::Forbidden,
            "only an admin of the tenant \"default\" makes tokens for others",
        ));
    }
    check::name(asked)?;
    Ok(asked.to_owned())
}

/// The same request makes the same id, so that the store refuses the second.
fn id_of_request(tenant: &str, key: &str) -> TokenId {
    let mut hasher = blake3::Hasher::new_derive_key("cooper token by idempotency key");
    hasher.update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes()).update(key.as_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    TokenId::from_u128(u128::from_le_bytes(bytes))
}

fn change(id: &str, expected: Version, row: Row, kind: &str) -> Change {
    // For whoever follows events; no hash of a secret is in it.
    let told = serde_json::from_str(&row.body).map(|mut body: serde_json::Value| {
        for hashes in ["previous", "retired"] {
            body.as_object_mut().map(|body| body.remove(hashes));
        }
        body.to_string()
    });
    let events = vec![NewEvent { kind: kind.into(), body: told.unwrap_or_default() }];
    Change { aggregate: Aggregate::Token, id: id.to_owned(), expected, row, events, output: Vec::new() }
}

fn body(record: &Record) -> Result<Body> {
    body_of(&record.id, &record.row)
}

fn body_of(id: &str, row: &Row) -> Result<Body> {
    serde_json::from_str(&row.body)
        .map_err(|cause| Error::internal(format!("the stored token {id} cannot be read: {cause}")))
}

/// Whether a stored token means something.
pub(crate) fn readable(record: &Record) -> Result<()> {
    body(record).map(drop)
}

fn json(body: &Body) -> Result<String> {
    serde_json::to_string(body)
        .map_err(|cause| Error::internal(format!("a token cannot be written: {cause}")))
}

fn shown(record: &Record) -> Result<v1::Token> {
    let body = body(record)?;
    Ok(v1::Token {
        id: record.id.clone(),
        tenant: record.row.tenant.clone(),
        scope: body.scope.as_str().to_owned(),
        name: body.name,
        created_at_ms: record.row.created_ms,
        expires_at_ms: body.expires_ms,
        revoked: record.row.ended,
        last_used_at_ms: body.last_used_ms,
        previous_until_ms: body.previous.map_or(0, |previous| previous.until_ms),
    })
}
