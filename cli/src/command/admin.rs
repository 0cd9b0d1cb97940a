//! `cooper workers`, `token`, `status`.

use std::{io::Write, path::Path};

use cooper_common::{error::Code, token::Secret};
use cooper_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, GetInfoRequest, ListTokensRequest, ListWorkersRequest,
    RevokeTokenRequest, RotateTokenRequest, Token, Worker,
};
use serde_json::json;

use crate::{
    args,
    connect::{Client, idempotency_key},
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

pub async fn workers(context: &Context) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let workers = client.admin().list_workers(ListWorkersRequest {}).await?.into_inner().workers;
    if context.out.json {
        let list: Vec<_> = workers.iter().map(json::worker).collect();
        context.out.document(&json!({"workers": list}))?;
    } else {
        worker_table(context, &workers)?;
    }
    Ok(0)
}

fn worker_table(context: &Context, workers: &[Worker]) -> Result<()> {
    let rows = workers
        .iter()
        .map(|worker| {
            let mut labels: Vec<_> =
                worker.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            labels.sort();
            vec![
                worker.id.clone(),
                state(worker),
                format!("{}/{}", worker.sessions, worker.sessions_max),
                worker.running.to_string(),
                worker.capabilities.join(","),
                worker.tier.clone(),
                worker.python_versions.join(","),
                labels.join(","),
                worker.hostname.clone(),
                worker.version.clone(),
                worker.incarnation.to_string(),
                units::ago(worker.last_seen_at_ms),
            ]
        })
        .collect();
    let titles = [
        "worker", "state", "sessions", "running", "can", "tier", "python", "labels", "host", "version",
        "start", "seen",
    ];
    context.out.table(&titles, rows)?;
    for worker in workers {
        if let Some(refused) = &worker.refused {
            context.out.note(&format!("{} was refused: {}: {}", worker.id, refused.code, refused.message));
        }
        if let Some(refused) = &worker.sessions_refused {
            context.out.note(&format!("{} takes no sessions: {}", worker.id, refused.message));
        }
    }
    Ok(())
}

/// The state, and how far a drain is.
fn state(worker: &Worker) -> String {
    let drain = match (worker.draining_since_ms, worker.drained_at_ms) {
        (0, _) => return worker.state.clone(),
        (_, 0) => {
            let left_ms = worker.drain_deadline_at_ms - cooper_common::clock::wall_ms();
            format!("{} left", units::human_ms(u64::try_from(left_ms).unwrap_or(0)))
        }
        (_, at) => format!("drained {}", units::ago(at)),
    };
    format!("{} ({drain})", worker.state)
}

pub async fn status(context: &Context) -> Result<u8> {
    let cluster = context.cluster()?;
    let client = cluster.connect().await?;
    let info = client.admin().get_info(GetInfoRequest {}).await?.into_inner();
    // Clients may not list workers; for them the numbers have to do.
    let workers = match client.admin().list_workers(ListWorkersRequest {}).await {
        Ok(answer) => Some(answer.into_inner().workers),
        Err(status) if status.code() == tonic::Code::PermissionDenied => None,
        Err(status) => return Err(status.into()),
    };
    if context.out.json {
        let mut document = json::info(&info);
        document["url"] = cluster.url.clone().into();
        document["state"] = if info.workers_attached > 0 { "ready" } else { "no_worker" }.into();
        document["workers"] =
            workers.as_ref().map(|list| list.iter().map(json::worker).collect::<Vec<_>>()).into();
        context.out.document(&document)?;
        return Ok(0);
    }
    context.out.line(&format!(
        "cooper {} at {} (from {})\n  epoch     {}\n  tenant    {} ({})\n  workers   {}\n  sessions  {}\n  tasks     {} running, {} queued",
        info.version,
        cluster.url,
        cluster.origin,
        info.coordinator_epoch,
        info.tenant,
        info.scope,
        info.workers_attached,
        info.sessions_live,
        info.tasks_running,
        info.tasks_queued,
    ))?;
    if let Some(workers) = workers.filter(|workers| !workers.is_empty()) {
        context.out.line("")?;
        worker_table(context, &workers)?;
    }
    Ok(0)
}

