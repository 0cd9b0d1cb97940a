//! Tells the audit trail of every call of the contract that changes something, and of what was refused or not there. REST ends
//! in the same calls (`rest/call.rs`), so that this is the one place for both; `ports.rs` tells what it refuses by
//! [`failed`].
//!
//! What a call is about is read from its first bytes as they pass: no handler has to say it, and none can forget to.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use cooper_common::{
    audit::Entry,
    error::{Code, Error, Kind, Result},
};
use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, MethodDescriptor};
use tonic::Status;
use tower::Service;

use super::error::from_status;
use crate::{
    audit::{Audit, OK},
    caller::Caller,
};

/// So much of a request is looked at: what it is about comes first.
const HEAD_BYTES: usize = 1 << 10;
/// What methods begin with that change nothing.
const READS: [&str; 12] = [
    "Get",
    "List",
    "Read",
    "Stat",
    "Search",
    "Watch",
    "Follow",
    "Explain",
    "Check",
    "SessionHistory",
    "Export",
    "Verify",
];
/// Fields that say what a request is about, the first that it has.
const OBJECTS: [&str; 14] = [
    "task_id",
    "run_id",
    "checkpoint_id",
    "artifact_id",
    "token_id",
    "worker_id",
    "session_id",
    "template",
    "name",
    "stack",
    "service",
    "session",
    "scope",
    "path",
];
/// Methods of which nobody is told the end before it is written.
const WEIGHTY: [&str; 5] =
    ["Runs/DecideRun", "Runs/Pause", "Runs/Resume", "Runs/RegisterStack", "Runs/UndoRun"];
const WEIGHTY_SERVICES: [&str; 2] = ["Admin/", "Secrets/"];

/// A method of the contract.
#[derive(Debug)]
struct Method {
    /// `Service/Method`.
    action: String,
    changes: bool,
    weighty: bool,
    /// Numbers of the fields that may lead to what it is about: the first that is there says it.
    objects: Vec<Vec<u32>>,
}

/// Puts [`Audited`] around the services of the contract.
#[derive(Clone)]
pub struct Layer {
    audit: Arc<Audit>,
    methods: Arc<HashMap<String, Method>>,
}

impl Layer {
    /// # Errors
    /// `internal` if the contract cannot be read.
    pub fn new(audit: Arc<Audit>) -> Result<Self> {
        Ok(Self { audit, methods: Arc::new(methods()?) })
    }
}

fn methods() -> Result<HashMap<String, Method>> {
    let pool = DescriptorPool::decode(cooper_proto::DESCRIPTORS)
        .map_err(|error| Error::internal(error.to_string()))?;
    let services = pool.services().filter(|it| it.package_name() == "cooper.v1" && it.name() != "WorkerLink");
    let of = |method: MethodDescriptor| {
        let service = method.parent_service();
        let action = format!("{}/{}", service.name(), method.name());
        let changes = !READS.iter().any(|read| method.name().starts_with(read));
        let weighty = changes
            && (WEIGHTY.contains(&action.as_str())
                || WEIGHTY_SERVICES.iter().any(|it| action.starts_with(it)));
        let objects = paths_to_object(&method.input());
        (format!("/{}/{}", service.full_name(), method.name()), Method { action, changes, weighty, objects })
    };
    Ok(services.flat_map(|service| service.methods().map(of).collect::<Vec<_>>()).collect())
}

fn paths_to_object(message: &MessageDescriptor) -> Vec<Vec<u32>> {
    let named = |message: &MessageDescriptor| -> Vec<u32> {
        let text = |field: &FieldDescriptor| field.kind() == prost_reflect::Kind::String && !field.is_list();
        let fields = OBJECTS.iter().filter_map(|name| message.get_field_by_name(name).filter(text));
        fields.map(|field| field.number()).collect()
    };
    let direct = named(message).into_iter().map(|number| vec![number]);
    // A stream says it in its header, a submission in its specification.
    let inner = message.fields().filter(|field| !field.is_list()).flat_map(|field| match field.kind() {
        prost_reflect::Kind::Message(inner) => {
            named(&inner).into_iter().map(|number| vec![field.number(), number]).collect()
        }
        _ => Vec::new(),
    });
    direct.chain(inner).collect()
}

impl<S> tower::Layer<S> for Layer {
    type Service = Audited<S>;

    fn layer(&self, inner: S) -> Audited<S> {
        Audited { inner, layer: self.clone() }
    }
}

/// What is behind the layer.
#[derive(Clone)]
pub struct Audited<S> {
    inner: S,
    layer: Layer,
}

impl<S> Service<Request> for Audited<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let path = request.uri().path().to_owned();
        let caller = request.extensions().get::<Caller>().cloned();
        let (true, Some(caller)) = (self.layer.methods.contains_key(&path), caller) else {
            return Box::pin(self.inner.call(request));
        };
        let head = Head::default();
        let peeked = request.map(|body| Body::new(Peeked { inner: body, head: head.clone() }));
        let (answering, layer) = (self.inner.call(peeked), self.layer.clone());
        Box::pin(async move {
            let response = answering.await?;
            if let Some(method) = layer.methods.get(&path) {
                layer.audit(method, caller, &head, failure(&response)).await;
            }
            Ok(response)
        })
    }
}

/// What a call said instead of an answer.
fn failure(response: &Response) -> Option<Error> {
    let status =
        Status::from_header_map(response.headers()).filter(|status| status.code() != tonic::Code::Ok);
    status.map(|status| from_status(&status))
}

