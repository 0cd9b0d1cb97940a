//! The contract as a stranger speaks it who knows its descriptors alone: any method, any bytes.

use std::time::Duration;

use bytes::{Buf, BufMut};
use prost::Message;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::{grpc, seconds};

const ANSWER: Duration = seconds(20);
/// An answer that is a stream may have nothing to say yet.
const SILENCE: Duration = Duration::from_millis(700);

/// A method of cooper.v1.
#[derive(Debug, Clone)]
pub struct Method {
    /// `Service/Method`.
    pub name: String,
    /// Text fields of its request, by name: the numbers that lead there.
    pub texts: Vec<(String, Vec<u32>)>,
}

/// Every method of every service.
pub fn methods() -> Vec<Method> {
    let set = FileDescriptorSet::decode(cooper_proto::DESCRIPTORS).expect("descriptors");
    let files: Vec<_> = set.file.iter().filter(|file| file.package() == "cooper.v1").collect();
    let messages: Vec<_> = files.iter().flat_map(|file| &file.message_type).collect();
    let message = |name: &str| {
        let name = name.rsplit('.').next().unwrap_or_default();
        // Entries of maps are declared inside of others, and name nothing.
        messages.iter().find(|message| message.name() == name).map(|message| &message.field)
    };
    let mut methods = Vec::new();
    for service in files.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            let mut texts = Vec::new();
            for field in message(method.input_type()).into_iter().flatten() {
                let number = field.number() as u32;
                match field.r#type() {
                    Type::String => texts.push((field.name().to_owned(), vec![number])),
                    Type::Message if field.type_name().starts_with(".cooper.v1.") => {
                        for inner in message(field.type_name()).into_iter().flatten() {
                            if inner.r#type() == Type::String {
                                texts.push((inner.name().to_owned(), vec![number, inner.number() as u32]));
                            }
                        }
                    }
                    _ => {}
                }
            }
            methods.push(Method { name: format!("{}/{}", service.name(), method.name()), texts });
        }
    }
    methods
}

impl Method {
    /// A request with nothing but this in this field.
    pub fn request(&self, field: &str, text: &str) -> Option<Vec<u8>> {
        let (_, path) = self.texts.iter().find(|(name, _)| name == field)?;
        let inner = path.iter().rev().fold(text.as_bytes().to_vec(), |value, number| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut bytes);
            prost::encoding::encode_varint(value.len() as u64, &mut bytes);
            bytes.extend(value);
            bytes
        });
        Some(inner)
    }

    /// Asks, and says how that ended: an error, or an answer that began.
    pub async fn ask(&self, client: &grpc::Client, request: Vec<u8>) -> Result<(), Status> {
        let mut grpc = Grpc::new(client.service.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/cooper.v1.{}", self.name)).expect("a path");
        let asked = grpc.streaming(Request::new(tokio_stream::once(request)), path, Raw);
        let answer = tokio::time::timeout(ANSWER, asked).await;
        let mut answers = answer.unwrap_or_else(|_| panic!("{} does not answer", self.name))?.into_inner();
        match tokio::time::timeout(SILENCE, answers.message()).await {
            Ok(Err(status)) => Err(status),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

/// Bytes out, anything in.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
