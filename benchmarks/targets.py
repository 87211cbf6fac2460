"""The speed this software is meant to have, each target beside what `peers` measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.bench_child import FIRST, SECOND

OURS, THEIRS = "radvlm-edge", "transformers"


@dataclass(frozen=True)
class Target:
    """One of them."""

    name: str
    limit: float
    at_most: bool
    """Whether less is better."""
    unit: str
    measured: float | None = None
    """`None`: the figures do not say it."""
    reached: bool | None = None


TARGETS = (
    Target("decoding, of llama.cpp's bare loop in the same build", 0.95, False, "times"),
    Target("decoding, of the fastest transformers variant", 2.0, False, "times"),
    Target("cold first answer, faster than the fastest transformers variant", 2.0, False, "times"),
    Target("second question's first token, of a cold first token", 0.03, True, "share"),
    Target("second question's first token, faster than upstream's way", 25.0, False, "times"),
    Target("second process with the study cache, of the first", 0.05, True, "share"),
    Target("checklist of 14 in free text, faster together than one by one", 4.0, False, "times"),
    Target("checklist of 14 as choices, faster together than one by one", 1.5, False, "times"),
    Target("peak memory of infer at detail exact", 1.6, True, "GiB"),
    Target("start to first useful work", 0.3, True, "s"),
    Target("Python's share of a warm answer", 0.05, True, "share"),
)


def startup(film: Path) -> dict[str, Any]:
    """Imports before the first useful work, measured now."""
    from radvlm_edge.benchmarks.startup import measure

    return measure(film)


def judge(result: dict[str, Any], *, startup: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every target with its figure, medians throughout; a missing one is `None`, and not reached."""
    peers = result["peers"]
    ways: tuple[Callable[[], float], ...] = (
        lambda: _extra(peers, "decode", "ours_tokens_per_s") / _extra(peers, "decode", "bare_tokens_per_s"),
        lambda: _of(peers, "decode_tokens_per_s") / max(_theirs(peers, "decode_tokens_per_s")),
        lambda: min(_theirs(peers, "cold_total_ms")) / _of(peers, "cold_total_ms"),
        lambda: _of(peers, "second_first_ms") / _of(peers, "cold_first_ms"),
        lambda: min(_theirs(peers, "second_first_ms", kept=False)) / _of(peers, "second_first_ms"),
        lambda: _process(peers, SECOND) / _process(peers, FIRST),
        lambda: _checklist(peers, "text"),
        lambda: _checklist(peers, "choice"),
        lambda: float(peers[OURS]["extras"]["infer"]["peak_bytes"]) / 2**30,
        lambda: float((startup or {})["ms"]["median"]) / 1e3,
        lambda: float(peers[OURS]["extras"]["python"]["share"]),
    )
    return [asdict(_judged(target, way)) for target, way in zip(TARGETS, ways, strict=True)]


def _judged(target: Target, way: Callable[[], float]) -> Target:
    try:
        measured = round(way(), 4)
    except (KeyError, ValueError):  # a peer that failed or was not asked for
        return target
    reached = measured <= target.limit if target.at_most else measured >= target.limit
    return Target(target.name, target.limit, target.at_most, target.unit, measured, reached)


def _of(peers: dict[str, Any], figure: str) -> float:
    return float(peers[OURS][figure]["median"])


def _theirs(peers: dict[str, Any], figure: str, *, kept: bool = True) -> list[float]:
    """Of transformers' variants, all or those used as upstream does."""
    names = [name for name in peers if name.startswith(THEIRS) and (kept or not name.endswith("kept"))]
    return [float(peers[name][figure]["median"]) for name in names]


def _extra(peers: dict[str, Any], group: str, figure: str) -> float:
    return float(peers[OURS]["extras"][group][figure]["median"])


def _process(peers: dict[str, Any], name: str) -> float:
    return float(peers[OURS]["extras"]["processes"][name]["ms"]["median"])


def _checklist(peers: dict[str, Any], kind: str) -> float:
    one, together = (_extra(peers, "checklist", f"{kind}_{way}_ms") for way in ("one_by_one", "together"))
    return one / together
