//! What a child process starts with. Nothing is inherited that is not named here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::sys;
use crate::confine::{Confinement, Failed, Part, capabilities, of};

pub enum Program {
    Path(PathBuf),
    /// This very executable, opened when the host started.
    Open(OwnedFd),
}

pub struct Launch {
    pub program: Program,
    /// With argv[0].
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    /// Become the child's descriptors 0, 1, 2, …; it gets no others.
    pub fds: Vec<OwnedFd>,
    pub limits: Vec<(Resource, u64)>,
    /// With none of the host's capabilities, nor any that a program could bring.
    pub powerless: bool,
    /// Runs as this uid; only when the host is root. A confinement has its own.
    pub uid: Option<u32>,
    /// Descriptor 0 is a terminal, which becomes the child's own.
    pub terminal: bool,
    /// Of a session's process.
    pub confinement: Option<Confinement>,
}

impl Launch {
    /// What has to stay open until the child runs.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let program = match &self.program {
            Program::Open(fd) => Some(fd.as_raw_fd()),
            Program::Path(_) => None,
        };
        let confinement = self.confinement.iter().flat_map(Confinement::descriptors);
        self.fds.iter().map(AsRawFd::as_raw_fd).chain(program).chain(confinement).collect()
    }

    /// Turns the calling, freshly forked process into the child. Returns only when that failed.
    pub fn exec(self, parent: Pid) -> Failed {
        match self.try_exec(parent) {
            Err(failed) => failed,
            Ok(never) => match never {},
        }
    }

    /// The order matters: each step needs what a later one takes away.
    fn try_exec(self, parent: Pid) -> Result<std::convert::Infallible, Failed> {
        let argv = c_strings(self.argv).map_err(of(Part::Program))?;
        let env = self.env.into_iter().map(|(name, value)| format!("{name}={value}"));
        let env = c_strings(env).map_err(of(Part::Program))?;
        // Own session: a terminal's Ctrl-C is for the host, which then stops everything in order.
        rustix::process::setsid().map_err(of(Part::Program))?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let program = match &self.program {
            Program::Path(_) => None,
            Program::Open(fd) => Some(fd),
        };
        let program_fd = sys::place_descriptors(&self.fds, program).map_err(of(Part::Program))?;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(of(Part::Program))?;
        }
        if let Some(confinement) = &self.confinement {
            confinement.enter()?;
        }
        for (resource, limit) in self.limits {
            let limit = at_most_hard(resource, limit);
            rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })
                .map_err(of(Part::Limits))?;
        }
        if let Some(uid) = self.confinement.as_ref().map_or(self.uid, |confinement| confinement.uid) {
            sys::become_user(uid).map_err(of(Part::Uid))?;
        }
        if self.powerless {
            capabilities::keep_none().map_err(of(Part::Uid))?;
        }
        // Not before: the worker could be led to where only it may go.
        rustix::process::chdir(&self.cwd).map_err(of(Part::Directory))?;
        if let Some(confinement) = &self.confinement {
            confinement.restrict()?;
        }
        // After the change of uid, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(of(Part::Program))?;
        if rustix::process::getppid() != Some(parent) {
            return Err((Part::Program, io::Error::other("the parent ended meanwhile")));
        }
        sys::reset_signals();
        let error = match (program_fd, &self.program) {
            (Some(fd), _) => sys::exec_fd(fd, &argv, &env),
            (None, Program::Path(path)) => {
                sys::exec_path(&c_string(path).map_err(of(Part::Program))?, &argv, &env)
            }
            (None, Program::Open(fd)) => sys::exec_fd(fd.as_raw_fd(), &argv, &env),
        };
        Err((Part::Program, error))
    }
}

/// A limit cannot be raised above the hard one without privilege; the lower one holds then.
fn at_most_hard(resource: Resource, limit: u64) -> Option<u64> {
    Some(rustix::process::getrlimit(resource).maximum.map_or(limit, |hard| limit.min(hard)))
}

fn c_string(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn c_strings(strings: impl IntoIterator<Item = String>) -> io::Result<Vec<CString>> {
    strings.into_iter().map(|s| Ok(CString::new(s)?)).collect()
}
