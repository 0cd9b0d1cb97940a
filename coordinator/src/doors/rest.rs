//! REST on the one port: JSON over HTTP, by a table of paths (`rest/routes.rs`) and the contract's descriptors. Every
//! request becomes the gRPC call it stands for, so that both doors check, allow and answer alike.

mod call;
mod json;
mod openapi;
#[cfg(test)]
mod reference;
mod routes;

use std::{collections::HashMap, io, sync::Arc};

use axum::{
    Json, Router,
    body::{Body as HttpBody, Bytes},
    extract::{Path, RawQuery, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{Html, IntoResponse, Response, sse},
    routing::{self, MethodFilter},
};
use cooper_common::{
    error::{Code, Error, Result},
    limits,
};
use futures::{StreamExt as _, stream};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value as Field,
};
use serde_json::{Map, Value};
use tonic::{Streaming, service::Routes};

use self::routes::{Answer, Body, ROUTES, Route};
use super::error::problem;
use crate::caller::Caller;

/// Bytes of a file that travel in one message.
const CHUNK_BYTES: usize = 256 << 10;
const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// What answers one route.
struct Served {
    route: &'static Route,
    method: MethodDescriptor,
    services: Routes,
}

/// The paths of REST over the services of gRPC.
///
/// # Errors
/// `internal` if the contract has not what the table names: a test says so before anybody else.
pub fn router(services: Routes) -> Result<Router> {
    let unreadable = |error: prost_reflect::DescriptorError| Error::internal(error.to_string());
    let pool = DescriptorPool::decode(cooper_proto::DESCRIPTORS).map_err(unreadable)?;
    let mut router = Router::new();
    for route in ROUTES {
        let method = method(&pool, route.method)?;
        let served = Arc::new(Served { route, method, services: services.clone() });
        let answer = move |Path(path): Path<HashMap<String, String>>, RawQuery(query), request: Request| {
            let served = Arc::clone(&served);
            async move {
                let answered = served.answer(path, query.unwrap_or_default(), request).await;
                answered.unwrap_or_else(|error| problem(&error))
            }
        };
        let filter = verb(route.verb)?;
        router = router.route(route.path, routing::on(filter, answer));
    }
    let document = Arc::new(openapi::document(&pool)?);
    let page = openapi::page(&document);
    let document = move || {
        let document = Arc::clone(&document);
        async move { Json((*document).clone()) }
    };
    let router = router
        .route("/openapi.json", routing::get(document))
        .route("/docs", routing::get(move || async move { Html(page) }))
        .method_not_allowed_fallback(not_allowed);
    Ok(router)
}

async fn not_allowed(request: Request) -> Response {
    let what = format!("{} is not possible at {}", request.method(), request.uri().path());
    let error = Error::new(Code::InvalidArgument, what).with_hint("see /docs for what is");
    super::error::problem_as(StatusCode::METHOD_NOT_ALLOWED, &error)
}

fn verb(name: &str) -> Result<MethodFilter> {
    let internal = || Error::internal(format!("{name} is no verb of HTTP"));
    let verb = Method::from_bytes(name.as_bytes()).map_err(|_| internal())?;
    MethodFilter::try_from(verb).map_err(|_| internal())
}

fn method(pool: &DescriptorPool, name: &str) -> Result<MethodDescriptor> {
    let missing = || Error::internal(format!("the contract has no {name}"));
    let (service, method) = name.split_once('/').ok_or_else(missing)?;
    let service = pool.get_service_by_name(&format!("cooper.v1.{service}")).ok_or_else(missing)?;
    service.methods().find(|known| known.name() == method).ok_or_else(missing)
}

impl Served {
    async fn answer(
        &self,
        path: HashMap<String, String>,
        query: String,
        request: Request,
    ) -> Result<Response> {
        let caller = request.extensions().get::<Caller>().cloned();
        let headers = request.headers().clone();
        let range = match self.route.answer {
            Answer::Bytes => Range::of(&headers)?,
            Answer::Json | Answer::Events => None,
        };
        let messages = match self.route.body {
            Body::Bytes => {
                let header = self.header()?;
                let Kind::Message(of) = header.kind() else {
                    return Err(Error::internal("the header is no message"));
                };
                let said = self.said(&of, path, &query, &headers, Map::new())?;
                upload(&self.method.input(), &header, json::read(&of, &said)?, request.into_body())
            }
            body => {
                let map = match body {
                    Body::None => Map::new(),
                    Body::Json | Body::As(_) | Body::Bytes => object(request.into_body(), &headers).await?,
                };
                let map = if let Body::As(renamed) = body { renamed(map) } else { map };
                let of = self.method.input();
                let mut said = self.said(&of, path, &query, &headers, map)?;
                if let (Some(range), Value::Object(said)) = (&range, &mut said) {
                    said.insert("offset_bytes".to_owned(), range.first.into());
                    said.insert("length_bytes".to_owned(), range.length().into());
                }
                let message = json::read(&of, &said)?;
                stream::iter([message]).boxed()
            }
        };
        let answers = call::call(&self.services, &self.method, caller, messages).await?;
        match self.route.answer {
            Answer::Json => self.one(answers).await,
            Answer::Events => Ok(events(answers)),
            Answer::Bytes => bytes(answers, range).await,
        }
    }

