"""The connection: what the blocking client does otherwise than the asynchronous one."""

from __future__ import annotations

import time
from typing import Any, Iterable, Iterator, Optional

import grpc

from cooper._patience import OPTIONS, Patience
from cooper.errors import from_rpc
from cooper.settings import Settings


class Channel:
    def __init__(self, settings: Settings) -> None:
        if settings.tls:
            credentials = grpc.ssl_channel_credentials(settings.tls_ca)
            self.grpc: Any = grpc.secure_channel(settings.target, credentials, options=OPTIONS)
        else:
            self.grpc = grpc.insecure_channel(settings.target, options=OPTIONS)
        self._metadata = [("authorization", f"Bearer {settings.token}")] if settings.token else []

    def call(self, method: Any, request: Any, timeout: Optional[float] = None, repeat: bool = True) -> Any:
        """One answer. What a cut connection ended is asked again for a while where that does no harm."""
        patience = Patience()
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=timeout)
            except grpc.RpcError as error:
                pause = patience.pause(error) if repeat else None
                if pause is None:
                    raise from_rpc(error) from None
                time.sleep(pause)

    def stream(self, method: Any, request: Any, timeout: Optional[float] = None) -> Iterator[Any]:
        """Answers as they come; ends with the error of `grpc`, so that whoever can goes on elsewhere."""
        call = method(request, metadata=self._metadata, timeout=timeout)
        try:
            yield from call
        finally:
            call.cancel()

    def send(self, method: Any, requests: Iterable[Any], timeout: Optional[float] = None) -> Any:
        """Many messages, one answer."""
        try:
            return method(iter(requests), metadata=self._metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def close(self) -> None:
        self.grpc.close()


def sleep(seconds: float) -> None:
    time.sleep(seconds)
