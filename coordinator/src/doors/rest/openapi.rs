//! What REST is, for programs (`/openapi.json`) and people (`/docs`): from the table of paths, and the contract with its
//! comments.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use cooper_common::{VERSION, error::Result};
use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::{
    json as names, method,
    routes::{Answer, Body, ROUTES, Route},
};

/// Comments of a file, by the places of what they are about.
pub(super) type Comments = BTreeMap<(String, Vec<i32>), String>;

/// OpenAPI 3.1.
///
/// # Errors
/// `internal` if the contract has not what the table names.
pub fn document(pool: &DescriptorPool) -> Result<Value> {
    let comments = comments(pool);
    let (mut paths, mut wanted) = (Map::new(), BTreeSet::new());
    for route in ROUTES {
        let path = route.path.replace("{*", "{");
        let operations = paths.entry(path).or_insert_with(|| json!({}));
        operations[route.verb.to_ascii_lowercase()] = operation(pool, route, &comments, &mut wanted)?;
    }
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop_first() {
        let Some(of) = pool.get_message_by_name(&name) else { continue };
        if schemas.contains_key(of.name()) {
            continue;
        }
        let schema = message(&of, &comments, &mut wanted);
        schemas.insert(of.name().to_owned(), schema);
    }
    schemas.insert("Problem".to_owned(), problem());
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cooper",
            "version": VERSION,
            "description": "Sessions that run Python, and repairs of compose stacks. Every path stands for a method of the gRPC contract cooper.v1. Fields that are not given have the defaults that the contract names; times are Unix milliseconds.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of `cooper token create`."}},
        },
    }))
}

fn problem() -> Value {
    let text = |about: &str| json!({"type": "string", "description": about});
    json!({
        "type": "object",
        "description": "RFC 9457, with a stable code of docs/errors.md.",
        "properties": {
            "type": text("about:blank"),
            "title": text("The status in words."),
            "status": {"type": "integer"},
            "code": text("Stable; what a program goes by."),
            "detail": text("What happened, to what."),
            "message": text("As `detail`."),
            "hint": text("What to do next; may be empty."),
        },
        "required": ["status", "code", "detail", "hint"],
    })
}

fn operation(
    pool: &DescriptorPool,
    route: &Route,
    comments: &Comments,
    wanted: &mut BTreeSet<String>,
) -> Result<Value> {
    let method = method(pool, route.method)?;
    let file = method.parent_file().name().to_owned();
    let about = comments.get(&(file, method.path().to_vec())).cloned().unwrap_or_default();
    let mut request = method.input();
    if matches!(route.body, Body::Bytes)
        && let Some(Kind::Message(header)) = request.get_field_by_name("header").map(|field| field.kind())
    {
        request = header;
    }
    let in_path: Vec<&str> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
        .collect();
    let within = route.within.and_then(|name| request.get_field_by_name(name));
    let within = within.and_then(|field| match field.kind() {
        Kind::Message(of) => Some(of),
        _ => None,
    });
    let mut parameters: Vec<Value> = Vec::new();
    for name in &in_path {
        let field = request.get_field_by_name(name).or_else(|| within.as_ref()?.get_field_by_name(name));
        parameters.extend(field.map(|field| parameter(&field, "path", comments, wanted)));
    }
    if matches!(route.body, Body::None | Body::Bytes) {
        for field in request.fields().filter(|field| !in_path.contains(&field.name())) {
            match field.kind() {
                Kind::Message(page) if field.name() == "page" => {
                    parameters
                        .extend(page.fields().map(|field| parameter(&field, "query", comments, wanted)));
                }
                Kind::Message(_) if !field.is_map() => {}
                _ => parameters.push(parameter(&field, "query", comments, wanted)),
            }
        }
    } else if request.get_field_by_name(super::IDEMPOTENCY_KEY).is_some() {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128},
            "description": "Repeating a request with its key answers with what the first one did.",
        }));
    }
    let schema = wanted_schema(&method.output(), wanted);
    let content = match route.answer {
        Answer::Json => json!({"application/json": {"schema": schema}}),
        Answer::Events => {
            json!({"text/event-stream": {"schema": {"type": "string", "description": format!("Events whose data is JSON of `{}`.", method.output().name())}}})
        }
        Answer::Bytes => {
            json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}})
        }
    };
    let failed = json!({"description": "What is wrong, and what to do.", "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}});
    let mut answers = json!({"default": failed});
    answers[route.status.to_string()] = json!({"description": "Done.", "content": content});
    let mut operation = json!({
        "operationId": method.name(),
        "summary": about.split(". ").next().unwrap_or_default().trim_end_matches('.'),
        "description": about,
        "tags": [method.parent_service().name()],
        "parameters": parameters,
        "responses": answers,
    });
    // A method may be at several paths; ids are of one each.
    let ways = ROUTES.iter().filter(|other| other.method == route.method).count();
    if ways > 1 {
        let place: Vec<&str> =
            route.path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).collect();
        operation["operationId"] = format!("{}_{}", method.name(), place.join("_")).into();
    }
    match route.body {
        Body::None => {}
        Body::Bytes => {
            let schema = json!({"schema": {"type": "string", "format": "binary"}});
            operation["requestBody"] =
                json!({"required": true, "content": {"application/octet-stream": schema}});
        }
        Body::Json | Body::As(_) => {
            let mut schema = message(within.as_ref().unwrap_or(&request), comments, wanted);
            if let Some(properties) = schema["properties"].as_object_mut() {
                for name in &in_path {
                    properties.remove(*name);
                }
                match route.method {
                    "Runs/CreateRun" => {
                        if let Some(service) = properties.remove("service") {
                            properties.insert("target_service".to_owned(), service);
                        }
                    }
                    "Runs/DecideRun" => {
                        properties.remove("approve");
                        properties.insert(
                            "decision".to_owned(),
                            json!({"type": "string", "enum": ["approve", "reject"]}),
                        );
                        if let Some(comment) = properties.remove("comment") {
                            properties.insert("reason".to_owned(), comment);
                        }
                    }
                    _ => {}
                }
            }
            operation["requestBody"] = json!({"content": {"application/json": {"schema": schema}}});
        }
    }
    Ok(operation)
}

