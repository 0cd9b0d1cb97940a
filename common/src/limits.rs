//! Every bound of Cooper in one place, units last (I12). What happens at each is said where it is used.

/// The link. Times are defaults of settings (DESIGN §5).
pub mod link {
    /// Floor of the heartbeat interval; for n workers it is at least half of this + n/200 s.
    pub const HEARTBEAT_MIN_MS: u64 = 2_000;
    /// Missed beats after which no new work is sent.
    pub const SUSPECT_BEATS: u64 = 3;
    pub const LEASE_MS: u64 = 30_000;
    pub const LOST_MS: u64 = 60_000;
    /// After a coordinator start nothing is called lost before this time.
    pub const REATTACH_GRACE_MS: u64 = 60_000;
    /// Between looks at the clock. A look twice as late means that the coordinator itself stood still.
    pub const TICK_MS: u64 = 1_000;
    /// Between pings of an idle connection. A side that is gone without a word is noticed after twice this.
    pub const KEEPALIVE_MS: u64 = 10_000;
    pub const RECONNECT_BASE_MS: u64 = 100;
    pub const RECONNECT_CAP_MS: u64 = 5_000;
    /// Largest link or client message either side decodes.
    pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
    /// Output that rides inside a result, per stream.
    pub const INLINE_OUTPUT_BYTES_MAX: usize = 16 << 10;
    /// One piece of output or file content.
    pub const CHUNK_BYTES_MAX: usize = 64 << 10;
    /// Output of one attempt on its way and not acked.
    pub const ATTEMPT_WINDOW_BYTES: u64 = 256 << 10;
    /// Output of one worker on its way and not acked.
    pub const WORKER_WINDOW_BYTES: u64 = 4 << 20;
    /// Messages that wait to be written to one worker; a worker that lets them pile up is cut and attaches again. Far
    /// above what credit and acks of one burst amount to, or a healthy worker would be cut for being quick.
    pub const OUTBOUND_MESSAGES_MAX: usize = 16_384;
    /// TCP accept backlog: 10,000 workers may come back at once.
    pub const ACCEPT_BACKLOG: u32 = 16_384;
    /// Versions of the link protocol this build speaks; what each brought is in docs/protocol.md.
    pub const PROTOCOL_MIN: u32 = 1;
    pub const PROTOCOL_MAX: u32 = 3;
    /// Versions of the host protocol this build speaks.
    pub const HOST_PROTOCOL_MIN: u32 = 1;
    pub const HOST_PROTOCOL_MAX: u32 = 3;
    /// The brake: fewer workers than this are given up whatever their share. Two that fail together are a rack or a bad
    /// day; from three on the coordinator's own network is the better guess.
    pub const BRAKE_WORKERS_MIN: usize = 3;
    /// The brake: no more than one worker in this many is given up within one `LOST_MS`.
    pub const BRAKE_SHARE: usize = 3;
    /// The brake lets go of a worker after this many times `LOST_MS`: whatever the reason, it is not a blip any more.
    pub const BRAKE_PATIENCE: u64 = 5;
    /// A drain without a deadline of its own ends executions after this.
    pub const DRAIN_MS: u64 = 600_000;
    pub const DRAIN_MS_MAX: u64 = 7 * 86_400_000;
    /// At a drain's deadline: what the worker does not end within this (interrupt, then kill) is given up.
    pub const DRAIN_CONFIRM_MS: u64 = 10_000;
    /// A worker cut off for this long beyond its lease ends by itself what may be started elsewhere (steps). Code of users
    /// goes on: nobody else may start it.
    pub const DETACH_MAX_MS: u64 = 900_000;
    /// Encoded spec of a task or session: with its envelope it has to fit into a message, or the stream that carries it
    /// would break at each attach anew.
    pub const SPEC_BYTES_MAX: usize = 8_323_072;
}

