//! `cooper context`: clusters by name.

use std::io::{self, Read};

use cooper_common::{
    config::{Role, Sources, resolve},
    error::Code,
    limits,
};
use serde_json::json;

use crate::{
    args,
    context::Context,
    contexts::{Contexts, LOCAL, New},
    failure::{Failure, Result},
};

pub fn run(context: &Context, args: args::Context) -> Result<u8> {
    let contexts = Contexts::of_account()?;
    match args {
        args::Context::Add { name, token_file, token_stdin, tls_ca, replace } => {
            let url = context.global.url.as_deref().ok_or_else(|| {
                Failure::new(Code::InvalidArgument, "a context needs the URL of its coordinator")
                    .hint(format!("cooper context add {name} --url https://HOST:PORT"))
                    .exit(2)
            })?;
            let token = token_stdin.then(from_stdin).transpose()?;
            let new = New {
                url,
                token_file: token_file.as_deref(),
                token: token.as_deref(),
                tls_ca: tls_ca.as_deref(),
            };
            let file = contexts.add(&name, &new, replace)?;
            // What nobody could read again is not kept.
            let read = resolve(&Sources {
                role: Role::Client,
                flags: Default::default(),
                config_file: Some(file),
                env: &|_| None,
            });
            if let Err(error) = read {
                contexts.remove(&name)?;
                return Err(error.into());
            }
            let document = || json!({"name": name, "url": url});
            context.out.answer(document, || format!("{name}: use it with `cooper context use {name}`"))?;
        }
        args::Context::List => list(context, &contexts)?,
        args::Context::Use { name } => {
            contexts.use_it(&name)?;
            context
                .out
                .answer(|| json!({"in_use": name}), || format!("commands talk to {name} from now on"))?;
        }
        args::Context::Remove { name } => {
            contexts.remove(&name)?;
            context.out.answer(|| json!({"removed": name}), || format!("{name} is forgotten"))?;
        }
    }
    Ok(0)
}

fn list(context: &Context, contexts: &Contexts) -> Result<()> {
    let in_use = contexts.in_use().unwrap_or_else(|| LOCAL.to_owned());
    let mut rows = vec![(LOCAL.to_owned(), "the data directory's cluster".to_owned())];
    for name in contexts.names()? {
        let read = resolve(&Sources {
            role: Role::Client,
            flags: Default::default(),
            config_file: Some(contexts.file(&name)),
            env: &|_| None,
        });
        let url = match read {
            Ok(config) => config.text("url").unwrap_or_default(),
            // One that somebody has edited does not hide the others.
            Err(error) => error.message,
        };
        rows.push((name, url));
    }
    if context.out.json {
        let list: Vec<_> = rows
            .iter()
            .map(|(name, url)| json!({"name": name, "url": url, "in_use": *name == in_use}))
            .collect();
        return context.out.document(&json!({"contexts": list}));
    }
    let mark = |name: &str| if name == in_use { "*" } else { "" }.to_owned();
    let rows = rows.into_iter().map(|(name, url)| vec![mark(&name), name, url]).collect();
    context.out.table(&["", "context", "coordinator"], rows)
}

fn from_stdin() -> Result<String> {
    let mut token = String::new();
    let most = limits::token::TEXT_BYTES_MAX as u64;
    io::stdin().take(most).read_to_string(&mut token).map_err(|error| {
        Failure::new(Code::InvalidArgument, format!("standard input holds no token: {error}"))
    })?;
    let token = token.trim().to_owned();
    if token.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "standard input holds no token")
            .hint("pipe it in: cooper token create … | cooper context add NAME --url URL --token-stdin"));
    }
    Ok(token)
}