fn parameter(
    field: &FieldDescriptor,
    place: &str,
    comments: &Comments,
    wanted: &mut BTreeSet<String>,
) -> Value {
    let about = about(field, comments);
    // Here nothing stands for null: what has no value is not given.
    let schema = match (field.is_map(), field.is_list()) {
        (true, _) => json!({"type": "array", "items": {"type": "string", "description": "NAME=VALUE"}}),
        (false, true) => json!({"type": "array", "items": one(field, wanted)}),
        (false, false) => one(field, wanted),
    };
    json!({"name": field.name(), "in": place, "required": place == "path", "schema": schema, "description": about})
}

fn about(field: &FieldDescriptor, comments: &Comments) -> String {
    let file = field.parent_message().parent_file().name().to_owned();
    comments.get(&(file, field.path().to_vec())).cloned().unwrap_or_default()
}

fn wanted_schema(of: &MessageDescriptor, wanted: &mut BTreeSet<String>) -> Value {
    wanted.insert(of.full_name().to_owned());
    json!({"$ref": format!("#/components/schemas/{}", of.name())})
}

fn message(of: &MessageDescriptor, comments: &Comments, wanted: &mut BTreeSet<String>) -> Value {
    let mut properties = Map::new();
    for field in of.fields() {
        let mut schema = field_schema(&field, wanted);
        let about = about(&field, comments);
        if !about.is_empty() {
            // Beside a reference nothing else counted before 3.1.
            schema["description"] = about.into();
        }
        properties.insert(field.name().to_owned(), schema);
    }
    let about =
        comments.get(&(of.parent_file().name().to_owned(), of.path().to_vec())).cloned().unwrap_or_default();
    json!({"type": "object", "description": about, "properties": properties})
}

fn field_schema(field: &FieldDescriptor, wanted: &mut BTreeSet<String>) -> Value {
    if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        return json!({"type": "object", "additionalProperties": one(&entry.map_entry_value_field(), wanted)});
    }
    let one = one(field, wanted);
    match (field.is_list(), names::may_be_null(field)) {
        (true, _) => json!({"type": "array", "items": one}),
        (false, true) => json!({"anyOf": [one, {"type": "null"}]}),
        (false, false) => one,
    }
}

fn one(field: &FieldDescriptor, wanted: &mut BTreeSet<String>) -> Value {
    match field.kind() {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 | Kind::Int64 => json!({"type": "integer"}),
        Kind::Uint32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Kind::Uint64 => json!({"type": "integer", "minimum": 0}),
        Kind::Float | Kind::Double => json!({"type": "number"}),
        Kind::Message(of) => wanted_schema(&of, wanted),
        Kind::Enum(of) => enumeration(&of),
        _ => json!({"type": "string"}),
    }
}

fn enumeration(of: &EnumDescriptor) -> Value {
    json!({"type": "string", "enum": names::names(of)})
}

/// What the contract's files say above each thing they name.
pub(super) fn comments(pool: &DescriptorPool) -> Comments {
    let mut comments = Comments::new();
    for file in pool.files() {
        let places = file.file_descriptor_proto().source_code_info.iter().flat_map(|info| &info.location);
        for place in places {
            let text = place.leading_comments.as_deref().unwrap_or_default();
            let words: Vec<&str> = text.split_whitespace().collect();
            if !words.is_empty() {
                comments.insert((file.name().to_owned(), place.path.clone()), words.join(" "));
            }
        }
    }
    comments
}

/// The same for people: one page without scripts.
pub fn page(document: &Value) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Cooper: REST</title><meta name=viewport \
         content=\"width=device-width\"><style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}\
         code{font:14px ui-monospace,monospace}summary{cursor:pointer}b{display:inline-block;width:4.5rem}\
         dt{font-weight:600}dd{margin:0 0 .5rem 1rem}</style><h1>Cooper: REST</h1><p>A token goes into \
         <code>authorization: Bearer TOKEN</code>. For programs: <a href=/openapi.json>/openapi.json</a>.",
    );
    for route in ROUTES {
        let path = route.path.replace("{*", "{");
        let operation = &document["paths"][&path][route.verb.to_ascii_lowercase()];
        let text = |value: &Value| escape(value.as_str().unwrap_or_default());
        let _ = write!(
            page,
            "<details><summary><b>{}</b> <code>{}</code> {}</summary><p>{}<dl>",
            route.verb,
            escape(&path),
            text(&operation["summary"]),
            text(&operation["description"]),
        );
        let said = operation["parameters"].as_array().into_iter().flatten();
        for parameter in said {
            let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
            let _ = write!(page, "<dt><code>{name}</code> ({place})<dd>{}", text(&parameter["description"]));
        }
        let body = &operation["requestBody"]["content"]["application/json"]["schema"]["properties"];
        for (name, schema) in body.as_object().into_iter().flatten() {
            let _ = write!(page, "<dt><code>{}</code><dd>{}", escape(name), text(&schema["description"]));
        }
        page.push_str("</dl></details>");
    }
    page
}
