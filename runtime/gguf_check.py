"""What ends a whole process in llama.cpp, looked for in a GGUF's header before llama.cpp reads it.

Two tokens spelled alike and a number of layers it has no room for are assertions there, not errors.
Reads GGUF 2 and 3, little endian (ggml/docs/gguf.md in llama.cpp). What else may be wrong with a
header llama.cpp was found to refuse by itself.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from radvlm_edge.errors import BackendError

TOKENS, LAYERS = b"tokenizer.ggml.tokens", b".block_count"
MOST_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""
UINT32, STRING, ARRAY = 4, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type's number."""


def check_header(path: Path) -> None:
    """Raise BackendError for a GGUF that would end the process, or whose header cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for key, kind, at in _pairs(content):
                if key == TOKENS and kind == ARRAY:
                    _check_tokens(_strings(content, at))
                elif key.endswith(LAYERS) and kind == UINT32:
                    _check_layers(*struct.unpack_from("<I", content, at))
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise BackendError(
            f"{path}: llama.cpp cannot load this file: {error}; run `radvlm-edge verify` on its bundle"
        ) from error


def _check_tokens(tokens: Iterator[bytes]) -> None:
    first: dict[bytes, int] = {}
    for number, token in enumerate(tokens):
        spelled = token or b"[EMPTY_%d]" % number  # as llama.cpp fills them in
        if first.setdefault(spelled, number) != number:
            said = spelled[:40].decode(errors="replace")
            raise ValueError(f"tokens {first[spelled]} and {number} of its vocabulary are both {said!r}")


def _check_layers(layers: int) -> None:
    if not 0 < layers <= MOST_LAYERS:
        raise ValueError(f"it states {layers} layers; llama.cpp has room for 1 to {MOST_LAYERS}")


def _pairs(content: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """Key, type and place of every value of the header."""
    magic, version, _, count = struct.unpack_from("<4sIqq", content, 0)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"begins with {magic!r}, version {version}; GGUF 2 and 3 are read")
    at = 24
    for _ in range(count):
        key, at = _string(content, at)
        (kind,) = struct.unpack_from("<I", content, at)
        yield key, kind, at + 4
        at = _behind(content, at + 4, kind)


def _string(content: mmap.mmap, at: int) -> tuple[bytes, int]:
    end: int = at + 8 + struct.unpack_from("<Q", content, at)[0]
    if end > len(content):
        raise ValueError(f"a string at byte {at} goes on behind the end of the file")
    return content[at + 8 : end], end


def _strings(content: mmap.mmap, at: int) -> Iterator[bytes]:
    """The strings of a list; nothing of a list of others."""
    kind, count = struct.unpack_from("<IQ", content, at)
    at += 12
    for _ in range(count if kind == STRING else 0):
        text, at = _string(content, at)
        yield text


def _behind(content: mmap.mmap, at: int, kind: int) -> int:
    """Where the value of this type that begins at `at` ends."""
    if kind == STRING:
        return _string(content, at)[1]
    if kind != ARRAY:
        return at + _size(kind, at)
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if inner != STRING:
        return at + _size(inner, at) * int(count)
    for _ in range(count):
        at = _string(content, at)[1]
    return at


def _size(kind: int, at: int) -> int:
    if kind not in SIZES:
        raise ValueError(f"type {kind} at byte {at} of its header is none")
    return SIZES[kind]
