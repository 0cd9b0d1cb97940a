//! Variables of an interpreter that are saved with its session's files, and brought into the next one. All of it happens
//! inside of the session: its runner is sent `globals.py` and says what came of it, which is believed beyond that session
//! in nothing.

use std::path::PathBuf;

use cooper_common::{clock, error::Error, limits::checkpoint as limits};
use cooper_proto::{host as wire, v1};
use serde::{Deserialize, Serialize};

use super::{
    Due, Host,
    session::{Doing, State},
};
use crate::frame;

/// In the workspace while a session is packed or unpacked.
pub const FILE: &str = ".cooper-globals";
const TEXT: &str = include_str!("globals.py");
/// The runner keeps the time itself; whose runner does not is ended.
const MARGIN_MS: u64 = 5_000;

#[derive(Serialize)]
struct Inside<'a> {
    id: u64,
    inside: &'a str,
    #[serde(rename = "do")]
    what: &'a str,
    path: PathBuf,
    workspace: PathBuf,
    bytes_max: u64,
    named_max: usize,
    ms: u64,
}

/// What the runner says of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Done {
    names: Vec<String>,
    count: u64,
    dropped: Vec<Dropped>,
    dropped_count: u64,
    bytes: u64,
    /// Why there are none.
    error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dropped {
    name: String,
    why: String,
}

impl Done {
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::default() }
    }

    pub fn is_there(&self) -> bool {
        self.error.is_empty()
    }

    /// Within the bounds of the contract, whatever it said.
    pub fn into_wire(self) -> v1::GlobalsSummary {
        let cut = |text: String| text.chars().take(limits::GLOBALS_TEXT_CHARS_MAX).collect::<String>();
        let dropped = |it: Dropped| v1::DroppedGlobal { name: cut(it.name), reason: cut(it.why) };
        v1::GlobalsSummary {
            names: self.names.into_iter().take(limits::GLOBALS_NAMED_MAX).map(cut).collect(),
            count: self.count,
            dropped: self.dropped.into_iter().take(limits::GLOBALS_NAMED_MAX).map(dropped).collect(),
            dropped_count: self.dropped_count,
            bytes: self.bytes,
            error: cut(self.error),
        }
    }
}

impl Host {
    /// Has a session's variables saved before it is packed; false when there is nobody to ask.
    pub(super) fn save_globals(&mut self, call: &wire::OpenFile) -> Result<(), Done> {
        let none = |why: &str| Err(Done::failed(why));
        let Some(session) = self.sessions.get(&call.session_id) else { return none("there is no session") };
        let Some(id) = session.interpreter() else { return none("no interpreter runs; there are none") };
        if session.state != State::Ready || self.doing(id) != Some(Doing::Idle) {
            return none("its interpreter is busy");
        }
        match self.tell_inside(id, &call.session_id, call.call_id, "save", limits::GLOBALS_SAVE_MS) {
            Ok(()) => {
                self.set_doing(id, Doing::Saving(call.call_id));
                self.checkpoints.note_saving(call);
                Ok(())
            }
            Err(error) => none(&format!("its interpreter does not listen: {error}")),
        }
    }

    fn tell_inside(
        &mut self,
        interpreter: u64,
        session: &str,
        id: u64,
        what: &str,
        ms: u64,
    ) -> std::io::Result<()> {
        let home = self.sessions.get(session).map(|session| session.home.clone());
        let workspace = home.ok_or(std::io::ErrorKind::NotFound)?.workspace();
        let inside = Inside {
            id,
            inside: TEXT,
            what,
            path: workspace.join(FILE),
            workspace,
            bytes_max: limits::GLOBALS_BYTES_MAX,
            named_max: limits::GLOBALS_NAMED_MAX,
            ms,
        };
        let control = self.control_of(interpreter).ok_or(std::io::ErrorKind::NotFound)?;
        frame::send_bytes(control, &serde_json::to_vec(&inside)?, &[])?;
        self.timers.add(clock::mono_ms() + ms + MARGIN_MS, Due::Globals(interpreter, id));
        Ok(())
    }

    /// The variables are saved, or not: the session is packed.
    pub(super) fn globals_saved(&mut self, call_id: u64, done: Done) {
        // Without a call that waits for it, its link is gone.
        if let Some(call) = self.checkpoints.saved(call_id) {
            self.pack_with(&call, Some(done));
        }
    }

    /// The interpreter of a session that was restored has said hello. True: it is busy with the variables first.
    pub(super) fn load_globals(&mut self, interpreter: u64, session_id: &str) -> bool {
        if !self.sessions.get(session_id).is_some_and(|session| session.record.globals) {
            return false;
        }
        match self.tell_inside(interpreter, session_id, interpreter, "load", limits::GLOBALS_LOAD_MS) {
            Ok(()) => true,
            Err(error) => {
                self.globals_loaded(session_id, Done::failed(format!("it does not listen: {error}")));
                false
            }
        }
    }

    /// What became of the variables that came with a session. They are tried once.
    pub(super) fn globals_loaded(&mut self, session_id: &str, done: Done) {
        let Some(session) = self.sessions.get_mut(session_id) else { return };
        let done = done.into_wire();
        tracing::info!(session = session_id, count = done.count, error = done.error, "variables");
        session.globals = Some(done);
        session.record.globals = false;
        if let Err(error) = session.record.write(&session.home.dir) {
            tracing::warn!(session = session_id, %error, "the session's record could not be renewed");
        }
        let _ = std::fs::remove_file(session.home.workspace().join(FILE));
    }

    /// The runner did not keep its time.
    pub(super) fn on_late_globals(&mut self, interpreter: u64, id: u64) {
        let doing = self.doing(interpreter);
        if doing == Some(Doing::Saving(id)) || (doing == Some(Doing::Loading) && id == interpreter) {
            self.end_interpreter(interpreter);
        }
    }
}

/// Of a host that was restarted before the variables of a session were loaded.
pub fn lost() -> v1::GlobalsSummary {
    Done::failed(Error::internal("the worker's host ended before they were loaded").message).into_wire()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runner_says_of_variables_is_kept_within_bounds() {
        let names = vec!["n".repeat(100_000); 1_000];
        let dropped = (0..1_000).map(|_| Dropped { name: "ü".repeat(9_999), why: "w".repeat(99_999) });
        let done = Done { names, dropped: dropped.collect(), ..Done::failed("e".repeat(99_999)) };
        let wire = done.into_wire();
        assert_eq!(
            (wire.names.len(), wire.dropped.len()),
            (limits::GLOBALS_NAMED_MAX, limits::GLOBALS_NAMED_MAX)
        );
        assert!(prost::Message::encoded_len(&wire) < 256 << 10);
    }
}