    /// The message that goes before the bytes of an upload.
    fn header(&self) -> Result<FieldDescriptor> {
        let missing = || Error::internal(format!("{} has no header", self.route.method));
        self.method.input().get_field_by_name("header").ok_or_else(missing)
    }

    /// Body, query, path and headers as one object of the request's fields.
    fn said(
        &self,
        of: &MessageDescriptor,
        path: HashMap<String, String>,
        query: &str,
        headers: &HeaderMap,
        body: Map<String, Value>,
    ) -> Result<Value> {
        let mut said = Map::new();
        let inner = self.route.within.and_then(|name| of.get_field_by_name(name));
        match &inner {
            None => said = body,
            Some(field) => {
                // What belongs to the request itself may stand beside what it is about.
                let Kind::Message(about) = field.kind() else {
                    return Err(Error::internal("it is no message"));
                };
                let (own, about): (Map<_, _>, Map<_, _>) = body.into_iter().partition(|(name, _)| {
                    about.get_field_by_name(name).is_none() && of.get_field_by_name(name).is_some()
                });
                said.extend(own);
                said.insert(field.name().to_owned(), about.into());
            }
        }
        let query = form_urlencoded::parse(query.as_bytes());
        for (name, value) in form_urlencoded::parse(self.route.query.as_bytes()).chain(query) {
            add_query(&mut said, of, &name, &value)?;
        }
        for (name, value) in path {
            let inside = inner.as_ref().filter(|_| of.get_field_by_name(&name).is_none());
            let into = match inside.and_then(|field| said.get_mut(field.name())) {
                Some(Value::Object(about)) => about,
                Some(_) | None => &mut said,
            };
            if into.insert(name.clone(), value.into()).is_some() {
                return Err(Error::invalid(format!("{name} is said by the path already")));
            }
        }
        let text =
            |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let Some(key) = text(HeaderName::from_static("idempotency-key"))
            && of.get_field_by_name(IDEMPOTENCY_KEY).is_some()
        {
            said.insert(IDEMPOTENCY_KEY.to_owned(), key.into());
        }
        // As a browser's EventSource comes back: with the last event that it has seen.
        let seen = text(HeaderName::from_static("last-event-id")).and_then(|seen| seen.parse::<u64>().ok());
        if let (Some(seen), Some(field)) = (seen, of.get_field_by_name("from_seq")) {
            said.insert(field.name().to_owned(), (seen + 1).into());
        }
        if let Some(etag) = text(header::IF_MATCH)
            && of.get_field_by_name("if_match").is_some()
        {
            said.insert("if_match".to_owned(), etag.trim_matches('"').into());
        }
        Ok(Value::Object(said))
    }

    async fn one(&self, mut answers: Streaming<DynamicMessage>) -> Result<Response> {
        let answer = answers.next().await.ok_or_else(|| Error::internal("there is no answer"))?;
        let answer = answer.map_err(|status| super::error::from_status(&status))?;
        let status = StatusCode::from_u16(self.route.status).unwrap_or(StatusCode::OK);
        Ok((status, Json(json::write(&answer))).into_response())
    }
}

/// The body as a JSON object; nothing is an empty one.
async fn object(body: HttpBody, headers: &HeaderMap) -> Result<Map<String, Value>> {
    let bytes = axum::body::to_bytes(body, limits::link::MESSAGE_BYTES_MAX).await;
    let too_long = || {
        let most = limits::link::MESSAGE_BYTES_MAX;
        Error::invalid(format!("the body has more than {most} bytes, or was cut off"))
            .with_hint("upload files as files")
    };
    let bytes = bytes.map_err(|_| too_long())?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A browser sends other kinds across origins without asking first.
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(Error::invalid("the body is not declared as JSON")
            .with_hint("send content-type: application/json"));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::invalid("the body is JSON, but no object")),
        Err(error) => Err(Error::invalid(format!("the body is not JSON: {error}"))),
    }
}

