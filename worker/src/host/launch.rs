//! What a child process starts with. Nothing is inherited that is not named here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::sys;

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
    /// Runs as this uid; only when the host is root.
    pub uid: Option<u32>,
}

impl Launch {
    /// Turns the calling, freshly forked process into the child. Returns only when that failed.
    pub fn exec(self, parent: Pid) -> io::Error {
        match self.try_exec(parent) {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    fn try_exec(self, parent: Pid) -> io::Result<std::convert::Infallible> {
        let argv = c_strings(self.argv)?;
        let env = c_strings(self.env.into_iter().map(|(name, value)| format!("{name}={value}")))?;
        // Own session: a terminal's Ctrl-C is for the host, which then stops everything in order.
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::chdir(&self.cwd)?;
        let program = match &self.program {
            Program::Path(_) => None,
            Program::Open(fd) => Some(fd),
        };
        let program_fd = sys::place_descriptors(&self.fds, program)?;
        for (resource, limit) in self.limits {
            let limit = at_most_hard(resource, limit);
            rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
        }
        if let Some(uid) = self.uid {
            sys::become_user(uid)?;
        }
        // After the change of uid, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::other("the parent ended meanwhile"));
        }
        sys::reset_signals();
        Err(match (program_fd, &self.program) {
            (Some(fd), _) => sys::exec_fd(fd, &argv, &env),
            (None, Program::Path(path)) => sys::exec_path(&c_string(path)?, &argv, &env),
            (None, Program::Open(fd)) => sys::exec_fd(fd.as_raw_fd(), &argv, &env),
        })
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
