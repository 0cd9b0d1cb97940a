"""What comes back: plain values, complete when they are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from cooper.errors import CooperError, ExecutionFailed
from cooper.v1 import common_pb2, runs_pb2


@dataclass(frozen=True)
class Display:
    """A value as a notebook shows it: the same thing by several media types."""

    data: Mapping[str, bytes]
    #: Media types whose values were too large to be kept.
    truncated: Tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.data.get("text/plain", b"").decode(errors="replace")

    @property
    def html(self) -> Optional[str]:
        return self._text("text/html")

    @property
    def markdown(self) -> Optional[str]:
        return self._text("text/markdown")

    @property
    def svg(self) -> Optional[str]:
        return self._text("image/svg+xml")

    @property
    def latex(self) -> Optional[str]:
        return self._text("text/latex")

    @property
    def png(self) -> Optional[bytes]:
        return self.data.get("image/png")

    @property
    def json(self) -> Any:
        text = self._text("application/json")
        return None if text is None else json.loads(text)

    def _text(self, kind: str) -> Optional[str]:
        value = self.data.get(kind)
        return None if value is None else value.decode(errors="replace")

    def _repr_mimebundle_(self, **_: Any) -> Dict[str, Any]:
        """A notebook that holds one of these shows what the session showed."""
        binary = ("image/png", "image/jpeg", "application/pdf")
        return {kind: value if kind in binary else value.decode(errors="replace") for kind, value in self.data.items()}


@dataclass(frozen=True)
class PythonError:
    """What the code raised."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True)
class Usage:
    wall_ms: int
    cpu_ms: int
    peak_memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Output:
    """A piece of output: of `stdout` or `stderr`, in order, every byte once."""

    stream: str
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


@dataclass(frozen=True)
class ArtifactInfo:
    """A file that is kept: of a session, what it wrote beneath `artifacts/`; of a run, e.g. "patch.diff"."""

    name: str
    size_bytes: int
    sha256: str
    media_type: str
    id: str = ""


@dataclass(frozen=True)
class Result:
    """What came of an execution."""

    task_id: str
    #: "succeeded", "failed", "timed_out", "cancelled", "lost" or "dead_letter".
    state: str
    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    #: Of the last expression; None where there was none.
    value: Optional[Display]
    #: What `display()` was given, figures included, in order.
    displays: Tuple[Display, ...]
    #: What the code raised.
    error: Optional[PythonError]
    #: Why Cooper ended or refused it (`timed_out`, `memory_limit`, …).
    failure: Optional[CooperError]
    usage: Usage
    artifacts: Tuple[ArtifactInfo, ...]
    #: Variables of before are gone.
    interpreter_restarted: bool
    #: Of an install: an imported module was changed by it.
    restart_required: bool
    oom: bool
    #: More was printed than is kept.
    truncated: bool

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        """The value as text; empty where there is none."""
        return self.value.text if self.value else ""

    @property
    def images(self) -> List[bytes]:
        """Every PNG that was shown, in order."""
        shown = [*self.displays, *([self.value] if self.value else [])]
        return [display.png for display in shown if display.png is not None]

    def check(self) -> "Result":
        """Itself if it went well.

        Raises ExecutionFailed otherwise, with the traceback in its message."""
        if self.ok:
            return self
        if self.failure is not None:
            raise ExecutionFailed(self.failure.code, self.failure.message, self, self.failure.hint)
        if self.error is not None:
            raise ExecutionFailed("raised", self.error.traceback or f"{self.error.name}: {self.error.value}", self)
        tail = self.stderr[-2000:].strip() or self.stdout[-2000:].strip()
        raise ExecutionFailed("exit_status", f"it ended with status {self.exit_code}: {tail}", self)

    def _repr_mimebundle_(self, **kwargs: Any) -> Dict[str, Any]:
        return self.value._repr_mimebundle_(**kwargs) if self.value else {"text/plain": self.stdout}


@dataclass(frozen=True)
class FileInfo:
    path: str
    #: "file", "dir", "symlink" or "other".
    kind: str
    size_bytes: int
    mode: int
    modified_at_ms: int
    #: Changes whenever the file does; for `if_match`.
    etag: str
    sha256: str = ""
    link_target: str = ""


@dataclass(frozen=True)
class Match:
    """A line that was found."""

    path: str
    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Package:
    name: str
    version: str


@dataclass(frozen=True)
class SessionInfo:
    id: str
    name: str
    #: "initializing", "ready", "checkpointing", "draining", "destroyed" or "failed".
    state: str
    worker_id: str
    python_version: str
    #: T3, T2, T1, T0 or unconfined: docs/isolation.md.
    tier: str
    labels: Mapping[str, str]
    metadata: Mapping[str, str]
    created_at_ms: int
    #: 0 = never.
    expires_at_ms: int
    hibernated: bool
    #: Everything the contract says.
    message: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class CheckpointInfo:
    id: str
    name: str
    session_id: str
    created_at_ms: int
    archive_bytes: int
    #: Variables that were left out, with the reason.
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class StepInfo:
    name: str
    state: str
    message: str
    attempt: int


