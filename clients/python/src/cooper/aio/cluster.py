"""A cluster: where sessions and repairs are asked for."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, List, Mapping, Optional, Type, Union

from cooper import results
from cooper.aio._channel import Channel
from cooper.aio.repair import Repair
from cooper.aio.repair import request as repair_request
from cooper.aio.session import Session
from cooper.options import SessionOptions, session_request
from cooper.results import CheckpointInfo, RunInfo, SessionInfo
from cooper.settings import Settings
from cooper.v1 import (
    checkpoints_pb2,
    checkpoints_pb2_grpc,
    common_pb2,
    runs_pb2,
    runs_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Cluster:
    """The one that `url` and `token` name, else the environment, else the one that `cooper up` runs here."""

    def __init__(
        self, url: Optional[str] = None, token: Optional[str] = None, tls_ca: Optional[str] = None
    ) -> None:
        self._channel = Channel(Settings.find(url, token, tls_ca))
        self._sessions = sessions_pb2_grpc.SessionsStub(self._channel.grpc)
        self._runs = runs_pb2_grpc.RunsStub(self._channel.grpc)
        self._checkpoints = checkpoints_pb2_grpc.CheckpointsStub(self._channel.grpc)

    async def aclose(self) -> None:
        await self._channel.aclose()

    async def __aenter__(self) -> "Cluster":
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.aclose()

    def session(self, **options: Unpack[SessionOptions]) -> Session:
        """A new session, made when its `with` block begins."""
        return Session._of(self._channel, session_request(**options))

    async def attach(self, session: str) -> Session:
        """A session that is there already, by id or name. It is not destroyed when its block ends."""
        asked = sessions_pb2.GetSessionRequest(session_id=session)
        info = results.session(await self._channel.call(self._sessions.GetSession, asked))
        return Session._of(self._channel, None, info)

    def restore(self, checkpoint: Union[str, CheckpointInfo], **options: Unpack[SessionOptions]) -> Session:
        """A new session from a checkpoint; what the options do not say is as it was in the session that was saved."""
        which = checkpoint if isinstance(checkpoint, str) else checkpoint.id
        session = session_request(**options)
        return Session._of(
            self._channel, checkpoints_pb2.RestoreCheckpointRequest(checkpoint_id=which, session=session)
        )

    async def sessions(self, labels: Optional[Mapping[str, str]] = None, all: bool = False) -> List[SessionInfo]:
        """Newest first; with `all` also those that have ended."""
        found: List[SessionInfo] = []
        page = common_pb2.Page(limit=1000)
        while True:
            asked = sessions_pb2.ListSessionsRequest(page=page, labels=labels or {}, all=all)
            answer = await self._channel.call(self._sessions.ListSessions, asked)
            found.extend(results.session(each) for each in answer.sessions)
            if not answer.next_cursor:
                return found
            page.cursor = answer.next_cursor

    async def checkpoints(self, session: str = "") -> List[CheckpointInfo]:
        """Newest first."""
        found: List[CheckpointInfo] = []
        page = common_pb2.Page(limit=1000)
        while True:
            asked = checkpoints_pb2.ListCheckpointsRequest(page=page, session_id=session)
            answer = await self._channel.call(self._checkpoints.ListCheckpoints, asked)
            found.extend(results.checkpoint(each) for each in answer.checkpoints)
            if not answer.next_cursor:
                return found
            page.cursor = answer.next_cursor

    async def delete_checkpoint(self, checkpoint: Union[str, CheckpointInfo]) -> None:
        which = checkpoint if isinstance(checkpoint, str) else checkpoint.id
        asked = checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=which)
        await self._channel.call(self._checkpoints.DeleteCheckpoint, asked, repeat=False)

    async def repair(
        self,
        service: str,
        *,
        stack: str = "",
        log: Union[bytes, str, None] = None,
        instruction: str = "",
        dry_run: bool = False,
        priority: int = 0,
    ) -> Repair:
        """Begins a repair of a service of a registered compose stack; answers once it is durable. `log` is diagnosed in place
        of what Cooper would collect; `dry_run` ends with the plan."""
        text = log.encode() if isinstance(log, str) else log
        asked = repair_request(service, stack, text, instruction, dry_run, priority)
        return Repair(self._channel, results.run(await self._channel.call(self._runs.CreateRun, asked)))

    async def run(self, run_id: str) -> Repair:
        """A repair that was begun before."""
        asked = runs_pb2.GetRunRequest(run_id=run_id)
        return Repair(self._channel, results.run(await self._channel.call(self._runs.GetRun, asked)))

    async def runs(self, limit: int = 100) -> List[RunInfo]:
        """The newest repairs."""
        asked = runs_pb2.ListRunsRequest(page=common_pb2.Page(limit=limit))
        answer = await self._channel.call(self._runs.ListRuns, asked)
        return [results.run(each) for each in answer.runs]
