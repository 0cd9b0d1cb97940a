//! The roles of a cluster: each runs here as a call into its crate, and nowhere else.

use std::{collections::BTreeMap, ffi::OsStr, net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use cooper_common::{
    config::{Config, Origin, Role},
    error::Code,
    limits::{self, link, stop, zygote},
    network, telemetry,
};
use cooper_coordinator::{
    Allowance, Hosts, Policy, Quota, Timing, Tls, runs, sessions::Defaults, upkeep::Keep,
};
use cooper_worker::{
    config::{Ports, Pythons},
    egress::dial::Place,
    slot::Slot,
};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
    up::preflight,
};

/// Processes that a worker's host starts: no command line, no settings, no runtime of ours.
pub fn internal(name: &OsStr) -> Option<ExitCode> {
    match name.to_str()? {
        "worker-link" => Some(cooper_worker::link::main()),
        cooper_worker::stack::OBSERVER_ARGV => Some(cooper_worker::stack::observe()),
        "worker-step" => Some(cooper_worker::stack::main()),
        cooper_worker::egress::ARGV => Some(cooper_worker::egress::main()),
        "worker-install" => Some(cooper_worker::host::install::main()),
        _ => None,
    }
}

pub fn coordinator(context: &Context, args: args::Coordinator) -> Result<u8> {
    tie_to(args.supervisor)?;
    // Others may pass the data directory: what a coordinator keeps in it is nobody else's to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let config = context.config(Role::Coordinator, args.settings.given)?;
    telemetry::init(&config.log_level());
    let Some(listen) = config.address("listen") else {
        return Err(Failure::new(Code::Internal, "setting listen is not an address"));
    };
    let config = cooper_coordinator::Config {
        listen,
        tls: tls(&config)?,
        insecure_listen: config.text("insecure_listen").as_deref() == Some("on"),
        hosts: match (config.text("allowed_hosts"), config.path("tls_cert").is_some()) {
            (Some(names), _) => Hosts::parse(&names),
            (None, false) if listen.ip().is_loopback() => Hosts::parse(""),
            (None, _) => Hosts::Any,
        },
        allowance: allowance(&config),
        data: config.data(),
        log_level: config.log_level(),
        timing: timing(&config),
        mcp_earlier: config.text("mcp_compat").as_deref() == Some("codegen"),
        keepalive: Duration::from_millis(config.integer("keepalive_ms").unwrap_or(link::KEEPALIVE_MS)),
        keep: keep(&config),
        checkpoints: checkpoints(&config),
        artifacts: artifacts(&config),
        quota: quota(&config),
        defaults: session_defaults(&config)?,
        repairs: repairs(&config)?,
    };
    let fail = |error| Failure::new(Code::Internal, format!("cannot start the async runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(fail)?;
    let end = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt()).map_err(fail)?, signal(SignalKind::terminate()).map_err(fail)?);
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        Ok(cooper_coordinator::serve(config, |_| {}, shutdown).await?)
    });
    runtime.shutdown_background();
    end.map(|()| 0)
}

fn allowance(config: &Config) -> Allowance {
    let default = Allowance::default();
    Allowance {
        requests_per_s: config.integer("token_requests").unwrap_or(default.requests_per_s),
        concurrent: config.integer("token_concurrent").unwrap_or(default.concurrent),
    }
}

fn tls(config: &Config) -> Result<Option<Tls>> {
    let (cert, key, client_ca) =
        (config.path("tls_cert"), config.path("tls_key"), config.path("tls_client_ca"));
    let worker_name = config.text("tls_worker_name").unwrap_or_default();
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(Tls { cert, key, client_ca, worker_name })),
        (None, None) if client_ca.is_none() => Ok(None),
        _ => {
            let message = "tls_cert and tls_key go together, and tls_client_ca only with them";
            Err(Failure::new(Code::ConfigInvalid, message).hint("set both, or none"))
        }
    }
}

