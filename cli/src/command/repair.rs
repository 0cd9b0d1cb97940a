//! `cooper repair`, `approve`, `reject`, `cancel`.

use std::{fs, io, path::Path};

use cooper_common::{error::Code, limits::request::LOG_BYTES_MAX};
use cooper_proto::v1::{
    CancelRunRequest, CreateRunRequest, DecideRunRequest, GetRunRequest, ListStacksRequest,
    RegisterStackRequest, Stack,
};

use super::{exec::read_bytes, watch};
use crate::{
    args::{Decide, Repair, RunRef},
    connect::{Client, idempotency_key},
    context::Context,
    failure::{Failure, Result},
    output::json,
};

pub async fn repair(context: &Context, args: Repair) -> Result<u8> {
    let log = match &args.log {
        None => Vec::new(),
        Some(path) => read_log(path).map_err(|failure| failure.exit(1))?,
    };
    let cluster = context.cluster()?;
    let client = cluster.connect().await?;
    let stack = match &args.stack {
        None => String::new(),
        Some(given) => stack_name(&client, given).await?,
    };
    let request = CreateRunRequest {
        idempotency_key: idempotency_key(),
        stack,
        service: args.service,
        log,
        instruction: args.instruction.unwrap_or_default(),
        dry_run: args.dry_run,
        priority: args.priority,
        automatic: args.automatic,
        recurring: args.recurring.unwrap_or(0),
    };
    let run = client.runs().create_run(request).await?.into_inner();
    if args.detach {
        context.out.answer(|| json::run(&run), || run.id.clone())?;
        return Ok(0);
    }
    watch::to_the_end(context, &cluster, client, &run.id).await
}

/// The end of a long log says most; the whole of it does not fit a request.
pub(super) fn read_log(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        return read_bytes("standard input", LOG_BYTES_MAX, io::stdin().lock());
    }
    let file = fs::File::open(path).map_err(|error| {
        Failure::new(Code::FileNotFound, format!("cannot open {}: {error}", path.display())).hint("")
    })?;
    read_bytes(&path.display().to_string(), LOG_BYTES_MAX, file)
        .map_err(|failure| failure.hint(format!("send its end: tail -c 4M {} | … --log -", path.display())))
}

/// A registered name is taken as it is. A directory is registered with the worker of this machine, once.
async fn stack_name(client: &Client, given: &str) -> Result<String> {
    let stacks = client.runs().list_stacks(ListStacksRequest {}).await?.into_inner().stacks;
    let is_path = given.contains('/') || given == "." || given == "..";
    if !is_path && stacks.iter().any(|stack| stack.name == given) {
        return Ok(given.to_owned());
    }
    let dir = match fs::canonicalize(given) {
        Ok(dir) if dir.is_dir() => dir,
        Ok(dir) => {
            return Err(Failure::new(Code::StackNotFound, format!("{} is not a directory", dir.display()))
                .hint("name the directory that holds the compose file"));
        }
        Err(_) if !is_path => return Ok(given.to_owned()),
        Err(error) => {
            return Err(Failure::new(Code::StackNotFound, format!("no directory {given}: {error}")));
        }
    };
    let same =
        |known: &str| dir == Path::new(known) || fs::canonicalize(known).is_ok_and(|known| known == dir);
    if let Some(stack) = stacks.iter().filter(|stack| stack.online).find(|stack| same(&stack.dir)) {
        return Ok(stack.name.clone());
    }
    Ok(register(client, &dir, String::new()).await?.name)
}

/// Asks the worker on this machine to serve a directory.
pub async fn register(client: &Client, dir: &Path, name: String) -> Result<Stack> {
    let request = RegisterStackRequest {
        name,
        dir: dir.to_string_lossy().into_owned(),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
    };
    Ok(client.runs().register_stack(request).await?.into_inner())
}

pub async fn decide(context: &Context, args: Decide, approve: bool) -> Result<u8> {
    let cluster = context.cluster()?;
    let client = cluster.connect().await?;
    // The decision is about the plan there is now: one that comes in between is refused (plan_changed).
    let plan_hash = match args.plan {
        Some(hash) => hash,
        None => {
            client.runs().get_run(GetRunRequest { run_id: args.run.clone() }).await?.into_inner().plan_hash
        }
    };
    let request = DecideRunRequest {
        run_id: args.run,
        approve,
        comment: args.comment.unwrap_or_default(),
        plan_hash,
        idempotency_key: idempotency_key(),
    };
    let run = client.runs().decide_run(request).await?.into_inner();
    if args.follow {
        return watch::to_the_end(context, &cluster, client, &run.id).await;
    }
    context.out.answer(
        || json::run(&run),
        || {
            let decided = if approve { "approved" } else { "rejected" };
            match approve {
                true => format!("{} {decided}; follow it with `cooper runs watch {}`", run.id, run.id),
                false => format!("{} {decided}", run.id),
            }
        },
    )?;
    Ok(0)
}

pub async fn cancel(context: &Context, args: RunRef) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = CancelRunRequest { run_id: args.run, idempotency_key: idempotency_key() };
    let run = client.runs().cancel_run(request).await?.into_inner();
    context.out.answer(|| json::run(&run), || watch::summary(&run))?;
    Ok(0)
}
