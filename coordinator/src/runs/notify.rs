//! Tells a URL what a person has to act on: a plan that waits, a plan that nobody decided about, a rollback that failed.
//!
//! The event log is the outbox: what is told next is a number in the store, so that a restart neither forgets nor
//! blocks anything. Runs know nothing of this. Each notification is tried a bounded number of times, in the order of the
//! events; who receives it may get it twice, with the same delivery number.

use std::{sync::Arc, time::Duration};

use cooper_common::{
    backoff, clock,
    error::{Code, Error, Result},
    limits::notify as limits,
    redact::Redactor,
    token::Secret,
};
use cooper_core::{change::Aggregate, run::State};
use serde_json::{Value, json};

use crate::{
    bus::{Bus, Feed},
    cluster::Cluster,
    store::Event,
};

/// Number of the first event that was not told yet.
const NEXT: &str = "notify_next_seq";
/// Events of other kinds that may pass before the number is recorded again.
const PASSED_MAX: u64 = 10_000;

/// Where to, and what shows the receiver that it comes from here.
#[derive(Debug, Clone)]
pub struct Settings {
    pub url: String,
    pub secret: Secret,
}

/// How a try went.
enum Tried {
    Taken,
    /// Asking again may help.
    Later(String),
    Never(String),
}

struct Notifier {
    cluster: Arc<Cluster>,
    settings: Settings,
    key: ring::hmac::Key,
    http: reqwest::Client,
}

/// Tells events for as long as there are any.
pub async fn run(cluster: Arc<Cluster>, bus: Bus, settings: Settings) {
    if let Err(error) = follow(cluster, bus, settings).await {
        tracing::error!(%error, "nobody is notified any more until the next start");
    }
}

async fn follow(cluster: Arc<Cluster>, bus: Bus, settings: Settings) -> Result<()> {
    let http = reqwest::Client::builder()
        .timeout(Duration::from_millis(limits::TIMEOUT_MS))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| Error::new(Code::ConfigInvalid, format!("notify_url: {error}")))?;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, settings.secret.expose().as_bytes());
    let store = cluster.store.clone();
    let next = match store.meta_get(NEXT).await?.and_then(|text| text.parse::<u64>().ok()) {
        Some(next) => next,
        // What was before anybody wanted to know is not told.
        None => {
            let next = store.last_seq().await? + 1;
            store.meta_put(NEXT, &next.to_string()).await?;
            next
        }
    };
    let notifier = Notifier { cluster, settings, key, http };
    let mut feed = Feed::from(store.clone(), &bus, next, None);
    let mut recorded = next;
    while let Some(event) = feed.next().await? {
        let told = notifier.tell(&event).await?;
        if told || event.seq - recorded > PASSED_MAX {
            recorded = event.seq + 1;
            store.meta_put(NEXT, &recorded.to_string()).await?;
        }
    }
    Ok(())
}

impl Notifier {
    /// False if the event is none that is told.
    async fn tell(&self, event: &Event) -> Result<bool> {
        let told = [State::AwaitingApproval, State::RollbackFailed, State::Expired];
        if !told.iter().any(|state| event.kind.strip_prefix("run.") == Some(state.as_str())) {
            return Ok(false);
        }
        let body = self.body(event).await?;
        let mut attempt = 0;
        let why = loop {
            // Long after the fact nobody is helped by it.
            if clock::wall_ms() - event.at_ms > limits::AGE_MS_MAX {
                break "it is too old".to_owned();
            }
            match self.attempt(event, &body).await {
                Tried::Taken => {
                    metrics::counter!("cooper_notifications_total", "end" => "delivered").increment(1);
                    return Ok(true);
                }
                Tried::Never(why) => break why,
                Tried::Later(why) if attempt + 1 >= limits::ATTEMPTS_MAX => break why,
                Tried::Later(why) => {
                    tracing::warn!(event = event.seq, why, "a notification was not taken; it is tried again");
                }
            }
            let (base, cap) = (limits::RETRY_BASE_MS, limits::RETRY_CAP_MS);
            tokio::time::sleep(backoff::full_jitter(base, cap, attempt, 0.5 + rand::random::<f64>() / 2.0))
                .await;
            attempt += 1;
        };
        metrics::counter!("cooper_notifications_total", "end" => "given_up").increment(1);
        tracing::error!(
            event = event.seq,
            kind = event.kind,
            run = event.subject,
            why,
            "nobody was notified"
        );
        Ok(true)
    }

