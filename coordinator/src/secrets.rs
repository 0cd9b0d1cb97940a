//! Secrets: set once by a tenant, given to its sessions by name, shown to nobody.
//!
//! A row's `spec` is the value, sealed under the key of the data directory; its body and its events name it and no more. All
//! live ones are held in memory, sealed, so that a grant is filled on the store's thread without a read.

mod inject;
mod seal;
#[cfg(test)]
mod tests;

pub use inject::checked as checked_injections;
pub use seal::KEY_FILE;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    ids::SecretId,
    limits::{request::NAME_BYTES_MAX, secret as limits},
};
use cooper_core::change::{Aggregate, Change, NewEvent, Row};
use cooper_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    caller::Caller,
    check,
    keys::Keys,
    store::{Durability, Record, Store},
};

const ACTIVE: &str = "active";
const DELETED: &str = "deleted";

/// What a row holds beside the sealed value; also what its events say.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    name: String,
    /// Whose token set or deleted it.
    by: String,
}

/// What a grant is filled with.
#[derive(Default)]
pub struct Granted {
    pub files: Vec<v1::GrantedSecret>,
    pub inject: Vec<v1::GrantedInjection>,
}

/// Every secret of the installation.
pub struct Secrets {
    store: Arc<dyn Store>,
    key: seal::Key,
    keys: Keys,
    /// By tenant and name.
    live: RwLock<HashMap<String, BTreeMap<String, Record>>>,
}

impl Secrets {
    /// Knows every secret of the store. The key is made at the first start.
    ///
    /// # Errors
    /// `data_unusable`.
    pub async fn open(store: Arc<dyn Store>, data: &Path) -> Result<Arc<Self>> {
        let key = seal::Key::of(data)?;
        let mut live: HashMap<String, BTreeMap<String, Record>> = HashMap::new();
        let mut shut = 0_usize;
        for record in store.live(Aggregate::Secret).await? {
            shut += usize::from(key.open(&record).is_none());
            live.entry(record.row.tenant.clone()).or_default().insert(record.row.key.clone(), record);
        }
        if shut > 0 {
            tracing::error!(
                secrets = shut,
                "the key of the data directory does not open these secrets: put {KEY_FILE} back, or set them again"
            );
        }
        Ok(Arc::new(Self { store, key, keys: Keys::default(), live: RwLock::new(live) }))
    }

    /// Sets a secret, or gives it another value.
    pub async fn set(&self, caller: &Caller, request: v1::SetSecretRequest) -> Result<v1::Secret> {
        let v1::SetSecretRequest { name, value } = request;
        check_name(&name)?;
        check::size("value", value.len(), limits::VALUE_BYTES_MAX)?;
        if value.is_empty() {
            return Err(Error::invalid("value is empty"));
        }
        let _turn = self.keys.turn(Aggregate::Secret, &caller.tenant, &name).await;
        let now = clock::wall_ms();
        let (id, version, created_ms) = match self.get(&caller.tenant, &name) {
            Some(known) => (known.id, known.version, known.row.created_ms),
            None => {
                self.refuse_above_limit(&caller.tenant)?;
                (SecretId::new().to_string(), 0, now)
            }
        };
        let row = Row {
            tenant: caller.tenant.to_string(),
            state: ACTIVE.to_owned(),
            key: name.clone(),
            created_ms,
            updated_ms: now,
            body: json(&Body { name: name.clone(), by: caller.name.clone() })?,
            spec: Some(self.key.seal(&caller.tenant, &id, &value)?),
            ..Row::default()
        };
        let record = Record { id, version: version + 1, row };
        self.commit(&record, "secret.set").await?;
        let answer = shown(&record);
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        live.entry(caller.tenant.to_string()).or_default().insert(name, record);
        Ok(answer)
    }

