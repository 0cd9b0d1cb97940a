//! Changing a live session.

use std::{collections::HashMap, sync::Arc};

use cooper_common::{error::Result, limits::request};
use cooper_core::{change::Aggregate, cluster::Changed};
use cooper_proto::v1;
use prost::Message as _;

use super::{defaults, get, network, not_found, parse, share};
use crate::{
    caller::Caller,
    check,
    cluster::{Cluster, durable},
    store::Record,
};

pub fn times(
    ttl_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    hibernate_after_ms: Option<u64>,
) -> Result<()> {
    check::at_most("hibernate_after_ms", hibernate_after_ms.unwrap_or(0), request::SESSION_TTL_MS_MAX)?;
    check::at_most("ttl_ms", ttl_ms.unwrap_or(0), request::SESSION_TTL_MS_MAX)?;
    check::at_most("idle_timeout_ms", idle_timeout_ms.unwrap_or(0), request::SESSION_TTL_MS_MAX)
}

pub async fn update(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: v1::UpdateSessionRequest,
) -> Result<Record> {
    check::idempotency_key(&request.idempotency_key)?;
    times(request.ttl_ms, request.idle_timeout_ms, request.hibernate_after_ms)?;
    let id = parse(&get(cluster, caller, &request.session_id).await?.id)?;
    // One update of a session after the other: each begins with what the one before left.
    let _turn = cluster.keys.turn(Aggregate::Session, &caller.tenant, &id.to_string()).await;
    let spec = cluster.look(|core| core.session(id).map(|session| session.spec.clone()));
    // One that ended is not in memory any more, and what it was does not change.
    let spec = spec.ok_or_else(|| super::ended(&request.session_id))?;
    let mut spec = v1::CreateSessionRequest::decode(&*spec).unwrap_or_default();
    merge(&mut spec.labels, request.labels, &request.remove_labels);
    merge(&mut spec.metadata, request.metadata, &request.remove_metadata);
    check::labels(&spec.labels)?;
    check::metadata(&spec.metadata)?;
    let kept = defaults::reset(spec.limits.unwrap_or_default(), &request.reset_limits)?;
    let limits = cluster.defaults.limits(merged(kept, request.limits.unwrap_or_default()))?;
    spec.limits = Some(limits);
    if let Some(policy) = request.network {
        let now = network::policy(spec.network.as_ref())?;
        let policy = network::of(Some(policy), &now)?;
        let facilities = cluster.look(|core| core.session(id).map(|session| session.body.facilities.clone()));
        network::enforceable(&policy, &facilities.unwrap_or_default())?;
        spec.network = Some(policy);
    }
    let changed = Changed {
        ttl_ms: request.ttl_ms,
        idle_timeout_ms: request.idle_timeout_ms,
        hibernate_after_ms: request.hibernate_after_ms,
        exec_timeout_ms: limits.exec_timeout_ms,
        output_limit_bytes: limits.output_bytes,
        share: share(&limits),
        spec: spec.encode_to_vec().into(),
    };
    let ((), recorded) =
        cluster.decide(|core, now| core.update_session(now, id, changed).map(|out| ((), out)))?;
    durable(recorded).await?;
    cluster
        .store
        .get(Aggregate::Session, &id.to_string())
        .await?
        .ok_or_else(|| not_found(&request.session_id))
}

fn merge(into: &mut HashMap<String, String>, set: HashMap<String, String>, remove: &[String]) {
    for name in remove {
        into.remove(name);
    }
    into.extend(set);
}

/// `over` where it says something, `under` elsewhere.
pub fn merged(under: v1::Limits, over: v1::Limits) -> v1::Limits {
    fn or<T: Default + PartialEq>(over: T, under: T) -> T {
        if over == T::default() { under } else { over }
    }
    v1::Limits {
        exec_timeout_ms: or(over.exec_timeout_ms, under.exec_timeout_ms),
        memory_bytes: or(over.memory_bytes, under.memory_bytes),
        file_size_bytes: or(over.file_size_bytes, under.file_size_bytes),
        open_files: or(over.open_files, under.open_files),
        output_bytes: or(over.output_bytes, under.output_bytes),
        processes_max: or(over.processes_max, under.processes_max),
        cpu_millis: or(over.cpu_millis, under.cpu_millis),
        disk_bytes: or(over.disk_bytes, under.disk_bytes),
        inodes_max: or(over.inodes_max, under.inodes_max),
    }
}
