//! `cooper audit`.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use cooper_common::{
    audit::{Entry, Link, Row},
    error::Code,
};
use cooper_proto::v1::{AuditRow, AuditVerdict, ExportAuditRequest, ListAuditRequest, VerifyAuditRequest};
use serde_json::json;

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
    units,
};

pub async fn run(context: &Context, args: args::Audit) -> Result<u8> {
    match args {
        args::Audit::List { limit, before } => {
            list(context, ListAuditRequest { before_seq: before, limit }).await
        }
        args::Audit::Verify { file: Some(file), .. } => show(context, &verify_file(&file)?),
        args::Audit::Verify { expect, file: None } => {
            let place = expect.map(|text| place(&text)).transpose()?.unwrap_or_default();
            let client = context.cluster()?.connect().await?;
            let request = VerifyAuditRequest { expected_seq: place.seq, expected_hash: place.hash };
            show(context, &client.admin().verify_audit(request).await?.into_inner())
        }
        args::Audit::Export { from, out } => export(context, from, out.as_deref()).await,
    }
}

async fn list(context: &Context, request: ListAuditRequest) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let rows = client.admin().list_audit(request).await?.into_inner().rows;
    if context.out.json {
        let rows: Vec<_> = rows.into_iter().map(row).collect();
        context.out.document(&json!({"rows": rows}))?;
        return Ok(0);
    }
    let cells = |row: &AuditRow| {
        let who = if row.name.is_empty() { row.token_id.clone() } else { row.name.clone() };
        vec![
            row.seq.to_string(),
            units::utc(row.at_ms),
            row.tenant.clone(),
            who,
            row.from.clone(),
            row.action.clone(),
            row.object.clone(),
            row.outcome.clone(),
            row.detail.clone(),
        ]
    };
    let titles = ["row", "when", "tenant", "who", "from", "action", "object", "outcome", "detail"];
    context.out.table(&titles, rows.iter().map(cells).collect())?;
    Ok(0)
}

/// As the trail is exported and verified.
fn row(row: AuditRow) -> Row {
    let entry = Entry {
        at_ms: row.at_ms,
        tenant: row.tenant,
        token_id: row.token_id,
        name: row.name,
        from: row.from,
        action: row.action,
        object: row.object,
        outcome: row.outcome,
        detail: row.detail,
    };
    Row { seq: row.seq, entry, hash: row.hash }
}

fn place(text: &str) -> Result<Link> {
    let parsed =
        text.split_once(':').and_then(|(seq, hash)| Some(Link { seq: seq.parse().ok()?, hash: hash.into() }));
    parsed.filter(|link| link.seq > 0).ok_or_else(|| {
        Failure::new(Code::InvalidArgument, format!("{text:?} is no place in the trail"))
            .hint("give SEQ:HASH as `cooper audit verify` prints it")
    })
}

fn show(context: &Context, verdict: &AuditVerdict) -> Result<u8> {
    let document = || {
        json!({
            "ok": verdict.ok,
            "rows": verdict.rows,
            "first_seq": verdict.first_seq,
            "last_seq": verdict.last_seq,
            "last_hash": verdict.last_hash,
            "findings": verdict.findings,
        })
    };
    let text = || {
        let mut lines = verdict.findings.clone();
        lines.push(match verdict.rows {
            0 => "no rows".to_owned(),
            rows => format!(
                "{rows} rows, {} to {}; the chain ends at\n{}:{}",
                verdict.first_seq, verdict.last_seq, verdict.last_seq, verdict.last_hash
            ),
        });
        lines.join("\n")
    };
    context.out.answer(document, text)?;
    Ok(if verdict.ok { 0 } else { 1 })
}

async fn export(context: &Context, from_seq: u64, out: Option<&Path>) -> Result<u8> {
    let client = context.cluster()?.connect().await?;
    let mut rows = client.admin().export_audit(ExportAuditRequest { from_seq }).await?.into_inner();
    let mut to: Box<dyn Write> = match out {
        None => Box::new(BufWriter::new(io::stdout().lock())),
        Some(path) => {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = file.map_err(|error| {
                Failure::new(Code::InvalidArgument, format!("{}: {error}", path.display()))
                    .hint("name a new file")
            })?;
            Box::new(BufWriter::new(file))
        }
    };
    while let Some(found) = rows.message().await? {
        serde_json::to_writer(&mut to, &row(found)).map_err(io::Error::from)?;
        to.write_all(b"\n")?;
    }
    to.flush()?;
    Ok(0)
}

/// Where a file begins is where it says: only what lies between its first row and its last is proven.
fn verify_file(path: &Path) -> Result<AuditVerdict> {
    let unusable = |what: String| {
        Failure::new(Code::InvalidArgument, format!("{}: {what}", path.display()))
            .hint("give a file that `cooper audit export` made")
    };
    let file = File::open(path).map_err(|error| unusable(error.to_string()))?;
    let mut verdict = AuditVerdict { ok: true, ..AuditVerdict::default() };
    let mut link: Option<Link> = None;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|error| unusable(error.to_string()))?;
        let row: Row = serde_json::from_str(&line).map_err(|error| unusable(error.to_string()))?;
        verdict.rows += 1;
        match &mut link {
            Some(link) => verdict.findings.extend(link.follow(&row).err()),
            None => {
                verdict.first_seq = row.seq;
                let mut first = Link::default();
                // What the first row of all follows on is known; of others it is not in the file.
                if row.seq == 1 {
                    verdict.findings.extend(first.follow(&row).err());
                }
                link = Some(Link { seq: row.seq, hash: row.hash.clone() });
            }
        }
    }
    let end = link.unwrap_or_default();
    (verdict.last_seq, verdict.last_hash) = (end.seq, end.hash);
    verdict.ok = verdict.findings.is_empty();
    Ok(verdict)
}