/// What a request may hold.
pub mod request {
    pub const CODE_BYTES_MAX: usize = 1 << 20;
    pub const ARGV_MAX: usize = 1024;
    pub const ARGV_BYTES_MAX: usize = 1 << 20;
    pub const STDIN_BYTES_MAX: usize = 1 << 20;
    pub const ENV_ENTRIES_MAX: usize = 256;
    pub const ENV_BYTES_MAX: usize = 64 << 10;
    pub const LABELS_MAX: usize = 64;
    pub const LABEL_BYTES_MAX: usize = 256;
    pub const PACKAGES_MAX: usize = 256;
    /// Text of a requirements file.
    pub const REQUIREMENTS_BYTES_MAX: usize = 256 << 10;
    pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
    pub const NAME_BYTES_MAX: usize = 63;
    pub const PATH_BYTES_MAX: usize = 4096;
    pub const LOG_BYTES_MAX: usize = 4 << 20;
    pub const INSTRUCTION_BYTES_MAX: usize = 4 << 10;
    pub const COMMENT_BYTES_MAX: usize = 4 << 10;
    pub const PAGE_DEFAULT: u32 = 100;
    pub const PAGE_MAX: u32 = 1000;
    pub const SUBMIT_BATCH_MAX: usize = 512;
    pub const SESSION_WAIT_MS_MAX: u64 = 600_000;
    /// Time to live and idle timeout of a session: a year.
    pub const SESSION_TTL_MS_MAX: u64 = 31_536_000_000;
    /// Metadata of a session, names and values together.
    pub const METADATA_BYTES_MAX: usize = 16 << 10;
    /// Files of a template's recipe, and their contents together.
    pub const TEMPLATE_FILES_MAX: usize = 256;
    pub const TEMPLATE_BYTES_MAX: usize = 2 << 20;
    /// Warm-up code of a template.
    pub const WARM_UP_BYTES_MAX: usize = 64 << 10;
    /// Sessions that are kept in stock for a template.
    pub const SPARES_MAX: u32 = 16;
    pub const FILES_LISTED_MAX: usize = 10_000;
    /// A listing in all: half of what a message holds.
    pub const FILES_LISTED_BYTES_MAX: usize = 4 << 20;
}

/// Secrets.
pub mod secret {
    pub const PER_TENANT_MAX: usize = 256;
    pub const PER_SESSION_MAX: usize = 16;
    pub const VALUE_BYTES_MAX: usize = 32 << 10;
    /// A value that is put into requests.
    pub const INJECTED_BYTES_MAX: usize = 8 << 10;
}

/// Calls into a session's files.
pub mod files {
    /// Calls of one session that processes serve at once; the others wait.
    pub const WORK_PER_SESSION_MAX: usize = 4;
    /// The same of a worker in all.
    pub const WORK_MAX: usize = 16;
    /// Calls of a worker that wait for such a process; more are refused (`overloaded`).
    pub const WORK_WAITING_MAX: usize = 1_024;
    /// A listing or search that takes longer answers with what it has and says so; anything else is `timed_out` at the
    /// one below.
    pub const WORK_SOFT_MS: u64 = 20_000;
    pub const WORK_MS: u64 = 120_000;
    /// CPU time of one call.
    pub const WORK_CPU_SECONDS: u64 = 60;
    /// Memory of the process that serves one call (RLIMIT_AS).
    pub const WORK_MEMORY_BYTES: u64 = 1 << 30;
    /// Directories that one call holds open; those above are opened again when it comes back to them.
    pub const OPEN_DIRECTORIES_MAX: usize = 64;
    /// Names of one directory held in memory; the next ones are read when these are done with.
    pub const NAMES_HELD_MAX: usize = 50_000;
    /// Entries of one workspace among which a host that starts looks for what a killed one left.
    pub const SWEPT_ENTRIES_MAX: u64 = 1_000_000;
    /// For all workspaces together; what is left then is looked for at the next start.
    pub const SWEEP_MS: u64 = 600_000;
    pub const GLOB_BYTES_MAX: usize = 1_024;
    pub const PATTERN_BYTES_MAX: usize = 4_096;
    pub const MATCHES: u32 = 1_000;
    pub const MATCHES_MAX: u32 = 10_000;
    /// Part of a line that a search shows.
    pub const MATCH_TEXT_BYTES_MAX: usize = 1_024;
    /// A longer line is searched in pieces of this size.
    pub const SEARCHED_LINE_BYTES_MAX: usize = 1 << 20;
    pub const EDITED_FILE_BYTES_MAX: u64 = 16 << 20;
    pub const EDITS_MAX: usize = 64;
    /// Texts of all edits of one request together.
    pub const EDITS_BYTES_MAX: usize = 4 << 20;
    /// What one call may copy.
    pub const COPIED_BYTES_MAX: u64 = 16 << 30;
    pub const COPIED_ENTRIES_MAX: u64 = 1_000_000;
}

