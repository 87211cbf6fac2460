"""What the caller of `radvlm-edge node` wants, and whether it is safe to start so."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from radvlm_edge.errors import NodeError
from radvlm_edge.listening import is_loopback, show_certificate

TITLE = re.compile(r"[ -\[\]-~]{1,16}")
"""Application Entity title (PS3.5 6.2): at most 16 characters of ASCII, no backslash."""
PEER = re.compile(r"(?P<ae>[^@]+)@(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:@\[\]]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Peer:
    """Where results go: the only address this program ever connects to."""

    ae: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """A peer given as `AE@HOST:PORT`. Raises NodeError for anything else."""
        found = PEER.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"]) < 65536:
            raise NodeError(f"{text!r} is no peer; write AE@HOST:PORT, e.g. PACS@127.0.0.1:4242")
        return cls(check_title(found["ae"]), found["v6"] or found["host"], int(found["port"]))


@dataclass(frozen=True)
class Settings:
    """Addresses, secrets and limits of a node."""

    to: Peer
    folder: Path
    """Films, results, queue and kept studies; patient data, its owner's alone."""
    ae: str = "RADVLM"
    host: str = "127.0.0.1"
    port: int = 11112
    """0: any free one."""
    allow: tuple[str, ...] = ()
    """Calling AE titles that may store films; none named: any, on loopback only."""
    tls_cert: Path | None = None
    """PEM file with the certificate chain; with `tls_key` only TLS is spoken, and it is shown to the PACS."""
    tls_key: Path | None = None
    tls_clients: Path | None = None
    """PEM file of authorities; senders must show a certificate of one of them."""
    to_tls: Path | None = None
    """PEM file of authorities the PACS's certificate must come from; `None`: it is spoken to in clear."""
    capture: bool = False
    """Also send a secondary capture with the boxes drawn in."""
    queue: int = 10_000
    """Films that may wait; one more is refused with A700, so that its sender tries again later."""
    film_bytes: int = 256 << 20
    """Largest film taken."""
    reserve_bytes: int = 512 << 20
    """Disk space never used: with less than this free, films are refused with A700."""
    tries: int = 5
    """A film whose work ended the program, or failed inside, this often gets a failure report."""
    refusals: int = 5
    """A result the PACS refused this often becomes a dead letter."""
    give_up_s: float = 72 * 3600.0
    """A result that could not be delivered for this long becomes a dead letter."""
    associations: int = 16
    """Open at once; one more is rejected."""
    wait_s: float = 30.0
    """Longest wait for a peer's next message."""
    retry_s: tuple[float, float] = field(default=(5.0, 900.0))
    """First and longest pause before a result is sent again; it doubles in between."""

    def check(self) -> None:
        """Raise NodeError for settings it would be unsafe or impossible to start with."""
        for title in (self.ae, *self.allow):
            check_title(title)
        if not self.allow and not is_loopback(self.host):
            raise NodeError(
                f"{self.host} can be reached from other machines and any of them could store films; name "
                "the senders with --allow AE, or use --host 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise NodeError("TLS needs both --tls-cert and --tls-key; only one is given")
        if self.tls_clients is not None and self.tls_cert is None:
            raise NodeError(
                "--tls-clients asks senders for certificates; that needs --tls-cert and --tls-key"
            )
        self.server_tls()
        self.client_tls()

    def server_tls(self) -> ssl.SSLContext | None:
        """TLS for senders; `None` without a certificate. Raises NodeError for files that cannot be used."""
        if self.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load_own(context)
        if self.tls_clients is not None:
            _load_authorities(context, self.tls_clients)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_tls(self) -> ssl.SSLContext | None:
        """TLS to the PACS, whose certificate must name its host; `None` without `to_tls`. Raises as above."""
        if self.to_tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, self.to_tls)
        if self.tls_cert is not None:
            self._load_own(context)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        assert self.tls_cert is not None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        show_certificate(context, self.tls_cert, self.tls_key, NodeError)


def check_title(text: str) -> str:
    """An AE title without the blanks around it. Raises NodeError where it is none."""
    title = text.strip()
    if not TITLE.fullmatch(title):
        raise NodeError(f"{text!r} is no AE title; 1 to 16 ASCII characters without backslash are")
    return title


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise NodeError(f"{path}: no certificates of authorities ({error}); it must be PEM") from error
