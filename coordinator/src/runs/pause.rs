//! Pauses: while one holds, nothing starts by itself. What a person asks for goes on, and so does what has a plan already.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits,
};
use cooper_core::change::{Aggregate, Change, NewEvent, Row};
use cooper_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Runs;
use crate::{
    caller::Caller,
    check,
    store::{Durability, Store},
};

const PAUSED: &str = "paused";
const RESUMED: &str = "resumed";

/// That nothing starts by itself, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Empty = of every stack.
    pub stack: String,
    pub reason: String,
    /// Name of the token.
    pub by: String,
    pub since_ms: i64,
}

/// Those that hold, by tenant and stack.
#[derive(Debug, Default)]
pub struct Pauses {
    held: Mutex<BTreeMap<(String, String), Pause>>,
    /// One change at a time: each is decided on the version that is stored.
    turn: tokio::sync::Mutex<()>,
}

impl Pauses {
    /// Takes up those that were recorded.
    pub async fn load(&self, store: &dyn Store) -> Result<()> {
        let mut held = BTreeMap::new();
        for record in store.live(Aggregate::Stack).await?.into_iter().filter(|it| it.row.state == PAUSED) {
            let pause: Pause = serde_json::from_str(&record.row.body)
                .map_err(|error| Error::internal(format!("the stored pause {}: {error}", record.id)))?;
            held.insert((record.row.tenant, pause.stack.clone()), pause);
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    /// The pause that keeps work on a stack from starting by itself.
    pub fn of(&self, tenant: &str, stack: &str) -> Option<Pause> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |stack: &str| held.get(&(tenant.to_owned(), stack.to_owned())).cloned();
        named("").or_else(|| named(stack))
    }

    /// The tenant's, that of every stack first.
    pub fn list(&self, tenant: &str) -> Vec<Pause> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().filter(|((of, _), _)| of == tenant).map(|(_, pause)| pause.clone()).collect()
    }

    /// How many there are, of all tenants.
    pub fn count(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    async fn set(&self, store: &dyn Store, caller: &Caller, pause: Pause, holds: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        let id = format!("pause/{}/{}", caller.tenant, pause.stack);
        let stored = store.get(Aggregate::Stack, &id).await?;
        let is_held = stored.as_ref().is_some_and(|record| record.row.state == PAUSED);
        if !holds && !is_held {
            return Ok(());
        }
        let state = if holds { PAUSED } else { RESUMED };
        let told = json!({ "stack": pause.stack, "by": caller.name, "reason": pause.reason });
        let change = Change {
            aggregate: Aggregate::Stack,
            id,
            expected: stored.map_or(0, |record| record.version),
            row: Row {
                tenant: caller.tenant.to_string(),
                state: state.to_owned(),
                ended: !holds,
                parent: pause.stack.clone(),
                created_ms: pause.since_ms,
                updated_ms: pause.since_ms,
                body: serde_json::to_string(&pause).map_err(|error| Error::internal(error.to_string()))?,
                ..Row::default()
            },
            events: vec![NewEvent { kind: format!("stack.{state}"), body: told.to_string() }],
            output: Vec::new(),
        };
        store.commit_wait(vec![change], Durability::Full).await?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller.tenant.to_string(), pause.stack.clone());
        match holds {
            true => held.insert(key, pause),
            false => held.remove(&key),
        };
        Ok(())
    }
}

/// What is said to whoever starts something by itself meanwhile.
pub fn refusal(pause: &Pause) -> Error {
    let what = if pause.stack.is_empty() { "automatic work" } else { "automatic work on this stack" };
    let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
    Error::new(Code::Paused, format!("{what} is paused by {}{why}", pause.by))
}

impl Runs {
    /// From now on nothing starts by itself: on a stack, or on any.
    pub async fn pause(&self, caller: &Caller, request: v1::PauseRequest) -> Result<Vec<Pause>> {
        check::size("reason", request.reason.len(), limits::request::COMMENT_BYTES_MAX)?;
        if !request.stack.is_empty() {
            self.stack(caller, &request.stack)?;
        }
        let (by, since_ms) = (caller.name.clone(), clock::wall_ms());
        let pause = Pause { stack: request.stack, reason: request.reason, by, since_ms };
        let pauses = &self.cluster.pauses;
        pauses.set(&*self.cluster.store, caller, pause, true).await?;
        Ok(pauses.list(&caller.tenant))
    }

    /// Ends a pause, if it holds. Answers with those that still hold.
    pub async fn resume(&self, caller: &Caller, request: v1::ResumeRequest) -> Result<Vec<Pause>> {
        let (by, since_ms) = (caller.name.clone(), clock::wall_ms());
        let pause = Pause { stack: request.stack, reason: String::new(), by, since_ms };
        let pauses = &self.cluster.pauses;
        pauses.set(&*self.cluster.store, caller, pause, false).await?;
        Ok(pauses.list(&caller.tenant))
    }

    pub fn pauses(&self, caller: &Caller) -> Vec<Pause> {
        self.cluster.pauses.list(&caller.tenant)
    }
}
