//! `cooper stacks`: which there are, and what Cooper could do to their services.

use std::{fs, path::Path};

use cooper_common::error::Code;
use cooper_coordinator::runs;
use cooper_proto::v1::{CheckStackRequest, ListStacksRequest};
use cooper_repair::check::{Known, check};
use cooper_worker::stack::offline_survey;
use serde_json::{Value, json};

use super::{pause, repair};
use crate::{
    args::{Stacks, StacksCheck, StacksCommand},
    context::Context,
    failure::{Failure, Result},
    output::{clean, json},
};

/// Nothing is repaired until what is wrong is corrected.
const EXIT_WRONG: u8 = 1;

pub async fn run(context: &Context, args: Stacks) -> Result<u8> {
    match args.command {
        None | Some(StacksCommand::List) => list(context).await,
        Some(StacksCommand::Add { dir, name }) => add(context, &dir, name).await,
        Some(StacksCommand::Check(args)) => check_stack(context, args).await,
    }
}

async fn add(context: &Context, dir: &Path, name: Option<String>) -> Result<u8> {
    let dir = fs::canonicalize(dir).map_err(|error| {
        Failure::new(Code::StackNotFound, format!("no directory {}: {error}", dir.display()))
    })?;
    let client = context.cluster()?.connect().await?;
    let stack = repair::register(&client, &dir, name.unwrap_or_default()).await?;
    context.out.answer(|| json::stack(&stack), || format!("{} {}", stack.name, stack.dir))?;
    Ok(0)
}

async fn list(context: &Context) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let stacks = client.runs().list_stacks(ListStacksRequest {}).await?.into_inner().stacks;
    if context.out.json {
        let list: Vec<_> = stacks.iter().map(json::stack).collect();
        let pauses = pause::documents(&pause::held(&client).await?);
        context.out.document(&json!({"stacks": list, "pauses": pauses}))?;
    } else {
        let online = |online| if online { "online" } else { "offline" }.to_owned();
        let rows = stacks
            .iter()
            .map(|stack| {
                vec![stack.name.clone(), online(stack.online), stack.worker_id.clone(), stack.dir.clone()]
            })
            .collect();
        context.out.table(&["stack", "state", "worker", "directory"], rows)?;
        for pause in pause::held(&client).await? {
            context.out.note(&pause::sentence(&pause));
        }
    }
    Ok(0)
}

async fn check_stack(context: &Context, args: StacksCheck) -> Result<u8> {
    let checked: Value = match &args.dir {
        Some(dir) => {
            let policy = args.policy.as_deref().map(runs::policy_file).transpose()?;
            let survey = offline_survey(dir).await?;
            let rules = runs::Rules::default();
            let name = args.stack.unwrap_or_else(|| survey.model.name.clone());
            let known = Known {
                stack: &name,
                approvers: None,
                operator: policy.as_deref(),
                rules: Some(rules.set()),
            };
            serde_json::to_value(check(&survey, &known))
        }
        None => {
            let client = context.cluster()?.connect().await?;
            let request = CheckStackRequest { stack: args.stack.unwrap_or_default() };
            let answer = client.runs().check_stack(request).await?.into_inner();
            serde_json::from_str(&answer.check_json)
        }
    }
    .map_err(|error| Failure::new(Code::Internal, format!("the check cannot be read: {error}")))?;
    context.out.answer(|| checked.clone(), || text(&checked))?;
    let wrong = list_of(&checked["problems"]).iter().any(|problem| problem["error"] == true);
    Ok(if wrong { EXIT_WRONG } else { 0 })
}

fn list_of(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn words(value: &Value) -> Vec<String> {
    list_of(value).iter().filter_map(Value::as_str).map(clean).collect()
}

fn text(checked: &Value) -> String {
    let word = |value: &Value| clean(value.as_str().unwrap_or_default());
    let mut lines = Vec::new();
    for service in list_of(&checked["services"]) {
        lines.push(word(&service["service"]));
        let files = words(&service["files"]);
        let changes = match (service["builds"] == true, files.is_empty()) {
            (false, _) => "nothing: it is not built, only restarted".to_owned(),
            (true, true) => "no file there is".to_owned(),
            (true, false) => files.join(" "),
        };
        lines.push(format!("  may change  {changes}"));
        let reasons = words(&service["approval"]);
        let when = match reasons.is_empty() {
            true => "only fixes that a person has to look at".to_owned(),
            false => format!("every repair: {}", reasons.join("; ")),
        };
        lines.push(format!("  approval    {when}"));
        let approvers = words(&service["approvers"]);
        let who = match approvers.is_empty() {
            true => "anybody with scope operator or admin".to_owned(),
            false => approvers.join(" or "),
        };
        lines.push(format!("  approvers   {who}"));
        for said in words(&service["operator"]) {
            lines.push(format!("  operator    {said}"));
        }
        lines.push(format!("  well when   {}", words(&service["verification"]).join("; ")));
        let against = words(&service["no_preflight"]);
        let preflight = match against.is_empty() {
            true => "a container beside the one that runs is possible".to_owned(),
            false => format!("no container beside the one that runs: {}", against.join(", ")),
        };
        lines.push(format!("  preflight   {preflight}"));
        let automatic = if service["auto_repair"] == true { "may start by itself" } else { "when asked for" };
        lines.push(format!("  repairs     {automatic}, {} attempts at most", service["max_attempts"]));
    }
    let problems = list_of(&checked["problems"]);
    for problem in problems {
        let kind = if problem["error"] == true { "error" } else { "warning" };
        lines.push(format!("{kind}: {}: {}", word(&problem["place"]), word(&problem["problem"])));
    }
    if problems.is_empty() {
        lines.push("nothing is wrong with its policy".to_owned());
    }
    lines.join("\n")
}
