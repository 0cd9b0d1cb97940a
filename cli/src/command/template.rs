//! `cooper template`: build, list, show, rm.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    path::Path,
};

use cooper_common::error::Code;
use cooper_proto::v1::{
    BuildTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, Limits, ListTemplatesRequest, Page,
    Recipe, RecipeFile, Template, build_template_response::Event,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    args,
    connect::Client,
    context::Context,
    failure::{Failure, Result},
    output::json,
    units,
};

const PAGE: u32 = 500;

/// A recipe as it is written in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    /// "3.12" or "3.12.1".
    #[serde(default)]
    python: String,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    env: HashMap<String, String>,
    #[serde(default)]
    labels: HashMap<String, String>,
    /// Labels of workers.
    #[serde(default)]
    on: HashMap<String, String>,
    #[serde(default)]
    warm_up: String,
    #[serde(default)]
    spares: u32,
    #[serde(default)]
    limits: WrittenLimits,
    /// By path in the workspace.
    #[serde(default)]
    files: BTreeMap<String, WrittenFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenLimits {
    memory: Option<String>,
    exec_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    /// A file beside the recipe.
    from: Option<String>,
    content: Option<String>,
    /// e.g. 0o755
    #[serde(default)]
    mode: u32,
}

pub async fn run(context: &Context, args: args::Template) -> Result<u8> {
    // A recipe that cannot be read needs no cluster to say so.
    let recipe = match &args {
        args::Template::Build { file, name } => Some(read(file, name.as_deref())?),
        _ => None,
    };
    let client = context.cluster()?.connect().await?;
    match (args, recipe) {
        (args::Template::Build { .. }, Some(request)) => build(context, &client, request).await,
        (args::Template::List { name }, _) => list(context, &client, name.unwrap_or_default()).await,
        (args::Template::Show { template }, _) => {
            let template =
                client.templates().get_template(GetTemplateRequest { template }).await?.into_inner();
            context.out.answer(|| json::template(&template), || text(&template))?;
            Ok(0)
        }
        (args::Template::Rm { template }, _) => {
            let answer =
                client.templates().delete_template(DeleteTemplateRequest { template }).await?.into_inner();
            if context.out.json {
                let templates: Vec<_> = answer.templates.iter().map(json::template).collect();
                context.out.document(&json!({"templates": templates}))?;
            }
            Ok(0)
        }
        (args::Template::Build { .. }, None) => Err(Failure::new(Code::Internal, "a build without a recipe")),
    }
}

fn read(file: &Path, name: Option<&str>) -> Result<BuildTemplateRequest> {
    let bad = |why: String| Failure::new(Code::InvalidArgument, format!("{}: {why}", file.display()));
    let text = fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    let written: Written = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let name = name.map(str::to_owned).or(written.name).ok_or_else(|| {
        bad("the template has no name".to_owned()).hint("write name = \"…\" into the file, or give --name")
    })?;
    let beside = file.parent().unwrap_or(Path::new("."));
    let content = |path: &str, entry: WrittenFile| match (entry.from, entry.content) {
        (Some(from), None) => {
            fs::read(beside.join(&from)).map_err(|e| bad(format!("files.{path:?}: {from}: {e}")))
        }
        (None, Some(content)) => Ok(content.into_bytes()),
        _ => Err(bad(format!("files.{path:?}: give either from or content"))),
    };
    let files = written.files.into_iter().map(|(path, entry)| {
        let mode = entry.mode;
        Ok(RecipeFile { content: content(&path, entry)?, path, mode })
    });
    let memory = written.limits.memory.as_deref().map(units::size_bytes).transpose().map_err(bad)?;
    let timeout = written.limits.exec_timeout.as_deref().map(units::duration_ms).transpose().map_err(bad)?;
    let recipe = Recipe {
        packages: written.packages,
        python_version: written.python,
        files: files.collect::<Result<_>>()?,
        env: written.env,
        labels: written.labels,
        limits: Some(Limits {
            memory_bytes: memory.unwrap_or(0),
            exec_timeout_ms: timeout.unwrap_or(0),
            ..Limits::default()
        }),
        worker_labels: written.on,
        warm_up: written.warm_up,
        spares: written.spares,
    };
    Ok(BuildTemplateRequest { name, recipe: Some(recipe) })
}

async fn build(context: &Context, client: &Client, request: BuildTemplateRequest) -> Result<u8> {
    let mut events = client.templates().build_template(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Step(step)) => context.out.note(&step.replace('_', "-")),
            // What is printed is progress: standard output belongs to the answer.
            Some(Event::Output(output)) if !context.out.json => {
                let _ = std::io::stderr().write_all(&output.data);
            }
            Some(Event::Output(_)) | None => {}
            Some(Event::Built(template)) => {
                let label = format!("{}@{}", template.name, template.version);
                context.out.answer(|| json::template(&template), || label)?;
                return Ok(0);
            }
        }
    }
    Err(Failure::new(Code::Unavailable, "the build was cut before its end"))
}

async fn list(context: &Context, client: &Client, name: String) -> Result<u8> {
    let mut templates = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = Some(Page { limit: PAGE, cursor });
        let request = ListTemplatesRequest { page, name: name.clone() };
        let answer = client.templates().list_templates(request).await?.into_inner();
        templates.extend(answer.templates);
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    if context.out.json {
        let list: Vec<_> = templates.iter().map(json::template).collect();
        context.out.document(&json!({"templates": list}))?;
    } else {
        let row = |template: &Template| {
            let recipe = template.recipe.clone().unwrap_or_default();
            vec![
                format!("{}@{}", template.name, template.version),
                template.python_version.clone(),
                recipe.packages.join(" "),
                format!("{}/{}", template.spares_ready, recipe.spares),
                units::ago(template.created_at_ms),
            ]
        };
        context.out.table(
            &["template", "python", "packages", "spares", "built"],
            templates.iter().map(row).collect(),
        )?;
    }
    Ok(0)
}

fn text(template: &Template) -> String {
    let recipe = template.recipe.clone().unwrap_or_default();
    let files: Vec<_> = recipe.files.iter().map(|file| file.path.as_str()).collect();
    let lines = [
        ("template", format!("{}@{}", template.name, template.version)),
        ("python", template.python_version.clone()),
        ("packages", recipe.packages.join(" ")),
        ("files", files.join(" ")),
        ("warm-up", recipe.warm_up.lines().next().unwrap_or_default().to_owned()),
        ("spares", format!("{} ready of {}", template.spares_ready, recipe.spares)),
        ("built", units::utc(template.created_at_ms)),
    ];
    let lines = lines.into_iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:<10}{value}")).collect::<Vec<_>>().join("\n")
}
