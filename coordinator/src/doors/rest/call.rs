//! A request of REST as the call of gRPC that it stands for, in this process: what is allowed, checked and done is decided
//! in one place for both.

use cooper_common::{error::Result, limits};
use futures::Stream;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor, prost::Message as _};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    service::Routes,
};

use crate::{caller::Caller, doors::error::from_status};

/// Messages of a method, known by their descriptors alone.
#[derive(Clone)]
struct Dynamic {
    answer: MessageDescriptor,
}

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.answer.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Asks one thing, or streams what is asked; the answers as they come.
///
/// # Errors
/// What the method said before its first answer.
pub async fn call(
    services: &Routes,
    method: &MethodDescriptor,
    caller: Option<Caller>,
    messages: impl Stream<Item = DynamicMessage> + Send + 'static,
) -> Result<Streaming<DynamicMessage>> {
    let max = limits::link::MESSAGE_BYTES_MAX;
    let mut client =
        Grpc::new(services.clone()).max_decoding_message_size(max).max_encoding_message_size(max);
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = PathAndQuery::try_from(path)
        .map_err(|error| cooper_common::error::Error::internal(error.to_string()))?;
    let mut request = Request::new(messages);
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let codec = Dynamic { answer: method.output() };
    let answer = client.streaming(request, path, codec).await;
    Ok(answer.map_err(|status| from_status(&status))?.into_inner())
}
