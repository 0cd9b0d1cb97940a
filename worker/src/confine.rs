//! What keeps a session from everything that is not its own.
//!
//! [`Confiner`] is the worker's: what the machine offers, and what is the same for all sessions. [`Confinement`] is what one
//! process tree of a session gets: [`Confinement::enter`] while it still has the worker's rights, then its limits and its
//! uid, then [`Confinement::restrict`]. docs/isolation.md says what each part keeps out, and what none does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use cooper_common::error::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use attributes::Attributes;
use cage::Cage;
use facilities::{Facilities, LANDLOCK_WITH_TCP, Mask, Tier};
use landlock::Places;
use seccomp::{Network, Program};

pub mod attributes;
pub mod cage;
pub mod capabilities;
pub mod cgroup;
pub mod facilities;
pub mod filter;
pub mod landlock;
pub mod notify;
pub mod seccomp;
pub mod uids;

/// Descriptors of a confinement lie above those that a child is given (see `place_descriptors`).
const ABOVE: RawFd = 64;

/// What part of a confinement could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Program,
    Group,
    Namespaces,
    Limits,
    Uid,
    Directory,
    NoNewPrivileges,
    Landlock,
    Seccomp,
    Network,
}

impl Part {
    pub const ALL: [Part; 10] = [
        Part::Program,
        Part::Group,
        Part::Namespaces,
        Part::Limits,
        Part::Uid,
        Part::Directory,
        Part::NoNewPrivileges,
        Part::Landlock,
        Part::Seccomp,
        Part::Network,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Part::Program => "the program",
            Part::Group => "its control group",
            Part::Namespaces => "namespaces",
            Part::Limits => "its limits",
            Part::Uid => "its uid",
            Part::Directory => "its directory",
            Part::NoNewPrivileges => "giving up privileges",
            Part::Landlock => "Landlock",
            Part::Seccomp => "seccomp",
            Part::Network => "its way to the proxy",
        }
    }
}

/// A step of starting a confined process that failed.
pub type Failed = (Part, io::Error);

/// Names the part that an error belongs to.
pub fn of<E: Into<io::Error>>(part: Part) -> impl Fn(E) -> Failed {
    move |error| (part, error.into())
}

/// What confines the sessions of a worker.
pub struct Confiner {
    pub facilities: Facilities,
    /// Sessions below this are refused.
    pub tier_min: Tier,
    rules: landlock::Base,
    alone: Arc<Program>,
    /// What sockets that leaves.
    network: Network,
    attributes: Attributes,
    /// Python and the layer.
    installed: Vec<PathBuf>,
    cage: Option<Arc<Cage>>,
    groups: Option<cgroup::Root>,
    /// Why a facility that this machine has is not used.
    pub notes: Vec<String>,
}

/// Where a worker and its Python are.
pub struct Surroundings<'a> {
    /// The worker's own directory.
    pub dir: &'a Path,
    /// Where the homes of sessions are.
    pub base: &'a Path,
    /// Where its Pythons are installed.
    pub pythons: Vec<&'a Path>,
    /// Packages that every session finds.
    pub layer: Option<&'a Path>,
    /// What installers read besides.
    pub readable: Vec<PathBuf>,
    pub worker_id: &'a str,
}

/// Of the worker's control groups. A worker empties what it finds under its name, so the name has to be its own on this
/// machine: ids of workers are given by people, and only a directory is surely one worker's.
fn group_name(around: &Surroundings<'_>) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let place = std::fs::metadata(around.dir).map_or(0, |meta| meta.dev() ^ meta.ino().rotate_left(32));
    format!("cooper-{}-{place:x}", around.worker_id)
}

impl Confiner {
    pub fn new(mask: Mask, tier_min: Tier, around: &Surroundings<'_>) -> Self {
        let (mut facilities, cage, notes) = look(mask, around);
        let groups = (!mask.cgroup).then(|| cgroup::Root::open(&group_name(around)));
        facilities.cgroup = groups.as_ref().map(cgroup::Root::controllers).unwrap_or_default();
        let installed: Vec<PathBuf> =
            around.pythons.iter().copied().chain(around.layer).map(Path::to_owned).collect();
        let network = match facilities.namespaces || facilities.landlock >= LANDLOCK_WITH_TCP {
            _ if facilities.network => Network::Answered,
            true => Network::Tcp,
            false => Network::NoSockets,
        };
        let attributes = facilities.attributes();
        Self {
            rules: landlock::base(facilities.landlock, &installed),
            alone: Arc::new(seccomp::program(network, attributes)),
            network,
            attributes,
            installed,
            cage: cage.map(Arc::new),
            groups,
            facilities,
            tier_min,
            notes,
        }
    }

