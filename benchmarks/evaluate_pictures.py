"""Pictures of an evaluation's page: intervals, a reliability diagram, films with boxes; plain SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from radvlm_edge.runtime.film import load_film
from radvlm_edge.training.scores import Box

LONGEST_PX = 480
ROW, LEFT, WIDTH, RIGHT = 24, 250, 420, 60
TRUE, SAID = "#1a7f37", "#cf222e"
INK, FAINT, BLUE = "#1b1f24", "#d0d7de", "#0969da"


def intervals(figures: Mapping[str, Mapping[str, float | None]], best: float = 1.0) -> str:
    """One row a figure: its value as a dot, its interval as a line, on an axis from 0 to `best`."""
    known = {name: one for name, one in figures.items() if one["value"] is not None}
    if not known:
        return ""
    height = ROW * len(known) + 34
    parts = [_axis(LEFT, WIDTH, 8, height - 26, best)]
    for number, (name, one) in enumerate(known.items()):
        y = 8 + ROW * number + ROW / 2
        at, low, high = (
            LEFT + WIDTH * min(max(float(one[key] or 0), 0.0), best) / best
            for key in ("value", "low", "high")
        )
        if one["low"] is not None:
            parts.append(
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{BLUE}" stroke-width="3"/>'
            )
        parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="5" fill="{BLUE}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
    return _svg(LEFT + WIDTH + RIGHT, height, parts, "Figures with their 95 % intervals")


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share right over mean confidence; a dot's area is its number of answers, the diagonal is perfect."""
    held = [one for one in bins if one["count"]]
    if not held:
        return ""
    side, edge = 300, 50
    most = max(one["count"] for one in held)
    parts = [
        f'<rect x="{edge}" y="10" width="{side}" height="{side}" fill="none" stroke="{FAINT}"/>',
        f'<line x1="{edge}" y1="{side + 10}" x2="{edge + side}" y2="10" stroke="{FAINT}" '
        'stroke-dasharray="4 4"/>',
    ]
    for tick in (0, 0.5, 1):
        x, y = edge + side * tick, 10 + side * (1 - tick)
        parts.append(f'<text x="{x}" y="{side + 28}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{edge - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for one in held:
        x, y = edge + side * one["confidence"], 10 + side * (1 - one["right"])
        radius = 3 + 9 * (one["count"] / most) ** 0.5
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{BLUE}" fill-opacity="0.6">'
            f"<title>{one['count']} answers</title></circle>"
        )
    parts.append(f'<text x="{edge + side / 2}" y="{side + 46}" text-anchor="middle">mean confidence</text>')
    parts.append(
        f'<text x="14" y="{10 + side / 2}" transform="rotate(-90 14 {10 + side / 2})" '
        'text-anchor="middle">share right</text>'
    )
    return _svg(edge + side + 20, side + 56, parts, "Share of right answers over confidence")


def overlay(image: Path | bytes, render: str, true: Sequence[Box], said: Sequence[Box]) -> str:
    """A film with the right boxes (whole lines) and those said (broken lines).

    Raises FilmError for a film that cannot be read.
    """
    film = Image.fromarray(load_film(image, render=render).pixels)
    film.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    film.save(out, "JPEG", quality=85)
    width, height = film.size
    parts = [
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,'
        f'{base64.b64encode(out.getvalue()).decode()}"/>'
    ]
    for boxes, colour, dash in ((true, TRUE, ""), (said, SAID, ' stroke-dasharray="7 4"')):
        for left, top, right, bottom in boxes:
            parts.append(
                f'<rect x="{left * width:.1f}" y="{top * height:.1f}" width="{(right - left) * width:.1f}" '
                f'height="{(bottom - top) * height:.1f}" fill="none" stroke="{colour}" '
                f'stroke-width="3"{dash}/>'
            )
    return _svg(width, height, parts, "Film with the right boxes and those the model gave")


def _axis(left: float, width: float, top: float, bottom: float, best: float) -> str:
    parts = []
    for tick in range(5):
        x = left + width * tick / 4
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{best * tick / 4:g}</text>')
    return "".join(parts)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'style="max-width:100%" fill="{INK}" font-size="13">{"".join(parts)}</svg>'
    )
