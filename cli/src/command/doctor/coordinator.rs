//! The coordinator, as this machine sees it: where it is, whether it answers, its clock and what it makes of the token.

use std::{
    net::ToSocketAddrs,
    time::{SystemTime, UNIX_EPOCH},
};

use cooper_common::config::{Config, Role};
use cooper_proto::v1::GetInfoRequest;

use super::finding::Finding;
use crate::{
    command::health,
    context::Context,
    failure::{Failure, Result},
};

/// Tokens, certificates and deadlines bear no larger difference.
const DIFFERENCE_SECONDS_MAX: u64 = 30;

/// Where it is: what commands go by, else what a worker here would dial.
pub fn url(context: &Context, worker: &Config) -> Result<(String, Config)> {
    let config = context.config(Role::Client, Default::default())?;
    let local = || std::fs::read_to_string(config.data().join("endpoint")).ok();
    let url = config.text("url").or_else(|| local().map(|url| url.trim().to_owned())).unwrap_or_else(|| {
        let dialled = worker.text("coordinator_addr").unwrap_or_default();
        if dialled.contains("://") { dialled } else { format!("http://{dialled}") }
    });
    Ok((url, config))
}

/// Each step as far as the one before it went.
pub async fn findings(context: &Context, url: &str, config: &Config) -> Vec<Finding> {
    let mut found = vec![name(url)];
    if !found[0].ok {
        return found;
    }
    let ca = config.path("tls_ca");
    match health::answer(url, "/health", ca.as_deref()) {
        Ok(answer) => {
            let version = answer.body["version"].as_str().map_or_else(String::new, |v| format!(" ({v})"));
            found.push(Finding::good("health", format!("a coordinator answers at {url}{version}")));
            found.extend(answer.date.map(clock));
        }
        Err(failure) => {
            found.push(of_failure("health", failure));
            return found;
        }
    }
    let ready = match health::get(url, "/ready", ca.as_deref()) {
        Ok(answer) if answer["status"] == "ready" => Finding::good("ready", "it has its store"),
        Ok(answer) => {
            let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
            Finding::bad("ready", text("message"), text("hint"))
        }
        Err(failure) => of_failure("ready", failure),
    };
    found.push(ready);
    found.push(token(context).await);
    found
}

/// How its clock and ours differ.
fn clock(theirs: SystemTime) -> Finding {
    let theirs = theirs.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // The header has whole seconds.
    let apart = (cooper_common::clock::wall_ms() / 1_000).unsigned_abs().abs_diff(theirs);
    let what = format!("{apart} s from the coordinator's");
    match apart > DIFFERENCE_SECONDS_MAX {
        true => Finding::bad("clock", what, "set both by NTP: tokens and certificates have dates"),
        false => Finding::good("clock", what),
    }
}

fn name(url: &str) -> Finding {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let with_port = if host.rsplit_once(':').is_some() { host.to_owned() } else { format!("{host}:443") };
    match with_port.to_socket_addrs().map(|mut all| all.next()) {
        Ok(Some(address)) => Finding::good("name", format!("{host} is {}", address.ip())),
        Ok(None) => {
            Finding::bad("name", format!("{host} has no address"), "see the DNS, or name another with --url")
        }
        Err(error) => {
            Finding::bad("name", format!("{host}: {error}"), "see the DNS, or name another with --url")
        }
    }
}

/// A worker's machine has no token of a client's, and need not have one.
async fn token(context: &Context) -> Finding {
    let asked = async {
        let client = context.cluster()?.connect().await?;
        Ok::<_, Failure>(client.admin().get_info(GetInfoRequest {}).await?.into_inner())
    };
    match asked.await {
        Ok(info) => Finding::good("token", format!("{} of tenant {}", info.scope, info.tenant)),
        Err(failure) => of_failure("token", failure),
    }
}

fn of_failure(name: &'static str, failure: Failure) -> Finding {
    match failure {
        Failure::Error(report) => Finding::bad(name, report.message, report.hint),
        Failure::Exit(_) | Failure::Pipe => Finding::bad(name, "it was ended", ""),
    }
}