/// What an execution may use when nothing else is said.
pub mod exec {
    pub const TIMEOUT_MS: u64 = 300_000;
    pub const TIMEOUT_MS_MAX: u64 = 86_400_000;
    pub const STEP_TIMEOUT_MS: u64 = 1_800_000;
    pub const OUTPUT_BYTES: u64 = 64 << 20;
    pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
    pub const FILE_SIZE_BYTES: u64 = 1 << 30;
    pub const OPEN_FILES: u32 = 1024;
    /// Of a session as a whole, all of these.
    pub const MEMORY_BYTES: u64 = 2 << 30;
    pub const MEMORY_BYTES_MIN: u64 = 32 << 20;
    /// Processes and threads.
    pub const PROCESSES: u32 = 512;
    pub const PROCESSES_MIN: u32 = 8;
    pub const PROCESSES_MAX: u32 = 32_768;
    /// Processes and threads of all sessions of a worker together, where they share its uid and no control group counts
    /// them (`T0`): an eighth of the process numbers that a Linux has unless it is told otherwise.
    pub const SHARED_PROCESSES: u64 = 4_096;
    pub const CPU_MILLIS_MIN: u32 = 10;
    pub const CPU_MILLIS_MAX: u32 = 1_024_000;
    pub const DISK_BYTES: u64 = 4 << 30;
    pub const INODES: u64 = 200_000;
    /// Directories within directories; deeper is beyond the disk quota, because it cannot be counted.
    pub const DEPTH_MAX: usize = 8_192;
    /// Between two looks at what the sessions use in which something runs.
    pub const WATCH_MS: u64 = 200;
    /// The same where nothing runs but what was left.
    pub const WATCH_IDLE_MS: u64 = 2_000;
    /// A session's files are counted at most this often, and for at most a tenth of the time.
    pub const DISK_WATCH_MS: u64 = 1_000;
    /// Counting takes no longer.
    pub const DISK_COUNT_MS_MAX: u64 = 30_000;
    /// With less free space on the sessions' disk what runs in sessions is ended, one session after the other.
    pub const FREE_BYTES_MIN: u64 = 128 << 20;
    /// Value and displays of one execution, together.
    pub const RESULT_BYTES_MAX: usize = 1 << 20;
    pub const TRACEBACK_BYTES_MAX: usize = 64 << 10;
    pub const DISPLAYS_MAX: usize = 64;
    /// One write to the standard input of an execution that runs; what the kernel does not take at once waits at the host.
    pub const STDIN_WRITE_BYTES_MAX: usize = 64 << 10;
    /// A write that the execution does not read is answered after this, with how much it took.
    pub const STDIN_WAIT_MS: u64 = 10_000;
    /// How long a call to an execution waits for its start.
    pub const START_WAIT_MS: u64 = 30_000;
    /// Signals that wait until the process they are for has started.
    pub const SIGNALS_WAITING_MAX: usize = 16;
    /// Columns and rows of a terminal.
    pub const TERMINAL_SIZE_MAX: u32 = 4096;
    /// One answer of ReadOutput, and the output of one stream in a history.
    pub const OUTPUT_READ_BYTES_MAX: usize = 1 << 20;
    /// Executions of a session that its history tells of.
    pub const HISTORY_MAX: usize = 10_000;
    /// From SIGINT to SIGKILL.
    pub const INTERRUPT_GRACE_MS: u64 = 1_000;
    /// Tasks of one session that may wait or run; more are refused (`session_busy`).
    pub const QUEUED_PER_SESSION_MAX: usize = 1024;
    /// Imported modules of an interpreter that its host knows of, to say when an install changed one.
    pub const IMPORTS_KEPT_MAX: usize = 4096;
    pub const IMPORT_BYTES_MAX: usize = 128;
    /// Entries of a venv that are looked at after an install.
    pub const INSTALLED_SEEN_MAX: usize = 4096;
    /// Larger files of a venv's `bin` are no scripts.
    pub const SCRIPT_BYTES_MAX: u64 = 1 << 20;
    /// Modules named by `restart_modules`.
    pub const RESTART_MODULES_MAX: usize = 256;
    /// Packages of one listing.
    pub const PACKAGES_LISTED_MAX: usize = 10_000;
    /// `pip` at once in one session, and the request of one with its requirements.
    pub const PIP_PER_SESSION_MAX: usize = 4;
    pub const PIP_REQUEST_BYTES_MAX: usize = 512 << 10;
    /// A `pip` that its caller waits for may take this long.
    pub const PIP_MS_MAX: u64 = 3_600_000;
}

/// What keeps sessions apart on a worker.
pub mod confine {
    /// Workers take the uids of their sessions from here on, unless `session_uids` says otherwise: far from what people and
    /// distributions use.
    pub const UID_FIRST: u32 = 1_000_000_000;
    pub const UID_LAST: u32 = 1_999_999_999;
    /// The same where only 16-bit uids exist, as in a container with a user namespace.
    pub const UID_SHORT_FIRST: u32 = 20_000;
    pub const UID_SHORT_LAST: u32 = 59_999;
    /// Uids that one worker takes for itself; above the most sessions it holds, so that each rests before its next use.
    pub const UIDS_PER_WORKER: u32 = 16_384;
}