/// A value of the query. `limit` and `cursor` are a page's; `labels=NAME=VALUE` is an entry; what is repeated is a list.
fn add_query(said: &mut Map<String, Value>, of: &MessageDescriptor, name: &str, value: &str) -> Result<()> {
    let page = of.get_field_by_name("page").filter(|_| of.get_field_by_name(name).is_none());
    if let Some(page) = page.filter(|_| matches!(name, "limit" | "cursor"))
        && let Kind::Message(of_page) = page.kind()
        && let Some(field) = of_page.get_field_by_name(name)
    {
        let value = json::from_query(&field, value)?;
        let page = said.entry(page.name()).or_insert_with(|| Value::Object(Map::new()));
        page[name] = value;
        return Ok(());
    }
    // A list's singular reads well in a query: state=ready&state=draining.
    let field = of
        .get_field_by_name(name)
        .or_else(|| of.get_field_by_name(&format!("{name}s")).filter(|it| it.is_list()));
    let Some(field) = field else {
        let known: Vec<String> = of.fields().map(|field| field.name().to_owned()).collect();
        return Err(Error::invalid(format!("there is no parameter {name}"))
            .with_hint(format!("parameters are: {}", known.join(", "))));
    };
    let again = || Error::invalid(format!("{name} is given twice"));
    if field.is_map() {
        let (key, value) =
            value.split_once('=').ok_or_else(|| Error::invalid(format!("{name} is not NAME=VALUE")))?;
        let map = said.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
        map[key] = value.into();
    } else if field.is_list() {
        let value = json::from_query(&field, value)?;
        let list = said.entry(field.name()).or_insert_with(|| Value::Array(Vec::new()));
        list.as_array_mut().ok_or_else(again)?.push(value);
    } else if said.insert(field.name().to_owned(), json::from_query(&field, value)?).is_some() {
        return Err(again());
    }
    Ok(())
}

/// A header, then the body in parts.
fn upload(
    of: &MessageDescriptor,
    header: &FieldDescriptor,
    first: DynamicMessage,
    body: HttpBody,
) -> stream::BoxStream<'static, DynamicMessage> {
    let mut head = DynamicMessage::new(of.clone());
    head.set_field(header, Field::Message(first));
    let of = of.clone();
    let part = move |bytes: Bytes| {
        let mut part = DynamicMessage::new(of.clone());
        part.set_field_by_name("data", Field::Bytes(bytes));
        part
    };
    let parts = body.into_data_stream().flat_map(move |read| match read {
        Ok(mut bytes) => {
            let mut parts = Vec::new();
            while !bytes.is_empty() {
                parts.push(part(bytes.split_to(bytes.len().min(CHUNK_BYTES))));
            }
            stream::iter(parts).boxed()
        }
        // It broke off: an end here would be taken for the end of the file. The call goes with its connection.
        Err(_) => stream::pending().boxed(),
    });
    stream::iter([head]).chain(parts).boxed()
}

/// What came is told as it comes; an error is the last event.
fn events(answers: Streaming<DynamicMessage>) -> Response {
    let events = answers.map(|answer| {
        let event = match answer {
            Ok(message) => {
                let chosen = message.descriptor().oneofs().find(|choice| !choice.is_synthetic());
                let chosen = chosen.and_then(|choice| choice.fields().find(|field| message.has_field(field)));
                let event = sse::Event::default().data(json::write(&message).to_string());
                match (chosen, message.get_field_by_name("seq")) {
                    (Some(field), _) => event.event(field.name()),
                    (None, Some(seq)) => event.id(seq.as_u64().unwrap_or_default().to_string()),
                    (None, None) => event,
                }
            }
            Err(status) => {
                let error = super::error::from_status(&status);
                let said = serde_json::json!({"code": error.code.as_str(), "message": error.message, "hint": error.hint()});
                sse::Event::default().event("error").data(said.to_string())
            }
        };
        Ok::<_, io::Error>(event)
    });
    sse::Sse::new(events).keep_alive(sse::KeepAlive::default()).into_response()
}

/// A part of a file that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u64,
    last: Option<u64>,
}

impl Range {
    /// None: the whole. Of several ranges, or of another unit, the whole is the answer, as the standard has it.
    fn of(headers: &HeaderMap) -> Result<Option<Self>> {
        let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
            return Ok(None);
        };
        let Some(bytes) = text.strip_prefix("bytes=").filter(|bytes| !bytes.contains(',')) else {
            return Ok(None);
        };
        let wrong = || {
            Error::invalid(format!("the range {text:?} cannot be given"))
                .with_hint("ask for bytes=FIRST-LAST")
        };
        let (first, last) = bytes.split_once('-').ok_or_else(wrong)?;
        let first = first.parse().map_err(|_| wrong())?;
        let last = if last.is_empty() { None } else { Some(last.parse().map_err(|_| wrong())?) };
        if last.is_some_and(|last| last < first) {
            return Err(wrong());
        }
        Ok(Some(Self { first, last }))
    }

    /// 0 = to the end.
    fn length(self) -> u64 {
        self.last.map_or(0, |last| last - self.first + 1)
    }
}

