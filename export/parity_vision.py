"""Crops, projected tokens and their packing against transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.parity_findings import LARGE, Findings, artefact_bytes
from radvlm_edge.export.streaming_reference import (
    image_features,
    normalise,
    pack_image_features,
)
from radvlm_edge.runtime import anyres, crops
from radvlm_edge.runtime.vision import open_tower

VISION_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3}
"""Largest difference of a projected token, as a fraction of the largest reference value."""
PACK_TOLERANCE = 1e-5
FILMS = ((1.0, 1.0), (1.3, 1.0), (1.0, 1.4), (3.1, 2.5), (5.3, 5.3), (0.3, 0.4), (1.0, 3.0))
"""Heights and widths of the compared films, in crops."""


def compared_films(checkpoint: Checkpoint) -> list[npt.NDArray[np.uint8]]:
    """Seeded films of several shapes: smooth shapes and noise, so that resizing is really tested."""
    size = checkpoint.config.geometry.crop_px
    rng = np.random.default_rng(20250203)
    films = []
    for tall, wide in FILMS:
        height, width = max(8, int(tall * size) + 1), max(8, int(wide * size) - 1)
        y, x = np.mgrid[0:1:height*1j, 0:1:width*1j]  # fmt: skip
        smooth = 128 + 90 * np.sin(9 * x + rng.uniform(0, 6)) * np.cos(7 * y)
        films.append(np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8))
    colour = rng.integers(0, 256, (size + 3, 2 * size - 5, 3), dtype=np.uint8)
    return [*films, colour]


def compare_crops(
    checkpoint: Checkpoint, films: list[npt.NDArray[np.uint8]], found: Findings
) -> list[npt.NDArray[np.uint8]]:
    """Crops must be the processor's bit for bit; the reference is asked for pixels, not floats."""
    processor = LlavaOnevisionImageProcessor(**checkpoint.processor)
    geometry = checkpoint.config.geometry
    all_views, wrong = [], 0
    for film in films:
        views, layout = crops.cut(film, geometry)
        picture = Image.fromarray(film).convert("RGB")
        theirs = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
        same = theirs["pixel_values"][0].shape == views.shape and np.array_equal(
            theirs["pixel_values"][0], views
        )
        found.require(same, f"crops of a {layout.width}x{layout.height} film are not the processor's")
        wrong += not same
        all_views.append(views)
    found.figures["crops"] = {"films": len(films), "different": wrong}
    return all_views


def compare_packing(
    checkpoint: Checkpoint,
    films: list[npt.NDArray[np.uint8]],
    newline: npt.NDArray[np.float32],
    found: Findings,
) -> None:
    geometry = checkpoint.config.geometry
    rng = np.random.default_rng(1)
    expected_newline = checkpoint.tensor("image_newline").float()
    worst = 0.0
    for film in films:
        layout = crops.plan(film.shape[0], film.shape[1], geometry)
        shape = (layout.crops, geometry.tokens_per_crop, geometry.embed_dim)
        features = rng.standard_normal(shape).astype(np.float32)
        theirs = pack_image_features(
            checkpoint, torch.from_numpy(features), layout.height, layout.width, expected_newline
        )
        ours = anyres.pack(features, layout, newline)
        name = f"a {layout.width}x{layout.height} film"
        if len(theirs) != layout.image_tokens:
            found.require(False, f"{name} has {len(theirs)} image tokens, planned {layout.image_tokens}")
            continue
        worst = max(worst, float(np.abs(theirs - ours).max()))
        found.require(worst <= PACK_TOLERANCE, f"image tokens of {name} differ by {worst:.2g}")
    found.figures["packing"] = {"films": len(films), "largest_difference": worst}


def compare_vision(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    views: npt.NDArray[np.uint8],
    found: Findings,
) -> npt.NDArray[np.float32]:
    """Compare projected tokens; returns the reference's, for the logits to start from."""
    reference = image_features(checkpoint, normalise(checkpoint, views)).numpy()
    scale = float(np.abs(reference).max())
    figures = {}
    for precision, path in artefacts.items():
        tokens = open_tower(path, mapped=artefact_bytes(path) >= LARGE).encode(views)
        difference = float(np.abs(tokens - reference).max()) / scale
        cosine = _cosine(tokens, reference)
        figures[precision] = {"largest_difference": difference, "cosine": cosine}
        limit = VISION_TOLERANCE[precision]
        found.require(
            difference <= limit,
            f"vision {precision} differs by {difference:.2g} of the scale (limit {limit:g})",
        )
    found.figures["vision"] = figures
    return reference.reshape(-1, reference.shape[-1])


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