/// Directories that replicas of one worker share.
pub mod slot {
    /// Workers of one such directory.
    pub const SLOTS_MAX: u32 = 256;
}

/// Archives of a session's files, and checkpoints, which are made of them.
pub mod archive {
    /// Files, directories and links of one archive.
    pub const ENTRIES_MAX: u64 = 1_000_000;
    /// Content of one archive.
    pub const CONTENT_BYTES_MAX: u64 = 16 << 30;
    /// Directories within directories; what is deeper is left out and listed.
    pub const DEPTH_MAX: usize = 512;
    /// Long names and times of one entry.
    pub const HEADER_BYTES_MAX: u64 = 64 << 10;
    /// What was left out, by name; beyond, it is only counted.
    pub const SKIPPED_NAMED_MAX: usize = 100;
    /// A script whose first line names the interpreter of another place is rewritten up to this size.
    pub const CHANGED_FILE_BYTES_MAX: u64 = 1 << 20;
}

/// Interpreters that are forked before they are wanted.
pub mod zygote {
    /// Defaults of the settings `pool_low` and `pool_high`.
    pub const POOL_LOW: u32 = 4;
    pub const POOL_HIGH: u32 = 24;
    pub const POOL_MAX: u32 = 1024;
    /// Pythons of one worker.
    pub const PYTHONS_MAX: usize = 8;
    /// The marks of Pythons other than the worker's first are no higher than these.
    pub const OTHERS_LOW: usize = 1;
    pub const OTHERS_HIGH: usize = 2;
    /// Forks of one zygote; then another takes its place, with another hash seed and memory layout.
    pub const FORKS_MAX: u32 = 500;
    /// Between two looks at a pool that is not full.
    pub const REFILL_MS: u64 = 4;
    /// With nobody asking for an interpreter for so long, the pool is filled above its low mark.
    pub const QUIET_MS: u64 = 50;
    /// A zygote that has not forked after this time hangs, and is replaced.
    pub const FORK_MS_MAX: u64 = 2_000;
}

/// Checkpoints.
/// Packages that sessions of one archive share on a worker.
pub mod layer {
    /// Layers of a worker; of more the one that was used least lately goes.
    pub const LAYERS_MAX: usize = 32;
    /// One that no session began with for this long goes. Sessions that began with it go on.
    pub const IDLE_MS: u64 = 3_600_000;
    /// Directories within directories; what is deeper is not shared.
    pub const DEPTH_MAX: usize = 64;
}
pub mod checkpoint {
    /// Transfers of sessions to or from one worker at once; the others wait.
    pub const TRANSFERS_PER_WORKER_MAX: usize = 4;
    /// A transfer that was cut begins again after this.
    pub const RETRY_MS: u64 = 1_000;
    /// Packing or unpacking that takes longer is ended.
    pub const WORK_MS: u64 = 600_000;
    /// A checkpoint waits this long for executions that run, unless it says something else.
    pub const WAIT_MS: u64 = 60_000;
    pub const WAIT_MS_MAX: u64 = 3_600_000;
    /// One archive, as it travels and is stored.
    pub const ARCHIVE_BYTES_MAX: u64 = 18 << 30;
    /// A session that could not hibernate is looked at again after this.
    pub const HIBERNATE_AGAIN_MS: u64 = 30_000;
    /// Variables that are saved with a session, as a pickle; those that do not fit are left out.
    pub const GLOBALS_BYTES_MAX: u64 = 512 << 20;
    /// Saving them ends after this; the checkpoint is made without them.
    pub const GLOBALS_SAVE_MS: u64 = 20_000;
    /// Loading them ends after this; the session begins without them, with another interpreter.
    pub const GLOBALS_LOAD_MS: u64 = 20_000;
    /// Variables that a checkpoint lists by name; the others are counted. The same of those that were left out.
    pub const GLOBALS_NAMED_MAX: usize = 100;
    /// Characters of a name or a reason that are kept.
    pub const GLOBALS_TEXT_CHARS_MAX: usize = 200;
    /// Defaults of what a tenant may keep (`checkpoint_…`).
    pub const PER_TENANT_MAX: u64 = 100;
    pub const MIB_PER_TENANT_MAX: u64 = 20_480;
}