/// The bytes of all messages; what the first says of the file is in the headers.
async fn bytes(mut answers: Streaming<DynamicMessage>, range: Option<Range>) -> Result<Response> {
    let told = |status: tonic::Status| super::error::from_status(&status);
    let first = answers.next().await.transpose().map_err(told)?;
    let mut response = Response::new(HttpBody::empty());
    let headers = response.headers_mut();
    // What code of strangers wrote is shown by no browser as a page of this host.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    let about = first.as_ref().and_then(|message| {
        let about = ["stat", "artifact"].into_iter().find(|name| message.has_field_by_name(name))?;
        message.get_field_by_name(about)?.as_message().cloned()
    });
    let known = |name: &str| {
        about.as_ref().and_then(|about| about.get_field_by_name(name).map(|value| value.into_owned()))
    };
    if let Some(etag) =
        known("etag").and_then(|etag| HeaderValue::from_str(&format!("\"{}\"", etag.as_str()?)).ok())
    {
        headers.insert(header::ETAG, etag);
    }
    if let (Some(range), Some(size)) = (range, known("size_bytes").and_then(|size| size.as_u64())) {
        let end = range.last.map_or(size, |last| size.min(last + 1));
        let said = match range.first < size {
            true => format!("bytes {}-{}/{size}", range.first, end - 1),
            false => format!("bytes */{size}"),
        };
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&said).map_err(|_| Error::internal("a range"))?,
        );
        *response.status_mut() = match range.first < size {
            true => StatusCode::PARTIAL_CONTENT,
            false => StatusCode::RANGE_NOT_SATISFIABLE,
        };
    }
    let data = |message: &DynamicMessage| {
        let data = message.get_field_by_name("data").map(|value| value.into_owned());
        data.and_then(|data| data.as_bytes().cloned()).unwrap_or_default()
    };
    let begin = first.as_ref().map(data).unwrap_or_default();
    let rest = answers.map(move |answer| match answer {
        Ok(message) => Ok(data(&message)),
        // The connection breaks: who reads knows that there was more.
        Err(status) => Err(io::Error::other(status.message().to_owned())),
    });
    *response.body_mut() = HttpBody::from_stream(stream::iter([Ok(begin)]).chain(rest));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(cooper_proto::DESCRIPTORS).unwrap()
    }

    #[test]
    fn every_path_stands_for_a_method_and_names_its_fields() {
        let pool = pool();
        for route in ROUTES {
            let method = method(&pool, route.method).unwrap();
            let of = match route.body {
                Body::Bytes => match method.input().get_field_by_name("header").unwrap().kind() {
                    Kind::Message(of) => of,
                    other => panic!("{other:?}"),
                },
                _ => method.input(),
            };
            let inner = route.within.map(|name| match of.get_field_by_name(name).unwrap().kind() {
                Kind::Message(of) => of,
                other => panic!("{other:?}"),
            });
            for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let name = name.trim_start_matches('*');
                let known = of.get_field_by_name(name).or_else(|| inner.as_ref()?.get_field_by_name(name));
                assert!(known.is_some(), "{} of {}", name, route.path);
            }
            assert_eq!(method.is_server_streaming(), route.answer != Answer::Json, "{}", route.path);
        }
        // As the port has them: beside what else has paths there.
        let rest = router(Routes::from(Router::new())).unwrap();
        let others =
            ["/sessions/{session}/ports/{port}", "/sessions/{session}/ports/{port}/{*rest}", "/health"];
        let _ = others.iter().fold(rest, |all, path| all.route(path, routing::get(async || ())));
    }

    /// What REST leaves out it leaves out on purpose.
    #[test]
    fn every_method_has_a_path() {
        let without = ["WorkerLink", "ForwardPort", "SubmitTasks", "WatchTasks", "Execute"];
        let pool = pool();
        let services = pool.services().filter(|service| service.full_name().starts_with("cooper.v1."));
        for service in services.filter(|service| !without.contains(&service.name())) {
            for method in service.methods().filter(|method| !without.contains(&method.name())) {
                let name = format!("{}/{}", service.name(), method.name());
                assert!(ROUTES.iter().any(|route| route.method == name), "{name} has no path");
            }
        }
    }

    #[test]
    fn a_range_is_read_as_the_standard_has_it() {
        let of = |text: &'static str| {
            Range::of(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(text))]))
        };
        assert_eq!(of("bytes=2-5").unwrap(), Some(Range { first: 2, last: Some(5) }));
        assert_eq!(of("bytes=2-").unwrap(), Some(Range { first: 2, last: None }));
        assert_eq!(of("bytes=0-1,4-5").unwrap(), None);
        assert_eq!(of("pages=1-2").unwrap(), None);
        assert!(of("bytes=5-2").is_err() && of("bytes=-5").is_err());
    }
}
