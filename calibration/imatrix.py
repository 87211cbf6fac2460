"""Which input channels of the language model's matrices carry most, on prompts that bear images.

Quantisation rounds columns that are multiplied by large inputs more carefully if it is told so. Made from
text alone, the importances miss the image tokens, which are most of what RadVLM's language model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from radvlm_edge.calibration.dialogues import dialogues
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.imatrix_file import ImportanceMatrix
from radvlm_edge.export.language import gguf_name
from radvlm_edge.export.probe_films import ProbeFilms
from radvlm_edge.export.shared_prefix import Sequences, stream_hidden

TEXT_SHARE = 0.5
"""Weight of text positions against image positions: a film has thousands of image tokens, an answer
tens, and an error in either reaches the answer (MBQ, thu-nics, weighs the two apart too)."""
AUTO_FILMS = 16
FIRST_SEED = 40_000_000
"""Of calibration phantoms: apart from training's and evaluation's."""


class MeanSquares:
    """Sums of squares of every matrix's inputs, image positions and text positions apart."""

    def __init__(self, sequences: Sequence[Sequences]) -> None:
        self._image = [(len(one.head), len(one.head) + len(one.image)) for one in sequences]
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}

    def observe(self, film: int, start: int, name: str, values: torch.Tensor) -> None:
        """Add inputs `[rows, width]`, the first of which is position `start` of the film."""
        low, high = (min(max(at - start, 0), len(values)) for at in self._image[film])
        sums = self._sums.setdefault(name, np.zeros((2, values.shape[1])))
        counts = self._counts.setdefault(name, np.zeros(2, np.int64))
        text = torch.cat([values[:low], values[high:]])
        for kind, part in enumerate((values[low:high], text)):
            sums[kind] += torch.linalg.vector_norm(part, dim=0).double().square().numpy()
            counts[kind] += len(part)

    def matrix(self, described: Sequence[str], text_share: float = TEXT_SHARE) -> ImportanceMatrix:
        """Mean squares by GGUF name; `text_share` weighs the mean over text against that over images."""
        means = {}
        tokens = 0
        for name, sums in self._sums.items():
            counts = self._counts[name]
            seen = counts > 0
            shares = np.array([1 - text_share, text_share]) * seen if seen.all() else seen.astype(float)
            per_kind = sums / np.maximum(counts, 1)[:, None]
            means[gguf_name(name)] = (shares @ per_kind / shares.sum()).astype(np.float32)
            tokens = max(tokens, int(counts.sum()))
        return ImportanceMatrix(means, tokens, tuple(described))


def collect(
    checkpoint: Checkpoint,
    films: ProbeFilms,
    *,
    seed: int = 0,
    text_share: float = TEXT_SHARE,
    progress: Callable[[str], None] = lambda line: None,
) -> ImportanceMatrix:
    """Run a checkpoint over films with RadVLM's tasks, one layer in memory at a time."""
    progress(f"importance matrix from {films.described['count']} films: {films.described['kind']}")
    sequences = dialogues(checkpoint, films, seed=seed, progress=progress)
    return collect_from(checkpoint, sequences, [films.described["kind"]], text_share, progress)


def collect_from(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequences],
    described: Sequence[str],
    text_share: float = TEXT_SHARE,
    progress: Callable[[str], None] = lambda line: None,
) -> ImportanceMatrix:
    """As `collect`, from prompts already made."""
    squares = MeanSquares(sequences)
    observe: Any = squares.observe
    stream_hidden(checkpoint, sequences, observe=observe, progress=progress)
    return squares.matrix(described, text_share)