    /// Before anything is known: refuses.
    pub fn none() -> Self {
        Self {
            facilities: Facilities::default(),
            tier_min: Tier::T0,
            rules: landlock::base(0, &[]),
            alone: Arc::new(seccomp::program(Network::NoSockets, Attributes::Fixed)),
            network: Network::NoSockets,
            attributes: Attributes::Fixed,
            installed: Vec::new(),
            cage: None,
            groups: None,
            notes: Vec::new(),
        }
    }

    /// Whether sessions may be held here at all.
    pub fn admit(&self) -> Result<()> {
        let tier = self.facilities.tier();
        if tier >= self.tier_min {
            return Ok(());
        }
        let missing = self.notes.first().map(String::as_str).or(self.facilities.next()).unwrap_or_default();
        Err(Error::new(
            Code::IsolationUnavailable,
            format!(
                "this worker reaches isolation tier {tier}, and {} is the least: {missing}",
                self.tier_min
            ),
        ))
    }

    /// A control group for a session. None where there are none.
    pub fn group(&self, session: &str, limits: cgroup::Limits) -> io::Result<Option<cgroup::Group>> {
        let made = self.groups.as_ref().filter(|_| self.facilities.cgroup != cgroup::Controllers::default());
        made.map(|groups| groups.make(session, limits)).transpose()
    }

    /// For one process tree of a session.
    pub fn confinement(
        &self,
        uid: Option<u32>,
        home: &Path,
        group: Option<&cgroup::Group>,
    ) -> io::Result<Confinement> {
        let caged = self.cage.is_some();
        let own = own_places(home, caged);
        let readable = [home.join(SECRETS), home.join(TRUST)];
        let places = Places { own: &own, readable: &readable, network: false, scope_signals: uid.is_none() };
        Ok(Confinement {
            uid,
            landlock: self.rules.ruleset(&places)?.map(high).transpose()?,
            filter: self.facilities.seccomp.then(|| Arc::clone(&self.alone)),
            namespaces: self.cage.as_ref().map(|cage| Inside::of(cage, home)).transpose()?,
            entrances: entrances(group)?,
            interception: self.interception()?,
        })
    }

    fn interception(&self) -> io::Result<Option<Interception>> {
        let asked = self.attributes == Attributes::ByHost;
        self.facilities.network.then(|| Interception::new(asked)).transpose()
    }

    /// For an installer, which confines itself after it found its settings; the descriptor goes with the plan.
    pub fn plan(&self, uid: Option<u32>, home: &Path) -> io::Result<(Plan, Option<OwnedFd>)> {
        let plan = Plan {
            uid,
            home: home.to_owned(),
            landlock: self.facilities.landlock,
            seccomp: self.facilities.seccomp,
            installed: self.installed.clone(),
            network: self.facilities.network.then_some(self.network),
            attributes: self.attributes,
            caged: self.cage.as_ref().map(|cage| mounted(home, cage.private())),
        };
        let mounts = self.cage.as_ref().map(|cage| cage.mounts().try_clone()).transpose()?;
        Ok((plan, mounts))
    }
}

