"""Where the cluster is, and what it is asked with: as the command line finds it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from cooper.errors import ConfigInvalid, Unavailable


@dataclass(frozen=True)
class Settings:
    """`host:port`, the token, and how the connection is secured."""

    target: str
    token: Optional[str]
    tls: bool
    #: Certificates (PEM) that the coordinator's has to be signed by; None = those of the system.
    tls_ca: Optional[bytes]

    @staticmethod
    def find(
        url: Optional[str] = None,
        token: Optional[str] = None,
        tls_ca: Optional[str] = None,
    ) -> "Settings":
        """What is given, else COOPER_URL and COOPER_TOKEN or COOPER_TOKEN_FILE (and COOPER_TLS_CA, a file), else the cluster
        that `cooper up` runs on this machine, whose directory COOPER_DATA names (.cooper).

        The token of the local cluster is never sent anywhere else.
        """
        data = Path(os.environ.get("COOPER_DATA") or ".cooper")
        local = _read(data / "endpoint")
        url = url or os.environ.get("COOPER_URL") or local
        if not url:
            raise Unavailable(
                "unavailable",
                f"no cluster here: {data / 'endpoint'} does not exist",
                "start one with `cooper up`, or name one with COOPER_URL and COOPER_TOKEN_FILE",
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigInvalid("config_invalid", f"{url!r} is no URL of a coordinator", "write http://HOST:PORT or https://HOST:PORT")
        port = parts.port or (443 if parts.scheme == "https" else 50051)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        token = token or os.environ.get("COOPER_TOKEN") or _token_file(os.environ.get("COOPER_TOKEN_FILE"))
        if not token and local and _plain(local) == _plain(url):
            token = _read(data / "admin.token")
        ca_file = tls_ca or os.environ.get("COOPER_TLS_CA")
        ca = Path(ca_file).read_bytes() if ca_file else None
        return Settings(f"{host}:{port}", token, parts.scheme == "https", ca)


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _token_file(name: Optional[str]) -> Optional[str]:
    if not name:
        return None
    try:
        return Path(name).read_text().strip()
    except OSError as cause:
        message = f"the token's file {name} cannot be read: {cause.strerror}"
        raise ConfigInvalid("config_invalid", message, "COOPER_TOKEN_FILE names it") from None


def _plain(url: str) -> str:
    return url.strip().replace("//localhost:", "//127.0.0.1:", 1)
