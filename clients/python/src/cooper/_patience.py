"""How long a coordinator may be away before a call fails: it is restarted, upgraded, or a network is cut for a moment."""

from __future__ import annotations

import random
import time
from typing import Any, List, Optional, Tuple

import grpc

from cooper.errors import from_rpc

#: Seconds without a sign of life after which a call fails.
PATIENCE = 60.0
#: Seconds between two tries: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

#: A message has at most 8 MiB (limits.md); a peer that answers no ping for 10 s is gone.
OPTIONS: List[Tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Patience:
    def __init__(self) -> None:
        self.heard()

    def heard(self) -> None:
        """A sign of life: patience begins anew."""
        self._since, self._tries = time.monotonic(), 0

    def pause(self, error: Any) -> Optional[float]:
        """Seconds to wait before the next try; None when another try would not help, or patience is over."""
        if not is_cut(error) or time.monotonic() - self._since > PATIENCE:
            return None
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self._tries)
        self._tries += 1
        return 0.02 + random.random() * longest


def is_cut(error: Any) -> bool:
    """The connection broke, or the coordinator is not there yet. A refusal with another code of Cooper's (`no_worker`, …) is an
    answer, whatever its status."""
    if any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ()):
        return from_rpc(error).code in ("unavailable", "store_unavailable")
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
