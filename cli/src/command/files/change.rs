//! `cooper files` mv, cp, rm, mkdir, chmod, edit. Quiet when fine.

use cooper_proto::v1::{
    ChangeModeRequest, CopyFileRequest, DeleteFileRequest, Edit, EditFileRequest, FileStat, MakeDirRequest,
    MoveFileRequest,
};
use serde_json::{Value, json};

use crate::{
    args::{Files, FromTo},
    context::Context,
    failure::Result,
    output::json,
};

/// `to`, or the name of `from` in it.
fn target(from: &str, to: String) -> String {
    match from.trim_end_matches('/').rsplit('/').next() {
        Some(name) if to.ends_with('/') => format!("{to}{name}"),
        _ => to,
    }
}

fn answer(context: &Context, session: String, stat: Option<&FileStat>, more: &[(&str, Value)]) -> Result<u8> {
    if context.out.json {
        let mut document = stat.map_or_else(|| json!({}), json::file);
        document["session_id"] = session.into();
        for (name, value) in more {
            document[*name] = value.clone();
        }
        context.out.document(&document)?;
    }
    Ok(0)
}

pub async fn mv(context: &Context, names: FromTo) -> Result<u8> {
    let FromTo { session, from, to, overwrite } = names;
    let client = context.cluster()?.connect().await?;
    let to = target(&from, to);
    let request = MoveFileRequest { session_id: session.clone(), from, to, overwrite, create_dirs: true };
    let stat = client.sessions().move_file(request).await?.into_inner();
    answer(context, session, Some(&stat), &[])
}

pub async fn cp(context: &Context, names: FromTo) -> Result<u8> {
    let FromTo { session, from, to, overwrite } = names;
    let client = context.cluster()?.connect().await?;
    let to = target(&from, to);
    let request = CopyFileRequest { session_id: session.clone(), from, to, overwrite, create_dirs: true };
    let copied = client.sessions().copy_file(request).await?.into_inner();
    if copied.skipped > 0 && !context.out.json {
        context.out.note(&format!("note: {} left out: not readable, or no files", copied.skipped));
    }
    let more = [
        ("entries", copied.entries.into()),
        ("copied_bytes", copied.size_bytes.into()),
        ("skipped", copied.skipped.into()),
    ];
    answer(context, session, copied.stat.as_ref(), &more)
}

pub async fn rm(
    context: &Context,
    session: String,
    path: String,
    recursive: bool,
    force: bool,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = DeleteFileRequest { session_id: session.clone(), path, recursive, missing_ok: force };
    let deleted = client.sessions().delete_file(request).await?.into_inner();
    answer(context, session, None, &[("entries", deleted.entries.into())])
}

pub async fn mkdir(context: &Context, session: String, path: String, mode: u32) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = MakeDirRequest { session_id: session.clone(), path, mode };
    let stat = client.sessions().make_dir(request).await?.into_inner();
    answer(context, session, Some(&stat), &[])
}

pub async fn chmod(context: &Context, session: String, path: String, mode: u32) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = ChangeModeRequest { session_id: session.clone(), path, mode };
    let stat = client.sessions().change_mode(request).await?.into_inner();
    answer(context, session, Some(&stat), &[])
}

pub async fn edit(context: &Context, args: Files) -> Result<u8> {
    let Files::Edit { session, path, old, new, count, all, if_match } = args else { return Ok(2) };
    let client = context.cluster()?.connect().await?;
    let edit = Edit { old: old.into_bytes(), new: new.into_bytes(), count, all };
    let request = EditFileRequest { session_id: session.clone(), path, edits: vec![edit], if_match };
    let edited = client.sessions().edit_file(request).await?.into_inner();
    answer(context, session, edited.stat.as_ref(), &[("replaced", edited.replaced.into())])
}
