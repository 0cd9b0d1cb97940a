//! `cooper files` ls, find, grep, stat.

use cooper_common::path_text::shown;
use cooper_proto::v1::{FileStat, ListFilesRequest, SearchFilesRequest, StatFileRequest};
use serde_json::{Value, json};

use crate::{
    args::{Files, ListWhich},
    context::Context,
    failure::Result,
    output::json,
    units,
};

pub async fn ls(
    context: &Context,
    session: String,
    path: String,
    which: ListWhich,
    recursive: bool,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let ListWhich { glob, hidden, limit, cursor } = which;
    // What every worker knows, unless more is asked for.
    let limit = if limit == 10_000 { 0 } else { limit };
    let request =
        ListFilesRequest { session_id: session.clone(), path, recursive, glob, limit, cursor, hidden };
    let answer = client.sessions().list_files(request).await?.into_inner();
    if context.out.json {
        let files: Vec<_> = answer.files.iter().map(json::file).collect();
        let mut document = json!({"session_id": session, "files": files, "truncated": answer.truncated});
        if !answer.next_cursor.is_empty() {
            document["next_cursor"] = answer.next_cursor.into();
        }
        context.out.document(&document)?;
        return Ok(0);
    }
    context.out.table(&["mode", "size", "modified", "path"], answer.files.iter().map(row).collect())?;
    if !answer.next_cursor.is_empty() {
        context.out.note(&format!("note: there are more: --cursor {:?}", answer.next_cursor));
    } else if answer.truncated {
        context.out.note("note: there are more; only the first are listed");
    }
    Ok(0)
}

fn row(file: &FileStat) -> Vec<String> {
    let slash = if file.kind == "dir" { "/" } else { "" };
    let size = if file.kind == "file" { units::human_bytes(file.size_bytes) } else { file.kind.clone() };
    let target = match file.link_target.as_str() {
        "" => String::new(),
        target => format!(" -> {}", shown(target)),
    };
    vec![
        format!("{:04o}", file.mode),
        size,
        units::ago(file.modified_at_ms),
        format!("{}{slash}{target}", shown(&file.path)),
    ]
}

/// All pages, as they come.
pub async fn find(
    context: &Context,
    session: String,
    path: String,
    glob: String,
    hidden: bool,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let mut request = ListFilesRequest {
        session_id: session.clone(),
        path,
        recursive: true,
        glob,
        hidden,
        ..ListFilesRequest::default()
    };
    let (mut files, mut truncated) = (Vec::<Value>::new(), false);
    loop {
        let answer = client.sessions().list_files(request.clone()).await?.into_inner();
        for file in &answer.files {
            match context.out.json {
                true => files.push(json::file(file)),
                false => context.out.line(&shown(&file.path))?,
            }
        }
        if answer.next_cursor.is_empty() {
            truncated |= answer.truncated;
            break;
        }
        request.cursor = answer.next_cursor;
    }
    if context.out.json {
        context.out.document(&json!({"session_id": session, "files": files, "truncated": truncated}))?;
    } else if truncated {
        context.out.note("note: some directories could not be read, or are too deep");
    }
    Ok(0)
}

/// 1 = nothing found, as with grep(1).
pub async fn grep(context: &Context, args: Files) -> Result<u8> {
    let Files::Grep { session, pattern, path, fixed, ignore_case, glob, hidden, limit } = args else {
        return Ok(2);
    };
    let client = context.cluster()?.connect().await?;
    let request = SearchFilesRequest {
        session_id: session.clone(),
        path: path.unwrap_or_default(),
        pattern,
        regex: !fixed,
        ignore_case,
        glob,
        hidden,
        limit,
    };
    let answer = client.sessions().search_files(request).await?.into_inner();
    let found = u8::from(answer.matches.is_empty());
    if context.out.json {
        let matches: Vec<_> = answer
            .matches
            .iter()
            .map(|it| json!({"path": it.path, "line": it.line, "column": it.column, "text": it.text}))
            .collect();
        context.out.document(&json!({
            "session_id": session,
            "matches": matches,
            "truncated": answer.truncated,
            "files_searched": answer.files_searched,
            "files_skipped": answer.files_skipped,
        }))?;
        return Ok(found);
    }
    for it in &answer.matches {
        context.out.line(&format!("{}:{}:{}", shown(&it.path), it.line, shown(&it.text)))?;
    }
    if answer.truncated {
        context.out.note("note: there may be more; narrow the search, or raise --limit");
    }
    Ok(found)
}

pub async fn stat(
    context: &Context,
    session: String,
    path: String,
    sha256: bool,
    follow: bool,
) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let request = StatFileRequest { session_id: session.clone(), path, sha256, follow };
    let stat = client.sessions().stat_file(request).await?.into_inner();
    if context.out.json {
        let mut document = json::file(&stat);
        document["session_id"] = session.into();
        context.out.document(&document)?;
        return Ok(0);
    }
    let mut lines = vec![
        ("path", shown(&stat.path)),
        ("kind", stat.kind.clone()),
        ("size", stat.size_bytes.to_string()),
        ("mode", format!("{:04o}", stat.mode)),
        ("modified", units::ago(stat.modified_at_ms)),
    ];
    let more = [("etag", &stat.etag), ("sha256", &stat.sha256), ("leads to", &stat.link_target)];
    lines.extend(
        more.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, shown(text))),
    );
    for (name, text) in lines {
        context.out.line(&format!("{name:9} {text}"))?;
    }
    Ok(0)
}
