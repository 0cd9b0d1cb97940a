//! `cooper config show`: the settings that hold, and why. Secrets are never shown.

use std::collections::BTreeMap;

use cooper_common::config::{Role, Value};
use serde_json::{Map, json};

use crate::{args::Config, context::Context, failure::Result};

pub fn run(context: &Context, args: Config) -> Result<u8> {
    let Config::Show { origin, role } = args;
    let role = Role::parse(&role).unwrap_or(Role::Up);
    let config = context.config(role, BTreeMap::new())?;
    if context.out.json {
        let settings: Map<String, serde_json::Value> = config
            .entries
            .iter()
            .map(|entry| {
                let value = match (&entry.value, origin) {
                    (value, false) => value.to_json(),
                    (value, true) => json!({"value": value.to_json(), "origin": entry.origin.to_string()}),
                };
                (entry.setting.key.to_owned(), value)
            })
            .collect();
        let file = config.file.as_ref().map(|path| path.display().to_string());
        context.out.document(&json!({"role": role.as_str(), "file": file, "settings": settings}))?;
        return Ok(0);
    }
    let rows = config
        .entries
        .iter()
        .map(|entry| {
            let value = if entry.value == Value::None { "-".to_owned() } else { entry.value.to_string() };
            let mut row = vec![entry.setting.key.to_owned(), value];
            if origin {
                row.push(entry.origin.to_string());
            }
            row
        })
        .collect();
    let header: &[&str] = if origin { &["setting", "value", "origin"] } else { &["setting", "value"] };
    context.out.table(header, rows)?;
    Ok(0)
}
