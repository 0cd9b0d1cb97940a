"""The connection: what the asynchronous client does otherwise than the blocking one."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Iterable, Optional

import grpc
import grpc.aio

from cooper._patience import OPTIONS, Patience
from cooper.errors import from_rpc
from cooper.settings import Settings


class Channel:
    def __init__(self, settings: Settings) -> None:
        if settings.tls:
            credentials = grpc.ssl_channel_credentials(settings.tls_ca)
            self.grpc: Any = grpc.aio.secure_channel(settings.target, credentials, options=OPTIONS)
        else:
            self.grpc = grpc.aio.insecure_channel(settings.target, options=OPTIONS)
        self._metadata = [("authorization", f"Bearer {settings.token}")] if settings.token else []

    async def call(self, method: Any, request: Any, timeout: Optional[float] = None, repeat: bool = True) -> Any:
        """One answer. What a cut connection ended is asked again for a while where that does no harm."""
        patience = Patience()
        while True:
            try:
                return await method(request, metadata=self._metadata, timeout=timeout)
            except grpc.RpcError as error:
                pause = patience.pause(error) if repeat else None
                if pause is None:
                    raise from_rpc(error) from None
                await asyncio.sleep(pause)

    async def stream(self, method: Any, request: Any, timeout: Optional[float] = None) -> AsyncIterator[Any]:
        """Answers as they come; ends with the error of `grpc`, so that whoever can goes on elsewhere."""
        call = method(request, metadata=self._metadata, timeout=timeout)
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()

    async def send(self, method: Any, requests: Iterable[Any], timeout: Optional[float] = None) -> Any:
        """Many messages, one answer."""
        try:
            return await method(iter(requests), metadata=self._metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    async def aclose(self) -> None:
        await self.grpc.close()


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
