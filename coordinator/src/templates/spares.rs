//! Keeps the spares of templates in stock: as many warm sessions of each newest version as its recipe wants.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use cooper_common::{
    clock,
    error::Result,
    ids::{SessionId, TemplateId},
    token::Scope,
};
use cooper_core::{change::Aggregate, session::Spare};
use cooper_proto::v1;

use super::{Template, applied};
use crate::{
    caller::Caller,
    checkpoints::Checkpoints,
    cluster::{Cluster, durable},
    sessions,
};

/// Between looks, when nobody says that something changed.
const LOOK: Duration = Duration::from_secs(5);
/// A template whose spare could not be made rests for this long.
const REST_MS: u64 = 30_000;

/// Runs until it is dropped.
pub async fn run(cluster: Arc<Cluster>, checkpoints: Arc<Checkpoints>) {
    let mut rests: HashMap<TemplateId, u64> = HashMap::new();
    loop {
        if let Err(error) = restock(&cluster, &checkpoints, &mut rests).await {
            tracing::warn!(%error, "the spares of templates could not be looked after");
        }
        let _ = tokio::time::timeout(LOOK, cluster.stock.notified()).await;
    }
}

async fn restock(
    cluster: &Arc<Cluster>,
    checkpoints: &Checkpoints,
    rests: &mut HashMap<TemplateId, u64>,
) -> Result<()> {
    let now = clock::mono_ms();
    rests.retain(|_, until| *until > now);
    let mut newest: BTreeMap<(String, String), Template> = BTreeMap::new();
    for record in cluster.store.live(Aggregate::Template).await? {
        let template = Template::read(record)?;
        // Oldest first: a later version takes the place.
        newest.insert((template.tenant.clone(), template.body.name.clone()), template);
    }
    let stock: Vec<(SessionId, String, Spare)> = cluster.look(|core| {
        core.spares().map(|(session, spare)| (session.id, session.tenant.to_string(), *spare)).collect()
    });
    let is_newest = |spare: &Spare| newest.values().any(|template| template.id == spare.template);
    for (session, tenant, spare) in &stock {
        // One that is not warm now belonged to a coordinator before, or to a warm-up that failed.
        if !is_newest(spare) || !spare.warm {
            sessions::destroy(cluster, &keeper(tenant), &session.to_string()).await?;
        }
    }
    for template in newest.values() {
        if rests.contains_key(&template.id) {
            continue;
        }
        let ready = stock.iter().filter(|(_, _, spare)| spare.template == template.id && spare.warm).count();
        for _ in ready..template.recipe.spares as usize {
            if let Err(error) = make(cluster, checkpoints, template).await {
                tracing::info!(template = template.label(), %error, "no spare could be made");
                rests.insert(template.id, clock::mono_ms() + REST_MS);
                break;
            }
        }
    }
    Ok(())
}

/// In whose name spares are made.
fn keeper(tenant: &str) -> Caller {
    Caller {
        tenant: tenant.into(),
        scope: Scope::Client,
        token_id: String::new(),
        name: "spares of templates".to_owned(),
        from: None,
    }
}

async fn make(cluster: &Arc<Cluster>, checkpoints: &Checkpoints, template: &Template) -> Result<()> {
    let caller = keeper(&template.tenant);
    let request = applied(template, v1::CreateSessionRequest::default());
    let spare = Spare { template: template.id, warm: false };
    let session = sessions::create_spare(cluster, checkpoints, &caller, request, spare).await?;
    let warm = match template.warm_up(cluster, &caller, session).await {
        Ok(()) => cluster.decide(|core, now| core.spare_is_warm(now, session).map(|out| ((), out))),
        Err(error) => Err(error),
    };
    match warm {
        Ok(((), recorded)) => durable(recorded).await,
        Err(error) => {
            sessions::destroy(cluster, &caller, &session.to_string()).await?;
            Err(error)
        }
    }
}