    /// By name.
    pub fn list(&self, caller: &Caller) -> Vec<v1::Secret> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(&*caller.tenant).into_iter().flat_map(BTreeMap::values).map(shown).collect()
    }

    /// No session is given it once this returns.
    pub async fn delete(&self, caller: &Caller, name: &str) -> Result<()> {
        let _turn = self.keys.turn(Aggregate::Secret, &caller.tenant, name).await;
        let Some(Record { id, version, mut row }) = self.get(&caller.tenant, name) else {
            return Err(not_found(name));
        };
        (row.state, row.ended, row.updated_ms) = (DELETED.to_owned(), true, clock::wall_ms());
        row.body = json(&Body { name: name.to_owned(), by: caller.name.clone() })?;
        // Its name is free again, its value is gone.
        row.key.clear();
        row.spec = Some(Vec::new());
        self.commit(&Record { id, version: version + 1, row }, "secret.deleted").await?;
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = live.get_mut(&*caller.tenant) {
            own.remove(name);
            if own.is_empty() {
                live.remove(&*caller.tenant);
            }
        }
        Ok(())
    }

    /// Whether a session may ask for these.
    ///
    /// # Errors
    /// `invalid_argument`, `secret_not_found`; `data_unusable` when the key does not open one.
    pub fn usable(&self, tenant: &str, names: &[String]) -> Result<()> {
        check::at_most("secrets", names.len() as u64, limits::PER_SESSION_MAX as u64)?;
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                return Err(Error::invalid(format!("secret {name:?} is named twice")));
            }
            self.value(tenant, name)?;
        }
        Ok(())
    }

    /// Whether the values of injections that [`checked_injections`] took can be put in.
    ///
    /// # Errors
    /// As [`Self::usable`].
    pub fn injectable(&self, tenant: &str, wanted: &[v1::SecretInjection]) -> Result<()> {
        wanted.iter().try_for_each(|it| inject::valued(it, &self.value(tenant, &it.secret)?).map(drop))
    }

    fn value(&self, tenant: &str, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let record = self.get(tenant, name).ok_or_else(|| not_found(name))?;
        self.key.open(&record).ok_or_else(|| {
            Error::new(Code::DataUnusable, format!("the value of secret {name:?} cannot be read"))
                .with_hint(format!("set it again, or put the {KEY_FILE} of its time back and start anew"))
        })
    }

    /// Those of the names that there are.
    pub fn known(&self, tenant: &str, mut names: Vec<String>) -> Vec<String> {
        names.retain(|name| self.get(tenant, name).is_some());
        names
    }

    /// Those of the injections whose secret there is.
    pub fn known_injections(
        &self,
        tenant: &str,
        mut wanted: Vec<v1::SecretInjection>,
    ) -> Vec<v1::SecretInjection> {
        wanted.retain(|it| self.get(tenant, &it.secret).is_some());
        wanted
    }

    /// What a grant of this spec (an encoded `CreateSessionRequest`) is filled with. A file of a secret that was deleted
    /// meanwhile is left out; an injection of one stays, without a value.
    pub fn of_grant(&self, tenant: &str, spec: &[u8]) -> Granted {
        let spec = v1::CreateSessionRequest::decode(spec).unwrap_or_default();
        let value = |name: &str| {
            let value = self.get(tenant, name).and_then(|record| self.key.open(&record));
            if value.is_none() {
                tracing::warn!(tenant, secret = name, "a session goes without a secret that is no more");
            }
            value
        };
        let files = spec.secrets.into_iter().filter_map(|name| {
            let value = value(&name)?;
            Some(v1::GrantedSecret { name, value })
        });
        let inject = spec.inject.iter().filter_map(|it| inject::granted(it, value(&it.secret).as_deref()));
        Granted { files: files.collect(), inject: inject.collect() }
    }

    fn get(&self, tenant: &str, name: &str) -> Option<Record> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(tenant)?.get(name).cloned()
    }

    /// Of two that are set at once both may be let in: the limit is there to bound, not to count.
    fn refuse_above_limit(&self, tenant: &str) -> Result<()> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        match live.get(tenant).is_some_and(|own| own.len() >= limits::PER_TENANT_MAX) {
            true => Err(Error::new(
                Code::QuotaExceeded,
                format!("the tenant has {} secrets already", limits::PER_TENANT_MAX),
            )
            .with_hint("remove secrets that nobody needs (`cooper secret rm`)")),
            false => Ok(()),
        }
    }

    async fn commit(&self, record: &Record, kind: &str) -> Result<()> {
        let change = Change {
            aggregate: Aggregate::Secret,
            id: record.id.clone(),
            expected: record.version - 1,
            row: record.row.clone(),
            events: vec![NewEvent { kind: kind.to_owned(), body: record.row.body.clone() }],
            output: Vec::new(),
        };
        Ok(self.store.commit_wait(vec![change], Durability::Full).await?)
    }
}

/// `[A-Za-z_][A-Za-z0-9_]*`: it becomes the name of a file.
fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.len() <= NAME_BYTES_MAX && name.starts_with(begins) && name.chars().all(fine) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::invalid(format!(
        "{shown:?} is no name of a secret: use letters, digits and '_', at most {NAME_BYTES_MAX} of them, and begin with no digit"
    )))
}

fn not_found(name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    Error::new(Code::SecretNotFound, format!("there is no secret {shown:?}"))
}

fn json(body: &Body) -> Result<String> {
    serde_json::to_string(body)
        .map_err(|cause| Error::internal(format!("a secret's record cannot be written: {cause}")))
}

fn shown(record: &Record) -> v1::Secret {
    v1::Secret {
        name: record.row.key.clone(),
        created_at_ms: record.row.created_ms,
        updated_at_ms: record.row.updated_ms,
    }
}

/// Whether a stored secret means something, but for its value.
pub(crate) fn readable(record: &Record) -> Result<()> {
    serde_json::from_str::<Body>(&record.row.body)
        .map(drop)
        .map_err(|cause| Error::internal(format!("the stored secret {} cannot be read: {cause}", record.id)))
}
