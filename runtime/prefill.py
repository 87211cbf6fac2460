"""Prefill in one engine, decode in another: an image's K and V from a graph, handed to llama.cpp as a state.

llama.cpp runs the few tokens before the image and everything behind it; the state it holds before the image
is read, the graph adds K and V of the image tokens in chunks, and the longer state goes back. So the graph
needs no embedding matrix, and the prompt's first tokens, whose activations are the largest, never meet INT8.

An engine is a file beside this one and a line in `ENGINES`; TensorRT's would bind the same inputs and
outputs. Whatever is not as expected (the format of states, an engine's K and V) leaves the prefill to
llama.cpp, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime.kv_state import (
    Buffer,
    Form,
    KeyValues,
    Rows,
    StateError,
    find_form,
    read_state,
    write_state,
)
from radvlm_edge.runtime.llama import PREFIX, Llama

if TYPE_CHECKING:
    from radvlm_edge.runtime.overlap import Coming

Floats = npt.NDArray[np.float32]

CHUNK = 256
"""Tokens run at once. Scores take heads x chunk x tokens; larger chunks compute more that is masked."""
PROBE_HEAD = 4
AGREEMENT, ROUNDED_AGREEMENT = 0.98, 0.8
"""Least correlation of any layer's K or V with llama.cpp's own: both in float, or either of them rounded. A
wrong layout or order leaves nothing of it."""


class PrefillEngine(Protocol):
    """What is needed of an engine that runs a prefill graph."""

    backend: str
    """Engine and device, e.g. `openvino CPU`."""
    kv_type: np.dtype[Any]
    """Of K and V at the graph's edge: float32 or float16."""

    def run(self, embeddings: Floats, past: Sequence[Rows]) -> list[Rows]:
        """K and V `[t, width]` of a chunk `[t, d]`, in the order k.0, v.0, k.1, …; `past`: `[p, width]` each.

        Raises BackendError.
        """
        ...


def _onnx(path: Path, threads: int | None) -> PrefillEngine:
    from radvlm_edge.runtime.prefill_onnx import OnnxPrefill

    return OnnxPrefill(path, threads)


def _openvino(path: Path, threads: int | None) -> PrefillEngine:
    from radvlm_edge.runtime.prefill_openvino import OpenvinoPrefill

    return OpenvinoPrefill(path, threads)


ENGINES: dict[str, Callable[[Path, int | None], PrefillEngine]] = {"onnx": _onnx, "openvino": _openvino}
"""Name on the command line → engine. Each raises BackendError where it cannot be had."""


@dataclass
class SplitPrefill:
    """An engine, and the form of the states it adds to."""

    engine: PrefillEngine
    form: Form
    artefact: str = ""
    """sha256 of the graph's file."""
    chunk: int = CHUNK

    def extend(self, state: Buffer, embeddings: Floats | Coming) -> bytearray:
        """A sequence's state → its state with embeddings `[t, d]` behind. Raises BackendError.

        Holds K and V of all tokens twice, in the graph's type and in the state.
        """
        before = read_state(state, self.form)
        held, total = before.tokens, before.tokens + len(embeddings)
        kept = [np.empty((total, self.form.width), self.engine.kv_type) for _ in range(2 * self.form.layers)]
        for index in range(self.form.layers):
            kept[2 * index][:held] = before.keys[index]
            kept[2 * index + 1][:held] = before.values[index]
        for start in range(0, len(embeddings), self.chunk):
            part = np.ascontiguousarray(embeddings[start : start + self.chunk], dtype=np.float32)
            done = held + start
            found = self.engine.run(part, [rows[:done] for rows in kept])
            for rows, fresh in zip(kept, found, strict=True):
                rows[done : done + len(part)] = fresh
        return write_state(KeyValues(kept[::2], kept[1::2]), self.form)

    def described(self) -> dict[str, object]:
        """What K and V depend on, for the study cache."""
        return {"backend": self.engine.backend, "artefact": self.artefact, "chunk": self.chunk}


def form_of(llama: Llama, layers: int, width: int) -> Form:
    """The form of this llama.cpp's states, from one it writes now; empties its prefix.

    Raises StateError where it is not as kv_state.py describes, or does not come back as it went in.
    """
    llama.forget(PREFIX)
    llama.decode(list(range(PROBE_HEAD)), 0, PREFIX)
    state = bytes(llama.save(PREFIX))
    form = find_form(state, layers, width)
    llama.restore(PREFIX, write_state(read_state(state, form), form))
    again = bytes(llama.save(PREFIX))
    llama.forget(PREFIX)
    if again != state:
        raise StateError("llama.cpp does not hold the K/V state it was given")
    return form


def check_engine(llama: Llama, split: SplitPrefill, sample: Floats, least: float) -> float:
    """Run `sample` `[t, d]` (t >= 8) in both engines, behind a few tokens; returns how well they agree.

    Raises StateError below `least`. Empties llama.cpp's prefix.
    """
    llama.forget(PREFIX)
    llama.decode(list(range(PROBE_HEAD)), 0, PREFIX)
    before = bytes(llama.save(PREFIX))
    llama.decode(sample, PROBE_HEAD, PREFIX)
    theirs = read_state(bytes(llama.save(PREFIX)), split.form)
    llama.forget(PREFIX)
    ours = read_state(split.extend(before, sample), split.form)
    agreement = min(
        correlation(a[PROBE_HEAD:], b[PROBE_HEAD:])
        for a, b in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values], strict=True)
    )
    if not agreement >= least:
        raise StateError(
            f"K and V of {split.engine.backend} agree with llama.cpp's by {agreement:.3f} only, "
            f"at least {least} is expected"
        )
    return agreement


def correlation(a: Rows, b: Rows) -> float:
    """Of two `[t, width]`, without each channel's mean: biases alike would hide rows in another order."""
    x, y = (rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0) for rows in (a, b))
    return float((x * y).sum() / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-30))


def open_split(
    llama: Llama,
    name: str,
    path: Path,
    sample: Floats,
    *,
    width: int,
    layers: int,
    threads: int | None,
    least: float,
) -> SplitPrefill:
    """An engine of `ENGINES` that was seen to agree with this llama.cpp.

    Raises StateError where it does not or states are not as expected, BackendError where it cannot be had.
    """
    form = form_of(llama, layers, width)
    split = SplitPrefill(ENGINES[name](path, threads), form)
    check_engine(llama, split, sample, least)
    return split
