"""Does an engine compute this bundle's vision right? golden.npz holds crops of a phantom and their tokens.

The tokens are the checkpoint's own, in float32 (export/golden.py). Wrong engines exist: TensorRT has computed
SigLIP wrongly in fp32 and fp16 (issues 4328, 4333) and fused attention wrongly on new GPUs (4837).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError, BundleError


@dataclass(frozen=True)
class Limit:
    """How far an engine may be from the checkpoint."""

    cosine: float
    """Least cosine of any compared token."""
    error: float
    """Largest difference of a number, as a fraction of the tokens' largest magnitude."""


LIMITS = {"fp32": Limit(0.9999, 0.01), "fp16": Limit(0.999, 0.05), "int8-trt": Limit(0.98, 0.25)}
"""By precision. Exports are within a tenth of these on a CPU; what they must catch is beyond them."""


@dataclass(frozen=True)
class Golden:
    """Crops and what the checkpoint makes of them."""

    crops: npt.NDArray[np.uint8]
    """`[n, 3, S, S]`."""
    rows: npt.NDArray[np.int64]
    """Which tokens of a crop are kept."""
    tokens: npt.NDArray[np.float32]
    """`[n, rows, d]`."""
    scale: float
    """Largest magnitude of all tokens."""


@dataclass(frozen=True)
class Comparison:
    """An engine against the checkpoint, the worst of all batches."""

    cosine: float
    error: float
    batches: tuple[int, ...]
    """Crops of a run that were tried."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        runs = ", ".join(map(str, self.batches))
        return f"token cosine {self.cosine:.6f}, max error {self.error:.2g} of scale (runs of {runs} crops)"


def load_golden(folder: Path) -> Golden:
    """Read a bundle's golden crops. Raises BundleError for a bundle exported before there were any."""
    try:
        with np.load(folder / "golden.npz") as file:
            held = {name: file[name] for name in file.files if name.startswith("film_")}
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder / 'golden.npz'}: cannot be read ({error}); copy the bundle again"
        ) from error
    if not held:
        raise BundleError(
            f"{folder}: golden.npz holds no film crops to compare an engine with (an older export); "
            "export the checkpoint anew, or pass --no-golden to use the engine unchecked"
        )
    scale = float(held["film_scale"])
    return Golden(held["film_crops"], held["film_rows"], held["film_tokens"], scale)


def compare(
    golden: Golden,
    encode: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    batches: Sequence[int],
) -> Comparison:
    """Run the golden crops, repeated to fill each batch: an engine has other kernels for other batches."""
    cosine, error = 1.0, 0.0
    for size in batches:
        order = np.arange(size) % len(golden.crops)
        found = encode(golden.crops[order])[:, golden.rows]
        wanted = golden.tokens[order]
        if found.shape != wanted.shape:
            raise BackendError(f"an engine returned tokens {found.shape} instead of {wanted.shape}")
        if not np.isfinite(found).all():
            return Comparison(float("-inf"), float("inf"), tuple(batches))
        lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosines = (found * wanted).sum(-1) / np.maximum(lengths, 1e-30)
        cosine = min(cosine, float(cosines.min()))
        error = max(error, float(np.abs(found - wanted).max()) / golden.scale)
    return Comparison(cosine, error, tuple(batches))


def refusal(comparison: Comparison, precision: str) -> str | None:
    """Why an engine with these figures must not be used; `None` if it may."""
    limit = LIMITS[precision]
    if comparison.cosine >= limit.cosine and comparison.error <= limit.error:
        return None
    return f"{comparison}; limits for {precision}: cosine {limit.cosine}, error {limit.error:g}"
