"""How near the INT8 vision artefacts are to the checkpoint: the cosine of every projected token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.probe_films import phantoms
from radvlm_edge.export.streaming_reference import image_features, normalise
from radvlm_edge.runtime import crops
from radvlm_edge.runtime.vision import open_tower

SEED = 43_000_000
"""Of the phantom compared on: apart from calibration's, training's and evaluation's."""


def compare_int8(
    checkpoint: Checkpoint, artefacts: Mapping[str, Path], gate: float
) -> dict[str, dict[str, float]]:
    """Token cosine (`p1`, `min`) of each artefact with transformers on a phantom's crops.

    A phantom, not parity's noise: scales are made for chest films, and clip what is unlike any.
    """
    film = phantoms(1, SEED, checkpoint.config.geometry).films[0].pixels
    views, _ = crops.cut(film, checkpoint.config.geometry)
    reference = image_features(checkpoint, normalise(checkpoint, views)).numpy()
    lengths = np.linalg.norm(reference, axis=-1)
    figures = {}
    for precision, path in artefacts.items():
        tokens = open_tower(path).encode(views)
        products = (tokens * reference).sum(-1)
        cosines = products / np.maximum(np.linalg.norm(tokens, axis=-1) * lengths, 1e-30)
        figures[precision] = {
            "token_cosine_p1": float(np.quantile(cosines, 0.01)),
            "token_cosine_min": float(cosines.min()),
            "gate": gate,
        }
    return figures
