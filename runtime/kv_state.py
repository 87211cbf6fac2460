"""llama.cpp's serialised K and V of one sequence: read one, and write one another engine computed.

Source: `llama_kv_cache::state_write` of the llama.cpp in llama-cpp-python 0.3.36, little-endian:

magic u32 · sequence i32 · streams u32 (1) · cells u32 (T) · T times {position i32, ids u32 (1), id i32}
· V transposed u32 · layers u32
· K of each layer: {type i32 (1: f16), row bytes u64, T rows [kv heads · head width]}
· V of each layer: the same form; where V is transposed (no flash attention)
  {type i32, element bytes u32, rows u32, rows [kv heads · head width, T]}

K is stored behind RoPE in half-split order, which is transformers' `rotate_half`. The format is internal to
llama.cpp and carries no version, so a build is only trusted after `find_form` has read what it writes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError

MAGIC, F16 = 0xAF143CD8, 1
HEADER, CELL, TABLE = struct.Struct("<IiII"), struct.Struct("<iIi"), struct.Struct("<II")
ROWS, COLUMNS = struct.Struct("<iQ"), struct.Struct("<iII")

Halves = npt.NDArray[np.float16]
Rows = npt.NDArray[np.floating[Any]]
Buffer = bytes | bytearray | memoryview


class StateError(BackendError):
    """A K/V state that is not what this file describes."""


@dataclass(frozen=True)
class Form:
    """What a model's states have in common."""

    layers: int
    width: int
    """kv heads · head width: numbers a layer keeps of a token in K, and in V."""
    transposed: bool
    """V is `[width, T]`, as llama.cpp keeps it without flash attention."""


@dataclass(frozen=True)
class KeyValues:
    """K and V of tokens at positions 0 to T - 1, `[T, width]` for every layer."""

    keys: Sequence[Rows]
    values: Sequence[Rows]

    @property
    def tokens(self) -> int:
        return len(self.keys[0])


def state_bytes(form: Form, tokens: int) -> int:
    """Length of a state."""
    heads = ROWS.size + (COLUMNS.size if form.transposed else ROWS.size)
    body = form.layers * (heads + 2 * 2 * form.width * tokens)
    return HEADER.size + CELL.size * tokens + (TABLE.size + body if tokens else 0)


def read_state(state: Buffer, form: Form) -> KeyValues:
    """Views of a state's K and V in f16. Raises StateError for anything but `form` and this format."""
    view = memoryview(state)
    magic, _, streams, tokens = _unpack(HEADER, view, 0)
    _expect("magic", magic, MAGIC)
    _expect("streams", streams, 1)
    _expect("bytes", len(view), state_bytes(form, tokens))
    cells = np.frombuffer(view, "<i4", 3 * tokens, HEADER.size).reshape(tokens, 3)
    if not (np.array_equal(cells[:, 0], np.arange(tokens)) and (cells[:, 1] == 1).all()):
        raise StateError("a K/V state's positions are not 0, 1, 2, …, each of one sequence")
    if tokens == 0:
        nothing = [np.zeros((0, form.width), np.float16)] * form.layers
        return KeyValues(nothing, nothing)
    at = HEADER.size + CELL.size * tokens
    transposed, layers = _unpack(TABLE, view, at)
    _expect("V transposed", transposed, int(form.transposed))
    _expect("layers", layers, form.layers)
    at += TABLE.size
    shape, size = (tokens, form.width), 2 * tokens * form.width
    parts: list[Halves] = []
    for index in range(2 * layers):
        if index >= layers and form.transposed:
            _expect("head of V", _unpack(COLUMNS, view, at), (F16, 2, form.width))
            at += COLUMNS.size
            parts.append(np.frombuffer(view, "<f2", size // 2, at).reshape(shape[::-1]).T)
        else:
            _expect("head of K or V", _unpack(ROWS, view, at), (F16, 2 * form.width))
            at += ROWS.size
            parts.append(np.frombuffer(view, "<f2", size // 2, at).reshape(shape))
        at += size
    return KeyValues(parts[:layers], parts[layers:])


def write_state(kv: KeyValues, form: Form, sequence: int = 0) -> bytearray:
    """The state of a sequence whose K and V are these. Raises StateError for values f16 cannot hold."""
    tokens = kv.tokens
    state = bytearray(state_bytes(form, tokens))
    HEADER.pack_into(state, 0, MAGIC, sequence, 1, tokens)
    if tokens == 0:
        return state
    cells = np.frombuffer(state, "<i4", 3 * tokens, HEADER.size).reshape(tokens, 3)
    cells[:] = np.stack([np.arange(tokens), np.ones(tokens), np.full(tokens, sequence)], axis=1)
    at = HEADER.size + CELL.size * tokens
    TABLE.pack_into(state, at, form.transposed, form.layers)
    at += TABLE.size
    for index, rows in enumerate([*kv.keys, *kv.values]):
        if rows.shape != (tokens, form.width):
            raise StateError(f"K or V of shape {list(rows.shape)}, not {[tokens, form.width]}")
        if index >= form.layers and form.transposed:
            COLUMNS.pack_into(state, at, F16, 2, form.width)
            at += COLUMNS.size
            place = np.frombuffer(state, "<f2", rows.size, at).reshape(form.width, tokens).T
        else:
            ROWS.pack_into(state, at, F16, 2 * form.width)
            at += ROWS.size
            place = np.frombuffer(state, "<f2", rows.size, at).reshape(tokens, form.width)
        with np.errstate(over="ignore"):  # said by the error below
            place[:] = rows
        if not np.isfinite(place).all():
            raise StateError(f"layer {index % form.layers}: K or V that are not finite in f16")
        at += 2 * rows.size
    return state


def find_form(state: Buffer, layers: int, width: int) -> Form:
    """The form of a state of at least one token; raises StateError unless it is read and rewritten whole."""
    view = memoryview(state)
    tokens = _unpack(HEADER, view, 0)[3]
    transposed, _ = _unpack(TABLE, view, HEADER.size + CELL.size * tokens)
    form = Form(layers, width, bool(transposed))
    sequence = _unpack(HEADER, view, 0)[1]
    kv = read_state(state, form)
    if kv.tokens == 0 or write_state(kv, form, sequence) != bytes(state):
        raise StateError("a K/V state of this llama.cpp does not come out as it went in")
    return form


def _unpack(what: struct.Struct, view: memoryview, at: int) -> tuple[int, ...]:
    try:
        return what.unpack_from(view, at)
    except struct.error:
        raise StateError(f"a K/V state of {len(view)} bytes ends too early") from None


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StateError(f"a K/V state of this llama.cpp has {what} {found}, expected {wanted}")
