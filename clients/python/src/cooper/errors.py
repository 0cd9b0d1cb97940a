"""What goes wrong: a stable code, what happened, and what to do."""

from __future__ import annotations

from typing import Any, Dict, Optional, Type

import grpc
from google.rpc import error_details_pb2, status_pb2


class CooperError(Exception):
    """A refusal or failure of the cluster. Codes are listed in docs/errors.md."""

    def __init__(self, code: str, message: str, hint: str = "", retry_after: Optional[float] = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        #: What to do about it; may be empty.
        self.hint = hint
        #: Seconds after which it may be worth another try; None where nothing is known about that.
        self.retry_after = retry_after

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.code}: {self.message}{hint}"


class Unauthenticated(CooperError):
    """No token, or one that is not known."""


class Forbidden(CooperError):
    """The token's scope does not cover it."""


class NotFound(CooperError):
    """There is no such thing, or it is another tenant's."""


class Conflict(CooperError):
    """It is not in a state for that, or the key or name is taken."""


class Invalid(CooperError):
    """The request itself is wrong: it will be refused again."""


class Exhausted(CooperError):
    """A quota, a limit or the capacity is used up."""


class Unavailable(CooperError):
    """Nobody answers, or nobody can now."""


class DeadlineExceeded(CooperError):
    """It took longer than the caller wanted to wait."""


class ConfigInvalid(CooperError):
    """What says where the cluster is makes no sense."""


class ExecutionFailed(CooperError):
    """Code raised, a command ended with another status than 0, or the execution was ended. `result` has all of it."""

    def __init__(self, code: str, message: str, result: Any, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.result = result


_KINDS: Dict[grpc.StatusCode, Type[CooperError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc(error: Any) -> CooperError:
    """The error that a call ended with, as one of the above."""
    status = error.code()
    kind = _KINDS.get(status, CooperError)
    code, hint, retry_after = status.name.lower(), "", None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        details = status_pb2.Status.FromString(value).details
        for detail in details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                code, hint = info.reason, info.metadata.get("hint", "")
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return kind(code, error.details() or status.name.lower(), hint, retry_after)