fn repairs(config: &Config) -> Result<runs::Settings> {
    let default = runs::Settings::default();
    Ok(runs::Settings {
        rules: config.path("rules_dir").map_or(Ok(default.rules), |dir| runs::Rules::with(&dir))?,
        approval_ttl_ms: config.integer("approval_ttl_ms").unwrap_or(default.approval_ttl_ms),
        auto_repair: runs::AutoRepair {
            cooldown_ms: config.integer("auto_repair_cooldown_ms").unwrap_or(default.auto_repair.cooldown_ms),
            per_day: config.integer("auto_repair_per_day").unwrap_or(default.auto_repair.per_day),
        },
        policy: config.path("policy_file").map_or(Ok(default.policy), |path| runs::policy_file(&path))?,
        notify: notify(config)?,
        model: model(config)?,
    })
}

/// What sessions have that do not say so.
fn session_defaults(config: &Config) -> Result<Defaults> {
    let default = Defaults::default();
    Ok(Defaults {
        network: config.text("network").map_or(Ok(default.network), |text| Policy::parse(&text))?,
        memory_bytes: config.integer("session_memory_mib").map_or(default.memory_bytes, |mib| mib << 20),
        hibernate_after_ms: config.integer("hibernate_after_ms").unwrap_or(default.hibernate_after_ms),
    })
}

fn timing(config: &Config) -> Timing {
    let default = Timing::default();
    let time = |key, default| config.integer(key).unwrap_or(default);
    Timing {
        heartbeat_min_ms: time("heartbeat_ms", default.heartbeat_min_ms),
        suspect_beats: time("suspect_beats", default.suspect_beats),
        lease_ms: time("lease_ms", default.lease_ms),
        lost_ms: time("lost_ms", default.lost_ms),
        reattach_grace_ms: time("reattach_grace_ms", default.reattach_grace_ms),
        tick_ms: time("tick_ms", default.tick_ms),
    }
}

fn quota(config: &Config) -> Quota {
    Quota {
        sessions: config.integer("quota_sessions").unwrap_or(0),
        memory_bytes: config.integer("quota_memory_mib").unwrap_or(0) << 20,
        disk_bytes: config.integer("quota_disk_mib").unwrap_or(0) << 20,
    }
}

fn checkpoints(config: &Config) -> cooper_coordinator::checkpoints::Quota {
    let default = cooper_coordinator::checkpoints::Quota::default();
    cooper_coordinator::checkpoints::Quota {
        checkpoints: config.integer("quota_checkpoints").unwrap_or(default.checkpoints),
        bytes: config.integer("quota_checkpoint_mib").map_or(default.bytes, |mib| mib << 20),
        days: config.integer("keep_checkpoint_days").unwrap_or(default.days),
    }
}

fn artifacts(config: &Config) -> cooper_coordinator::artifacts::Quota {
    let default = cooper_coordinator::artifacts::Quota::default();
    cooper_coordinator::artifacts::Quota {
        artifacts: config.integer("quota_artifacts").unwrap_or(default.artifacts),
        bytes: config.integer("quota_artifact_mib").map_or(default.bytes, |mib| mib << 20),
        days: config.integer("keep_artifact_days").unwrap_or(default.days),
    }
}

/// The language model that is asked where no rule explains a failure, if one is set.
fn notify(config: &Config) -> Result<Option<runs::notify::Settings>> {
    let Some(url) = config.text("notify_url") else { return Ok(None) };
    let secret = config.token("notify_secret", "notify_secret_file").map_err(|error| {
        let what = format!(
            "setting notify_url: notifications are signed, and there is no secret: {}",
            error.message
        );
        Failure::new(Code::ConfigInvalid, what).hint("set notify_secret_file, or COOPER_NOTIFY_SECRET")
    })?;
    Ok(Some(runs::notify::Settings { url, secret }))
}

