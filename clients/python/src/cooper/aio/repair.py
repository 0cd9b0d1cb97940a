"""A repair: a run that diagnoses a service of a compose stack, mends it, and takes everything back when that fails."""

from __future__ import annotations

import json
from typing import Any, AsyncGenerator, Dict, List, Optional

import grpc

from cooper import results
from cooper._patience import Patience
from cooper.aio._channel import Channel, sleep
from cooper.errors import from_rpc
from cooper.options import key
from cooper.results import ArtifactInfo, RunEvent, RunInfo
from cooper.v1 import runs_pb2, runs_pb2_grpc


class Repair:
    """Goes on when nobody listens. Made by `Cluster.repair()`."""

    def __init__(self, channel: Channel, info: RunInfo) -> None:
        self._channel = channel
        self._stub = runs_pb2_grpc.RunsStub(channel.grpc)
        #: What was last heard of it.
        self.known = info

    @property
    def id(self) -> str:
        return self.known.id

    async def info(self) -> RunInfo:
        message = await self._channel.call(self._stub.GetRun, runs_pb2.GetRunRequest(run_id=self.id))
        self.known = results.run(message)
        return self.known

    async def watch(self) -> AsyncGenerator[RunEvent, None]:
        """Its changes and its steps' logs, to its end; a connection that is cut is taken up again."""
        patience = Patience()
        position = runs_pb2.LogPosition()
        while True:
            request = runs_pb2.WatchRunRequest(run_id=self.id)
            if position.task_id:
                request.resume.CopyFrom(position)
            try:
                async for event in self._channel.stream(self._stub.WatchRun, request):
                    patience.heard()
                    if event.HasField("run"):
                        self.known = results.run(event.run)
                        yield RunEvent(info=self.known)
                    else:
                        _advance(position, event.log)
                        yield RunEvent(
                            step=event.log.step, output=results.output(event.log.stream, event.log.data)
                        )
                return
            except grpc.RpcError as error:
                pause = patience.pause(error)
                if pause is None:
                    raise from_rpc(error) from None
                await sleep(pause)

    async def wait(self, approval: bool = False) -> RunInfo:
        """Awaits its end; with `approval` also the moment in which it needs one."""
        events = self.watch()
        try:
            async for _ in events:
                if self.known.ended or (approval and self.known.state == "awaiting_approval"):
                    break
        finally:
            await events.aclose()
        return self.known

    async def plan(self) -> Dict[str, Any]:
        """As a person reviews it: cause, diffs, commands, who may approve and why."""
        answer = await self._channel.call(self._stub.GetPlan, runs_pb2.GetPlanRequest(run_id=self.id))
        review: Dict[str, Any] = json.loads(answer.review_json)
        return review

    async def approve(self, comment: str = "") -> RunInfo:
        """The plan that was last heard of, and no other."""
        return await self._decide(True, comment)

    async def reject(self, comment: str = "") -> RunInfo:
        return await self._decide(False, comment)

    async def _decide(self, approve: bool, comment: str) -> RunInfo:
        request = runs_pb2.DecideRunRequest(
            run_id=self.id, approve=approve, comment=comment, plan_hash=self.known.plan_hash, idempotency_key=key()
        )
        self.known = results.run(await self._channel.call(self._stub.DecideRun, request))
        return self.known

    async def cancel(self) -> RunInfo:
        """Ends it; what was touched is put back."""
        request = runs_pb2.CancelRunRequest(run_id=self.id, idempotency_key=key())
        self.known = results.run(await self._channel.call(self._stub.CancelRun, request))
        return self.known

    async def retry(self, from_step: str = "") -> "Repair":
        """Begins it over again, as a run of its own."""
        request = runs_pb2.RetryRunRequest(run_id=self.id, from_step=from_step, idempotency_key=key())
        return Repair(self._channel, results.run(await self._channel.call(self._stub.RetryRun, request)))

    async def undo(self) -> "Repair":
        """Takes it back, by a run of its own."""
        request = runs_pb2.UndoRunRequest(run_id=self.id, idempotency_key=key())
        return Repair(self._channel, results.run(await self._channel.call(self._stub.UndoRun, request)))

    async def artifacts(self) -> List[ArtifactInfo]:
        request = runs_pb2.ListArtifactsRequest(run_id=self.id)
        answer = await self._channel.call(self._stub.ListArtifacts, request)
        return [results.artifact(each) for each in answer.artifacts]

    async def artifact(self, name: str) -> bytes:
        """e.g. "patch.diff"."""
        data = bytearray()
        request = runs_pb2.ReadArtifactRequest(run_id=self.id, name=name)
        try:
            async for message in self._channel.stream(self._stub.ReadArtifact, request):
                data += message.data
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return bytes(data)


def _advance(position: Any, log: Any) -> None:
    if (position.task_id, position.attempts_used) != (log.task_id, log.attempts_used):
        position.Clear()
        position.task_id, position.attempts_used = log.task_id, log.attempts_used
    end = log.offset + len(log.data)
    if results.output(log.stream, b"").stream == "stdout":
        position.stdout_offset = end
    else:
        position.stderr_offset = end


def request(service: str, stack: str, log: Optional[bytes], instruction: str, dry_run: bool, priority: int) -> Any:
    return runs_pb2.CreateRunRequest(
        idempotency_key=key(),
        stack=stack,
        service=service,
        log=log or b"",
        instruction=instruction,
        dry_run=dry_run,
        priority=priority,
    )
