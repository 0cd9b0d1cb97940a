//! Tokens: made, listed, revoked, and recognised when somebody comes with one.
//!
//! All tokens that are not revoked are held in memory (there are at most `limits::token::LIVE_MAX`), so that letting
//! somebody in, or turning away whoever guesses, costs no read of the store.

mod bootstrap;
#[cfg(test)]
mod tests;

pub use bootstrap::{ADMIN_FILE, WORKER_FILE};

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
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
}

/// A token that lets somebody in.
#[derive(Debug, Clone)]
struct Live {
    caller: Caller,
    expires_ms: i64,
}

/// Every token of the installation.
pub struct Tokens {
    store: Arc<dyn Store>,
    /// By the hash of the secret: looking for it tells nothing about how much of a guess was right.
    live: RwLock<HashMap<String, Live>>,
}

impl Tokens {
    /// Knows every token of the store, and those in the two files of the data directory, which a first start makes.
    pub async fn open(store: Arc<dyn Store>, data: &Path) -> Result<Arc<Self>> {
        let tokens = Self::load(store).await?;
        bootstrap::bootstrap(data, &tokens).await?;
        Ok(Arc::new(tokens))
    }

    async fn load(store: Arc<dyn Store>) -> Result<Self> {
        let mut live = HashMap::new();
        for record in store.live(Aggregate::Token).await? {
            live.insert(record.row.key.clone(), Live::of(&record)?);
        }
        Ok(Self { store, live: RwLock::new(live) })
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
        let record =
            self.insert(id, &tenant, Body { scope, name: request.name, expires_ms }, &secret).await?;
        Ok(v1::CreateTokenResponse { token: Some(shown(&record)?), secret: secret.expose().to_owned() })
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
            tokens.extend(answer.records.iter().map(shown).collect::<Result<Vec<_>>>()?);
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
            let visible =
                |record: &Record| is_installation_admin(caller) || record.row.tenant == *caller.tenant;
            let Some(Record { id, version, mut row }) = record.filter(visible) else {
                let shown: String = id.chars().take(80).collect();
                return Err(Error::new(Code::TokenNotFound, format!("there is no token {shown:?}")));
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
            self.live.write().unwrap_or_else(PoisonError::into_inner).remove(&row.key);
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
        let live = Live::of(&record)?;
        self.live.write().unwrap_or_else(PoisonError::into_inner).insert(record.row.key.clone(), live);
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

impl Live {
    fn of(record: &Record) -> Result<Self> {
        let body = body(record)?;
        let caller = Caller {
            tenant: record.row.tenant.as_str().into(),
            scope: body.scope,
            token_id: record.id.clone(),
            name: body.name,
        };
        Ok(Self { caller, expires_ms: body.expires_ms })
    }
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
    // What the audit reads; the hash of the secret stays out of it.
    let events = vec![NewEvent { kind: kind.into(), body: row.body.clone() }];
    Change { aggregate: Aggregate::Token, id: id.to_owned(), expected, row, events, output: Vec::new() }
}

fn body(record: &Record) -> Result<Body> {
    serde_json::from_str(&record.row.body)
        .map_err(|cause| Error::internal(format!("the stored token {} cannot be read: {cause}", record.id)))
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
    })
}