impl Layer {
    async fn audit(&self, method: &Method, caller: Caller, head: &Head, failed: Option<Error>) {
        let entry = || entry(&caller, &method.action, head.object(&method.objects), failed.as_ref());
        if failed.as_ref().is_some_and(is_absence) {
            self.audit.absent(entry());
        }
        match method.changes || failed.as_ref().is_some_and(is_refusal) {
            true if method.weighty => self.audit.record(entry()).await,
            true => self.audit.note(entry()),
            false => {}
        }
    }
}

/// Tells the trail of a request that failed and is no call of the contract: as of a call that changes nothing.
pub fn failed(audit: &Audit, caller: &Caller, action: &str, object: &str, error: &Error) {
    let entry = || entry(caller, action, object.to_owned(), Some(error));
    if is_absence(error) {
        audit.absent(entry());
    } else if is_refusal(error) {
        audit.note(entry());
    }
}

fn entry(caller: &Caller, action: &str, object: String, failed: Option<&Error>) -> Entry {
    Entry {
        tenant: caller.tenant.to_string(),
        token_id: caller.token_id.clone(),
        name: caller.name.clone(),
        from: caller.from.map(|from| from.to_string()).unwrap_or_default(),
        action: action.to_owned(),
        object,
        outcome: failed.map_or(OK, |error| error.code.as_str()).to_owned(),
        detail: failed.map(|error| error.message.clone()).unwrap_or_default(),
        ..Entry::default()
    }
}

fn is_absence(error: &Error) -> bool {
    error.code.kind() == Kind::NotFound
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.code, Code::Forbidden | Code::PolicyRefused)
}

/// The first bytes of a request.
#[derive(Clone, Default)]
struct Head(Arc<Mutex<Vec<u8>>>);

impl Head {
    fn see(&self, bytes: &[u8]) {
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = HEAD_BYTES - head.len();
        head.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// What is in the first text field that is there, of those that these numbers lead to.
    fn object(&self, paths: &[Vec<u32>]) -> String {
        let head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it is compressed, and four bytes of length.
        let Some(message) = head.get(5..).filter(|_| head[0] == 0) else { return String::new() };
        let said = |path: &Vec<u32>| path.iter().try_fold(message, |message, number| field(message, *number));
        let found = paths.iter().filter_map(said).find(|bytes| !bytes.is_empty());
        found.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }
}

/// The bytes of a field; as far as they are there.
fn field(mut message: &[u8], wanted: u32) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => drop(varint(&mut message)?),
            1 => message = message.get(8..)?,
            5 => message = message.get(4..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (value, rest) = message.split_at(length.min(message.len()));
                if tag >> 3 == u64::from(wanted) {
                    return Some(value);
                }
                message = rest;
            }
            _ => return None,
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A body that is looked at as it passes.
struct Peeked {
    inner: Body,
    head: Head,
}

impl HttpBody for Peeked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
        {
            self.head.see(bytes);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use cooper_proto::v1;
    use proptest::prelude::*;

    use super::*;

    fn head(message: &impl prost::Message) -> Head {
        let head = Head::default();
        let bytes = message.encode_to_vec();
        // As it may come: in pieces.
        head.see(&[0]);
        head.see(&(bytes.len() as u32).to_be_bytes());
        bytes.chunks(7).for_each(|piece| head.see(piece));
        head
    }

    /// Whatever changes something says what, or is one of these.
    const ABOUT_NOTHING: [&str; 3] = ["Sessions/CreateSession", "Runs/CreateRun", "Tasks/SubmitTasks"];

    #[test]
    fn every_method_that_changes_something_says_what() {
        let methods = methods().unwrap();
        assert!(methods.len() > 60);
        for method in methods.values().filter(|method| method.changes) {
            let known = ABOUT_NOTHING.contains(&method.action.as_str());
            assert!(known || !method.objects.is_empty(), "{}: name its field in OBJECTS", method.action);
        }
        let reads: Vec<_> = methods.values().filter(|it| !it.changes).map(|it| it.action.as_str()).collect();
        for changing in
            ["Create", "Delete", "Write", "Set", "Revoke", "Rotate", "Decide", "Execute", "Submit"]
        {
            assert!(
                !reads.iter().any(|read| read.contains(&format!("/{changing}"))),
                "{changing}: {reads:?}"
            );
        }
    }

    #[test]
    fn what_a_call_is_about_is_read_from_its_first_bytes() {
        let methods = methods().unwrap();
        let about = |path: &str, head: &Head| head.object(&methods[&format!("/cooper.v1.{path}")].objects);
        let destroy = v1::DestroySessionRequest { session_id: "ses_1".into(), ..Default::default() };
        assert_eq!(about("Sessions/DestroySession", &head(&destroy)), "ses_1");
        let header =
            v1::WriteFileHeader { session_id: "ses_2".into(), path: "x".repeat(5_000), ..Default::default() };
        let write = v1::WriteFileRequest { part: Some(v1::write_file_request::Part::Header(header)) };
        assert_eq!(about("Sessions/WriteFile", &head(&write)), "ses_2");
        let decide = v1::DecideRunRequest { run_id: "run_1".into(), ..Default::default() };
        assert_eq!(about("Runs/DecideRun", &head(&decide)), "run_1");
        assert_eq!(about("Runs/DecideRun", &Head::default()), "");
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..64), number in 0u32..40) {
            let head = Head::default();
            head.see(&bytes);
            head.object(&[vec![number, 1]]);
            field(&bytes, number);
        }
    }
}