/// What this machine has, but for control groups, and why it is not more.
fn look<'a>(mask: Mask, around: &Surroundings<'a>) -> (Facilities, Option<Cage>, Vec<String>) {
    let mut facilities = Facilities::probe(mask);
    let mut notes = Vec::new();
    let cage = if mask.namespaces || !facilities::may_make_namespaces() {
        None
    } else {
        let mut visible: Vec<(PathBuf, bool)> = vec![(around.base.to_owned(), true)];
        let installed = around.pythons.iter().copied().chain(around.layer);
        visible.extend(installed.map(|place| (place.to_owned(), false)));
        visible.extend(around.readable.iter().map(|path| (path.clone(), false)));
        let scratch = around.dir.join("cage");
        let built = std::fs::create_dir_all(&scratch).and_then(|()| Cage::build(&scratch, &visible));
        built.map_err(|error| notes.push(format!("namespaces cannot be made: {error}"))).ok()
    };
    facilities.namespaces = cage.is_some();
    if cage.is_none() && facilities.uid {
        let closed = |place: &&'a Path| facilities::impassable(place);
        // Of the Pythons one is enough: others are not offered then.
        let of_pythons: Option<Vec<&Path>> = around.pythons.iter().map(closed).collect();
        let needed = [Some(around.base), around.layer].into_iter().flatten();
        let closed =
            needed.collect::<Vec<_>>().iter().find_map(closed).or_else(|| of_pythons?.first().copied());
        if let Some(dir) = closed {
            notes.push(format!(
                "sessions cannot have uids of their own: {} may not be passed by others (chmod o+x), and is on the \
                 way to Python or to the workspaces",
                dir.display()
            ));
            facilities.uid = false;
        }
    }
    (facilities, cage, notes)
}

/// What a worker would find; nothing is made.
pub fn survey(mask: Mask, around: &Surroundings<'_>) -> (Facilities, Vec<String>) {
    let (mut facilities, _, notes) = look(mask, around);
    facilities.cgroup = if mask.cgroup { cgroup::Controllers::default() } else { cgroup::available() };
    (facilities, notes)
}

/// What a process of a session gives up, and what it gets instead.
pub struct Confinement {
    pub uid: Option<u32>,
    /// Made for this tree alone: it adds a rule of its own.
    pub landlock: Option<OwnedFd>,
    pub filter: Option<Arc<Program>>,
    pub namespaces: Option<Inside>,
    /// Of its control group.
    pub entrances: Vec<OwnedFd>,
    /// Where somebody answers its connects, and what else it asks.
    pub interception: Option<Interception>,
}

/// The way by which a process tree's listener gets to the host (see [`notify`]).
pub struct Interception {
    /// None: the process takes it on later, by itself.
    pub theirs: Option<OwnedFd>,
    /// Of the host, which does not wait for it. None: another one has it.
    pub ours: Option<OwnedFd>,
    /// Attributes of files are asked for too.
    pub attributes: bool,
}

impl Interception {
    pub fn new(attributes: bool) -> io::Result<Self> {
        let (ours, theirs) = crate::frame::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Self { theirs: Some(high(theirs)?), ours: Some(ours), attributes })
    }
}

/// Namespaces to enter.
pub struct Inside {
    mounts: OwnedFd,
    /// None: the worker's network stays.
    network: Option<OwnedFd>,
    /// Directories and where they are mounted.
    own: Vec<(PathBuf, PathBuf)>,
}

impl Inside {
    fn of(cage: &Cage, home: &Path) -> io::Result<Self> {
        Ok(Self {
            mounts: high(cage.mounts())?,
            network: Some(high(cage.network())?),
            own: mounted(home, cage.private()),
        })
    }

    /// The calling process goes in.
    pub fn enter(&self) -> io::Result<()> {
        cage::enter(&self.mounts, self.network.as_ref(), &self.own)
    }

    /// Of its mounts, then of its network.
    pub fn both(&self) -> impl Iterator<Item = &OwnedFd> {
        [Some(&self.mounts), self.network.as_ref()].into_iter().flatten()
    }

    /// Directories and where they are mounted.
    pub fn own(&self) -> &[(PathBuf, PathBuf)] {
        &self.own
    }
}

impl Confinement {
    /// A control group and nothing else.
    pub fn member(group: Option<&cgroup::Group>) -> io::Result<Self> {
        Ok(Self {
            uid: None,
            landlock: None,
            filter: None,
            namespaces: None,
            entrances: entrances(group)?,
            interception: None,
        })
    }

    /// Where its listener is to go.
    pub fn theirs(&self) -> Option<&OwnedFd> {
        self.interception.as_ref()?.theirs.as_ref()
    }

