//! Errors as users meet them at every door: a stable code, what happened, what to do next.
//!
//! docs/errors.md lists every code; a test keeps the two equal.

use std::fmt;

/// Broad kind: decides the gRPC status, the HTTP status and the CLI's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request can never succeed as it is.
    Invalid,
    /// No such thing, or another tenant's (I10).
    NotFound,
    /// Somebody or something else holds what is needed; the state does not allow it.
    Conflict,
    /// No or unknown token.
    Unauthenticated,
    /// The token's scope does not allow it.
    Forbidden,
    /// A limit is reached; later it may work.
    Exhausted,
    /// A part that is needed is away; try again.
    Unavailable,
    /// Took longer than allowed.
    Timeout,
    /// A fault of Cooper's or of its machine.
    Internal,
}

macro_rules! codes {
    ($($variant:ident = $text:literal, $kind:ident, $hint:literal;)*) => {
        /// Stable codes. New ones may come; none changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($variant,)* }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }
            pub const fn kind(self) -> Kind {
                match self { $(Code::$variant => Kind::$kind,)* }
            }
            /// What to do next, unless the error says something better.
            pub const fn hint(self) -> &'static str {
                match self { $(Code::$variant => $hint,)* }
            }
            /// The code written as `text`.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    InvalidArgument = "invalid_argument", Invalid, "correct the request and send it again";
    CheckpointNotFound = "checkpoint_not_found", NotFound, "see `cooper checkpoint list`";
    CheckpointDamaged = "checkpoint_damaged", Internal, "use another checkpoint; this one was changed or its disk is failing";
    TooLarge = "too_large", Invalid, "send less; limits are in docs/limits.md";
    SessionNotFound = "session_not_found", NotFound, "see `cooper session list`";
    TemplateNotFound = "template_not_found", NotFound, "see `cooper template list`";
    SecretNotFound = "secret_not_found", NotFound, "see `cooper secret list`";
    TaskNotFound = "task_not_found", NotFound, "see `cooper tasks list`";
    RunNotFound = "run_not_found", NotFound, "see `cooper runs list`";
    ArtifactNotFound = "artifact_not_found", NotFound, "see `cooper runs artifacts RUN` and `cooper artifacts list SESSION`";
    StackNotFound = "stack_not_found", NotFound, "see `cooper stacks`; register one with COOPER_STACKS=name=dir on a worker, or give a directory with --stack";
    StackElsewhere = "stack_elsewhere", Conflict, "mount the stack into the worker's container at the path it has on the engine's machine (COOPER_STACK_DIR)";
    ServiceNotFound = "service_not_found", NotFound, "name a service of the stack's compose file";
    TokenNotFound = "token_not_found", NotFound, "see `cooper token list`";
    WorkerNotFound = "worker_not_found", NotFound, "see `cooper workers`";
    FileNotFound = "file_not_found", NotFound, "see `cooper files ls SESSION`";
    PathEscapes = "path_escapes", Invalid, "name a path inside the session's workspace";
    NotAFile = "not_a_file", Invalid, "name a regular file";
    FileExists = "file_exists", Conflict, "choose another path, or allow it to be replaced (--overwrite)";
    FileChanged = "file_changed", Conflict, "read the file again and decide anew";
    DirectoryNotEmpty = "directory_not_empty", Conflict, "remove what is in it too (--recursive)";
    EditNoMatch = "edit_no_match", Conflict, "read the file and give the text exactly as it is there, blanks and line ends included";
    EditAmbiguous = "edit_ambiguous", Conflict, "give more of the text around it, or say how often it is there (--count N, --all)";
    NotSupported = "not_supported", Conflict, "upgrade the worker that holds the session";
    SessionNotReady = "session_not_ready", Conflict, "wait until the session is ready, or create another";
    SessionEnded = "session_ended", Conflict, "create a new session";
    SessionExpired = "session_expired", Conflict, "create a new session; give it a longer --ttl, or `cooper session extend` it in time";
    SessionIdle = "session_idle", Conflict, "create a new session; give it a longer --idle-timeout";
    QuotaExceeded = "quota_exceeded", Exhausted, "destroy sessions that are not needed, ask for less, or have the quota raised";
    NetworkUnavailable = "network_unavailable", Conflict, "use --network none, or a worker whose facilities (`cooper workers`) list network";
    PortNotOpen = "port_not_open", Conflict, "start a server in the session on that port, on 0.0.0.0 or 127.0.0.1; see `cooper port list SESSION`";
    PortFailed = "port_failed", Unavailable, "see what the server in the session says; `cooper port forward` carries what is not HTTP";
    NotRunning = "not_running", Conflict, "see `cooper tasks show TASK`; what waits can be cancelled (`cooper tasks cancel TASK`)";
    StdinNotOpen = "stdin_not_open", Conflict, "submit with `stdin_open` (`cooper exec --interactive`)";
    StdinBusy = "stdin_busy", Exhausted, "wait for the answer to the write before";
    NoTerminal = "no_terminal", Conflict, "submit with a terminal (`cooper exec --tty`)";
    Killed = "killed", Conflict, "";
    SessionBusy = "session_busy", Exhausted, "wait for the session's executions, or use another session";
    NameTaken = "name_taken", Conflict, "choose another name or destroy the session that has it";
    IdempotencyConflict = "idempotency_conflict", Conflict, "use a fresh idempotency key for a different request";
    NotAwaitingApproval = "not_awaiting_approval", Conflict, "see `cooper runs show RUN`";
    Paused = "paused", Conflict, "`cooper resume`, or start it as a person: without `--automatic`";
    Cooldown = "cooldown", Exhausted, "wait, or start it as a person: without `--automatic`";
    NotRecurring = "not_recurring", Conflict, "nothing: it is repaired when it was posted often enough; or start it without `--recurring`";
    NotRetryable = "not_retryable", Conflict, "see `cooper runs show RUN`; `cooper repair` begins anew";
    NotUndoable = "not_undoable", Conflict, "see `cooper runs show RUN` and `cooper runs list`";
    NoPlan = "no_plan", Conflict, "wait until the run has planned, or see why it ended: `cooper runs show RUN`";
    PlanChanged = "plan_changed", Conflict, "read the plan again and decide about that";
    ServiceLocked = "service_locked", Conflict, "wait for the run that works on this service; see `cooper runs list`";
    NoCapacity = "no_capacity", Exhausted, "destroy a session, raise MAX_SESSIONS, add a worker, or wait with --wait";
    IsolationUnavailable = "isolation_unavailable", Unavailable, "see `cooper doctor` on the worker's machine; a lower tier has to be set on purpose, with min_tier";
    NoWorker = "no_worker", Unavailable, "start a worker (`cooper worker`) and see `cooper workers`";
    RateLimited = "rate_limited", Exhausted, "send less at once, and come back after the time that is said (Retry-After, RetryInfo)";
    Overloaded = "overloaded", Exhausted, "send less at once and try again";
    Unauthenticated = "unauthenticated", Unauthenticated, "give a token: COOPER_TOKEN, COOPER_TOKEN_FILE, or the data directory's admin.token";
    Forbidden = "forbidden", Forbidden, "use a token with the scope that is needed (`cooper token create --scope`)";
    HostNotAllowed = "host_not_allowed", Forbidden, "ask by localhost or an address, or name the host in COOPER_ALLOWED_HOSTS";
    StaleLease = "stale_lease", Conflict, "nothing: a newer grant owns this";
    ProtocolVersion = "protocol_version", Conflict, "upgrade the older side";
    WorkerIdTaken = "worker_id_taken", Conflict, "give each worker its own WORKER_ID and data directory";
    WorkerLost = "worker_lost", Unavailable, "the worker's host ended while this ran; run it again if that is safe";
    WorkerDraining = "worker_draining", Unavailable, "use a session on another worker, or wait for `cooper undrain WORKER`";
    TimedOut = "timed_out", Timeout, "give it more time (--timeout) or make it faster";
    Cancelled = "cancelled", Conflict, "";
    AttemptsExhausted = "attempts_exhausted", Conflict, "see why the attempts ended (`cooper tasks show TASK`), then `cooper tasks requeue TASK`";
    NotDeadLetter = "not_dead_letter", Conflict, "only tasks in dead_letter can be requeued: see `cooper tasks list --state dead_letter`";
    InterpreterDied = "interpreter_died", Internal, "the interpreter ended (exit, crash or out of memory); the next execution starts a new one";
    MemoryLimit = "memory_limit", Exhausted, "use less memory, or give the session more (`cooper session update --memory`)";
    DiskQuota = "disk_quota", Exhausted, "remove files, or give the session more (`cooper session update --disk`, `--inodes`)";
    ProcessLimit = "process_limit", Exhausted, "start fewer processes, or allow the session more (`cooper session update --processes`)";
    SpawnFailed = "spawn_failed", Invalid, "check the command and the session's limits";
    PythonMissing = "python_missing", Unavailable, "install Python 3.9 or newer, or name one with COOPER_PYTHON";
    CheckpointInUse = "checkpoint_in_use", Conflict, "delete what it belongs to first";
    TemplateFailed = "template_failed", Invalid, "read what the build printed, and build again";
    InstallFailed = "install_failed", Invalid, "read the installer's output";
    NoDiagnosis = "no_diagnosis", Conflict, "read the evidence in the run's artifacts; give --log or --instruction";
    PolicyRefused = "policy_refused", Forbidden, "change the stack's x-cooper policy if this should be allowed";
    PromotionConflict = "promotion_conflict", Conflict, "apply patch.diff by hand";
    StepFailed = "step_failed", Internal, "read the step's log in the run's artifacts";
    VerifyFailed = "verify_failed", Conflict, "read verify.log in the run's artifacts";
    PatchNoEffect = "patch_no_effect", Conflict, "the image does not depend on what was changed: see patch.diff and the Dockerfile, then repair with another instruction";
    NeighbourChanged = "neighbour_changed", Conflict, "see who else works on the stack, then repair again";
    PreflightFailed = "preflight_failed", Conflict, "read restart.log in the run's artifacts; the running service was not touched";
    RollbackFailed = "rollback_failed", Internal, "restore by hand: rollback.log says what is left";
    EngineUnavailable = "engine_unavailable", Unavailable, "start the Docker engine, or `scripts/ensure-engine.sh`";
    StoreUnavailable = "store_unavailable", Unavailable, "check the data directory's disk and permissions";
    StoreFull = "store_full", Unavailable, "free space on the data directory's disk";
    DataBusy = "data_busy", Conflict, "stop the other cooper on this data directory, or use another --data";
    DataUnusable = "data_unusable", Invalid, "choose a data directory that this user may write";
    PortTaken = "port_taken", Conflict, "stop what listens there, or choose another --listen";
    ConfigInvalid = "config_invalid", Invalid, "correct the setting; `cooper config show --origin` says where each comes from";
    Unavailable = "unavailable", Unavailable, "try again; see `cooper status`";
    Internal = "internal", Internal, "this is a fault of Cooper's: please report it with the log";
}

/// An error with everything a person or a program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// What happened, to what.
    pub message: String,
    /// What to do next; empty means the code's own hint.
    pub hint: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new() }
    }
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
    pub fn hint(&self) -> &str {
        if self.hint.is_empty() { self.code.hint() } else { &self.hint }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}
impl std::error::Error for Error {}
