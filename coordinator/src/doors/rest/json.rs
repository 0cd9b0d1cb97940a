//! Messages of the contract as JSON, by their descriptors: snake_case names, states in lower case, bytes as text where they
//! are text. One conversion for all of REST, so that no method is forgotten and none differs.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use cooper_common::error::{Error, Result};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage,
    Value as Field,
};
use serde_json::{Map, Number, Value};

/// Bytes that are no text are told and taken under the field's name with this behind it.
const BASE64: &str = "_base64";
/// A text field that holds JSON is told as what it holds, without this in its name.
const JSON: &str = "_json";
/// Text that is JSON, whatever its name.
const JSON_TEXT: [&str; 1] = ["cooper.v1.Event.body"];

/// A message as JSON. Every field is there, `null` where it is absent; of a choice only what was chosen.
pub fn write(message: &DynamicMessage) -> Value {
    let mut map = Map::new();
    for field in message.descriptor().fields() {
        let chosen = field.containing_oneof().is_some_and(|choice| !choice.is_synthetic());
        if chosen && !message.has_field(&field) {
            continue;
        }
        if field.supports_presence() && !message.has_field(&field) {
            map.insert(field.name().to_owned(), Value::Null);
            continue;
        }
        let value = message.get_field(&field);
        match &*value {
            Field::Bytes(bytes) if field.name().ends_with(JSON) => add_json(&mut map, &field, bytes),
            Field::String(text) if field.name().ends_with(JSON) || JSON_TEXT.contains(&field.full_name()) => {
                add_json(&mut map, &field, text.as_bytes());
            }
            Field::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => drop(map.insert(field.name().to_owned(), text.into())),
                Err(_) => {
                    drop(map.insert(format!("{}{BASE64}", field.name()), STANDARD.encode(bytes).into()))
                }
            },
            other => drop(map.insert(field.name().to_owned(), written(&field.kind(), other))),
        }
    }
    Value::Object(map)
}

fn add_json(map: &mut Map<String, Value>, field: &FieldDescriptor, text: &[u8]) {
    let name = field.name().strip_suffix(JSON).unwrap_or(field.name());
    map.insert(name.to_owned(), serde_json::from_slice(text).unwrap_or(Value::Null));
}

fn written(kind: &Kind, value: &Field) -> Value {
    match value {
        Field::Bool(it) => (*it).into(),
        Field::I32(it) => (*it).into(),
        Field::I64(it) => (*it).into(),
        Field::U32(it) => (*it).into(),
        Field::U64(it) => (*it).into(),
        Field::F32(it) => Number::from_f64((*it).into()).map_or(Value::Null, Value::Number),
        Field::F64(it) => Number::from_f64(*it).map_or(Value::Null, Value::Number),
        Field::String(it) => it.as_str().into(),
        // In a list or a map there is no other name: what is text is text, anything else is base64.
        Field::Bytes(it) => std::str::from_utf8(it).map_or_else(|_| STANDARD.encode(it).into(), Value::from),
        Field::EnumNumber(number) => match kind {
            Kind::Enum(of) => enum_name(of, *number).map_or(Value::Null, Value::from),
            _ => (*number).into(),
        },
        Field::Message(message) => write(message),
        Field::List(items) => items.iter().map(|item| written(kind, item)).collect(),
        Field::Map(entries) => {
            let Kind::Message(entry) = kind else { return Value::Null };
            let of_value = entry.map_entry_value_field();
            let mut sorted: Vec<_> = entries.iter().map(|(key, value)| (key_text(key), value)).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            let pairs = sorted.into_iter().map(|(key, value)| (key, written(&of_value.kind(), value)));
            Value::Object(pairs.collect())
        }
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(it) => it.to_string(),
        MapKey::I32(it) => it.to_string(),
        MapKey::I64(it) => it.to_string(),
        MapKey::U32(it) => it.to_string(),
        MapKey::U64(it) => it.to_string(),
        MapKey::String(it) => it.clone(),
    }
}

/// `SESSION_STATE_READY` of `SessionState` is `ready`; what is not specified has no name.
fn enum_name(of: &EnumDescriptor, number: i32) -> Option<String> {
    let value = of.get_value(number)?;
    (number != 0).then(|| short(of, value.name()))
}

fn short(of: &EnumDescriptor, name: &str) -> String {
    let mut prefix = String::new();
    for (at, part) in of.name().char_indices() {
        if part.is_ascii_uppercase() && at > 0 {
            prefix.push('_');
        }
        prefix.push(part.to_ascii_uppercase());
    }
    prefix.push('_');
    name.strip_prefix(&prefix).unwrap_or(name).to_ascii_lowercase()
}

