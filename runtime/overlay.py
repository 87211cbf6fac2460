"""Film and boxes → a picture for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from radvlm_edge.errors import OutputError
from radvlm_edge.runtime.answers import Box

COLOURS = ("#ffb000", "#64b5f6", "#fe6d8c", "#9ccc65", "#b39ddb")
"""Told apart by people with the common colour-vision deficiencies; one a label."""


def draw_boxes(pixels: npt.NDArray[np.uint8], boxes: Sequence[Box]) -> Image.Image:
    """Draw boxes and their labels on a film `[H, W]` uint8; returns an RGB picture of that size."""
    picture = Image.fromarray(pixels).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(2, max(picture.size) // 300)
    font = ImageFont.load_default(size=max(12, max(picture.size) // 45))
    labels = sorted({box.label or "" for box in boxes})
    for box in boxes:
        colour = COLOURS[labels.index(box.label or "") % len(COLOURS)]
        left, top, right, bottom = box.xyxy_pixels
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
        if box.label:
            _, text_top, text_right, text_bottom = pen.textbbox((0, 0), box.label, font=font)
            x = min(left, max(0, picture.width - int(text_right)))
            y = max(0, top - int(text_bottom) - 2 * width)
            pen.rectangle((x, y, x + text_right + width, y + text_bottom + width), fill="black")
            pen.text((x, y - text_top // 2), box.label, fill=colour, font=font)
    return picture


def write_overlay(pixels: npt.NDArray[np.uint8], boxes: Sequence[Box], path: Path) -> None:
    """Write the drawn film as PNG, whole or not at all.

    Raises OutputError if the folder or the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draw_boxes(pixels, boxes).save(partial, format="PNG")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: picture not written: {error.strerror or error}") from error
