//! Every limit of this crate, units last. Input beyond a limit is cut with a visible mark or refused, never ignored.

/// Bytes of a normalised log that are kept; a longer one keeps its head and tail around a mark.
pub const LOG_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Share of [`LOG_BYTES_MAX`] kept from the start of a log that is too long (the failure is nearly always at its end).
pub const LOG_HEAD_BYTES: usize = 256 * 1024;
/// Bytes of one log line that are kept; the rest of the line is dropped.
pub const LOG_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of the output of `docker compose config`.
pub const MODEL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a file that an edit may read or write.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a path in a change.
pub const PATH_BYTES_MAX: usize = 1024;
/// Files one plan may change.
pub const PLAN_FILES_MAX: usize = 3;
/// Lines one plan may add and remove, together. Real repairs are small: median 4, 90 % within 8.
pub const PLAN_LINES_MAX: usize = 40;
/// Files that are not committed which a plan names; further ones are counted.
pub const UNCOMMITTED_MAX: usize = 50;
/// Bytes of an instruction.
pub const INSTRUCTION_BYTES_MAX: usize = 2 * 1024;
/// Bytes of one rules file.
pub const RULES_BYTES_MAX: usize = 1024 * 1024;
/// Memory one compiled rule pattern may take.
pub const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Memory that matching all rules at once may take for each thread that does it.
pub const RULES_CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Attempts of one run, each a plan of its own; `max_attempts` of a policy can only lower it.
pub const ATTEMPTS_MAX: u32 = 3;
/// Candidate lines that are looked at in one log, best first.
pub const CANDIDATES_MAX: usize = 64;
/// Bytes of a log that a model is shown, from its end.
pub const MODEL_LOG_BYTES_MAX: usize = 16 * 1024;
/// Files a model is shown.
pub const MODEL_FILES_MAX: usize = 8;
/// Bytes of one file that a model is shown; of a longer one only its head.
pub const MODEL_FILE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a sentence of a model.
pub const MODEL_SENTENCE_BYTES_MAX: usize = 1024;
/// A model is never surer than this, in percent: nobody tested what it says.
pub const MODEL_CONFIDENCE_MAX: u8 = 50;
/// How long a service must stay well before it counts as verified, where its policy does not say.
pub const STABLE_FOR_DEFAULT_MS: u64 = 5_000;
/// Longest `stable_for` a policy may ask for.
pub const STABLE_FOR_MAX_MS: u64 = 600_000;
/// Shortest and longest `approval_ttl` a policy may ask for: a second, thirty days.
pub const APPROVAL_TTL_MIN_MS: u64 = 1_000;
pub const APPROVAL_TTL_MAX_MS: u64 = 30 * 86_400_000;
/// Time to become well after a restart, before the stability window starts.
pub const BECOME_WELL_DEFAULT_MS: u64 = 60_000;
/// Time limit of a build step.
pub const BUILD_TIMEOUT_MS: u64 = 1_800_000;
/// Time limit of every other step, on top of what it waits for by plan.
pub const STEP_TIMEOUT_MS: u64 = 120_000;