/// What an enum's values are called.
pub fn names(of: &EnumDescriptor) -> Vec<String> {
    of.values().filter(|value| value.number() != 0).map(|value| short(of, value.name())).collect()
}

/// Whether null stands for the field's absence. Elsewhere it is a mistake of whoever asks: no stack is every stack to some
/// methods.
pub fn may_be_null(field: &FieldDescriptor) -> bool {
    field.supports_presence() || (matches!(field.kind(), Kind::Enum(_)) && !field.is_list())
}

/// JSON as a message, strictly: what the message has not got is an error, as is a value of another type.
///
/// # Errors
/// `invalid_argument` names the field by its path.
pub fn read(of: &MessageDescriptor, value: &Value) -> Result<DynamicMessage> {
    read_at(of, value, "")
}

fn read_at(of: &MessageDescriptor, value: &Value, path: &str) -> Result<DynamicMessage> {
    let Value::Object(map) = value else { return Err(mismatch(path, "an object", value)) };
    let mut message = DynamicMessage::new(of.clone());
    for (name, value) in map {
        let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if let Some(field) = of.get_field_by_name(name) {
            if !(value.is_null() && may_be_null(&field)) {
                let read = read_field(&field, value, &here)?;
                message.set_field(&field, read);
            }
            continue;
        }
        let bytes = name.strip_suffix(BASE64).and_then(|name| of.get_field_by_name(name));
        match bytes.filter(|field| matches!(field.kind(), Kind::Bytes)) {
            Some(field) => {
                let text = value.as_str().ok_or_else(|| mismatch(&here, "base64", value))?;
                let bytes = STANDARD.decode(text).map_err(|_| mismatch(&here, "base64", value))?;
                message.set_field(&field, Field::Bytes(bytes.into()));
            }
            None => {
                let known: Vec<String> = of.fields().map(|field| field.name().to_owned()).collect();
                return Err(Error::invalid(format!("there is no field {here}"))
                    .with_hint(format!("fields are: {}", known.join(", "))));
            }
        }
    }
    Ok(message)
}

fn read_field(field: &FieldDescriptor, value: &Value, path: &str) -> Result<Field> {
    if field.is_map() {
        let Value::Object(map) = value else { return Err(mismatch(path, "an object", value)) };
        let Kind::Message(entry) = field.kind() else { return Err(mismatch(path, "an object", value)) };
        let (of_key, of_value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let pairs = map.iter().map(|(key, value)| {
            let here = format!("{path}.{key}");
            Ok((read_key(&of_key, key, &here)?, read_one(&of_value, value, &here)?))
        });
        return Ok(Field::Map(pairs.collect::<Result<_>>()?));
    }
    if field.is_list() {
        let Value::Array(items) = value else { return Err(mismatch(path, "an array", value)) };
        let items =
            items.iter().enumerate().map(|(at, item)| read_one(field, item, &format!("{path}[{at}]")));
        return Ok(Field::List(items.collect::<Result<_>>()?));
    }
    read_one(field, value, path)
}

fn read_key(field: &FieldDescriptor, key: &str, path: &str) -> Result<MapKey> {
    let value = || Value::from(key);
    Ok(match field.kind() {
        Kind::Uint32 => {
            MapKey::U32(key.parse().map_err(|_| mismatch(path, "a number as its key", &value()))?)
        }
        _ => MapKey::String(key.to_owned()),
    })
}

fn read_one(field: &FieldDescriptor, value: &Value, path: &str) -> Result<Field> {
    let kind = field.kind();
    let read = match &kind {
        Kind::Bool => value.as_bool().map(Field::Bool),
        Kind::Int32 => value.as_i64().and_then(|it| it.try_into().ok()).map(Field::I32),
        Kind::Int64 => value.as_i64().map(Field::I64),
        Kind::Uint32 => value.as_u64().and_then(|it| it.try_into().ok()).map(Field::U32),
        Kind::Uint64 => value.as_u64().map(Field::U64),
        Kind::Float => value.as_f64().map(|it| Field::F32(it as f32)),
        Kind::Double => value.as_f64().map(Field::F64),
        Kind::String => value.as_str().map(|it| Field::String(it.to_owned())),
        Kind::Bytes => value.as_str().map(|it| Field::Bytes(Bytes::copy_from_slice(it.as_bytes()))),
        Kind::Message(of) => return Ok(Field::Message(read_at(of, value, path)?)),
        Kind::Enum(of) => {
            let found = value.as_str().and_then(|text| {
                let mut values = of.values().filter(|known| known.number() != 0);
                values.find(|known| short(of, known.name()) == text)
            });
            return found
                .map(|known| Field::EnumNumber(known.number()))
                .ok_or_else(|| mismatch(path, &format!("one of {}", names(of).join(", ")), value));
        }
        Kind::Sint32 | Kind::Sint64 | Kind::Fixed32 | Kind::Fixed64 | Kind::Sfixed32 | Kind::Sfixed64 => None,
    };
    read.ok_or_else(|| mismatch(path, expected(&kind), value))
}

fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Int32 | Kind::Int64 => "a whole number",
        Kind::Uint32 | Kind::Uint64 => "a whole number from 0",
        Kind::Float | Kind::Double => "a number",
        _ => "a string",
    }
}

