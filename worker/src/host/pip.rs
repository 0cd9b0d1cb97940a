//! `pip` that is typed in a session: `install/pip.py` asks for it through the proxy (`egress/pip.rs`), and the installer runs
//! here as it does for `cooper packages`, under the same rules. Its output goes back the way the request came.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use cooper_common::{
    error::{Code, Error, Result},
    limits::exec::PIP_PER_SESSION_MAX,
};

use super::{
    Host,
    install::Order,
    reaper::{self, Exit},
    spawn,
    stop::Phase,
    tree::Which,
    trees::Owner,
};
use crate::{
    confine::Part,
    egress::{ToEgress, pip::Ended},
};

/// Installers that a `pip` waits for, by the proxy's number: the session, and the process tree.
pub type Pips = BTreeMap<u64, (String, u64)>;

impl Host {
    pub(super) fn pip_asked(&mut self, id: u64, session: String, order: &str, fds: Vec<OwnedFd>) {
        match self.start_pip(id, &session, order, fds) {
            Ok(tree) => drop(self.pips.insert(id, (session, tree))),
            Err(error) => {
                let hint =
                    if error.hint().is_empty() { String::new() } else { format!(" ({})", error.hint()) };
                self.tell_pip(id, Ended { exit_code: 1, error: format!("{}{hint}", error.message) });
            }
        }
    }

    fn start_pip(&mut self, id: u64, session_id: &str, order: &str, fds: Vec<OwnedFd>) -> Result<u64> {
        if self.stopping >= Some(Phase::Ending) {
            return Err(Error::new(Code::Unavailable, "the worker stops"));
        }
        let session = self.sessions.get(session_id).ok_or_else(|| super::unknown_session(session_id))?;
        session.accepts()?;
        let running = self.pips.values().filter(|(session, _)| session == session_id).count();
        if running >= PIP_PER_SESSION_MAX {
            return Err(Error::new(Code::SessionBusy, format!("{running} installers are at work already")));
        }
        let order: Order = serde_json::from_str(order)
            .map_err(|error| Error::invalid(format!("this worker does not understand that ({error})")))?;
        // The report is for who asked, whom the installer tells by itself.
        let report = spawn::memfd("cooper-report", &[]).map_err(spawn::unspawned)?;
        let mut launch = self.installer(session_id, order.checked()?, [], report)?;
        launch.fds.splice(1..1, fds);
        let reaper = reaper::start(launch).map_err(spawn::unspawned)?;
        self.plant(reaper, Some(session_id.to_owned()), Owner::Pip(id)).map_err(spawn::unspawned)
    }

    /// An installer has ended; nothing of it stays.
    pub(super) fn pip_exited(&mut self, id: u64, tree: u64, exit: Exit) {
        if let Some((session, _)) = self.pips.remove(&id) {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.installed = true;
            }
            self.tell_pip(id, Ended { exit_code: exit.code(), error: String::new() });
        }
        self.doom(tree, Which::default(), None);
    }

    pub(super) fn pip_not_started(&mut self, id: u64, errno: i32, part: Part) {
        let why = std::io::Error::from_raw_os_error(errno);
        self.pips.remove(&id);
        self.tell_pip(
            id,
            Ended { exit_code: 1, error: format!("the installer was not started: {}: {why}", part.as_str()) },
        );
    }

    /// Nobody waits for it any more.
    pub(super) fn end_pip(&mut self, id: u64) {
        if let Some((_, tree)) = self.pips.remove(&id) {
            self.doom(tree, Which::default(), None);
        }
    }

    pub(super) fn end_pips(&mut self) {
        let ids: Vec<u64> = self.pips.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_pip(id));
    }

    fn tell_pip(&mut self, id: u64, ended: Ended) {
        self.egress.tell(ToEgress::PipEnded { id, ended }, None);
    }
}
