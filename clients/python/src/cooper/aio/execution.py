"""An execution that runs: its output as it comes, its input, and its end."""

from __future__ import annotations

import uuid
from typing import Any, AsyncIterator, Optional

import grpc

from cooper import results
from cooper._patience import Patience
from cooper.aio._channel import Channel, sleep
from cooper.errors import DeadlineExceeded, from_rpc
from cooper.results import Output, Result
from cooper.v1 import executions_pb2, executions_pb2_grpc, tasks_pb2, tasks_pb2_grpc

SIGNALS = {
    "INT": executions_pb2.SIGNAL_INT,
    "TERM": executions_pb2.SIGNAL_TERM,
    "HUP": executions_pb2.SIGNAL_HUP,
    "USR1": executions_pb2.SIGNAL_USR1,
    "USR2": executions_pb2.SIGNAL_USR2,
    "KILL": executions_pb2.SIGNAL_KILL,
}


class Execution:
    """Iterate over it for its output; `result()` awaits its end.

    It goes on when nobody listens, and when the coordinator is restarted: a connection that is cut is taken up again
    where it was, every byte comes once.
    """

    def __init__(self, channel: Channel, spec: Any = None, task_id: str = "") -> None:
        self._channel = channel
        self._tasks = tasks_pb2_grpc.TasksStub(channel.grpc)
        self._executions = executions_pb2_grpc.ExecutionsStub(channel.grpc)
        # Whatever is repeated is one execution.
        self._submit = tasks_pb2.SubmitTaskRequest(idempotency_key=f"py-{uuid.uuid4().hex}", spec=spec)
        self._id = task_id
        self._received = {"stdout": bytearray(), "stderr": bytearray()}
        self._attempts_used = 0
        self._written = 0
        self._result: Optional[Result] = None

    @property
    def id(self) -> str:
        """Of its task; empty until it has been accepted."""
        return self._id

    async def start(self) -> "Execution":
        """Answers once it is durable; it then goes on by itself."""
        if not self._id:
            task = await self._channel.call(self._tasks.SubmitTask, self._submit)
            self._id = task.id
        return self

    async def __aiter__(self) -> AsyncIterator[Output]:
        if self._result is not None:
            return
        patience = Patience()
        while True:
            try:
                async for event in self._events():
                    patience.heard()
                    kind = event.WhichOneof("event")
                    if kind == "accepted":
                        self._id = event.accepted.id
                        self._attempts_used = event.accepted.attempts_used
                    elif kind == "restarted":
                        self._attempts_used = event.restarted.attempts_used
                        for received in self._received.values():
                            received.clear()
                    elif kind == "output":
                        output = results.output(event.output.stream, event.output.data)
                        self._received[output.stream] += output.data
                        yield output
                    elif kind == "ended":
                        stdout, stderr = (bytes(self._received[stream]) for stream in ("stdout", "stderr"))
                        self._result = results.result(event.ended, stdout, stderr)
                        return
            except grpc.RpcError as error:
                pause = patience.pause(error)
                if pause is None:
                    raise from_rpc(error) from None
                await sleep(pause)

    def _events(self) -> AsyncIterator[Any]:
        if not self._id:
            return self._channel.stream(self._tasks.Execute, self._submit)
        request = tasks_pb2.FollowRequest(
            task_id=self._id,
            stdout_offset=len(self._received["stdout"]),
            stderr_offset=len(self._received["stderr"]),
            attempts_used=self._attempts_used,
        )
        return self._channel.stream(self._tasks.Follow, request)

    async def result(self) -> Result:
        """Awaits its end."""
        async for _ in self:
            pass
        if self._result is None:
            raise DeadlineExceeded("timed_out", "its output ended before it did")
        return self._result

    async def write(self, data: bytes, end: bool = False) -> None:
        """Adds to its standard input (it was started with `stdin_open`); with `end` there is no more."""
        await self.start()
        pieces = [data[at : at + (64 << 10)] for at in range(0, len(data), 64 << 10)] or [b""]
        for number, piece in enumerate(pieces):
            eof = end and number == len(pieces) - 1
            while True:
                # The offset makes a write that is repeated after a cut arrive once.
                request = executions_pb2.WriteStdinRequest(
                    task_id=self._id, offset_bytes=self._written, data=piece, eof=eof
                )
                answer = await self._channel.call(self._executions.WriteStdin, request)
                self._written = answer.offset_bytes
                if not answer.incomplete:
                    break
                piece = piece[len(piece) - answer.remaining_bytes :]

    async def signal(self, name: str) -> None:
        """INT, TERM, HUP, USR1, USR2 or KILL. INT raises KeyboardInterrupt in stateful code and keeps its variables."""
        await self.start()
        request = executions_pb2.SignalExecutionRequest(task_id=self._id, signal=SIGNALS[name])
        await self._channel.call(self._executions.SignalExecution, request, repeat=False)

    async def interrupt(self) -> None:
        await self.signal("INT")

    async def kill(self) -> None:
        """Ends it with every descendant."""
        await self.signal("KILL")

    async def cancel(self) -> None:
        """Takes it out of the queue; interrupts and then kills it where it runs already."""
        await self.start()
        request = tasks_pb2.CancelTaskRequest(task_id=self._id, idempotency_key=f"py-{uuid.uuid4().hex}")
        await self._channel.call(self._tasks.CancelTask, request)
