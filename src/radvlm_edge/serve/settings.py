"""What the caller of `radvlm-edge serve` wants, and whether it is safe to start so."""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from radvlm_edge.errors import ServiceError
from radvlm_edge.listening import is_loopback, show_certificate

TOKEN_VARIABLE = "RADVLM_EDGE_TOKEN"
SHORTEST_TOKEN = 16
MAKE_TOKEN = "make one with `openssl rand -hex 32 > TOKEN`"
MAX_PIXELS = 40_000_000
"""Largest film the service decodes; the largest detectors have 18 million. A header cannot claim more."""


@dataclass(frozen=True)
class Settings:
    """Address, limits and secrets of a service."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    """What a client must send as `Authorization: Bearer …`; `None`: nothing, on loopback only."""
    tls_cert: Path | None = None
    """PEM file with the certificate chain; with `tls_key` the service speaks HTTPS alone."""
    tls_key: Path | None = None
    queue: int = 16
    """Requests that may wait for the model; one more is answered 429."""
    connections: int = 256
    """Connections open at once; one more is answered 503."""
    timeout_s: float = 120.0
    """A request not answered this long after it came leaves the queue, or its answer stops."""
    upload_bytes: int = 64 << 20
    """Largest film uploaded."""
    upload_s: float = 60.0
    """A request whose body has not come in this time is given up."""
    studies: int = 32
    """Films kept in memory; the least recently used go first."""
    study_bytes: int = 512 << 20
    """Bytes of their pixels."""
    study_s: float = 3600.0
    """A film nobody asked about for this long is forgotten."""
    audit: Path | None = None
    """Append-only log every answer is noted in before it is given (audit.py); `None`: none is kept."""
    shutdown_s: float = 20.0
    """Requests under way may take this long after the signal to stop."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    def check(self) -> None:
        """Raise ServiceError for settings it would be unsafe or impossible to start with."""
        if not self.host:
            raise ServiceError("no host to listen on; pass --host 127.0.0.1")
        if self.token is None and not self.loopback:
            raise ServiceError(
                f"{self.host} can be reached from other machines and without a token anybody could ask; "
                f"pass --token-file FILE or set {TOKEN_VARIABLE} ({MAKE_TOKEN}), or use --host 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ServiceError("TLS needs both --tls-cert and --tls-key; only one is given")
        if self.tls_cert is not None and self.tls_key is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            show_certificate(context, self.tls_cert, self.tls_key, ServiceError)


def same_token(given: str, wanted: str) -> bool:
    """Compare without telling by the time taken how much of it is right."""
    digests = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, wanted))
    return hmac.compare_digest(*digests)


def load_token(path: Path | None) -> str | None:
    """The token in a file, else in `RADVLM_EDGE_TOKEN`, else none.

    Raises ServiceError for one that cannot be read, is short, or has characters a header cannot carry.
    """
    if path is not None:
        try:
            raw, where = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"{path}: the token cannot be read: {error}") from error
    else:
        raw, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not raw:
            return None
    token = raw.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ServiceError(
            f"{where}: {len(token)} characters are no token; at least {SHORTEST_TOKEN} of ASCII without "
            f"blanks are; {MAKE_TOKEN}"
        )
    return token
