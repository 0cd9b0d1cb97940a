//! `cooper doctor`: what this machine has for sessions and repairs, what would confine sessions on it, and what brings the next
//! tier; or whether the coordinator can be reached from here.

mod coordinator;
mod finding;
mod machine;

use cooper_common::config::Role;
use cooper_worker::{
    config::Ports,
    confine::{
        capabilities,
        facilities::{Facilities, LANDLOCK_WITH_SCOPES, LANDLOCK_WITH_TCP},
    },
    host::doctor::{Survey, survey},
};
use serde_json::json;

use self::finding::Finding;
use super::block_on;
use crate::{args, context::Context, failure::Result, role};

pub fn run(context: &Context, args: args::Doctor) -> Result<u8> {
    if args.coordinator { coordinator(context, args) } else { this_machine(context, args) }
}

/// 0 when it can be worked with from here, 1 when not.
fn coordinator(context: &Context, args: args::Doctor) -> Result<u8> {
    let worker = context.config(Role::Worker, args.settings.given)?;
    let (url, config) = coordinator::url(context, &worker)?;
    let found = block_on(async { Ok(coordinator::findings(context, &url, &config).await) })?;
    // A worker's machine has no token of a client's: all else counts.
    let usable = found.iter().all(|finding| finding.ok || finding.name == "token");
    let document = || {
        let checks: Vec<_> = found.iter().map(Finding::document).collect();
        json!({"url": url, "usable": usable, "checks": checks})
    };
    context.out.answer(document, || found.iter().map(Finding::line).collect::<Vec<_>>().join("\n"))?;
    Ok(u8::from(!usable))
}

/// 0 when a worker here would take sessions, 1 when not.
fn this_machine(context: &Context, args: args::Doctor) -> Result<u8> {
    let config = role::surveyed(context, args)?;
    // First, as it forks: nothing else of this process runs yet.
    let Survey { facilities, notes, pythons } = survey(&config);
    let found = machine_findings(context, &facilities, &pythons)?;
    let tier = facilities.tier();
    let takes = tier >= config.tier_min && !pythons.is_empty();
    let kept = capabilities::names(capabilities::needed(&facilities));
    let (enforced, watched) = (enforced(&facilities), watched(&facilities));
    let open = not_contained(&facilities, config.ports);
    let document = || {
        json!({
            "tier": tier.as_str(),
            "min_tier": config.tier_min.as_str(),
            "takes_sessions": takes,
            "several_tenants": facilities.uid && facilities.seccomp,
            "kernel": facilities.kernel,
            "python": pythons.first(),
            "pythons": pythons,
            "facilities": facilities.names(),
            "capabilities_kept": kept,
            "enforced": enforced,
            "watched": watched,
            "not_contained": open,
            "notes": notes,
            "next": facilities.next(),
            "checks": found.iter().map(Finding::document).collect::<Vec<_>>(),
        })
    };
    let text = || {
        let takes = if takes { "sessions are taken" } else { "sessions are refused" };
        let mut lines = vec![
            format!("tier      {tier} ({takes}; min_tier is {})", config.tier_min),
            format!("kernel    {}", facilities.kernel),
            format!("has       {}", facilities.names().join(", ")),
            format!(
                "keeps     {}",
                if kept.is_empty() { "no capability".to_owned() } else { kept.join(", ") }
            ),
        ];
        for (title, list) in [("enforced", &enforced), ("watched", &watched), ("not contained", &open)] {
            lines.push(format!("{title}:"));
            lines.extend(list.iter().map(|line| format!("  - {line}")));
        }
        lines.extend(notes.iter().map(|note| format!("note: {note}")));
        lines.push("this machine:".to_owned());
        lines.extend(found.iter().map(Finding::line));
        lines.extend(facilities.next().map(|next| format!("for the next tier: {next}")));
        lines.join("\n")
    };
    context.out.answer(document, text)?;
    Ok(u8::from(!takes))
}

fn machine_findings(context: &Context, facilities: &Facilities, pythons: &[String]) -> Result<Vec<Finding>> {
    let settings = context.config(Role::Up, Default::default())?;
    let python = match pythons.is_empty() {
        true => Finding::bad(
            "python",
            "none that can be used",
            "sessions need Python 3.9 or newer (setting `python`)",
        ),
        false => Finding::good("python", pythons.join(", ")),
    };
    let mut found = vec![python];
    found.extend(machine::kernel(facilities));
    found.extend(block_on(async { Ok(machine::engine().await) })?);
    found.extend(settings.address("listen").map(machine::port));
    found.push(machine::disk(&settings.data()));
    Ok(found)
}

fn those(list: &[(bool, &'static str)]) -> Vec<&'static str> {
    list.iter().filter(|(holds, _)| *holds).map(|(_, what)| *what).collect()
}

fn enforced(has: &Facilities) -> Vec<&'static str> {
    those(&[
        (has.uid, "a uid for each session: files, signals and processes of others"),
        (has.landlock > 0, "Landlock: files of the machine, of the worker and of other sessions"),
        (has.seccomp, "seccomp: dangerous system calls, and sockets other than TCP"),
        (has.namespaces || has.landlock >= LANDLOCK_WITH_TCP, "no network but what a session's policy names"),
        (has.network && has.filter, "what sessions listen on: nobody gets there but clients with a token"),
        (has.namespaces, "namespaces: a view of the machine with nothing else in it"),
        (has.cgroup.memory, "memory of a session (control group)"),
        (has.cgroup.pids, "processes and threads of a session (control group)"),
        (!has.cgroup.pids && has.uid, "processes and threads of a session (by uid)"),
        (has.cgroup.cpu, "processor time of a session, and fair shares (control group)"),
        (true, "size of one file, open files of one process; time and output of an execution"),
    ])
}

fn watched(has: &Facilities) -> Vec<&'static str> {
    those(&[
        (true, "disk space and number of files of a session, and free space on the disk"),
        (!has.cgroup.memory, "memory of a session, beside the address space of each process"),
        (!has.cgroup.pids && !has.uid, "processes of a session"),
    ])
}

fn not_contained(has: &Facilities, ports: Ports) -> Vec<&'static str> {
    those(&[
        (!has.seccomp, "system calls: the whole kernel is open to sessions"),
        (!has.uid, "sessions of one worker share its uid: it holds those of one tenant"),
        (!has.uid && has.landlock < LANDLOCK_WITH_SCOPES, "signals to other processes of the uid"),
        (has.landlock == 0 && !has.namespaces, "files that everybody on the machine may read"),
        (
            ports == Ports::On && has.network && !has.filter,
            "what sessions listen on: every process in the worker's network namespace gets there (`ports` = on)",
        ),
        (!has.cgroup.cpu, "processor time"),
        (true, "faults of the kernel, which all sessions share; timing and caches of the processor"),
    ])
}
