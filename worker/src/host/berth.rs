//! A berth: a place for a session, made before anybody wants it. It has a home, a uid and a control group, and in it waits an
//! interpreter that is confined to them. A session that takes it gives the home its name and the interpreter its settings;
//! what costs time is behind it.

use std::{io, time::Duration};

use cooper_common::limits::exec;

use super::{
    Host,
    helper::{self, Task},
    home::{Home, Record},
    python::Python,
    zygote::{Forked, Settled},
};
use crate::confine::cgroup;

/// A home's name before it has a session's. Other workers may have theirs in the same directory.
fn name(worker_id: &str, number: u64) -> String {
    format!(".berth-{worker_id}-{number:016x}")
}

/// Whether a directory is called like a berth of this worker, or like what is left of one whose removal was cut off (see
/// [`helper::remove`]).
pub fn is_name(directory: &str, worker_id: &str) -> bool {
    let is_whole = |directory: &str| {
        let number = directory.rsplit_once('-').and_then(|(_, number)| u64::from_str_radix(number, 16).ok());
        number.is_some_and(|number| name(worker_id, number) == directory)
    };
    let part = directory.rsplit_once('-').filter(|(_, part)| part.parse::<u64>().is_ok());
    is_whole(directory) || part.is_some_and(|(whole, _)| is_whole(whole))
}

/// How long what is given up may take to end.
const END_MS: u64 = 2_000;

/// Limits of a session that names none.
const USUAL: cgroup::Limits =
    cgroup::Limits { memory_bytes: exec::MEMORY_BYTES, processes: exec::PROCESSES as u64, cpu_millis: 0 };

pub struct Berth {
    home: Home,
    uid: Option<u32>,
    group: Option<cgroup::Group>,
    interpreter: Settled,
}

impl Berth {
    pub fn pid(&self) -> rustix::process::Pid {
        self.interpreter.reaper().pid
    }

    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Makes it the place of a session, whose control group and interpreter it answers with.
    pub fn take(self, home: &Home, record: &mut Record) -> io::Result<(Option<cgroup::Group>, Settled)> {
        let Self { home: furnished, uid, group, interpreter } = self;
        record.uid = uid;
        home.move_in(&furnished, record)?;
        let limits = record.group_limits();
        if let Some(group) = group.as_ref().filter(|_| limits != USUAL) {
            group.limit(limits)?;
        }
        Ok((group, interpreter))
    }
}

impl Host {
    /// Makes a berth of a forked interpreter.
    pub(super) fn berth(&mut self, python: &Python, forked: Forked) -> io::Result<Berth> {
        let name = name(&self.dir.worker_id, rand::random());
        let home = Home::new(&self.dir.base, &name);
        let uid = self.next_uid().map_err(io::Error::other)?;
        home.furnish(uid, python, self.layer_of(python))?;
        let group = self.confiner.group(&name, USUAL);
        let settled = group.and_then(|group| {
            let mut confinement = self.confiner.confinement(uid, &home.dir, group.as_ref())?;
            Ok((forked.settle(&home.workspace(), &mut confinement)?, group))
        });
        match settled {
            Ok((interpreter, group)) => Ok(Berth { home, uid, group, interpreter }),
            Err(error) => {
                let _ = helper::remove(&home.dir);
                Err(error)
            }
        }
    }

    /// Gives berths up: their interpreters end, then their places go.
    pub(super) fn give_up(&mut self, berths: Vec<Berth>) {
        if berths.is_empty() {
            return;
        }
        let mut places = Vec::new();
        for Berth { home, group, interpreter, .. } in berths {
            // Its subreaper ends, and what is beneath it, when nobody hears its reports any more.
            self.ending.insert(interpreter.reaper().pid);
            places.push((home, group));
        }
        let cleared = self.help(Task::Remove { session: None }, &[], move || {
            let (mut rounds, mut well) = (END_MS / 2, true);
            // At once, however busy their subreapers are.
            places.iter().filter_map(|(_, group)| group.as_ref()).for_each(cgroup::Group::kill);
            // One that cannot be cleared away keeps no other.
            for (home, group) in places {
                while group.as_ref().is_some_and(|group| !group.remove()) && rounds > 0 {
                    rounds -= 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
                well &= helper::remove(&home.dir).is_ok() && rounds > 0;
            }
            well
        });
        if let Err(error) = cleared {
            tracing::warn!(%error, "places of interpreters that nobody took stay until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_berth_is_known_by_its_name_and_others_are_not() {
        let berth = name("w1", 0xefa9_7152_a8a5_7a79);
        for ours in [berth.clone(), format!("{berth}-0"), format!("{berth}-12")] {
            assert!(is_name(&ours, "w1"), "{ours}");
            assert!(!is_name(&ours, "w1-b") && !is_name(&ours, "w"), "{ours}");
        }
        for other in [&name("w1-b", 7), "ses_x", ".berth-w1-", &format!("{berth}-x"), &format!("{berth}-1-2")]
        {
            assert!(!is_name(other, "w1"), "{other}");
        }
    }
}
