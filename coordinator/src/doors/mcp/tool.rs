//! What a tool is: a name, what a model reads about it, and a function from what it takes to what it answers.

use cooper_common::{error::Error, token::Scope};
use futures::future::{BoxFuture, FutureExt as _};
use rmcp::model::{self, CallToolResult, ContentBlock, JsonObject, MetaObject, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{call::Call, schema};

/// What a host may expect of a call. It decides by that what it asks a person about.
#[derive(Clone, Copy)]
pub struct Hints {
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
}

impl Hints {
    /// The same, with what is out of the session's reach otherwise.
    pub const fn reaching_out(self) -> Self {
        Self { open_world: true, ..self }
    }
}

/// Changes nothing.
pub const READS: Hints = Hints { read_only: true, destructive: false, idempotent: true, open_world: false };
/// Only adds; again adds again.
pub const ADDS: Hints = Hints { read_only: false, destructive: false, idempotent: false, open_world: false };
/// Brings about a state; again changes nothing more, and nothing is lost by it.
pub const SETS: Hints = Hints { idempotent: true, ..ADDS };
/// May overwrite or end what was there; again changes nothing more.
pub const REPLACES: Hints = Hints { destructive: true, ..SETS };
/// Does whatever the code says, with what the session reaches.
pub const RUNS: Hints = Hints { destructive: true, open_world: true, ..ADDS };

/// Who is offered a tool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Audience {
    Everybody,
    /// Tokens that may decide about plans.
    Operators,
}

/// What a tool answers with. Programs read it by its schema, models as content.
pub trait Reply: Serialize + JsonSchema {
    /// As a model reads it.
    fn content(&self) -> Vec<ContentBlock> {
        vec![ContentBlock::text(serde_json::to_string(self).unwrap_or_default())]
    }
}

type Answered = BoxFuture<'static, Result<(Value, Vec<ContentBlock>), Error>>;

pub struct Tool {
    pub definition: model::Tool,
    audience: Audience,
    run: Box<dyn Fn(Call, JsonObject) -> Answered + Send + Sync>,
}

impl Tool {
    pub fn new<I, O, F>(
        name: &'static str,
        hints: Hints,
        description: &'static str,
        run: impl Fn(Call, I) -> F + Send + Sync + Clone + 'static,
    ) -> Self
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        O: Reply,
        F: Future<Output = Result<O, Error>> + Send + 'static,
    {
        let annotations = ToolAnnotations::with_title(title(name))
            .read_only(hints.read_only)
            .destructive(hints.destructive)
            .idempotent(hints.idempotent)
            .open_world(hints.open_world);
        let definition = model::Tool::new(name, description, schema::input::<I>())
            .with_title(title(name))
            .with_raw_output_schema(schema::output::<O>())
            .with_annotations(annotations);
        let run = move |call: Call, arguments: JsonObject| {
            let run = run.clone();
            async move {
                let arguments = serde_json::from_value(Value::Object(arguments))
                    .map_err(|error| Error::invalid(format!("the arguments do not fit: {error}")))?;
                let reply = run(call, arguments).await?;
                let value =
                    serde_json::to_value(&reply).map_err(|error| Error::internal(error.to_string()))?;
                Ok((value, reply.content()))
            }
            .boxed()
        };
        Self { definition, audience: Audience::Everybody, run: Box::new(run) }
    }

    /// It is not shown to tokens that may not decide.
    pub fn for_operators(self) -> Self {
        Self { audience: Audience::Operators, ..self }
    }

    pub fn is_offered(&self, scope: Scope) -> bool {
        match self.audience {
            Audience::Everybody => true,
            Audience::Operators => matches!(scope, Scope::Operator | Scope::Admin),
        }
    }

    /// What went wrong is an answer, too: the model reads it and does something else.
    pub async fn call(&self, call: Call, arguments: JsonObject) -> CallToolResult {
        match (self.run)(call, arguments).await {
            Ok((value, content)) => {
                let mut result = CallToolResult::success(content);
                result.structured_content = Some(value);
                result
            }
            Err(error) => failed(&error),
        }
    }
}

/// With its code for programs, as text for models: what a tool answers with has another schema.
fn failed(error: &Error) -> CallToolResult {
    let (code, message, hint) = (error.code.as_str(), &error.message, error.hint());
    let text = match hint {
        "" => format!("{code}: {message}"),
        hint => format!("{code}: {message}\nWhat to do: {hint}"),
    };
    let mut result = CallToolResult::error(vec![ContentBlock::text(text)]);
    let mut meta = MetaObject::new();
    meta.insert("cooper/error".to_owned(), json!({"code": code, "message": message, "hint": hint}));
    result.meta = Some(meta);
    result
}

/// `run_python` is "Run python".
fn title(name: &str) -> String {
    let words = name.replace(['_', '.'], " ");
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
