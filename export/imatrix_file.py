"""Importance of every input channel of every quantised matrix, in llama.cpp's GGUF imatrix format.

`llama-imatrix` and `llama-quantize` read and write the same files (llama.cpp, tools/imatrix): tensors
`NAME.in_sum2` (sums of squares) and `NAME.counts` (how many were summed), keys `imatrix.*`.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.language import gguf_name

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """Mean squares of inputs, by GGUF tensor name."""

    means: Mapping[str, npt.NDArray[np.float32]]
    """Tensor name, as `blk.0.attn_q.weight`, → mean square of each input channel `[columns]`."""
    tokens: int
    """How many token positions they were taken over."""
    datasets: tuple[str, ...]
    """What was looked at, in words."""

    def sha256(self) -> str:
        """Digest of names and values."""
        sha = hashlib.sha256()
        for name in sorted(self.means):
            sha.update(name.encode() + b"\0" + self.means[name].astype("<f4").tobytes())
        return sha.hexdigest()

    def described(self) -> dict[str, Any]:
        """What bundle.json says about it under `calibration`."""
        return {"imatrix": {"sha256": self.sha256(), "tokens": self.tokens, "films": list(self.datasets)}}

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError unless every matrix of the checkpoint's language model is covered."""
        shapes = checkpoint.config.tensor_shapes(tied=checkpoint.tied)
        wanted = {
            gguf_name(name): shape[1]
            for name, shape in shapes.items()
            if len(shape) == 2 and ".layers." in name and name.startswith("language_model.")
        }
        wrong = [f"missing {name}" for name in wanted if name not in self.means]
        wrong += [
            f"{name} has {len(self.means[name])} channels, the checkpoint {width}"
            for name, width in wanted.items()
            if name in self.means and len(self.means[name]) != width
        ]
        if wrong:
            raise CheckpointError(
                f"importance matrix of another model: {'; '.join(wrong[:3])}"
                f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; collect it from this checkpoint"
            )

    def save(self, path: Path) -> None:
        """Write it as llama.cpp's imatrix GGUF."""
        writer = gguf.GGUFWriter(path, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(self.datasets))
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", self.tokens)
        for name in sorted(self.means):
            writer.add_tensor(name + SUMS, self.means[name].astype(np.float32) * np.float32(self.tokens))
            writer.add_tensor(name + COUNTS, np.array([self.tokens], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def load_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of `ImportanceMatrix.save` or of `llama-imatrix --output-format gguf`.

    Raises CheckpointError for another file, or values that are negative or not finite.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: no GGUF importance matrix ({error}); make it with --imatrix auto"
        ) from error
    tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in reader.tensors}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names or any(name + COUNTS not in tensors for name in names):
        raise CheckpointError(f"{path}: holds no importance matrix (tensors NAME{SUMS} and NAME{COUNTS})")
    means = {name: tensors[name + SUMS] / max(float(tensors[name + COUNTS][0]), 1.0) for name in names}
    bad = [name for name, values in means.items() if not np.isfinite(values).all() or values.min() < 0]
    if bad:
        raise CheckpointError(f"{path}: {bad[0]} holds importances that are negative or not finite")
    field = reader.get_field("imatrix.datasets")
    datasets = tuple(str(text) for text in field.contents()) if field else ()
    return ImportanceMatrix(means, int(tensors[names[0] + COUNTS][0]), datasets)


def as_llama(matrix: ImportanceMatrix, checkpoint: Checkpoint) -> tuple[Any, list[Any]]:
    """The array `llama_model_quantize` wants, ended by a NULL name, and what must outlive the call.

    Raises CheckpointError for a matrix of another model.
    """
    matrix.check(checkpoint)
    kept: list[Any] = []
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix.means) + 1))()
    for entry, name in zip(entries, sorted(matrix.means), strict=False):
        values = np.ascontiguousarray(matrix.means[name], np.float32)
        kept.append(values)
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries, kept
