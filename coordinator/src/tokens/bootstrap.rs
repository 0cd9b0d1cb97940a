//! The two tokens of a first start: one for the person at the machine, one for its workers.

use std::{fs, io, path::Path};

use cooper_common::{
    error::{Code, Error, Result},
    ids::TokenId,
    token::{Scope, Secret},
};
use cooper_core::change::Aggregate;

use super::{Body, DEFAULT_TENANT, Tokens};

/// Names in the data directory; readable by their owner only.
pub const ADMIN_FILE: &str = "admin.token";
pub const WORKER_FILE: &str = "worker.token";

/// Makes sure that both files exist and that the store knows what is in them: a new data directory gets both, a new
/// store beside old files learns them. A token that was revoked stays so.
pub(super) async fn bootstrap(data: &Path, tokens: &Tokens) -> Result<()> {
    for (file, scope) in [(ADMIN_FILE, Scope::Admin), (WORKER_FILE, Scope::Worker)] {
        let path = data.join(file);
        // First the file: a start that dies in between is mended by the next.
        let secret = secret_of(&path).map_err(|cause| {
            Error::new(Code::DataUnusable, format!("{} cannot be used: {cause}", path.display()))
                .with_hint("make it readable for this user, or delete it to get a new one")
        })?;
        match tokens.store.by_key(Aggregate::Token, None, &secret.hash()).await? {
            // It must not come back by the file.
            None if tokens.was_replaced(&secret).await? => {
                tracing::warn!(path = %path.display(), "this token was rotated; write its new secret there");
            }
            None => {
                let body = Body::new(scope, file.to_owned(), 0);
                tokens.insert(TokenId::new(), DEFAULT_TENANT, body, &secret).await?;
                tracing::info!(path = %path.display(), scope = scope.as_str(), "token created");
            }
            Some(record) if record.row.ended => {
                tracing::warn!(path = %path.display(), "this token was revoked; delete the file to get a new one");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn secret_of(path: &Path) -> io::Result<Secret> {
    match Secret::read(path) {
        Ok(secret) if !secret.expose().is_empty() => return Ok(secret),
        // A start that died while it wrote.
        Ok(_) => fs::remove_file(path)?,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        Err(cause) => return Err(cause),
    }
    let secret = Secret::generate();
    secret.write_new(path)?;
    Ok(secret)
}