    /// The event, and the run as it is now. Redacted once more, whatever it was written with (I9).
    async fn body(&self, event: &Event) -> Result<String> {
        let run = match self.cluster.store.get(Aggregate::Run, &event.subject).await? {
            Some(record) => {
                let run = super::load(&*self.cluster.store, record).await?.run;
                let approval = run.approval().map(|approval| {
                    json!({
                        "reasons": approval.reasons,
                        "approvers": approval.approvers,
                        "expires_at_ms": approval.expires_ms,
                        "decision": approval.decision.as_str(),
                    })
                });
                json!({
                    "id": event.subject,
                    "stack": run.body.stack,
                    "service": run.body.service,
                    "state": run.body.state.as_str(),
                    "cause": run.body.cause,
                    "plan_hash": run.body.plan_hash,
                    "files": run.body.files,
                    "approval": approval,
                    "error": run.body.reason.map(|reason| json!({ "code": reason.code, "message": reason.message })),
                })
            }
            None => json!({ "id": event.subject }),
        };
        let id = &event.subject;
        let next = match event.kind.as_str() {
            "run.awaiting_approval" => {
                format!("read `cooper runs plan {id}`, then `cooper approve {id}` or `cooper reject {id}`")
            }
            "run.rollback_failed" => {
                format!("restore by hand: `cooper runs artifact {id} rollback.log` says what is left")
            }
            _ => {
                format!("nothing was touched; `cooper repair` the service again: see `cooper runs show {id}`")
            }
        };
        let body = json!({
            "delivery": event.seq,
            "event": event.kind,
            "at_ms": event.at_ms,
            "tenant": event.tenant,
            "run": run,
            "next": next,
        });
        Ok(redacted(body, &Redactor::default()).to_string())
    }

    async fn attempt(&self, event: &Event, body: &str) -> Tried {
        let timestamp = clock::wall_ms() / 1000;
        let request = self
            .http
            .post(&self.settings.url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("cooper/", env!("CARGO_PKG_VERSION")))
            .header("cooper-event", &event.kind)
            .header("cooper-delivery", event.seq.to_string())
            .header("cooper-timestamp", timestamp.to_string())
            .header("cooper-signature", format!("v1={}", sign(&self.key, timestamp, body)))
            .body(body.to_owned());
        // What it answers is nobody's business: the connection is dropped with it.
        match request.send().await.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => Tried::Taken,
            Ok(status) if status.is_client_error() && ![408, 425, 429].contains(&status.as_u16()) => {
                Tried::Never(format!("the receiver answers {status}"))
            }
            Ok(status) => Tried::Later(format!("the receiver answers {status}")),
            // The error's own text has the URL, which may hold a password.
            Err(error) if error.is_timeout() => {
                Tried::Later("the receiver does not answer in time".to_owned())
            }
            Err(error) if error.is_connect() => Tried::Later("the receiver cannot be reached".to_owned()),
            Err(error) => Tried::Later(format!("it could not be sent: {}", error.without_url())),
        }
    }
}

/// HMAC-SHA256 of the timestamp, a dot and the body: lower-case hex.
fn sign(key: &ring::hmac::Key, timestamp: i64, body: &str) -> String {
    let signature = ring::hmac::sign(key, format!("{timestamp}.{body}").as_bytes());
    signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn redacted(value: Value, redactor: &Redactor) -> Value {
    match value {
        Value::String(text) => redactor.redact(&text).into_owned().into(),
        Value::Array(items) => items.into_iter().map(|item| redacted(item, redactor)).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, field)| (name, redacted(field, redactor))).collect()
        }
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_signed_with_its_time() {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"s3cret");
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac s3cret
        let expected = "1698a50bc74d1ff1db85c4e0a5297c2ad9fdba245d5737cdb789e4cc6e098940";
        assert_eq!(sign(&key, 1_700_000_000, r#"{"a":1}"#), expected);
        assert_ne!(sign(&key, 1_700_000_001, r#"{"a":1}"#), expected);
    }

    #[test]
    fn what_looks_like_a_secret_is_not_told() {
        let body = json!({ "run": { "cause": ["fetch https://ann:hunter2secret@example.org/ failed"] } });
        let told = redacted(body, &Redactor::default()).to_string();
        assert!(!told.contains("hunter2secret") && told.contains("example.org"), "{told}");
    }
}