    /// What has to stay open until [`Self::restrict`].
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let own = self.landlock.iter().chain(&self.entrances).map(AsRawFd::as_raw_fd);
        let theirs = self.theirs().map(AsRawFd::as_raw_fd);
        let theirs = theirs.into_iter();
        own.chain(theirs).chain(self.namespaces.iter().flat_map(Inside::both).map(AsRawFd::as_raw_fd))
    }

    /// Joins its control group and its namespaces: what takes the worker's rights.
    pub fn enter(&self) -> Result<(), Failed> {
        for entrance in &self.entrances {
            rustix::io::write(entrance, b"0").map_err(of(Part::Group))?;
        }
        self.namespaces.as_ref().map_or(Ok(()), Inside::enter).map_err(of(Part::Namespaces))
    }

    /// Gives up the rest, for good. The last thing before exec.
    pub fn restrict(&self) -> Result<(), Failed> {
        if self.landlock.is_none() && self.filter.is_none() && self.theirs().is_none() {
            return Ok(());
        }
        rustix::thread::set_no_new_privs(true).map_err(of(Part::NoNewPrivileges))?;
        if let Some(ruleset) = &self.landlock {
            landlock::own_processes(ruleset, self.namespaces.is_some())
                .and_then(|()| landlock::restrict(ruleset))
                .map_err(of(Part::Landlock))?;
        }
        if let (Some(theirs), Some(interception)) = (self.theirs(), &self.interception) {
            notify::intercept(theirs, interception.attributes).map_err(of(Part::Network))?;
        }
        self.filter.as_ref().map_or(Ok(()), |filter| seccomp::set(filter)).map_err(of(Part::Seccomp))
    }
}

/// A confinement to be, as an installer is told: all but the network's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    uid: Option<u32>,
    home: PathBuf,
    landlock: u32,
    seccomp: bool,
    installed: Vec<PathBuf>,
    /// What sockets it has when its connects are answered by the host; None: it connects by itself.
    network: Option<Network>,
    attributes: Attributes,
    /// Directories and where they are mounted, when a descriptor of the mount namespace comes along.
    caged: Option<Vec<(PathBuf, PathBuf)>>,
}

impl Plan {
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }
    /// Whether a descriptor of the mount namespace came with it.
    pub fn is_caged(&self) -> bool {
        self.caged.is_some()
    }

    /// Whether attributes of files are the host's to change.
    pub fn asks_for_attributes(&self) -> bool {
        self.attributes == Attributes::ByHost
    }

    /// Whether its connects are answered by the host, to whom the descriptor after that of the mounts leads.
    pub fn is_intercepted(&self) -> bool {
        self.network.is_some()
    }

    pub fn confinement(
        &self,
        mounts: Option<OwnedFd>,
        theirs: Option<OwnedFd>,
        readable: &[PathBuf],
    ) -> io::Result<Confinement> {
        let own = own_places(&self.home, self.is_caged());
        let readable = [readable, &[self.home.join(TRUST)]].concat();
        let places = Places {
            own: &own,
            readable: &readable,
            network: !self.is_intercepted(),
            scope_signals: self.uid.is_none(),
        };
        let base = landlock::base(self.landlock, &self.installed);
        Ok(Confinement {
            uid: self.uid,
            landlock: base.ruleset(&places)?.map(high).transpose()?,
            filter: self
                .seccomp
                .then(|| seccomp::program(self.network.unwrap_or(Network::TcpAndUdp), self.attributes))
                .map(Arc::new),
            namespaces: mounts.map(|mounts| Inside {
                mounts,
                network: None,
                own: self.caged.clone().unwrap_or_default(),
            }),
            entrances: Vec::new(),
            interception: theirs.map(|theirs| Interception {
                theirs: Some(theirs),
                ours: None,
                attributes: self.asks_for_attributes(),
            }),
        })
    }
}

fn mounted(home: &Path, private: &[cage::Private]) -> Vec<(PathBuf, PathBuf)> {
    private.iter().map(|(place, own)| (home.join(own), PathBuf::from(place))).collect()
}

/// Of a session's home: what it may read and its installers may not.
pub const SECRETS: &str = "secrets";
/// What both may read.
pub const TRUST: &str = "trust";

/// Where a session may do what it likes.
pub fn own_places(home: &Path, caged: bool) -> Vec<PathBuf> {
    let own = ["workspace", "tmp", "cache"].into_iter().chain(caged.then_some("shm"));
    own.map(|name| home.join(name)).collect()
}

fn entrances(group: Option<&cgroup::Group>) -> io::Result<Vec<OwnedFd>> {
    let opened = group.map(cgroup::Group::entrances).transpose()?.unwrap_or_default();
    opened.into_iter().map(high).collect()
}

fn high(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, ABOVE)?)
}
