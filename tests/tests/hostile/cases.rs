//! What hostile code does, and what must come of it. The code is in `tests/hostile/`.

use cooper_proto::v1::Limits;

pub struct Case {
    pub name: &'static str,
    pub code: &'static str,
    pub then: Then,
    pub timeout_ms: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub inodes: u64,
    /// It is about the processor: a neighbour may have to wait.
    pub busy: bool,
}

/// How an attempt ends.
pub enum Then {
    /// By itself, and nothing it tried was possible.
    Contained,
    /// As `Contained`, or by Cooper with one of these codes, or for want of memory.
    Over(&'static [&'static str]),
    /// Its output is cut, or its time is over.
    Truncated,
    /// However it likes.
    Ends,
}

impl Case {
    pub fn limits(&self) -> Limits {
        Limits {
            memory_bytes: self.memory_mib << 20,
            disk_bytes: self.disk_mib << 20,
            inodes_max: self.inodes,
            processes_max: 64,
            output_bytes: 8 << 20,
            ..Limits::default()
        }
    }
}

const USUAL: Case = Case {
    name: "",
    code: "",
    then: Then::Contained,
    timeout_ms: 30_000,
    memory_mib: 512,
    disk_mib: 256,
    inodes: 20_000,
    busy: false,
};

macro_rules! case {
    ($name:literal $(, $field:ident: $value:expr)*) => {
        Case { name: $name, code: include_str!(concat!("../../hostile/", $name, ".py")) $(, $field: $value)*, ..USUAL }
    };
}

pub const PRELUDE: &str = include_str!("../../hostile/prelude.py");
/// Lays out what [`super::doors`] opens.
pub const DOORS: Case = case!("doors", memory_mib: 2048, disk_mib: 256);
/// Is looked at from outside while it goes off, and afterwards.
pub const SHELL_BOMB: Case =
    case!("shell_bomb", timeout_ms: 20_000, busy: true, then: Then::Over(OF_PROCESSES));
/// In a session that came after.
pub const AFTER_A_SIBLING: Case = case!("after_a_sibling");

const OF_MEMORY: &[&str] = &["memory_limit", "interpreter_died"];
const OF_PROCESSES: &[&str] = &["memory_limit", "process_limit"];

pub const ALL: &[Case] = &[
    case!("fork_bomb", busy: true, then: Then::Over(OF_PROCESSES)),
    case!("thread_bomb", busy: true),
    case!("memory_at_once", then: Then::Over(OF_MEMORY)),
    case!("memory_slowly", memory_mib: 128, then: Then::Over(OF_MEMORY)),
    case!("memory_of_children", memory_mib: 192, then: Then::Over(OF_MEMORY)),
    case!("disk", disk_mib: 64, then: Then::Over(&["disk_quota"])),
    case!("allocate", disk_mib: 256, then: Then::Over(&["disk_quota"])),
    case!("inodes", inodes: 5_000, then: Then::Over(&["disk_quota"])),
    case!("shared_places"),
    case!("secrets"),
    case!("signals"),
    case!("kill_everything", then: Then::Ends),
    case!("siblings_files"),
    case!("attributes"),
    case!("descriptors"),
    case!("sockets"),
    case!("privileges"),
    case!("core_dump"),
    case!("flood", timeout_ms: 4_000, then: Then::Truncated, busy: true),
    case!("spin", timeout_ms: 1_500, then: Then::Over(&["timed_out"]), busy: true),
    case!("runner", then: Then::Ends),
    case!("close_everything", then: Then::Ends),
    case!("meddle", timeout_ms: 3_000, then: Then::Ends),
    case!("crash", then: Then::Over(&["interpreter_died"])),
    case!("leave", then: Then::Ends),
    case!("priorities"),
    case!("hog", busy: true),
    case!("looks_like_answers"),
    case!("works"),
];
