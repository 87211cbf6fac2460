"""Detail against cost, drawn: flips and box overlap over the time a film takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.plot import Picture, Point, trade_off

X_LABEL = "ms a film: vision tower and prefill, medians"


def draw_detail(detail: dict[str, Any], path: Path) -> None:
    """Write the PNG of what `fidelity --detail` measured (`detail` of fidelity.json). Raises OutputError."""
    levels = detail["levels"]
    picture = Picture(900, 700)
    picture.text(24, 16, f"{detail['combination']}: answers against the checkpoint's, by detail")
    picture.text(24, 38, detail["machine"]["cpu"] if "machine" in detail else "")
    flips = [
        Point(_label(name, one), _spent(one), 100 * one["yes_no"]["flip_rate"], *_percent(one))
        for name, one in levels.items()
        if one["yes_no"]["flip_rate"] is not None
    ]
    overlaps = [
        Point(_label(name, one), _spent(one), one["boxes"]["mean_iou"], *2 * (one["boxes"]["mean_iou"],))
        for name, one in levels.items()
        if one["boxes"]["mean_iou"] is not None
    ]
    panels = (
        (60, flips, "% of yes/no answers that turn round (95 % interval)", True),
        (380, overlaps, "mean overlap (IoU) of boxes", False),
    )
    for top, points, label, less in panels:
        if points:
            trade_off(picture, top, points, (X_LABEL, label), less_is_better=less)
        else:
            picture.text(90, top + 40, f"{label}: nothing to compare")
    picture.save(path)


def _label(name: str, one: dict[str, Any]) -> str:
    return f"{name} ({one['image_tokens_mean']:.0f} tokens)"


def _spent(one: dict[str, Any]) -> float:
    return float(one["vision_ms"] + one["prefill_ms"])


def _percent(one: dict[str, Any]) -> tuple[float, float]:
    low, high = one["yes_no"]["interval_95"]
    return 100 * low, 100 * high
