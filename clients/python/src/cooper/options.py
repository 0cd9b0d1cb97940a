"""What a session is asked for."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Mapping, Sequence, TypedDict, Union

from cooper.v1 import sessions_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SessionOptions(TypedDict, total=False):
    """Arguments of `Cluster.session()` and `Session()`; none of them is needed. Times are in seconds."""

    #: Unique among the tenant's live sessions; takes the place of the id.
    name: str
    #: "name", or "name@2" for a version of it.
    template: str
    #: "3.12", or "3.12.1" for this very one.
    python: str
    #: Installed before the session is there.
    packages: Sequence[str]
    env: Mapping[str, str]
    labels: Mapping[str, str]
    metadata: Mapping[str, str]
    #: Names of secrets that it finds as files beneath $COOPER_SECRETS.
    secrets: Sequence[str]
    #: "none", "public" (the internet), or a list of hosts.
    network: Union[str, Sequence[str]]
    memory_mib: int
    disk_mib: int
    #: Of one execution, unless it names its own.
    exec_timeout: float
    #: Limits that have no argument here.
    limits: sessions_pb2.Limits
    #: It is destroyed so long after it was made.
    ttl: float
    #: It is destroyed when nothing happened in it for so long.
    idle_timeout: float
    #: For a worker with room; 30 unless given.
    wait: float
    #: Labels that its worker must have.
    worker_labels: Mapping[str, str]


def session_request(**options: Unpack[SessionOptions]) -> sessions_pb2.CreateSessionRequest:
    limits = sessions_pb2.Limits()
    if "limits" in options:
        limits.CopyFrom(options["limits"])
    limits.memory_bytes = options.get("memory_mib", 0) << 20 or limits.memory_bytes
    limits.disk_bytes = options.get("disk_mib", 0) << 20 or limits.disk_bytes
    limits.exec_timeout_ms = _ms(options.get("exec_timeout", 0)) or limits.exec_timeout_ms
    given: Any = {name: options[name] for name in _AS_THEY_ARE if name in options}  # type: ignore[literal-required]
    if "network" in options:
        given["network"] = network_policy(options["network"])
    known = {*SessionOptions.__annotations__}
    if unknown := sorted(set(options) - known):
        raise TypeError(f"a session has no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return sessions_pb2.CreateSessionRequest(
        idempotency_key=key(),
        python_version=options.get("python", ""),
        limits=limits,
        ttl_ms=_ms(options.get("ttl", 0)),
        idle_timeout_ms=_ms(options.get("idle_timeout", 0)),
        wait_ms=_ms(options.get("wait", 30)),
        **given,
    )


_AS_THEY_ARE = ("name", "template", "packages", "env", "labels", "metadata", "secrets", "worker_labels")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def network_policy(network: Union[str, Sequence[str]]) -> sessions_pb2.NetworkPolicy:
    if network == "none":
        return sessions_pb2.NetworkPolicy(mode=sessions_pb2.NETWORK_MODE_NONE)
    if network == "public":
        return sessions_pb2.NetworkPolicy(mode=sessions_pb2.NETWORK_MODE_PROXY)
    if isinstance(network, str):
        raise ValueError(f'network is "none", "public" or a list of hosts, not {network!r}')
    if not network:
        raise ValueError('an empty list of hosts would be every host: write "none" or "public"')
    return sessions_pb2.NetworkPolicy(mode=sessions_pb2.NETWORK_MODE_PROXY, domains=network)


def key() -> str:
    """Whatever is repeated with it happens once."""
    return f"py-{uuid.uuid4().hex}"
