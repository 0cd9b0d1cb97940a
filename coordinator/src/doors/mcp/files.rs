//! Tools for the files of a session's workspace.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use cooper_proto::v1::{self, read_file_response, write_file_request};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, said},
    tool::{READS, REPLACES, Reply, Tool},
};

/// Bytes of a file in one message.
const CHUNK_BYTES: usize = limits::link::CHUNK_BYTES_MAX;

pub fn tools() -> Vec<Tool> {
    vec![
        Tool::new(
            "file_read",
            READS,
            "Read a file of the session's workspace, whole or in part. Text comes as text, images as images, other \
             bytes as base64. Of a long file the first part comes with `truncated`: read on at `next_offset_bytes`.",
            read,
        ),
        Tool::new(
            "file_write",
            REPLACES,
            "Write a file of the session's workspace, atomically: what was there is replaced as a whole. Give \
             `content` for text or `content_base64` for bytes. With `if_match` it is written only if the file is still \
             the one that was read. To change part of a file, use file_edit.",
            write,
        ),
        Tool::new(
            "file_list",
            READS,
            "List a directory of the session's workspace, or everything beneath it. Hidden directories (.venv, .git) \
             are not entered unless `hidden`.",
            list,
        ),
        Tool::new(
            "file_stat",
            READS,
            "What is at a path of the session's workspace: kind, size, time, etag, and sha256 if asked for.",
            stat,
        ),
        Tool::new(
            "file_move",
            REPLACES,
            "Rename or move a file or directory of the session's workspace.",
            rename,
        ),
        Tool::new(
            "file_delete",
            REPLACES,
            "Delete a file of the session's workspace, or with `recursive` a directory and all beneath it.",
            delete,
        ),
        Tool::new(
            "file_search",
            READS,
            "Find a text or regular expression in the files of the session's workspace, as grep does: the lines that \
             match, with their files and numbers.",
            search,
        ),
        Tool::new(
            "file_edit",
            REPLACES,
            "Replace exact texts in one file of the session's workspace, all or none. Each `old` has to be there \
             exactly once, unless `all` is set: give enough of what stands around it.",
            edit,
        ),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Read {
    /// Relative to the workspace.
    path: String,
    /// First byte to read.
    #[serde(default)]
    offset_bytes: u64,
    /// How many bytes to read; 262144 by default, which is the most.
    length_bytes: Option<u64>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Write {
    /// Relative to the workspace. Directories that are missing are made.
    path: String,
    /// Text to write.
    content: Option<String>,
    /// Instead of `content`: bytes to write, in base64.
    content_base64: Option<String>,
    /// Permission bits, e.g. 493 for 0755; 0644 by default.
    mode: Option<u32>,
    /// Etag that the file must have, or "none" when no file may be there.
    if_match: Option<String>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    /// Directory, relative to the workspace; the workspace itself by default.
    path: Option<String>,
    /// All beneath it.
    #[serde(default)]
    recursive: bool,
    /// Only paths that match, e.g. "*.py" or "src/**".
    glob: Option<String>,
    /// Enter directories whose name begins with a dot.
    #[serde(default)]
    hidden: bool,
    /// At most so many; 200 by default, at most 1000.
    limit: Option<u32>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StatOf {
    /// Relative to the workspace.
    path: String,
    /// Also the sha256 of its content.
    #[serde(default)]
    sha256: bool,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Move {
    /// Relative to the workspace.
    from: String,
    /// The path it has afterwards. Directories that are missing are made.
    to: String,
    /// Replace a file that is there.
    #[serde(default)]
    overwrite: bool,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Delete {
    /// Relative to the workspace.
    path: String,
    /// A directory goes with all beneath it.
    #[serde(default)]
    recursive: bool,
    /// It is no error when nothing is there.
    #[serde(default)]
    missing_ok: bool,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Search {
    /// Text to find.
    pattern: String,
    /// The pattern is a regular expression.
    #[serde(default)]
    regex: bool,
    #[serde(default)]
    ignore_case: bool,
    /// Directory or file, relative to the workspace; the workspace itself by default.
    path: Option<String>,
    /// Only files that match, e.g. "*.py".
    glob: Option<String>,
    /// Enter directories whose name begins with a dot.
    #[serde(default)]
    hidden: bool,
    /// Lines at most; 100 by default, at most 500.
    limit: Option<u32>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// Relative to the workspace.
    path: String,
    /// One after the other, each on what the one before made.
    edits: Vec<Replacement>,
    /// Etag that the file must have.
    if_match: Option<String>,
    /// Id or name of a session; without it, the connection's own.
    session_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Replacement {
    /// What stands there, exactly, blanks and line ends included.
    old: String,
    /// What shall stand there.
    new: String,
    /// Replace it wherever it is.
    #[serde(default)]
    all: bool,
}

/// What is at a path.
#[derive(Default, Serialize, JsonSchema)]
pub struct Stat {
    pub path: String,
    /// file, dir, symlink or other.
    pub kind: String,
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    pub modified_at_ms: i64,
    /// Changes whenever the file does; for `if_match`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub etag: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Where a symbolic link leads.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link_target: String,
}
impl Reply for Stat {}

impl From<v1::FileStat> for Stat {
    fn from(stat: v1::FileStat) -> Self {
        let v1::FileStat { path, kind, size_bytes, mode, modified_at_ms, etag, sha256, link_target, .. } =
            stat;
        Self { path, kind, size_bytes, mode, modified_at_ms, etag, sha256, link_target }
    }
}

#[derive(Serialize, JsonSchema)]
struct Content {
    stat: Stat,
    /// What was read, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// What was read, where it is neither text nor an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    next_offset_bytes: u64,
    /// The file goes on at `next_offset_bytes`.
    truncated: bool,
    #[serde(skip)]
    image: Option<(&'static str, Vec<u8>)>,
}
impl Reply for Content {
    fn content(&self) -> Vec<ContentBlock> {
        let mut content = match (&self.text, &self.base64, &self.image) {
            (Some(text), _, _) => vec![ContentBlock::text(text)],
            (_, Some(base64), _) => vec![ContentBlock::text(base64)],
            (_, _, Some((kind, bytes))) => vec![ContentBlock::image(STANDARD.encode(bytes), *kind)],
            _ => Vec::new(),
        };
        if self.truncated {
            let (next, size) = (self.next_offset_bytes, self.stat.size_bytes);
            content.push(ContentBlock::text(format!(
                "[cut at byte {next} of {size}: read on at offset_bytes {next}]"
            )));
        }
        content
    }
}

#[derive(Serialize, JsonSchema)]
struct Listing {
    files: Vec<Stat>,
    /// There is more: give it as `cursor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}
impl Reply for Listing {
    fn content(&self) -> Vec<ContentBlock> {
        let mut lines: Vec<String> = self
            .files
            .iter()
            .map(|stat| match stat.kind.as_str() {
                "dir" => format!("{}/", stat.path),
                "symlink" => format!("{} -> {}", stat.path, stat.link_target),
                _ => format!("{} ({} bytes)", stat.path, stat.size_bytes),
            })
            .collect();
        if lines.is_empty() {
            lines.push("(nothing)".to_owned());
        }
        lines.extend(self.next_cursor.as_ref().map(|cursor| format!("[there is more: cursor {cursor}]")));
        vec![ContentBlock::text(lines.join("\n"))]
    }
}

#[derive(Serialize, JsonSchema)]
struct Deleted {
    /// Files, directories and links that are gone.
    entries: u64,
}
impl Reply for Deleted {}

#[derive(Serialize, JsonSchema)]
struct Found {
    matches: Vec<Match>,
    /// There may be more matches.
    truncated: bool,
    files_searched: u64,
}
#[derive(Serialize, JsonSchema)]
struct Match {
    path: String,
    /// From 1.
    line: u64,
    /// Of the first match in the line, in bytes, from 1.
    column: u32,
    text: String,
}
impl Reply for Found {
    fn content(&self) -> Vec<ContentBlock> {
        let mut lines: Vec<String> = self
            .matches
            .iter()
            .map(|found| format!("{}:{}: {}", found.path, found.line, found.text))
            .collect();
        if lines.is_empty() {
            lines.push(format!("nothing in {} files", self.files_searched));
        }
        if self.truncated {
            lines.push("[there may be more: search more narrowly]".to_owned());
        }
        vec![ContentBlock::text(lines.join("\n"))]
    }
}

#[derive(Serialize, JsonSchema)]
struct Edited {
    stat: Stat,
    /// Texts that were replaced.
    replaced: u32,
}
impl Reply for Edited {}

/// A part of a file, and what the file is.
pub async fn part(
    call: &Call,
    session_id: &str,
    path: &str,
    offset: u64,
    length: u64,
) -> Result<(v1::FileStat, Vec<u8>)> {
    let read = v1::ReadFileRequest {
        session_id: session_id.to_owned(),
        path: path.to_owned(),
        offset_bytes: offset,
        length_bytes: length,
        ..Default::default()
    };
    let mut parts = call.sessions().read_file(call.by(read)).await.map_err(said)?.into_inner();
    let (mut stat, mut bytes) = (v1::FileStat::default(), Vec::new());
    while let Some(part) = parts.message().await.map_err(said)? {
        match part.part {
            Some(read_file_response::Part::Stat(is)) => stat = is,
            Some(read_file_response::Part::Data(data)) => bytes.extend_from_slice(&data),
            None => {}
        }
    }
    Ok((stat, bytes))
}

/// A file that fits.
pub async fn whole(call: &Call, session_id: &str, path: &str, bytes_max: usize) -> Result<Vec<u8>> {
    let (stat, bytes) = part(call, session_id, path, 0, bytes_max as u64 + 1).await?;
    if bytes.len() > bytes_max {
        let what = format!("{path} has {} bytes; at most {bytes_max}", stat.size_bytes);
        return Err(Error::new(Code::TooLarge, what));
    }
    Ok(bytes)
}

async fn read(call: Call, asked: Read) -> Result<Content> {
    let most = limits::mcp::READ_BYTES_MAX as u64;
    let length = asked.length_bytes.unwrap_or(most);
    if length == 0 || length > most {
        return Err(Error::invalid(format!("length_bytes is {length}; from 1 to {most}")));
    }
    let place = call.place(asked.session_id).await?;
    let (stat, mut bytes) = part(&call, &place.session_id, &asked.path, asked.offset_bytes, length).await?;
    let all = asked.offset_bytes == 0 && bytes.len() as u64 >= stat.size_bytes;
    let image = image_kind(&bytes).filter(|_| all);
    let (mut text, mut base64, mut shown) = (None, None, None);
    match (image, whole_characters(&bytes)) {
        (Some(kind), _) => shown = Some((kind, bytes.clone())),
        (None, Some(end)) => {
            // A character that is cut comes whole with the next part.
            bytes.truncate(end);
            text = Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        (None, None) => base64 = Some(STANDARD.encode(&bytes)),
    }
    let next_offset_bytes = asked.offset_bytes + bytes.len() as u64;
    let truncated = next_offset_bytes < stat.size_bytes;
    Ok(Content { stat: stat.into(), text, base64, next_offset_bytes, truncated, image: shown })
}

/// Where the last whole character of text ends; None: it is no text.
fn whole_characters(bytes: &[u8]) -> Option<usize> {
    match std::str::from_utf8(bytes) {
        Ok(text) => (!text.contains('\0')).then_some(bytes.len()),
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => Some(error.valid_up_to()),
        Err(_) => None,
    }
}

/// By its first bytes; those that models can see.
fn image_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

async fn write(call: Call, asked: Write) -> Result<Stat> {
    let bytes = match (asked.content, asked.content_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map_err(|error| Error::invalid(format!("content_base64 is not base64: {error}")))?,
        _ => return Err(Error::invalid("give either content or content_base64")),
    };
    let place = call.place(asked.session_id).await?;
    let header = v1::WriteFileHeader {
        session_id: place.session_id,
        path: asked.path,
        mode: asked.mode.unwrap_or_default(),
        create_dirs: true,
        if_match: asked.if_match.unwrap_or_default(),
        ..Default::default()
    };
    put(&call, header, &bytes).await
}

/// Writes a file as a whole.
pub async fn put(call: &Call, header: v1::WriteFileHeader, bytes: &[u8]) -> Result<Stat> {
    let header = v1::WriteFileRequest { part: Some(write_file_request::Part::Header(header)) };
    let data = bytes
        .chunks(CHUNK_BYTES)
        .map(|part| v1::WriteFileRequest { part: Some(write_file_request::Part::Data(part.to_vec())) });
    let parts: Vec<_> = std::iter::once(header).chain(data).collect();
    let request = call.by(tokio_stream::iter(parts));
    let written = call.sessions().write_file(request).await.map_err(said)?.into_inner();
    Ok(written.stat.unwrap_or_default().into())
}

async fn list(call: Call, asked: List) -> Result<Listing> {
    let limit = page(asked.limit, 200, limits::mcp::LISTED_MAX)?;
    let place = call.place(asked.session_id).await?;
    let request = v1::ListFilesRequest {
        session_id: place.session_id,
        path: asked.path.unwrap_or_default(),
        recursive: asked.recursive,
        glob: asked.glob.unwrap_or_default(),
        limit,
        cursor: asked.cursor.unwrap_or_default(),
        hidden: asked.hidden,
    };
    let listed = call.sessions().list_files(call.by(request)).await.map_err(said)?.into_inner();
    let next_cursor = Some(listed.next_cursor).filter(|cursor| !cursor.is_empty());
    Ok(Listing { files: listed.files.into_iter().map(Stat::from).collect(), next_cursor })
}

/// How many rows an answer may have.
pub fn page(asked: Option<u32>, default: u32, most: u32) -> Result<u32> {
    match asked.unwrap_or(default) {
        limit if limit == 0 || limit > most => {
            Err(Error::invalid(format!("limit is {limit}; from 1 to {most}")))
        }
        limit => Ok(limit),
    }
}

async fn stat(call: Call, asked: StatOf) -> Result<Stat> {
    let place = call.place(asked.session_id).await?;
    let request = v1::StatFileRequest {
        session_id: place.session_id,
        path: asked.path,
        sha256: asked.sha256,
        follow: false,
    };
    Ok(call.sessions().stat_file(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn rename(call: Call, asked: Move) -> Result<Stat> {
    let place = call.place(asked.session_id).await?;
    let request = v1::MoveFileRequest {
        session_id: place.session_id,
        from: asked.from,
        to: asked.to,
        overwrite: asked.overwrite,
        create_dirs: true,
    };
    Ok(call.sessions().move_file(call.by(request)).await.map_err(said)?.into_inner().into())
}

async fn delete(call: Call, asked: Delete) -> Result<Deleted> {
    let place = call.place(asked.session_id).await?;
    let request = v1::DeleteFileRequest {
        session_id: place.session_id,
        path: asked.path,
        recursive: asked.recursive,
        missing_ok: asked.missing_ok,
    };
    let deleted = call.sessions().delete_file(call.by(request)).await.map_err(said)?.into_inner();
    Ok(Deleted { entries: deleted.entries })
}

async fn search(call: Call, asked: Search) -> Result<Found> {
    let limit = page(asked.limit, 100, 500)?;
    let place = call.place(asked.session_id).await?;
    let request = v1::SearchFilesRequest {
        session_id: place.session_id,
        path: asked.path.unwrap_or_default(),
        pattern: asked.pattern,
        regex: asked.regex,
        ignore_case: asked.ignore_case,
        glob: asked.glob.unwrap_or_default(),
        hidden: asked.hidden,
        limit,
    };
    let found = call.sessions().search_files(call.by(request)).await.map_err(said)?.into_inner();
    let matches = found.matches.into_iter().map(|found| {
        let v1::SearchMatch { path, line, column, text } = found;
        Match { path, line, column, text }
    });
    Ok(Found { matches: matches.collect(), truncated: found.truncated, files_searched: found.files_searched })
}

async fn edit(call: Call, asked: Edit) -> Result<Edited> {
    let place = call.place(asked.session_id).await?;
    let edits = asked.edits.into_iter().map(|edit| v1::Edit {
        old: edit.old.into_bytes(),
        new: edit.new.into_bytes(),
        count: 0,
        all: edit.all,
    });
    let request = v1::EditFileRequest {
        session_id: place.session_id,
        path: asked.path,
        edits: edits.collect(),
        if_match: asked.if_match.unwrap_or_default(),
    };
    let edited = call.sessions().edit_file(call.by(request)).await.map_err(said)?.into_inner();
    Ok(Edited { stat: edited.stat.unwrap_or_default().into(), replaced: edited.replaced })
}
