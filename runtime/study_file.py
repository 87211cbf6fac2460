"""A study's K/V state as one file: preamble, payload, checksum; encrypted where there is a key.

magic      8 bytes, `radvlmKV`
length     4 bytes, little-endian: bytes of the header
header     JSON (`Header`); nothing in it comes from the film's file or its patient
payload    the state as llama.cpp serialises it; encrypted: as long a ciphertext, then 16 bytes of tag
checksum   SHA-256 over all before

Encryption is AES-256-GCM (NIST SP 800-38D) with a random nonce a file and the preamble as associated data.
The checksum finds damage and needs no key; whether somebody altered a file on purpose only the tag can say.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from radvlm_edge.errors import BackendError, StudyCacheError

FORMAT = 1
MAGIC = b"radvlmKV"
CHECKSUM_BYTES, TAG_BYTES, NONCE_BYTES, SECRET_BYTES = 32, 16, 12, 32
BLOCK_BYTES = 1 << 20
HEADER_LIMIT = 1 << 16
KEY_VARIABLE = "RADVLM_EDGE_STUDY_KEY"
MAKE_KEY = "make one with `openssl rand -out KEY 32`"


class DamagedError(ValueError):
    """Why bytes are not a whole study of this program's; says what, not where."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    key: str
    """Identity of the study, as in the file's name."""
    tokens: int
    """Positions the state holds."""
    bytes: int
    """Length of the payload."""
    bundle: str
    """sha256 of the bundle that looked."""
    nonce: str | None
    """Of AES-256-GCM, in hex; `None` where the state is in the clear."""
    format: int = FORMAT


def load_secret(path: Path | None) -> bytes | None:
    """The key in a file (32 raw bytes or 64 hex digits), else in `RADVLM_EDGE_STUDY_KEY` (hex), else none.

    Raises StudyCacheError for anything else, BackendError without the package `cryptography`.
    """
    if path is not None:
        try:
            raw, where = path.read_bytes(), str(path)
        except OSError as error:
            raise StudyCacheError(f"{path}: the study key cannot be read: {error.strerror}") from error
    else:
        raw, where = os.environ.get(KEY_VARIABLE, "").encode(), KEY_VARIABLE
        if not raw:
            return None
    secret = raw if path is not None and len(raw) == SECRET_BYTES else _unhex(raw)
    if secret is None:
        accepted = "64 hex digits" if path is None else "32 raw bytes or 64 hex digits"
        raise StudyCacheError(f"{where}: {len(raw)} bytes are no study key; {accepted} are; {MAKE_KEY}")
    _need_cryptography()
    return secret


def _unhex(raw: bytes) -> bytes | None:
    try:
        secret = bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        return None
    return secret if len(secret) == SECRET_BYTES else None


def new_header(key: str, tokens: int, state_bytes: int, bundle: str, *, encrypted: bool) -> Header:
    nonce = os.urandom(NONCE_BYTES).hex() if encrypted else None
    return Header(key, tokens, state_bytes + (TAG_BYTES if encrypted else 0), bundle, nonce)


def file_bytes(header: Header) -> int:
    """Length of the whole file."""
    return len(_preamble(header)) + header.bytes + CHECKSUM_BYTES


def blocks(header: Header, state: bytes | bytearray, secret: bytes | None) -> Iterator[bytes | memoryview]:
    """The file's content piece by piece, so that a large state is never held twice."""
    sha = hashlib.sha256()
    for block in _before_checksum(header, state, secret):
        sha.update(block)
        yield block
    yield sha.digest()


def _before_checksum(
    header: Header, state: bytes | bytearray, secret: bytes | None
) -> Iterator[bytes | memoryview]:
    preamble = _preamble(header)
    yield preamble
    if header.nonce is None or secret is None:
        yield from _pieces(memoryview(state))
        return
    encryptor = _aes(secret, header.nonce).encryptor()
    encryptor.authenticate_additional_data(preamble)
    for piece in _pieces(memoryview(state)):
        yield encryptor.update(piece)
    encryptor.finalize()
    yield encryptor.tag


