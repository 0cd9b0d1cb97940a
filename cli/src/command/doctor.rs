//! `cooper doctor`: what would confine sessions on this machine, what would not, and what brings the next tier. Asks
//! nobody: it probes as a worker with the same settings does.

use cooper_worker::{
    config::Ports,
    confine::{
        capabilities,
        facilities::{Facilities, LANDLOCK_WITH_SCOPES, LANDLOCK_WITH_TCP},
    },
    host::doctor::{Survey, survey},
};
use serde_json::json;

use crate::{args, context::Context, failure::Result, role};

/// 0 when a worker here would take sessions, 1 when not.
pub fn run(context: &Context, args: args::Doctor) -> Result<u8> {
    let config = role::surveyed(context, args)?;
    let Survey { facilities, notes, pythons } = survey(&config);
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
        })
    };
    let text = || {
        let python = match pythons.is_empty() {
            true => "none that can be used".to_owned(),
            false => pythons.join(", "),
        };
        let takes = if takes { "sessions are taken" } else { "sessions are refused" };
        let mut lines = vec![
            format!("tier      {tier} ({takes}; min_tier is {})", config.tier_min),
            format!("kernel    {}", facilities.kernel),
            format!("python    {python}"),
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
        lines.extend(facilities.next().map(|next| format!("for the next tier: {next}")));
        lines.join("\n")
    };
    context.out.answer(document, text)?;
    Ok(u8::from(!takes))
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
