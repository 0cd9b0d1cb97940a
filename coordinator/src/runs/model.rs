//! A language model that is asked where no rule explains a failure: any server that speaks the OpenAI chat protocol.
//! What it answers is judged by `cooper_repair::proposal` and then by policy; here is the way there, and its bounds.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cooper_common::{
    clock,
    error::{Code, Error, Result},
    limits::{model as limits, request::PAGE_MAX},
    redact::Redactor,
    token::Secret,
};
use cooper_core::{
    change::Aggregate,
    run::{Body, ModelCall},
};
use cooper_repair::proposal::Question;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::store::{Filter, Store};

const DAY_MS: i64 = 24 * 3_600_000;
/// Ended runs whose calls are counted at the start, newest first; retention keeps no more than a multiple of it.
const PAGES_MAX: usize = 20;

/// Where a model is, and what it may do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http(s)://…/v1`.
    pub url: String,
    pub name: String,
    pub key: Option<Secret>,
    pub timeout: Duration,
    pub tokens_per_day: u64,
    /// Its proposals need an approval only where policy asks for one.
    pub trusted: bool,
}

/// A model, and what it has cost today.
pub struct Model {
    settings: Settings,
    http: reqwest::Client,
    spent: Mutex<Spent>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Spent {
    /// Days since 1970, UTC.
    day: i64,
    tokens: u64,
}

/// What came of a question.
pub struct Answered {
    pub call: ModelCall,
    pub answer: std::result::Result<String, String>,
}

/// The part of the protocol's answer that is used.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Why there is no answer: the status of the call, and a sentence.
struct Failure(&'static str, String);

impl Model {
    /// # Errors
    /// `internal` if no TLS is to be had, and what the store says.
    pub async fn load(settings: Settings, store: &dyn Store) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(settings.timeout)
            // A key goes to the server it is for.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::internal(format!("no HTTP client for the model: {error}")))?;
        let day = clock::wall_ms() / DAY_MS;
        let spent = Spent { day, tokens: spent_on(store, day).await? };
        Ok(Self { settings, http, spent: Mutex::new(spent) })
    }

    pub fn trusted(&self) -> bool {
        self.settings.trusted
    }

    /// Sets tokens aside for a question, before it is recorded and asked.
    ///
    /// # Errors
    /// The sentence to say when today's are used up.
    pub fn reserve(&self, question: &Question) -> std::result::Result<ModelCall, String> {
        let bytes = (question.system.len() + question.user.len()) as u64;
        let wanted = bytes / limits::BYTES_PER_TOKEN + limits::ANSWER_TOKENS_MAX;
        let now_ms = clock::wall_ms();
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.day != now_ms / DAY_MS {
            *spent = Spent { day: now_ms / DAY_MS, tokens: 0 };
        }
        if spent.tokens + wanted > self.settings.tokens_per_day {
            return Err(format!(
                "the model was not asked: {} of {} tokens of today (UTC) are used (llm_tokens_per_day)",
                spent.tokens, self.settings.tokens_per_day
            ));
        }
        spent.tokens += wanted;
        Ok(ModelCall {
            at_ms: now_ms,
            model: self.settings.name.clone(),
            status: "asked".to_owned(),
            latency_ms: 0,
            tokens: wanted,
            message: String::new(),
        })
    }

    /// Asks. Tokens that were set aside and not used are free again.
    pub async fn ask(&self, question: &Question, reserved: ModelCall) -> Answered {
        let begin = clock::mono_ms();
        let asked = tokio::time::timeout(self.settings.timeout, self.complete(question)).await;
        let asked =
            asked.unwrap_or_else(|_| Err(Failure("timed_out", "it did not answer in time".to_owned())));
        let latency_ms = clock::mono_ms() - begin;
        let (status, tokens, answer) = match asked {
            Ok((text, usage)) => {
                let counted = usage.prompt_tokens.saturating_add(usage.completion_tokens);
                // A server that counts nothing, or more than it can have used, is not believed.
                let believed =
                    if (1..=reserved.tokens).contains(&counted) { counted } else { reserved.tokens };
                ("answered", believed, Ok(text))
            }
            Err(Failure(status, why)) => {
                (status, reserved.tokens, Err(format!("the model did not help: {why}")))
            }
        };
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.day == reserved.at_ms / DAY_MS {
            spent.tokens = spent.tokens.saturating_sub(reserved.tokens - tokens);
        }
        metrics::counter!("cooper_model_calls_total", "status" => status).increment(1);
        metrics::counter!("cooper_model_tokens_total").increment(tokens);
        metrics::histogram!("cooper_model_latency_seconds").record(latency_ms as f64 / 1e3);
        let message = answer.as_ref().err().map(|why| short(why)).unwrap_or_default();
        let call = ModelCall { status: status.to_owned(), latency_ms, tokens, message, ..reserved };
        Answered { call, answer }
    }

    async fn complete(&self, question: &Question) -> std::result::Result<(String, Usage), Failure> {
        let schema = json!({"name": "repair", "schema": question.schema});
        let strict = json!({"type": "json_schema", "json_schema": schema});
        match self.post(question, &strict).await {
            // Servers that know no schemas say so with one of these.
            Err(Failure("status_400" | "status_422", _)) => {
                self.post(question, &json!({"type": "json_object"})).await
            }
            other => other,
        }
    }

    async fn post(
        &self,
        question: &Question,
        format: &Value,
    ) -> std::result::Result<(String, Usage), Failure> {
        let redactor = Redactor::default();
        let body = json!({
            "model": self.settings.name,
            "temperature": 0,
            "max_tokens": limits::ANSWER_TOKENS_MAX,
            "response_format": format,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": redactor.redact(&question.user)},
            ],
        });
        let mut request = self.http.post(format!("{}/chat/completions", self.settings.url));
        if let Some(key) = &self.settings.key {
            request = request.bearer_auth(key.expose());
        }
        let request = request.header("content-type", "application/json").body(body.to_string());
        let failed = |error: reqwest::Error| match error.is_timeout() {
            true => Failure("timed_out", "it did not answer in time".to_owned()),
            // Its URL is known to who set it and to nobody else.
            false => Failure("unreachable", format!("it cannot be reached: {}", error.without_url())),
        };
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > limits::ANSWER_BYTES_MAX {
                return Err(Failure("too_long", "its answer is too long".to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            let said = String::from_utf8_lossy(&bytes);
            let said = redactor.redact(&said);
            let name = match status.as_u16() {
                400 => "status_400",
                422 => "status_422",
                401 | 403 => "denied",
                429 => "limited",
                _ => "refused",
            };
            return Err(Failure(
                name,
                short(&format!("it answered with status {}: {said}", status.as_u16())),
            ));
        }
        let read: Completion = serde_json::from_slice(&bytes)
            .map_err(|error| Failure("malformed", format!("its answer cannot be read: {error}")))?;
        let usage = read.usage;
        let choice = read.choices.into_iter().next();
        let choice = choice.ok_or_else(|| Failure("malformed", "its answer is empty".to_owned()))?;
        if choice.finish_reason.as_deref() == Some("length") {
            return Err(Failure("too_long", "its answer is too long".to_owned()));
        }
        let text = choice.message.content.filter(|text| !text.trim().is_empty());
        Ok((text.ok_or_else(|| Failure("malformed", "its answer is empty".to_owned()))?, usage))
    }
}

/// What runs that are recorded have spent on a day: it is the budget's memory (I13).
async fn spent_on(store: &dyn Store, day: i64) -> Result<u64> {
    let mut filter = Filter { limit: PAGE_MAX as usize, ..Filter::default() };
    let mut tokens = 0_u64;
    for _ in 0..PAGES_MAX {
        let page = store.list(Aggregate::Run, filter.clone()).await?;
        let newest_first = page.records.iter();
        for record in newest_first {
            let body: Body = serde_json::from_str(&record.row.body)
                .map_err(|error| Error::new(Code::Internal, format!("run {}: {error}", record.id)))?;
            let today = body.model_calls.iter().filter(|call| call.at_ms / DAY_MS == day);
            tokens = today.fold(tokens, |sum, call| sum.saturating_add(call.tokens));
        }
        // A run may go on for days, but it asks in its first minutes.
        let over = page.records.last().is_none_or(|oldest| oldest.row.created_ms / DAY_MS < day - 1);
        match page.next {
            Some(next) if !over => filter.before = Some(next),
            Some(_) | None => break,
        }
    }
    Ok(tokens)
}

fn short(text: &str) -> String {
    let end = text.floor_char_boundary(limits::MESSAGE_BYTES_MAX);
    text[..end].to_owned()
}
