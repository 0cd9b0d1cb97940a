//! The repository that a stack's files are in, by the git command line; nothing that it configures is run.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use cooper_common::error::Result;
use cooper_repair::limits;

use super::process;

/// Looking at a repository takes no longer, or it is done without.
const LOOK: Duration = Duration::from_secs(15);

/// `git ARGS` in a directory, with nothing of its repository's configuration that would start a program, and without
/// locks for what only looks.
pub(super) fn git(dir: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = process::tool("git", dir);
    for setting in ["safe.directory=*", "core.fsmonitor=false", "core.hooksPath=/dev/null", "gc.auto=0"] {
        command.args(["-c", setting]);
    }
    command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_TERMINAL_PROMPT", "0");
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Files beneath a directory that are not committed as they are, by path from the repository's root, with git's two
/// letters; bounded. Empty where there is no repository or no git.
pub(super) async fn uncommitted(dir: &Path) -> Result<Vec<String>> {
    let args = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--", "."];
    let Ok(told) = process::read(git(dir, args), LOOK).await else { return Ok(vec![]) };
    if !told.status.success() {
        return Ok(vec![]);
    }
    let text = String::from_utf8_lossy(&told.output).into_owned();
    let mut files: Vec<String> =
        text.split('\0').filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let more = files.len().saturating_sub(limits::UNCOMMITTED_MAX);
    files.truncate(limits::UNCOMMITTED_MAX);
    if more > 0 {
        files.push(format!("and {more} more"));
    }
    Ok(files)
}
