//! What is asked of the cluster: its effect is a token in a file, its output follows from a few numbers.

use cooper_proto::v1::{NoopSpec, PythonSpec, ShellSpec, TaskSpec, task_spec::Kind};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Noop,
    /// Code that leaves `token` behind, then prints `lines` numbers that follow from `seed`, pausing between.
    Python {
        token: String,
        seed: u64,
        lines: u64,
        pause_ms: u64,
    },
    /// A command that leaves `token` behind, then counts `blocks` times to `lines`, pausing between.
    Shell {
        token: String,
        lines: u64,
        blocks: u64,
        pause_ms: u64,
    },
}

/// Python pauses once in so many lines.
const LINES_A_PAUSE: u64 = 500;

fn next(seed: u64) -> u64 {
    seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

impl Work {
    /// The effect that may be there once and not twice.
    pub fn token(&self) -> Option<&str> {
        match self {
            Work::Noop => None,
            Work::Python { token, .. } | Work::Shell { token, .. } => Some(token),
        }
    }

    /// Everything it prints.
    pub fn stdout(&self) -> Vec<u8> {
        let mut out = String::new();
        match self {
            Work::Noop => {}
            Work::Python { seed, lines, .. } => {
                let mut seed = *seed;
                for _ in 0..*lines {
                    seed = next(seed);
                    out += &format!("{seed:016x}\n");
                }
            }
            Work::Shell { lines, blocks, .. } => {
                for _ in 0..*blocks {
                    for line in 1..=*lines {
                        out += &format!("{line}\n");
                    }
                }
            }
        }
        out.into_bytes()
    }

    /// As it is submitted; `effects` is the file that tokens go to.
    pub fn spec(&self, session: &str, effects: &str) -> TaskSpec {
        let kind = match self {
            Work::Noop => return TaskSpec { kind: Some(Kind::Noop(NoopSpec {})), ..TaskSpec::default() },
            Work::Python { token, seed, lines, pause_ms } => {
                let code = format!(
                    "import time\n\
                     with open({effects:?}, 'ab', 0) as effects: effects.write(b'{token}\\n')\n\
                     x = {seed}\n\
                     for i in range({lines}):\n    \
                         x = (x * 6364136223846793005 + 1442695040888963407) & 0xffffffffffffffff\n    \
                         print(f'{{x:016x}}')\n    \
                         if i % {LINES_A_PAUSE} == 0: time.sleep({pause_ms} / 1000)\n"
                );
                Kind::Python(PythonSpec { code, ..PythonSpec::default() })
            }
            Work::Shell { token, lines, blocks, pause_ms } => {
                let script = format!(
                    "echo {token} >> '{effects}'; i=0; while [ $i -lt {blocks} ]; do seq 1 {lines}; \
                     sleep {}.{:03}; i=$((i+1)); done",
                    pause_ms / 1000,
                    pause_ms % 1000
                );
                let argv = ["sh".to_owned(), "-c".to_owned(), script].into();
                Kind::Shell(ShellSpec { argv, stdin: Vec::new() })
            }
        };
        TaskSpec { kind: Some(kind), session_id: session.to_owned(), ..TaskSpec::default() }
    }
}