@dataclass(frozen=True)
class RunInfo:
    """How a repair is."""

    id: str
    stack: str
    service: str
    #: "queued", "planning", "awaiting_approval", "running", "succeeded", "rolling_back", "rolled_back", "rollback_failed",
    #: "failed", "rejected", "expired", "cancelled" or "refused".
    state: str
    #: In a sentence; empty before a diagnosis.
    cause: str
    rule_id: str
    plan_hash: str
    files: Tuple[str, ...]
    steps: Tuple[StepInfo, ...]
    #: Why approval is needed; empty where it is not.
    approval_reasons: Tuple[str, ...]
    artifacts: Tuple[str, ...]
    error: Optional[CooperError]
    dry_run: bool
    #: Everything the contract says.
    message: Any = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "planning", "awaiting_approval", "running", "rolling_back")

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"


@dataclass(frozen=True)
class RunEvent:
    """A change of a run (`info`), or a piece of a step's log (`output`)."""

    info: Optional[RunInfo] = None
    step: str = ""
    output: Optional[Output] = None


def word(enum: Any, value: int, prefix: str) -> str:
    """TASK_STATE_TIMED_OUT as "timed_out"; a value of a newer contract as its number."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name[len(prefix) :].lower()


def error_of(message: Any) -> Optional[CooperError]:
    return CooperError(message.code, message.message, message.hint) if message.code else None


def display(bundle: Any) -> Display:
    return Display(dict(bundle.data), tuple(bundle.truncated))


def result(task: Any, stdout: bytes, stderr: bytes) -> Result:
    outcome = task.outcome
    exception = outcome.exception
    return Result(
        task_id=task.id,
        state=word(common_pb2.TaskState, task.state, "TASK_STATE_"),
        exit_code=outcome.exit_code,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
        value=display(outcome.result) if outcome.HasField("result") else None,
        displays=tuple(display(each) for each in outcome.displays),
        error=PythonError(exception.name, exception.value, exception.traceback)
        if outcome.HasField("exception")
        else None,
        failure=error_of(outcome.error),
        usage=Usage(
            outcome.usage.wall_ms, outcome.usage.cpu_ms, outcome.usage.peak_memory_bytes, outcome.usage.disk_bytes
        ),
        artifacts=tuple(artifact(each) for each in outcome.artifacts),
        interpreter_restarted=outcome.interpreter_restarted,
        restart_required=outcome.restart_required,
        oom=outcome.oom,
        truncated=outcome.stdout_truncated or outcome.stderr_truncated,
    )


def artifact(message: Any) -> ArtifactInfo:
    """Of an `Artifact` or an `ArtifactRef`."""
    return ArtifactInfo(message.name, message.size_bytes, message.sha256, message.media_type, message.id)


def output(stream: int, data: bytes) -> Output:
    return Output("stderr" if stream == common_pb2.STREAM_STDERR else "stdout", data)


def file(stat: Any) -> FileInfo:
    return FileInfo(
        stat.path, stat.kind, stat.size_bytes, stat.mode, stat.modified_at_ms, stat.etag, stat.sha256, stat.link_target
    )


def session(message: Any) -> SessionInfo:
    return SessionInfo(
        id=message.id,
        name=message.name,
        state=word(common_pb2.SessionState, message.state, "SESSION_STATE_"),
        worker_id=message.worker_id,
        python_version=message.python_version,
        tier=message.tier,
        labels=dict(message.labels),
        metadata=dict(message.metadata),
        created_at_ms=message.created_at_ms,
        expires_at_ms=message.expires_at_ms,
        hibernated=message.hibernated,
        message=message,
    )


def checkpoint(message: Any) -> CheckpointInfo:
    dropped = {each.name: each.reason for each in message.summary.globals.dropped}
    return CheckpointInfo(
        message.id, message.name, message.session_id, message.created_at_ms, message.archive_bytes, dropped
    )


def run(message: Any) -> RunInfo:
    return RunInfo(
        id=message.id,
        stack=message.stack,
        service=message.service,
        state=word(runs_pb2.RunState, message.state, "RUN_STATE_"),
        cause=message.cause,
        rule_id=message.rule_id,
        plan_hash=message.plan_hash,
        files=tuple(message.files),
        steps=tuple(
            StepInfo(step.name, word(runs_pb2.StepState, step.state, "STEP_STATE_"), step.message, step.attempt)
            for step in message.steps
        ),
        approval_reasons=tuple(message.approval.reasons),
        artifacts=tuple(message.artifacts),
        error=error_of(message.error),
        dry_run=message.dry_run,
        message=message,
    )
