//! `cooper secret`: set, list, rm.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _},
    path::Path,
};

use cooper_common::{error::Code, limits::secret::VALUE_BYTES_MAX};
use cooper_proto::v1::{DeleteSecretRequest, ListSecretsRequest, Secret, SetSecretRequest};
use serde_json::json;

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
    output::json,
    terminal, units,
};

pub async fn run(context: &Context, args: args::Secret) -> Result<u8> {
    // Nobody is asked for a value that no cluster would take.
    let cluster = context.cluster()?;
    match args {
        args::Secret::Set { name, from_file } => {
            let value = value(&name, from_file.as_deref())?;
            let client = cluster.connect().await?;
            let secret = client.secrets().set_secret(SetSecretRequest { name, value }).await?.into_inner();
            context.out.answer(|| json::secret(&secret), String::new)?;
        }
        args::Secret::List => {
            let client = cluster.connect().await?;
            let secrets = client.secrets().list_secrets(ListSecretsRequest {}).await?.into_inner().secrets;
            if context.out.json {
                let list: Vec<_> = secrets.iter().map(json::secret).collect();
                context.out.document(&json!({"secrets": list}))?;
            } else {
                context.out.table(&["secret", "created", "set"], secrets.iter().map(row).collect())?;
            }
        }
        args::Secret::Rm { names } => {
            let client = cluster.connect().await?;
            for name in &names {
                client.secrets().delete_secret(DeleteSecretRequest { name: name.clone() }).await?;
            }
            if context.out.json {
                context.out.document(&json!({"removed": names}))?;
            }
        }
    }
    Ok(0)
}

fn row(secret: &Secret) -> Vec<String> {
    vec![secret.name.clone(), units::ago(secret.created_at_ms), units::ago(secret.updated_at_ms)]
}

/// Byte for byte what the file or standard input holds; of a terminal, a line that is not shown.
fn value(name: &str, file: Option<&Path>) -> Result<Vec<u8>> {
    let failed = |what: &Path, error: io::Error| {
        Failure::new(Code::InvalidArgument, format!("{}: {error}", what.display()))
    };
    let from = file.filter(|file| *file != Path::new("-"));
    if let Some(file) = from {
        return fs::File::open(file).and_then(whole).map_err(|error| failed(file, error));
    }
    if file.is_none() && io::stdin().is_terminal() {
        return terminal::hidden_line(&format!("value of {name} (not shown): "))
            .map_err(|error| failed(Path::new("terminal"), error));
    }
    whole(io::stdin()).map_err(|error| failed(Path::new("standard input"), error))
}

/// Of what is too large, enough to be refused.
fn whole(from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    from.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
    Ok(value)
}
