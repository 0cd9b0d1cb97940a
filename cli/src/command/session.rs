//! `cooper session`: create, list, show, update, destroy.

use cooper_proto::v1::{
    CreateSessionRequest, DestroySessionRequest, GetSessionRequest, Limits, ListSessionsRequest, NetworkMode,
    Page, Session, SessionState, UpdateSessionRequest,
};
use serde_json::json;

use crate::{
    args,
    connect::{Client, idempotency_key},
    context::Context,
    failure::Result,
    output::json,
    units,
};

const PAGE: u32 = 500;

pub async fn run(context: &Context, args: args::Session) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    match args {
        args::Session::Create(args) => create(context, &client, args).await,
        args::Session::List(args) => list(context, &client, args).await,
        args::Session::Update(args) => {
            let limits = limits(args.exec_timeout, &args.limits);
            let request = UpdateSessionRequest {
                session_id: args.session,
                idempotency_key: idempotency_key(),
                labels: args.label.into_iter().collect(),
                remove_labels: args.remove_label,
                metadata: args.metadata.into_iter().collect(),
                remove_metadata: args.remove_metadata,
                limits: Some(limits),
                ttl_ms: args.ttl,
                idle_timeout_ms: args.idle_timeout,
                reset_limits: args.reset.into_iter().map(args::LimitName::field).collect(),
                hibernate_after_ms: args.hibernate_after,
                network: args.network.request(),
            };
            update(context, &client, request).await
        }
        args::Session::Extend { session, ttl } => {
            let request = UpdateSessionRequest {
                session_id: session,
                idempotency_key: idempotency_key(),
                ttl_ms: Some(ttl),
                ..UpdateSessionRequest::default()
            };
            update(context, &client, request).await
        }
        args::Session::Show { session } => {
            let request = GetSessionRequest { session_id: session };
            let session = client.sessions().get_session(request).await?.into_inner();
            context.out.answer(|| json::session(&session), || text(&session))?;
            Ok(0)
        }
        args::Session::Destroy { sessions, checkpoint, wait, globals } => {
            let request = DestroySessionRequest {
                checkpoint_first: checkpoint,
                globals,
                wait_ms: wait.unwrap_or(0),
                ..DestroySessionRequest::default()
            };
            destroy(context, &client, sessions, request).await
        }
        args::Session::History { session, ipynb } => {
            super::history::run(context, &client, session, ipynb.as_deref()).await
        }
    }
}

/// What is not named is left to the coordinator.
fn limits(exec_timeout: Option<u64>, args: &args::SessionLimits) -> Limits {
    Limits {
        exec_timeout_ms: exec_timeout.unwrap_or(0),
        memory_bytes: args.memory.unwrap_or(0),
        processes_max: args.processes.unwrap_or(0),
        cpu_millis: args.cpu.unwrap_or(0),
        disk_bytes: args.disk.unwrap_or(0),
        inodes_max: args.inodes.unwrap_or(0),
        ..Limits::default()
    }
}

async fn create(context: &Context, client: &Client, args: args::SessionCreate) -> Result<u8> {
    let limits = limits(args.exec_timeout, &args.limits);
    let (mut secrets, mut inject) = (Vec::new(), Vec::new());
    for secret in args.secret {
        match secret {
            units::Secret::File(name) => secrets.push(name),
            units::Secret::Inject(injection) => inject.push(injection),
        }
    }
    let request = CreateSessionRequest {
        idempotency_key: idempotency_key(),
        name: args.name.unwrap_or_default(),
        env: args.env.into_iter().collect(),
        labels: args.label.into_iter().collect(),
        worker_labels: args.on.into_iter().collect(),
        limits: Some(limits),
        wait_ms: args.wait.unwrap_or(0),
        checkpoint_id: String::new(),
        ttl_ms: args.ttl.unwrap_or(0),
        idle_timeout_ms: args.idle_timeout.unwrap_or(0),
        hibernate_after_ms: args.hibernate_after,
        metadata: args.metadata.into_iter().collect(),
        packages: args.package,
        network: args.network.request(),
        template: args.template.unwrap_or_default(),
        secrets,
        inject,
        python_version: args.python.unwrap_or_default(),
    };
    let session = client.sessions().create_session(request).await?.into_inner();
    // The id alone, so that S=$(cooper session create) works.
    context.out.answer(|| json::session(&session), || session.id.clone())?;
    Ok(0)
}

async fn update(context: &Context, client: &Client, request: UpdateSessionRequest) -> Result<u8> {
    let session = client.sessions().update_session(request).await?.into_inner();
    context.out.answer(|| json::session(&session), || text(&session))?;
    Ok(0)
}

async fn list(context: &Context, client: &Client, args: args::SessionList) -> Result<u8> {
    let state = |name: &String| {
        SessionState::from_str_name(&format!("SESSION_STATE_{}", name.to_uppercase())).unwrap_or_default()
    };
    let request = ListSessionsRequest {
        page: None,
        all: args.all,
        labels: args.label.into_iter().collect(),
        states: args.state.iter().map(|name| state(name).into()).collect(),
        worker_id: args.worker.unwrap_or_default(),
    };
    let mut sessions = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = Some(Page { limit: PAGE, cursor });
        let request = ListSessionsRequest { page, ..request.clone() };
        let answer = client.sessions().list_sessions(request).await?.into_inner();
        sessions.extend(answer.sessions);
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    if context.out.json {
        let list: Vec<_> = sessions.iter().map(json::session).collect();
        context.out.document(&json!({"sessions": list}))?;
    } else {
        let rows = sessions.iter().map(row).collect();
        context.out.table(&["session", "name", "state", "active", "python", "worker", "created"], rows)?;
    }
    Ok(0)
}