/// How tasks wait, and when a lost or failed attempt is followed by another.
pub mod schedule {
    /// Priorities go from minus this to this.
    pub const PRIORITY_MAX: i32 = 10;
    /// Longest deadline: a week.
    pub const DEADLINE_MS_MAX: u64 = 604_800_000;
    /// How long after an attempt's time limit, which its worker enforces, the coordinator does.
    pub const DEADLINE_MARGIN_MS: u64 = 30_000;
    /// Timers that one decision handles; the others come right after it.
    pub const EXPIRED_AT_ONCE_MAX: usize = 4_096;
    /// Different label selectors among tasks that wait for a worker; a task with one more is refused (`overloaded`).
    pub const SELECTORS_MAX: usize = 64;
}

/// Attempts after the first, and the budget that keeps many of them from displacing other work.
pub mod retry {
    /// Full jitter: the pause before the n-th retry is a random part of BASE × 2^(n-1), at most CAP.
    pub const BASE_MS: u64 = 500;
    pub const CAP_MS: u64 = 60_000;
    /// Attempts of a noop task or a step before `dead_letter`.
    pub const ATTEMPTS_RERUNNABLE: u32 = 10;
    /// Attempts of a task that asked to be rerun and named no number.
    pub const ATTEMPTS_OPTED_IN: u32 = 3;
    pub const ATTEMPTS_MAX: u32 = 100;
    /// A tenant's retries that may come at once; beyond, each waits for its turn.
    pub const BUDGET_BURST: u32 = 1_000;
    /// Turns a second, however few attempts there are.
    pub const BUDGET_PER_SECOND: i64 = 100;
    /// First attempts earn this share of a retry each.
    pub const BUDGET_PERCENT: i64 = 10;
}

/// The coordinator's store.
pub mod store {
    /// Changes in one group commit.
    pub const COMMIT_CHANGES_MAX: usize = 4096;
    /// Commits that wait for the writer; more are refused (`overloaded`).
    pub const WRITER_QUEUE_MAX: usize = 8192;
    /// Idempotency keys known by heart (8 bytes and a little each); beyond, each is looked up on the disk.
    pub const KEYS_REMEMBERED_MAX: usize = 1_000_000;
    /// Tasks known and not ended, per coordinator.
    pub const LIVE_TASKS_MAX: usize = 1_000_000;
    /// Defaults of what is kept (`keep_…`).
    pub const EVENTS_KEPT_MAX: u64 = 1_000_000;
    pub const ENDED_TASKS_KEPT_MAX: u64 = 200_000;
    pub const ENDED_RUNS_KEPT_MAX: u64 = 10_000;
    pub const OUTPUT_KEPT_MIB: u64 = 10_240;
    /// Default of the space on the data directory's disk below which nothing new is taken in.
    pub const FREE_MIB_MIN: u64 = 256;
    pub const RETENTION_EVERY_MS: u64 = 60_000;
    /// Between looks for files that nothing refers to; the first is right after the start.
    pub const SWEEP_EVERY_MS: u64 = 3_600_000;
    /// Between looks at the disk: free space, and that the database is still where it was.
    pub const DISK_LOOK_MS: u64 = 1_000;
    /// A store that cannot be used is tried again after this time, doubled each time, with full jitter.
    pub const RETRY_BASE_MS: u64 = 100;
    pub const RETRY_CAP_MS: u64 = 5_000;
    /// What the write-ahead log is cut back to when nobody reads from it.
    pub const WAL_KEPT_BYTES: u64 = 64 << 20;
    /// A restored store goes on this far beyond the epochs and event numbers that are known, since more may have been
    /// given out after the backup.
    pub const RESTORE_JUMP: u64 = 1_000_000;
}

/// The output log.
pub mod output {
    /// Tasks whose files are kept open; those used longest ago are closed for the next.
    pub const OPEN_TASKS_MAX: usize = 128;
}

/// Who may come in.
pub mod token {
    /// Tokens that are not revoked; more are refused (`overloaded`). All of them are held in memory.
    pub const LIVE_MAX: usize = 10_000;
    /// Longest time to live that may be asked for: ten years.
    pub const TTL_MS_MAX: u64 = 3_652 * 86_400_000;
    /// For how long the secret of before a rotation goes on to open, unless it is said, and at most.
    pub const GRACE_MS: u64 = 86_400_000;
    pub const GRACE_MS_MAX: u64 = 30 * 86_400_000;
    /// Secrets of before that a token remembers, so that none comes back by a file that was forgotten.
    pub const RETIRED_MAX: usize = 64;
    /// When a token was used last is written this often.
    pub const USED_WRITTEN_MS: u64 = 60_000;
    /// Defaults of settings. Requests of one token in a second, on average over `BURST_S`; more are refused
    /// (`rate_limited`).
    pub const REQUESTS_PER_S: u64 = 20_000;
    pub const BURST_S: u64 = 2;
    /// Requests and streams of one token at once; more are refused (`rate_limited`).
    pub const CONCURRENT: u64 = 8_192;
    /// What commands read as a token.
    pub const TEXT_BYTES_MAX: usize = 4 << 10;
}

