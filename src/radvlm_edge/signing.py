"""Ed25519 signature over SHA256SUMS: who sealed this bundle. Needs the extra `sign`.

The signature is the 64 raw bytes of RFC 8032, so OpenSSL checks it without us:
`openssl pkeyutl -verify -pubin -inkey PUB.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from radvlm_edge.errors import BackendError, BundleError, OutputError
from radvlm_edge.integrity import SIGNATURE, SUMS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAKE_KEY = "make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"
MAKE_PUBLIC = "make it with `openssl pkey -in KEY.pem -pubout -out PUB.pem`"


def load_private(path: Path) -> Ed25519PrivateKey:
    """An unencrypted Ed25519 private key in PEM.

    Raises BundleError for another kind of file, BackendError without the package `cryptography`.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: no unencrypted private key in PEM ({error}); {MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: not an Ed25519 key; {MAKE_KEY}")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM. Raises as `load_private`."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no public key in PEM ({error}); {MAKE_PUBLIC}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path}: not an Ed25519 public key; {MAKE_PUBLIC}")
    return key


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write SHA256SUMS.sig beside a bundle's SHA256SUMS, atomically."""
    spare = folder.parent / f".{folder.name}.sig-{os.getpid()}"
    try:
        spare.write_bytes(key.sign((folder / SUMS).read_bytes()))
        spare.replace(folder / SIGNATURE)
    except OSError as error:
        spare.unlink(missing_ok=True)
        raise OutputError(f"{folder / SIGNATURE}: not written: {error.strerror}") from error


def check_signature(folder: Path, key: Ed25519PublicKey) -> None:
    """Raises BundleError unless SHA256SUMS was signed by this key's owner."""
    from cryptography.exceptions import InvalidSignature

    try:
        signature = (folder / SIGNATURE).read_bytes()
    except OSError:
        raise BundleError(
            f"{folder}: not signed ({SIGNATURE} cannot be read); do not use it if it should be"
        ) from None
    try:
        key.verify(signature, (folder / SUMS).read_bytes())
    except InvalidSignature:
        raise BundleError(
            f"{folder}: the signature is not of the trusted key, or bundle or signature were changed; "
            "do not use it"
        ) from None


def _need_cryptography() -> None:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: F401
    except ImportError:
        raise BackendError(
            "signatures need the package cryptography, not installed here; "
            "run `pip install 'radvlm-edge[sign]'`"
        ) from None