fn model(config: &Config) -> Result<Option<runs::model::Settings>> {
    let Some(url) = config.text("llm_url") else { return Ok(None) };
    let given = config.secret("llm_api_key").is_some() || config.path("llm_api_key_file").is_some();
    Ok(Some(runs::model::Settings {
        url,
        name: config.text("llm_model").unwrap_or_default(),
        key: given.then(|| config.token("llm_api_key", "llm_api_key_file")).transpose()?,
        timeout: Duration::from_millis(config.integer("llm_timeout_ms").unwrap_or(limits::model::TIMEOUT_MS)),
        tokens_per_day: config.integer("llm_tokens_per_day").unwrap_or(limits::model::TOKENS_PER_DAY),
        trusted: config.text("llm_approval").as_deref() == Some("policy"),
    }))
}

fn keep(config: &Config) -> Keep {
    let default = Keep::default();
    let number = |key, default| config.integer(key).unwrap_or(default);
    let bytes = |key, default| config.integer(key).map_or(default, |mib| mib << 20);
    Keep {
        tasks: number("keep_tasks", default.tasks),
        runs: number("keep_runs", default.runs),
        events: number("keep_events", default.events),
        audit: number("keep_audit", default.audit),
        output_bytes: bytes("keep_output_mib", default.output_bytes),
        days: number("keep_days", default.days),
        free_bytes: bytes("keep_free_mib", default.free_bytes),
    }
}

/// The host runs on this very thread, which is the only one: it forks.
pub fn worker(context: &Context, args: args::Worker) -> Result<u8> {
    tie_to(args.supervisor)?;
    let config = context.config(Role::Worker, args.settings.given)?;
    if args.supervisor.is_none() {
        preflight::not_beside_up(&config.data())?;
    }
    let slot = config.path("slots").map(|dir| Slot::claim(&dir)).transpose()?;
    let mut worker = worker_config(&config, slot.as_ref())?;
    if args.supervisor.is_some() {
        // `up` ends within seconds, so that Ctrl-C means what it says.
        worker.drain_ms = stop::UP_DRAIN_MS;
    }
    // What is wrong with its files is said now, and not by each link.
    worker.tls.read()?;
    cooper_worker::host::run(worker)?;
    Ok(0)
}

/// As a worker with these flags would be, as far as isolation goes; it needs nothing to join with.
pub fn surveyed(context: &Context, args: args::Doctor) -> Result<cooper_worker::config::Config> {
    use cooper_worker::confine::facilities::{Mask, Tier};
    let config = context.config(Role::Worker, args.settings.given)?;
    let nothing = cooper_common::token::Secret::from_text("");
    Ok(cooper_worker::config::Config {
        base_workspace: config.path("base_workspace"),
        python: Pythons::parse(&config.text("python").unwrap_or_default()),
        layer: config.path("layer"),
        tier_min: config.text("min_tier").and_then(|tier| Tier::parse(&tier)).unwrap_or(Tier::T0),
        mask: Mask::parse(&config.text("mask_facilities").unwrap_or_default())?,
        ports: Ports::parse(&config.text("ports").unwrap_or_default()),
        ..cooper_worker::config::Config::new(config.data().join("worker"), "", nothing)
    })
}