/// Repair runs.
pub mod run {
    /// Attempts of one run, each a plan of its own; `max_attempts` of a policy can only lower it.
    pub const ATTEMPTS_MAX: u32 = 3;
    /// Default of the setting `approval_ttl_ms`.
    pub const APPROVAL_TTL_MS: u64 = 24 * 3_600_000;
    pub const APPROVAL_TTL_MS_MAX: u64 = 30 * 86_400_000;
    /// Until a worker has told what a stack is.
    pub const CHECK_MS: u64 = 60_000;
    /// Default of the setting `auto_repair_cooldown_ms`; with every repair by itself that came to nothing the time doubles.
    pub const AUTOMATIC_COOLDOWN_MS: u64 = 600_000;
    pub const AUTOMATIC_COOLDOWN_MS_MAX: u64 = 86_400_000;
    /// Default of the setting `auto_repair_per_day`.
    pub const AUTOMATIC_PER_DAY: u64 = 24;
    pub const AUTOMATIC_PER_DAY_MAX: u64 = 1_000;
    /// Of what a worker saw that started a repair.
    pub const TRIGGER_BYTES_MAX: usize = 1024;
    /// Times that a failure may have to be posted before it is repaired by itself, and the time they are counted in.
    pub const RECURRING_MAX: u32 = 100;
    pub const RECURRING_MS: i64 = 7 * 86_400_000;
    /// Newest runs that `cooper runs stats` looks at.
    pub const STATS_RUNS_MAX: usize = 10_000;
    pub const ARTIFACT_BYTES_MAX: usize = 64 << 20;
    /// What was learned about one failure that a diagnosis looks at, newest first.
    pub const LESSONS_READ_MAX: usize = 64;
    /// Log of one step kept as an artifact.
    pub const STEP_LOG_BYTES_MAX: u64 = 16 << 20;
}

/// What a worker sees of its stacks by itself.
pub mod observer {
    /// From what is seen of a service until it is said: what comes in between is the same trouble.
    pub const SETTLE_MS: u64 = 2_000;
    /// What compose says of a stack is asked for again after this time, and only if something happens in it.
    pub const KNOWN_MS: u64 = 20_000;
    /// Services that are not well; of further ones nothing is said.
    pub const SERVICES_MAX: usize = 1_024;
    /// Containers whose logs are followed.
    pub const FOLLOWED_MAX: usize = 64;
    /// Of the log of a container that is followed from the worker's start on: what it printed last.
    pub const LOOK_BACK_MS: i64 = 60_000;
    /// Lines of one container that are compared with the rules within a second, and bytes of one.
    pub const LINES_PER_SECOND_MAX: u32 = 1_000;
    pub const LINE_BYTES_MAX: usize = 16 << 10;
    /// Of the log that goes with what was seen in it: its end.
    pub const LOG_BYTES_MAX: usize = 64 << 10;
    /// A container that ends so often within this time, however it ends, is in a loop.
    pub const LOOP_ENDS: usize = 3;
    pub const LOOP_MS: u64 = 60_000;
    /// What ends so long after somebody sent it a signal was not ended by that.
    pub const STOP_MS: u64 = 600_000;
    /// Until what nothing was done about, for a pause or another run of the service, is looked at again.
    pub const AGAIN_MS: u64 = 600_000;
}

/// A language model that proposes repairs.
pub mod model {
    pub const TIMEOUT_MS: u64 = 60_000;
    pub const TOKENS_PER_DAY: u64 = 1_000_000;
    /// Tokens that one answer may have: the largest plan that policy lets pass has far fewer.
    pub const ANSWER_TOKENS_MAX: u64 = 4_096;
    /// Bytes of an answer with all that is around it.
    pub const ANSWER_BYTES_MAX: usize = 256 << 10;
    /// Bytes of a question to the token, to reckon with before its server has counted. Fewer than any tokenizer takes on
    /// average, so that a budget is not overdrawn.
    pub const BYTES_PER_TOKEN: u64 = 3;
    /// Bytes of the reason of a call that came to nothing, kept with its run.
    pub const MESSAGE_BYTES_MAX: usize = 512;
}

