//! What is left on the machine when everything was stopped.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use anyhow::Result;

use super::verdict::Findings;

pub fn look(dir: &Path, findings: &mut Findings) -> Result<()> {
    // Whoever called us names the directory too.
    let mut spared = vec![std::process::id()];
    while let Some(parent) = spared.last().and_then(|pid| parent(*pid)) {
        spared.push(parent);
    }
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !spared.contains(&pid) && touches(pid, dir) {
            let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args = String::from_utf8_lossy(&args).replace('\0', " ");
            findings.leaked(format!("process {pid}: {args}"));
        }
    }
    for worker in fs::read_dir(dir)? {
        let worker = worker?.path().join("worker");
        for what in ["sessions", "spool"] {
            let Ok(left) = fs::read_dir(worker.join(what)) else { continue };
            for left in left {
                findings.leaked(format!("file {}", left?.path().display()));
            }
        }
    }
    Ok(())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 0)
}

/// Names the directory in its arguments or environment, or works in it. A zombie does neither.
fn touches(pid: u32, dir: &Path) -> bool {
    let proc = format!("/proc/{pid}");
    let names = |file: &str| {
        let bytes = fs::read(format!("{proc}/{file}")).unwrap_or_default();
        bytes.windows(dir.as_os_str().len()).any(|window| window == dir.as_os_str().as_bytes())
    };
    names("cmdline")
        || names("environ")
        || fs::read_link(format!("{proc}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
}