fn worker_config(config: &Config, slot: Option<&Slot>) -> Result<cooper_worker::config::Config> {
    use cooper_worker::{
        config::Timing,
        confine::facilities::{Mask, Tier},
    };
    let addr = config.text("coordinator_addr").unwrap_or_default();
    let labels: BTreeMap<String, String> = config.pairs("labels").into_iter().collect();
    let default = Timing::default();
    let time = |key, default| config.integer(key).unwrap_or(default);
    let number = |key, default| config.integer(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    let timing = Timing {
        keepalive_ms: time("keepalive_ms", default.keepalive_ms),
        reconnect_base_ms: time("reconnect_base_ms", default.reconnect_base_ms),
        reconnect_cap_ms: time("reconnect_cap_ms", default.reconnect_cap_ms),
    };
    let stacks = config.pairs("stacks").into_iter().map(|(name, dir)| (name, PathBuf::from(dir))).collect();
    let session_uids =
        config.text("session_uids").map(|range| cooper_worker::confine::uids::parse(&range)).transpose()?;
    let dir = slot.map_or_else(|| config.data().join("worker"), |slot| slot.dir.clone());
    let base = config.path("base_workspace");
    // By default it is beneath the data directory, which a worker in a slot has no use for.
    let usual = matches!(config.get("base_workspace").map(|entry| &entry.origin), Some(Origin::Default));
    let base = match slot {
        None => base,
        Some(_) if usual => None,
        Some(slot) => base.map(|base| base.join(&slot.name)),
    };
    let named = |id: String| slot.map_or_else(|| id.clone(), |slot| format!("{id}-{}", slot.number));
    Ok(cooper_worker::config::Config {
        base_workspace: base,
        worker_id: config.text("worker_id").map(named),
        max_sessions: config.integer("max_sessions").and_then(|number| u32::try_from(number).ok()),
        python: Pythons::parse(&config.text("python").unwrap_or_default()),
        preload: config.text("preload").filter(|tier| tier != "off"),
        layer: config.path("layer"),
        pool_low: number("pool_low", zygote::POOL_LOW),
        pool_high: number("pool_high", zygote::POOL_HIGH),
        stacks,
        drain_ms: time("drain_ms", link::DRAIN_MS),
        drain_checkpoint: config.text("drain_checkpoint").as_deref() == Some("on"),
        detach_max_ms: time("detach_max_ms", link::DETACH_MAX_MS),
        compose: config.text("compose").as_deref() != Some("off"),
        labels,
        tier_min: config.text("min_tier").and_then(|tier| Tier::parse(&tier)).unwrap_or(Tier::T0),
        mask: Mask::parse(&config.text("mask_facilities").unwrap_or_default())?,
        ports: Ports::parse(&config.text("ports").unwrap_or_default()),
        egress_allow: places(config, "egress_allow")?,
        egress_index: match config.text("egress_index").as_deref() {
            Some("off") => None,
            Some("auto") | None => Some(Vec::new()),
            Some(_) => Some(places(config, "egress_index")?),
        },
        egress_hosts: hosts(config)?,
        session_uids: slot.map_or(session_uids.clone(), |slot| Some(slot.uids(session_uids))),
        tls: cooper_worker::config::Tls {
            ca: config.path("tls_ca"),
            cert: config.path("tls_client_cert"),
            key: config.path("tls_client_key"),
            name: config.text("tls_worker_name").unwrap_or_default(),
        },
        timing,
        log_level: config.log_level(),
        health_listen: config.integer("health_port").map(|port| format!("127.0.0.1:{port}")),
        ..cooper_worker::config::Config::new(dir, addr, config.join_token()?)
    })
}

/// Hosts with commas between them.
fn places(config: &Config, key: &str) -> Result<Vec<Place>> {
    let text = config.text(key).unwrap_or_default();
    let named = text.split(',').map(str::trim).filter(|place| !place.is_empty());
    let place = |text: &str| {
        let message = format!("{key}: {text:?} is not host or host:port");
        Place::parse(text).ok_or_else(|| Failure::new(Code::ConfigInvalid, message))
    };
    named.map(place).collect()
}

fn hosts(config: &Config) -> Result<BTreeMap<String, IpAddr>> {
    let read = |(name, address): (String, String)| {
        let known = network::host(&name).zip(address.parse().ok());
        let message = format!("egress_hosts: {name}={address} is not a name and its address");
        known.ok_or_else(|| Failure::new(Code::ConfigInvalid, message))
    };
    config.pairs("egress_hosts").into_iter().map(read).collect()
}

/// SIGTERM for this process when its supervisor dies. A supervisor that is dead already ends it at once.
pub(crate) fn tie_to(supervisor: Option<u32>) -> Result<()> {
    let Some(supervisor) = supervisor else { return Ok(()) };
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let parent = getppid().map(Pid::as_raw_pid);
    if parent == i32::try_from(supervisor).ok() { Ok(()) } else { Err(Failure::Exit(1)) }
}