def read_study(content: bytes, secret: bytes | None, where: Path) -> tuple[Header, bytearray | memoryview]:
    """Header and state of a file's whole content.

    Raises DamagedError for bytes that are not, to the last bit, what was written, or are in the clear though
    there is a key; StudyCacheError, naming `where`, for an encrypted file without its key.
    """
    view = memoryview(content)
    if hashlib.sha256(view[:-CHECKSUM_BYTES]).digest() != view[-CHECKSUM_BYTES:]:
        raise DamagedError("it is damaged or incomplete")
    header, start = _parse(content[: HEADER_LIMIT + 12])
    payload = view[start:-CHECKSUM_BYTES]
    if len(payload) != header.bytes:
        raise DamagedError("it is incomplete")
    if header.nonce is None:
        if secret is not None:
            raise DamagedError("it is not encrypted, but a key is given")
        return header, payload
    if secret is None:
        raise StudyCacheError(
            f"{where}: encrypted, and no key is given; pass --study-cache-key FILE or set {KEY_VARIABLE}"
        )
    return header, _decrypt(header.nonce, view[:start], payload, secret, where)


def read_header(file: BinaryIO) -> Header:
    """Header of an open file, without reading its state. Raises DamagedError."""
    header, start = _parse(file.read(HEADER_LIMIT + 12))
    if start + header.bytes + CHECKSUM_BYTES != os.fstat(file.fileno()).st_size:
        raise DamagedError("it is incomplete")
    return header


def _decrypt(nonce: str, preamble: memoryview, payload: memoryview, secret: bytes, where: Path) -> bytearray:
    _need_cryptography()
    from cryptography.exceptions import InvalidTag

    decryptor = _aes(secret, nonce, bytes(payload[-TAG_BYTES:])).decryptor()
    decryptor.authenticate_additional_data(bytes(preamble))
    state = bytearray(len(payload) - TAG_BYTES)
    at = 0
    for piece in _pieces(payload[:-TAG_BYTES]):
        state[at : at + len(piece)] = decryptor.update(piece)
        at += len(piece)
    try:
        decryptor.finalize()
    except InvalidTag:
        raise StudyCacheError(
            f"{where}: not encrypted with this key, or altered since; pass the key it was written with, "
            "or remove it with `radvlm-edge studies purge`"
        ) from None
    return state


def _preamble(header: Header) -> bytes:
    text = json.dumps(asdict(header), sort_keys=True).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text


def _parse(content: bytes) -> tuple[Header, int]:
    """Header at the beginning of a file, and where the payload starts."""
    if not content.startswith(MAGIC):
        raise DamagedError("it is not a study")
    start = len(MAGIC) + 4 + int.from_bytes(content[8:12], "little")
    try:
        data = json.loads(content[12:start])
        if data["format"] != FORMAT:
            raise DamagedError(f"its format is {data['format']}, this program's {FORMAT}")
        header = Header(**data)
        if type(header.tokens) is not int or type(header.bytes) is not int:
            raise TypeError("a count is no number")
        if header.nonce is not None and len(bytes.fromhex(header.nonce)) != NONCE_BYTES:
            raise ValueError("nonce of another length")
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError):
        raise DamagedError("its header is damaged") from None
    return header, start


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), BLOCK_BYTES):
        yield view[start : start + BLOCK_BYTES]


def _aes(secret: bytes, nonce: str, tag: bytes | None = None) -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(secret), modes.GCM(bytes.fromhex(nonce), tag))


def _need_cryptography() -> None:
    try:
        from cryptography.hazmat.primitives import ciphers  # noqa: F401
    except ImportError:
        raise BackendError(
            "an encrypted study cache needs the package cryptography, not installed here; "
            "run `pip install 'radvlm-edge[studies]'`"
        ) from None
