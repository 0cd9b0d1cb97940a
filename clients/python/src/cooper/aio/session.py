"""A session: a Python of one's own on a worker, with its variables, files and packages."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Sequence, Type, Union

import grpc

from cooper import results
from cooper.aio._channel import Channel
from cooper.aio.execution import Execution
from cooper.aio.files import Files
from cooper.errors import from_rpc
from cooper.options import SessionOptions, key, session_request
from cooper.results import ArtifactInfo, CheckpointInfo, Output, Package, Result, SessionInfo
from cooper.settings import Settings
from cooper.v1 import (
    checkpoints_pb2,
    checkpoints_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    tasks_pb2,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Session:
    """Destroyed when its `with` block ends, unless `keep()` was called.

    Made by `Cluster.session()`, or `Session(...)` with the same arguments, which finds the cluster by itself.
    """

    def __init__(self, **options: Unpack[SessionOptions]) -> None:
        wanted = session_request(**options)
        self._own: Optional[Channel] = Channel(Settings.find())
        self._begin(self._own, wanted)

    @classmethod
    def _of(cls, channel: Channel, wanted: Any, info: Optional[SessionInfo] = None) -> "Session":
        made = cls.__new__(cls)
        made._own = None
        made._begin(channel, wanted, info)
        return made

    def _begin(self, channel: Channel, wanted: Any, info: Optional[SessionInfo] = None) -> None:
        self._channel = channel
        self._wanted = wanted
        self._info = info
        self._keep = info is not None
        self._stub = sessions_pb2_grpc.SessionsStub(channel.grpc)
        self._artifacts = runs_pb2_grpc.RunsStub(channel.grpc)

    async def open(self) -> "Session":
        """Makes it, unless it is there. A `with` block does so by itself."""
        if self._info is None:
            if isinstance(self._wanted, checkpoints_pb2.RestoreCheckpointRequest):
                restore = checkpoints_pb2_grpc.CheckpointsStub(self._channel.grpc).RestoreCheckpoint
                self._info = results.session(await self._channel.call(restore, self._wanted))
            else:
                self._info = results.session(await self._channel.call(self._stub.CreateSession, self._wanted))
        return self

    async def close(self) -> None:
        """Destroys it, unless it is to be kept."""
        try:
            if self._info is not None and not self._keep:
                await self.destroy()
        finally:
            if self._own is not None:
                await self._own.aclose()

    async def __aenter__(self) -> "Session":
        return await self.open()

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()

    def keep(self) -> "Session":
        """It lives on when its block ends."""
        self._keep = True
        return self

    @property
    def id(self) -> str:
        return self.known.id

    @property
    def known(self) -> SessionInfo:
        """What was last heard of it."""
        if self._info is None:
            raise RuntimeError("the session is not open: use it in a with block, or call open()")
        return self._info

    @property
    def files(self) -> Files:
        return Files(self._channel, self.id)

    async def info(self) -> SessionInfo:
        asked = sessions_pb2.GetSessionRequest(session_id=self.id)
        self._info = results.session(await self._channel.call(self._stub.GetSession, asked))
        return self._info

    async def run(
        self,
        code: str,
        *,
        fresh: bool = False,
        args: Sequence[str] = (),
        stdin: bytes = b"",
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "",
        timeout: Optional[float] = None,
        on_output: Optional[Callable[[Output], Any]] = None,
    ) -> Result:
        """Runs Python code to its end. Variables stay, unless it is `fresh`. `timeout` is in seconds: beyond it the code is
        interrupted, and killed if that does not help.

        What the code raises is in the result; `result.check()` raises it here."""
        execution = self.stream(code, fresh=fresh, args=args, stdin=stdin, env=env, cwd=cwd, timeout=timeout)
        return await _to_end(execution, on_output)

    async def shell(
        self,
        command: Union[str, Sequence[str]],
        *,
        stdin: bytes = b"",
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "",
        timeout: Optional[float] = None,
        on_output: Optional[Callable[[Output], Any]] = None,
    ) -> Result:
        """Runs a command: a line for the shell, or its arguments."""
        execution = self.stream_shell(command, stdin=stdin, env=env, cwd=cwd, timeout=timeout)
        return await _to_end(execution, on_output)

    def stream(
        self,
        code: str,
        *,
        fresh: bool = False,
        args: Sequence[str] = (),
        stdin: bytes = b"",
        stdin_open: bool = False,
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "",
        timeout: Optional[float] = None,
    ) -> Execution:
        """The same as it goes: iterate over it for its output, then ask for its `result()`."""
        mode = tasks_pb2.EXECUTION_MODE_FRESH if fresh else tasks_pb2.EXECUTION_MODE_STATEFUL
        python = tasks_pb2.PythonSpec(code=code, args=args, mode=mode, stdin=stdin)
        return self._execution(env, cwd, timeout, python=python, stdin_open=stdin_open)

    def stream_shell(
        self,
        command: Union[str, Sequence[str]],
        *,
        stdin: bytes = b"",
        stdin_open: bool = False,
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "",
        timeout: Optional[float] = None,
    ) -> Execution:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shell = tasks_pb2.ShellSpec(argv=argv, stdin=stdin)
        return self._execution(env, cwd, timeout, shell=shell, stdin_open=stdin_open)

    def execution(self, task_id: str) -> Execution:
        """One that was begun before, also by somebody else: its output from the beginning."""
        return Execution(self._channel, task_id=task_id)

    def _execution(
        self, env: Optional[Mapping[str, str]], cwd: str, timeout: Optional[float], **kind: Any
    ) -> Execution:
        spec = tasks_pb2.TaskSpec(
            session_id=self.id, env=env or {}, cwd=cwd, timeout_ms=round((timeout or 0) * 1000), **kind
        )
        return Execution(self._channel, spec)

    async def install(
        self,
        *packages: str,
        requirements: str = "",
        upgrade: bool = False,
        index_url: str = "",
        timeout: Optional[float] = None,
    ) -> Result:
        """Installs packages into this session only.

        Raises ExecutionFailed when that fails; the session's packages are then as they were."""
        install = tasks_pb2.InstallSpec(
            packages=packages, requirements=requirements, upgrade=upgrade, index_url=index_url
        )
        return (await self._execution(None, "", timeout, install=install).result()).check()

    async def uninstall(self, *packages: str) -> Result:
        spec = tasks_pb2.UninstallSpec(packages=packages)
        return (await self._execution(None, "", None, uninstall=spec).result()).check()

    async def packages(self) -> List[Package]:
        asked = sessions_pb2.ListPackagesRequest(session_id=self.id)
        answer = await self._channel.call(self._stub.ListPackages, asked)
        return [Package(each.name, each.version) for each in answer.packages]

    async def artifacts(self) -> List[ArtifactInfo]:
        """Files that were written beneath `artifacts/`, newest first."""
        asked = runs_pb2.ListArtifactsRequest(session_id=self.id)
        answer = await self._channel.call(self._artifacts.ListArtifacts, asked)
        return [results.artifact(each) for each in answer.artifacts]

    async def artifact(self, name: str) -> bytes:
        """The newest of that name."""
        asked = runs_pb2.ReadArtifactRequest(session_id=self.id, name=name)
        data = bytearray()
        try:
            async for message in self._channel.stream(self._artifacts.ReadArtifact, asked):
                data += message.data
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return bytes(data)

    async def extend(self, seconds: float) -> SessionInfo:
        """It ends so long from now, whatever was said before; 0 = not by itself."""
        asked = sessions_pb2.UpdateSessionRequest(session_id=self.id, ttl_ms=round(seconds * 1000))
        self._info = results.session(await self._channel.call(self._stub.UpdateSession, asked))
        return self._info

    async def checkpoint(self, name: str = "", variables: bool = True) -> CheckpointInfo:
        """Saves its files and packages, and its variables as far as they can be pickled."""
        stub = checkpoints_pb2_grpc.CheckpointsStub(self._channel.grpc)
        asked = checkpoints_pb2.CreateCheckpointRequest(
            session_id=self.id, name=name, globals=variables, idempotency_key=key()
        )
        return results.checkpoint(await self._channel.call(stub.CreateCheckpoint, asked))

    async def destroy(self) -> None:
        """Ends whatever runs in it and removes its files. Twice is fine."""
        asked = sessions_pb2.DestroySessionRequest(session_id=self.id, idempotency_key=key())
        self._info = results.session(await self._channel.call(self._stub.DestroySession, asked))


async def _to_end(execution: Execution, on_output: Optional[Callable[[Output], Any]]) -> Result:
    async for output in execution:
        if on_output is not None:
            on_output(output)
    return await execution.result()
