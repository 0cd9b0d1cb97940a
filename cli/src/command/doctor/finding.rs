//! What was looked at: how it is, and what to do about it.

use serde_json::{Value, json};

/// One thing that has to be right, or that only some need.
#[derive(Debug)]
pub struct Finding {
    pub name: &'static str,
    pub ok: bool,
    pub what: String,
    /// What to do; empty when there is nothing to do.
    pub todo: String,
}

impl Finding {
    pub fn good(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, ok: true, what: what.into(), todo: String::new() }
    }

    pub fn bad(name: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { name, ok: false, what: what.into(), todo: todo.into() }
    }

    pub fn document(&self) -> Value {
        json!({"name": self.name, "ok": self.ok, "what": self.what, "todo": self.todo})
    }

    pub fn line(&self) -> String {
        let mark = if self.ok { "ok" } else { "--" };
        let todo = if self.todo.is_empty() { String::new() } else { format!("; {}", self.todo) };
        format!("{mark}  {:<12}{}{todo}", self.name, self.what)
    }
}
