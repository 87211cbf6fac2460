"""What the service and the DICOM node ask before they listen: who can reach them, with which certificate."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from radvlm_edge.errors import RadvlmError


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine for itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def show_certificate(
    context: ssl.SSLContext, certificate: Path, key: Path | None, error: type[RadvlmError]
) -> None:
    """Let a context show a PEM chain with its unencrypted key. Raises `error` for files that are none."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as wrong:
        raise error(
            f"{certificate}, {key}: not a certificate and its unencrypted key ({wrong}); both must be PEM"
        ) from wrong


def _no_password() -> bytes:
    """OpenSSL would ask on the terminal; a service has none."""
    return b""