fn mismatch(path: &str, expected: &str, value: &Value) -> Error {
    let shown: String = value.to_string().chars().take(80).collect();
    let path = if path.is_empty() { "the body" } else { path };
    Error::invalid(format!("{path} is {shown}, not {expected}"))
}

/// A value of the query, as JSON would have it.
///
/// # Errors
/// `invalid_argument` for what is not of the field's type.
pub fn from_query(field: &FieldDescriptor, text: &str) -> Result<Value> {
    let wrong = |expected: &str| mismatch(field.name(), expected, &Value::from(text));
    Ok(match field.kind() {
        Kind::Bool => match text {
            "" | "true" | "1" => true.into(),
            "false" | "0" => false.into(),
            _ => return Err(wrong("true or false")),
        },
        Kind::Int32 | Kind::Int64 => text.parse::<i64>().map_err(|_| wrong("a whole number"))?.into(),
        Kind::Uint32 | Kind::Uint64 => {
            text.parse::<u64>().map_err(|_| wrong("a whole number from 0"))?.into()
        }
        _ => text.into(),
    })
}

#[cfg(test)]
mod tests {
    use cooper_proto::v1;
    use prost::Message as _;
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    use super::*;

    fn of(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(cooper_proto::DESCRIPTORS).unwrap();
        pool.get_message_by_name(&format!("cooper.v1.{name}")).unwrap()
    }

    #[test]
    fn a_message_is_told_with_every_field_and_read_as_it_was_told() {
        let task = v1::SubmitTaskRequest {
            spec: Some(v1::TaskSpec {
                kind: Some(v1::task_spec::Kind::Python(v1::PythonSpec {
                    code: "1".to_owned(),
                    mode: v1::ExecutionMode::Fresh.into(),
                    stdin: vec![0xff],
                    ..Default::default()
                })),
                env: [("A".to_owned(), "b".to_owned())].into(),
                ..Default::default()
            }),
            priority: -3,
            ..Default::default()
        };
        let of = of("SubmitTaskRequest");
        let message = DynamicMessage::decode(of.clone(), &*task.encode_to_vec()).unwrap();
        let told = write(&message);
        assert_eq!(told["spec"]["python"]["mode"], "fresh");
        assert_eq!(told["spec"]["python"]["stdin_base64"], "/w==");
        assert_eq!((&told["priority"], &told["retry"]), (&json!(-3), &Value::Null));
        assert!(told["spec"].get("shell").is_none(), "what was not chosen is not there");
        let read = read(&of, &told).unwrap().encode_to_vec();
        assert_eq!(v1::SubmitTaskRequest::decode(&*read).unwrap(), task);
    }

    #[test]
    fn what_is_not_of_the_contract_is_refused_by_its_path() {
        for (value, said) in [
            (json!([]), "the body is []"),
            (json!({"prioriti": 1}), "there is no field prioriti"),
            (json!({"priority": null}), "priority is null, not a whole number"),
            (json!({"priority": "1"}), "priority is \"1\", not a whole number"),
            (json!({"priority": 1_u64 << 40}), "priority is"),
            (json!({"spec": {"python": {"code": 1}}}), "spec.python.code is 1, not a string"),
            (json!({"spec": {"python": {"mode": "quick"}}}), "not one of stateful, fresh"),
            (json!({"spec": {"python": {"args": ["a", 1]}}}), "spec.python.args[1]"),
            (json!({"spec": {"env": {"A": 1}}}), "spec.env.A"),
            (json!({"spec": {"python": {"stdin_base64": "?"}}}), "not base64"),
        ] {
            let error = read(&of("SubmitTaskRequest"), &value).unwrap_err();
            assert!(error.message.contains(said), "{:?} for {value}", error.message);
        }
    }
}