/// Notifications of what a person has to act on.
pub mod notify {
    /// Until a receiver has answered one try.
    pub const TIMEOUT_MS: u64 = 10_000;
    /// Tries of one notification; then it is given up, and the next one is told.
    pub const ATTEMPTS_MAX: u32 = 10;
    pub const RETRY_BASE_MS: u64 = 1_000;
    pub const RETRY_CAP_MS: u64 = 300_000;
    /// What happened longer ago is not told any more.
    pub const AGE_MS_MAX: i64 = 86_400_000;
}

/// Artifacts of sessions.
pub mod artifact {
    /// One file; a larger one is not kept. As of a run's.
    pub const FILE_BYTES_MAX: u64 = 64 << 20;
    /// Files and bytes that become artifacts at the end of one execution; the others come with the next.
    pub const PER_EXECUTION_MAX: usize = 100;
    pub const EXECUTION_BYTES_MAX: u64 = 256 << 20;
    /// Files beneath `artifacts/` that are looked at, in the order of their names.
    pub const LOOKED_AT_MAX: usize = 2_000;
    /// With no more files and directories than this the worker sees by itself that none has changed.
    pub const GLANCE_MAX: usize = 64;
    /// A path beneath `artifacts/`.
    pub const NAME_BYTES_MAX: usize = 512;
    /// Files that a result names of those that were not kept; the others are counted.
    pub const SKIPPED_NAMED_MAX: usize = 20;
    /// Looking for them and copying them is ended after this.
    pub const LOOK_MS: u64 = 30_000;
    /// On a worker, of all results that are not acked yet.
    pub const WORKER_BYTES_MAX: u64 = 1 << 30;
    /// Attempts of a worker whose artifacts are sent at once.
    pub const UPLOADS_MAX: usize = 2;
    /// Sending that was cut begins again after this.
    pub const RETRY_MS: u64 = 1_000;
    /// Defaults of what a tenant may keep (`quota_artifacts`, `quota_artifact_mib`, `keep_artifact_days`).
    pub const PER_TENANT_MAX: u64 = 10_000;
    pub const MIB_PER_TENANT_MAX: u64 = 1_024;
    pub const DAYS: u64 = 30;
}

/// The audit trail.
pub mod audit {
    /// Default of a setting: rows kept; the oldest go.
    pub const ROWS_KEPT_MAX: u64 = 1_000_000;
    /// Rows that wait to be written; more are counted instead (`audit.lost`).
    pub const WAITING_MAX: usize = 16_384;
    /// Rows that one transaction writes.
    pub const GROUP_MAX: usize = 512;
    /// Requests that were refused at the door are written this often, a row for each address and reason.
    pub const REFUSED_EVERY_MS: u64 = 10_000;
    /// Addresses that are told apart in that time.
    pub const REFUSED_ADDRESSES_MAX: usize = 256;
    /// An object or a detail; longer ones are cut.
    pub const TEXT_CHARS_MAX: usize = 300;
    /// What a verification finds; more is not told.
    pub const FINDINGS_MAX: usize = 100;
    /// Rows in one answer, and when it is not said.
    pub const PAGE_MAX: usize = 1_000;
    pub const PAGE_DEFAULT: usize = 100;
}

/// Connections to the one port.
pub mod door {
    /// Open at once; one more is closed at once.
    pub const CONNECTIONS_MAX: usize = 65_536;
    /// Connections that have not said yet what they speak; with one more the oldest of them is closed.
    pub const BEGINNING_MAX: usize = 4_096;
    /// Until a connection has said it, its TLS handshake included.
    pub const BEGIN_MS_MAX: u64 = 10_000;
    /// HTTP/1: until the head of the next request has arrived whole, and how large it may be.
    pub const HEAD_MS_MAX: u64 = 30_000;
    pub const HEAD_BYTES_MAX: usize = 128 << 10;
}

/// How long anything may take to stop.
pub mod stop {
    /// Ctrl-C to nothing left (budget 5 s).
    pub const UP_MS: u64 = 4_500;
    pub const COORDINATOR_MS: u64 = 2_000;
    /// For answers of a coordinator whose store refused, before it loads what is recorded.
    pub const BROKEN_MS: u64 = 200;
    pub const HOST_MS: u64 = 3_000;
    /// The drain of the worker of `cooper up`: results that are there are delivered, what runs is not waited for.
    pub const UP_DRAIN_MS: u64 = 500;
}

