"""Is what a bundle says of itself possible? A manifest is checked before anything is computed from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radvlm_edge.bundle import Artefact, Manifest
    from radvlm_edge.geometry import Geometry

MOST_CANVASES, MOST_CROPS, MOST_PIXELS = 1024, 1024, 200_000_000
LARGEST = {
    "crop_px": 4096,
    "patch_px": 4096,
    "max_crops": MOST_CROPS,
    "embed_dim": 1 << 20,
    "layers": 4096,
    "kv_heads": 4096,
    "head_dim": 1 << 16,
    "context": 1 << 24,
    "vocab": 1 << 24,
}
"""Above all known models by far; what is beyond it would only ask for memory that no machine has."""
TEXTS = ("name", "licence", "render")
TABLES = ("source", "preprocessing", "tools", "notes", "limits", "defaults")

OPTIONAL = ("calibration",)


def problem(manifest: Manifest) -> str | None:
    """The first thing in a manifest that cannot be, in a few words; `None` where all can."""
    return next(_problems(manifest), None)


def _problems(manifest: Manifest) -> Iterator[str]:
    for name in TEXTS:
        if not isinstance(getattr(manifest, name), str):
            yield f"{name} is no text"
    for name in ("demonstration", "redistributable"):
        if not isinstance(getattr(manifest, name), bool):
            yield f"{name} is neither true nor false"
    for name in TABLES:
        if not isinstance(getattr(manifest, name), Mapping):
            yield f"{name} is no object"
    for name in OPTIONAL:
        if not isinstance(getattr(manifest, name), (Mapping, type(None))):
            yield f"{name} is no object"
    if not all(map(_number, manifest.limits.values())):
        yield "limits holds what is no number"
    yield from _geometry(manifest.geometry)
    prompting = manifest.prompting
    if not _text(prompting.image_token) or not isinstance(prompting.chat_template, str):
        yield "prompting has no image_token or chat_template"
    if not all(isinstance(one, int) and 0 <= one < manifest.geometry.vocab for one in prompting.stop_ids):
        yield "prompting.stop_ids holds what is no token"
    if not all(map(_text, prompting.special_tokens)):
        yield "prompting.special_tokens holds what is no text"
    for artefact in manifest.artefacts:
        yield from _artefact(artefact)
    for role in ("vision", "language"):
        if not _text(manifest.defaults.get(role)):
            yield f"defaults names no {role} artefact"
    yield from _measured(manifest)


def _geometry(geometry: Geometry) -> Iterator[str]:
    for name, most in LARGEST.items():
        value = getattr(geometry, name)
        if type(value) is not int or not 1 <= value <= most:
            yield f"geometry.{name} is no whole number of 1 to {most}"
            return
    side = geometry.crop_px
    if geometry.patch_px > side:
        yield "geometry.patch_px is larger than crop_px"
    if not 1 <= len(geometry.pinpoints) <= MOST_CANVASES:
        yield f"geometry.pinpoints are not 1 to {MOST_CANVASES}"
    for height, width in geometry.pinpoints:
        if height < side or width < side or height % side or width % side:
            yield "geometry.pinpoints are not multiples of crop_px"
            return
        if height * width > MOST_PIXELS or height * width > MOST_CROPS * side * side:
            yield f"geometry.pinpoints hold more than {MOST_CROPS} crops or {MOST_PIXELS} pixels"
            return


def _artefact(artefact: Artefact) -> Iterator[str]:
    texts = (artefact.role, artefact.precision, artefact.backend, artefact.path, artefact.sha256)
    if not all(map(_text, texts)):
        yield "an artefact's role, precision, backend, path or sha256 is no text"
        return
    path = PurePosixPath(artefact.path)
    if path.is_absolute() or ".." in path.parts or "\0" in artefact.path:
        yield "an artefact's path leads out of the bundle"
    if type(artefact.bytes) is not int or artefact.bytes < 0:
        yield "an artefact's bytes are no number"


def _measured(manifest: Manifest) -> Iterator[str]:
    """What was measured of combinations of artefacts."""
    fidelity, confidence = manifest.fidelity, manifest.confidence
    if fidelity is not None:
        details = fidelity.get("detail", {}) if isinstance(fidelity, Mapping) else None
        if not isinstance(details, Mapping) or not all(
            map(_verdicts, [fidelity.get("beyond"), *details.values()])
        ):
            yield "fidelity is not as `radvlm-edge fidelity` writes it"
    if confidence is not None:
        held = list(confidence.values()) if isinstance(confidence, Mapping) else [None]
        if not all(isinstance(one, Mapping) and _temperature(one) for one in held):
            yield "confidence is not as `radvlm-edge fidelity` writes it"


def _verdicts(value: object) -> bool:
    """Lists of texts by name."""
    return isinstance(value, Mapping) and all(
        isinstance(one, list) and all(isinstance(text, str) for text in one) for one in value.values()
    )


def _temperature(one: Mapping[str, Any]) -> bool:
    value: Any = one.get("temperature")
    return (
        _number(value)
        and 0 < float(value) < 1e6
        and _text(one.get("calibrated_on"))
        and _text(one.get("detail"))
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