/// All of them, then the first failure: one bad name does not keep the others alive.
async fn destroy(
    context: &Context,
    client: &Client,
    sessions: Vec<String>,
    how: DestroySessionRequest,
) -> Result<u8> {
    let several = sessions.len() > 1;
    let mut destroyed = Vec::new();
    let mut failure = None;
    for session_id in sessions {
        let request = DestroySessionRequest { session_id, idempotency_key: idempotency_key(), ..how.clone() };
        match client.sessions().destroy_session(request).await {
            Ok(session) => {
                let session = session.into_inner();
                if !context.out.json && !session.last_checkpoint_id.is_empty() {
                    context.out.line(&session.last_checkpoint_id)?;
                }
                destroyed.push(json::session(&session));
            }
            Err(status) => failure = failure.or(Some(status)),
        }
    }
    if context.out.json && (failure.is_none() || several) {
        let document = match several {
            false => destroyed.pop().unwrap_or_default(),
            true => json!({"sessions": destroyed}),
        };
        context.out.document(&document)?;
    }
    failure.map_or(Ok(0), |status| Err(status.into()))
}

fn state(session: &Session) -> String {
    if session.hibernated { "hibernated".to_owned() } else { json::session_state(session.state()) }
}

fn row(session: &Session) -> Vec<String> {
    vec![
        session.id.clone(),
        session.name.clone(),
        state(session),
        session.active_executions.to_string(),
        session.python_version.clone(),
        session.worker_id.clone(),
        units::ago(session.created_at_ms),
    ]
}

/// As `--network` has it.
fn network(session: &Session) -> String {
    let Some(policy) = &session.network else { return String::new() };
    let mut text = match policy.mode() {
        NetworkMode::Proxy if policy.domains.is_empty() => "public".to_owned(),
        NetworkMode::Proxy => policy.domains.join(","),
        NetworkMode::None | NetworkMode::Unspecified => "none".to_owned(),
    };
    if !policy.ports.is_empty() {
        let ports: Vec<_> = policy.ports.iter().map(ToString::to_string).collect();
        text = format!("{text}, also port {}", ports.join(", "));
    }
    let used = session.network_usage.unwrap_or_default();
    if used.connects > 0 {
        let (sent, received) = (units::human_bytes(used.sent_bytes), units::human_bytes(used.received_bytes));
        text = format!("{text} ({} connections, {sent} sent, {received} received)", used.connects);
    }
    match session.network_refused {
        0 => text,
        refused => format!("{text} ({refused} connections refused)"),
    }
}

fn text(session: &Session) -> String {
    let limits = session.limits.unwrap_or_default();
    let memory = match limits.memory_bytes {
        0 => "unlimited".to_owned(),
        bytes => units::human_bytes(bytes),
    };
    let cpu = match limits.cpu_millis {
        0 => String::new(),
        millis => format!(", {} processors", f64::from(millis) / 1000.0),
    };
    let pairs = |labels: &std::collections::HashMap<String, String>| {
        let mut list: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        list.sort();
        list.join(" ")
    };
    let mut lines = vec![
        ("session", session.id.clone()),
        ("name", session.name.clone()),
        ("state", state(session)),
        ("worker", session.worker_id.clone()),
        ("python", session.python_version.clone()),
        ("active", format!("{} executions", session.active_executions)),
        (
            "limits",
            format!(
                "{} an execution, memory {memory}, disk {} and {} files, {} processes{cpu}",
                units::human_ms(limits.exec_timeout_ms),
                units::human_bytes(limits.disk_bytes),
                limits.inodes_max,
                limits.processes_max,
            ),
        ),
        ("isolation", format!("{} {}", session.tier, session.facilities.join(", ")).trim().to_owned()),
        ("network", network(session)),
        ("labels", pairs(&session.labels)),
        ("created", format!("{} ({})", units::utc(session.created_at_ms), units::ago(session.created_at_ms))),
    ];
    if session.interpreter_restarted {
        let brought = session.globals.as_ref().is_some_and(|globals| globals.error.is_empty());
        let note = match brought {
            true => "the interpreter was started anew, with variables that were saved",
            false => "the interpreter was started anew; variables from before are gone",
        };
        lines.push(("note", note.to_owned()));
    }
    if let Some(globals) = &session.globals {
        lines.push(("variables", super::checkpoint::globals(globals)));
    }
    if session.expires_at_ms != 0 {
        lines.push(("expires", units::utc(session.expires_at_ms)));
    }
    if session.hibernate_after_ms != 0 {
        let after = units::human_ms(session.hibernate_after_ms);
        lines.push(("hibernates", format!("after {after} without work")));
    }
    if session.idle_timeout_ms != 0 {
        lines.push(("idle", format!("ends after {} without work", units::human_ms(session.idle_timeout_ms))));
    }
    lines.push(("metadata", pairs(&session.metadata)));
    if let Some(error) = &session.error {
        lines.push(("error", format!("[{}] {}", error.code, error.message)));
    }
    let lines: Vec<_> = lines
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<10}{value}"))
        .collect();
    lines.join("\n")
}
