"""Small tensors in the bundle, so that a machine can test itself: golden.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.probe_films import phantoms
from radvlm_edge.export.streaming_reference import image_features, language_logits, normalise
from radvlm_edge.runtime.crops import cut

KEPT_TOKENS, KEPT_LOGITS = 32, 32
FILM_SEED, FILM_CROPS = 44_000_000, 3
"""A phantom apart from calibration's, parity's, training's and evaluation's; crops kept of it."""


def write_golden(checkpoint: Checkpoint, path: Path) -> None:
    """Write inputs and the float32 reference's outputs:

    `crop` `[1, 3, S, S]` uint8 noise; `token_rows` and `tokens`: some projected tokens of it;
    `image` `[8, d]`: embeddings standing for an image; `prompt`: token ids behind them;
    `logit_ids`, `logits`: the largest final logits; `logit_std`: their standard deviation;
    `film_crops` `[n, 3, S, S]` uint8 of a phantom, `film_rows` and `film_tokens` `[n, rows, d]`: some
    projected tokens of each, `film_scale`: the largest magnitude of all (INT8 clips what is unlike films).
    """
    geometry = checkpoint.config.geometry
    rng = np.random.default_rng(7)
    crop = rng.integers(0, 256, (1, 3, geometry.crop_px, geometry.crop_px), dtype=np.uint8)
    tokens = image_features(checkpoint, normalise(checkpoint, crop)).numpy()[0]
    rows = np.linspace(0, len(tokens) - 1, min(KEPT_TOKENS, len(tokens))).astype(np.int64)
    views, _ = cut(phantoms(1, FILM_SEED, geometry).films[0].pixels, geometry)
    film = views[np.linspace(0, len(views) - 1, min(FILM_CROPS, len(views))).astype(np.int64)]
    film_tokens = image_features(checkpoint, normalise(checkpoint, film)).numpy()
    image = tokens[:8].astype(np.float32)
    prompt = rng.integers(0, min(200, geometry.vocab), 16).tolist()
    (logits,) = language_logits(checkpoint, [[image, prompt]], keep=[1])[0]
    largest = np.argsort(-logits)[:KEPT_LOGITS]
    np.savez_compressed(
        path,
        crop=crop,
        token_rows=rows,
        tokens=tokens[rows],
        token_scale=np.abs(tokens).max(),
        image=image,
        prompt=np.array(prompt, np.int64),
        logit_ids=largest,
        logits=logits[largest],
        logit_std=logits[~checkpoint.unused].std(),
        film_crops=film,
        film_rows=rows,
        film_tokens=film_tokens[:, rows],
        film_scale=np.abs(film_tokens).max(),
    )
