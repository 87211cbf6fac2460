"""How much of a film is shown: every canvas, or only those whose long side is at most so many pixels.

The cap chooses among the model's own canvases (pinpoints) and changes nothing else: the film is still
resized once, from its own pixels, and its base view stays bit for bit the same. A film that fits a canvas
within the cap anyway is cut as ever.
"""

from __future__ import annotations

from dataclasses import replace

from radvlm_edge.errors import DetailError
from radvlm_edge.geometry import Geometry

EXACT = "exact"
"""As the checkpoint was trained: no cap."""
PRESETS = (1152, 768, 384)
"""Caps in pixels the published geometry is spoken of in: 3, 2 and 1 of its crops a side."""
LEVEL_CROPS = (3, 2, 1)
"""Crops a side of the caps that `levels` lists."""

Detail = int | str | None
"""What a caller may say: pixels of the canvas's long side, `exact`, or `None` for what holds otherwise."""


def resolve(detail: Detail, otherwise: int | None = None) -> int | None:
    """The cap in pixels; `None`: no cap. `detail` `None` means `otherwise`.

    Raises DetailError for anything but `exact` or a whole number of pixels.
    """
    if detail is None:
        return otherwise
    if detail == EXACT:
        return None
    try:
        if isinstance(detail, bool) or int(detail) < 1 or int(detail) != float(detail):
            raise ValueError
    except (TypeError, ValueError):
        raise DetailError(
            f"detail {detail!r} is unknown; name {EXACT} or the long side to show in whole pixels, "
            f"e.g. {', '.join(map(str, PRESETS))}"
        ) from None
    return int(detail)


def named(cap_px: int | None) -> str:
    """How records and messages call a cap."""
    return EXACT if cap_px is None else str(cap_px)


def capped(geometry: Geometry, cap_px: int | None) -> Geometry:
    """The geometry with only the canvases whose long side is at most `cap_px` pixels.

    Raises DetailError where none is.
    """
    if cap_px is None:
        return geometry
    kept = tuple(canvas for canvas in geometry.pinpoints if max(canvas) <= cap_px)
    if not kept:
        smallest = min(map(max, geometry.pinpoints))
        raise DetailError(
            f"detail {cap_px} is less than this model's smallest canvas of {smallest} pixels; "
            f"choose {smallest} or more, or {EXACT}"
        )
    return replace(geometry, pinpoints=kept)


def levels(geometry: Geometry) -> tuple[int | None, ...]:
    """Exact and the caps of 3, 2 and 1 crops a side that leave something out, most detail first."""
    largest, smallest = (pick(map(max, geometry.pinpoints)) for pick in (max, min))
    caps = (count * geometry.crop_px for count in LEVEL_CROPS)
    return (None, *(cap for cap in caps if smallest <= cap < largest))
