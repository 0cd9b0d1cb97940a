"""Sessions and repairs of a Cooper cluster.

    from cooper import Session

    with Session() as session:
        print(session.run("21 * 2").text)

The same asynchronously: `cooper.aio`.
"""

from cooper.errors import (
    ConfigInvalid,
    Conflict,
    CooperError,
    DeadlineExceeded,
    ExecutionFailed,
    Exhausted,
    Forbidden,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from cooper.results import (
    ArtifactInfo,
    CheckpointInfo,
    Display,
    FileInfo,
    Match,
    Output,
    Package,
    PythonError,
    Result,
    RunEvent,
    RunInfo,
    SessionInfo,
    Usage,
)
from cooper.sync import Cluster, Execution, Files, Repair, Session

__all__ = [
    "ArtifactInfo",
    "CheckpointInfo",
    "Cluster",
    "ConfigInvalid",
    "Conflict",
    "CooperError",
    "DeadlineExceeded",
    "Display",
    "Execution",
    "ExecutionFailed",
    "Exhausted",
    "FileInfo",
    "Files",
    "Forbidden",
    "Invalid",
    "Match",
    "NotFound",
    "Output",
    "Package",
    "PythonError",
    "Repair",
    "Result",
    "RunEvent",
    "RunInfo",
    "Session",
    "SessionInfo",
    "Unauthenticated",
    "Unavailable",
    "Usage",
]