/// What sessions reach, and the proxy that lets them.
pub mod network {
    /// Hosts and ports of one policy.
    pub const DOMAINS_MAX: usize = 256;
    pub const PORTS_MAX: usize = 64;
    /// A name in the DNS.
    pub const NAME_BYTES_MAX: usize = 253;
    /// Connections of one session, and of all of a worker; more are closed (`too_many`).
    pub const CONNECTIONS_PER_SESSION_MAX: usize = 128;
    pub const CONNECTIONS_MAX: usize = 4_096;
    /// What a connection begins with: the head of a request, or the first message of TLS.
    pub const HEAD_BYTES_MAX: usize = 32 << 10;
    /// Until that has arrived.
    pub const HEAD_MS_MAX: u64 = 10_000;
    /// Where secrets are put into requests: until the next one has arrived.
    pub const KEPT_MS_MAX: u64 = 60_000;
    /// Until a name is resolved and its host answers.
    pub const CONNECT_MS_MAX: u64 = 15_000;
    /// A page of a package index that takes a password.
    pub const INDEX_PAGE_BYTES_MAX: u64 = 64 << 20;
    /// A connection on which nothing moves for this long is closed.
    pub const IDLE_MS_MAX: u64 = 600_000;
    /// Different refusals remembered until the next heartbeat tells of them; more are only counted as one.
    pub const REFUSALS_TOLD_MAX: usize = 64;
    /// Sessions of which a heartbeat says what their connections carried; the next one has the others.
    pub const USED_TOLD_MAX: usize = 256;
    /// What they carried is recorded this often, and when something else of the session is.
    pub const USED_RECORDED_MS: u64 = 30_000;
    /// The same refusal (session, host, port, reason) is said again after this time, with its count.
    pub const REFUSAL_AGAIN_MS: u64 = 60_000;
    /// Connects of one process tree that the proxy has not answered yet and that fail when it dies.
    pub const CONNECTS_UNANSWERED_MAX: usize = 256;
}

/// Ports that sessions listen on.
pub mod ports {
    /// Different ports of one session; a bind to one more fails (EMFILE), unless one of them is not listened on any more.
    pub const PER_SESSION_MAX: usize = 32;
    /// Lowest port that a session may listen on; a bind below fails (EACCES).
    pub const PORT_MIN: u16 = 1_024;
    /// Connections that wait for the session to accept them, of one port.
    pub const BACKLOG: i32 = 128;
    /// Connections into one session, to one worker, and to all; more are refused (`overloaded`).
    pub const CONNECTIONS_PER_SESSION_MAX: usize = 128;
    pub const CONNECTIONS_PER_WORKER_MAX: usize = 512;
    pub const CONNECTIONS_MAX: usize = 4_096;
    /// Bytes of a connection on their way, in each direction; whoever reads slower makes the other side wait.
    pub const WINDOW_BYTES: usize = 256 << 10;
    /// The same, in one message.
    pub const PIECE_BYTES_MAX: usize = 32 << 10;
    /// Until a session that listens takes a connection.
    pub const CONNECT_MS_MAX: u64 = 10_000;
}

/// The door for models.
pub mod mcp {
    /// Clients that are connected at once, of the protocol's versions that have connections.
    pub const CONNECTIONS_MAX: usize = 1_024;
    /// Without a message for so long, a connection ends.
    pub const CONNECTION_IDLE_MS: u64 = 86_400_000;
    /// Not used for so long, the session of a connection is destroyed.
    pub const SESSION_IDLE_MS: u64 = 4 * 3_600_000;
    /// A session that is made for a call waits for a worker with room.
    pub const SESSION_WAIT_MS: u64 = 30_000;
    /// How long a call waits for what it started, unless it says so: shorter than clients wait for an answer.
    pub const WAIT_MS: u64 = 50_000;
    pub const WAIT_MS_MAX: u64 = 600_000;
    /// Output of each stream in an answer, unless it is asked for more. Official clients read events of at most 1 MiB, and
    /// output is in an answer twice: for programs and for models.
    pub const OUTPUT_BYTES: usize = 32 << 10;
    pub const OUTPUT_BYTES_MAX: usize = 128 << 10;
    /// Output that is told as progress of one call.
    pub const PROGRESS_BYTES_MAX: usize = 1 << 20;
    /// Images in one answer, together.
    pub const IMAGE_BYTES_MAX: usize = 384 << 10;
    /// A part of a file or artifact in one answer.
    pub const READ_BYTES_MAX: usize = 256 << 10;
    /// A resource as a whole.
    pub const RESOURCE_BYTES_MAX: usize = 512 << 10;
    /// Rows of one answer.
    pub const LISTED_MAX: u32 = 1_000;
}