pub async fn token(context: &Context, args: args::Token) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    match args {
        args::Token::Create(args) => create(context, &client, args).await?,
        args::Token::List => {
            let tokens = client.admin().list_tokens(ListTokensRequest {}).await?.into_inner().tokens;
            if context.out.json {
                let list: Vec<_> = tokens.iter().map(json::token).collect();
                context.out.document(&json!({"tokens": list}))?;
            } else {
                let rows = tokens.iter().map(row).collect();
                let titles = ["token", "tenant", "scope", "name", "created", "used", "expires"];
                context.out.table(&titles, rows)?;
            }
        }
        args::Token::Rotate(args) => {
            refuse_existing(args.out.as_deref())?;
            let request = RotateTokenRequest { token_id: args.token, grace_ms: Some(args.grace) };
            let answer = client.admin().rotate_token(request).await?.into_inner();
            show_secret(context, answer, args.out.as_deref())?;
        }
        args::Token::Revoke { token } => {
            let token =
                client.admin().revoke_token(RevokeTokenRequest { token_id: token }).await?.into_inner();
            context.out.answer(|| json::token(&token), String::new)?;
        }
    }
    Ok(0)
}

async fn create(context: &Context, client: &Client, args: args::TokenCreate) -> Result<()> {
    refuse_existing(args.out.as_deref())?;
    let request = CreateTokenRequest {
        tenant: args.tenant.unwrap_or_default(),
        scope: args.scope,
        name: args.name.unwrap_or_default(),
        ttl_ms: args.ttl.unwrap_or(0),
        idempotency_key: idempotency_key(),
    };
    let answer = client.admin().create_token(request).await?.into_inner();
    show_secret(context, answer, args.out.as_deref())
}

fn refuse_existing(out: Option<&Path>) -> Result<()> {
    let Some(path) = out.filter(|path| path.exists()) else { return Ok(()) };
    Err(Failure::new(Code::InvalidArgument, format!("{} exists already", path.display()))
        .hint("name a new file: a token is not written over something else"))
}

/// This once.
fn show_secret(context: &Context, answer: CreateTokenResponse, out: Option<&Path>) -> Result<()> {
    let token = answer.token.unwrap_or_default();
    let mut document = json::token(&token);
    if let Some(path) = out {
        Secret::from_text(&answer.secret).write_new(path).map_err(|error| {
            Failure::new(
                Code::NotAFile,
                format!("token {} exists, but {}: {error}", token.id, path.display()),
            )
            .hint(format!("revoke it with `cooper token revoke {}` and create another", token.id))
        })?;
        document["file"] = path.to_string_lossy().into_owned().into();
        return context.out.answer(|| document, || token.id.clone());
    }
    if context.out.json {
        document["secret"] = answer.secret.into();
        return context.out.document(&document);
    }
    // The secret alone on standard output; what it is, beside it.
    context.out.note(&format!(
        "{} of tenant {}, scope {}; the secret is shown this once:",
        token.id, token.tenant, token.scope
    ));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", answer.secret)?;
    Ok(())
}

fn row(token: &Token) -> Vec<String> {
    let expires = match (token.revoked, token.expires_at_ms) {
        (true, _) => "revoked".to_owned(),
        (false, 0) => "never".to_owned(),
        (false, at) => units::utc(at),
    };
    vec![
        token.id.clone(),
        token.tenant.clone(),
        token.scope.clone(),
        token.name.clone(),
        units::ago(token.created_at_ms),
        if token.last_used_at_ms == 0 { "never".to_owned() } else { units::ago(token.last_used_at_ms) },
        expires,
    ]
}
