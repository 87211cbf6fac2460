"""Is the chosen combination of artefacts within the limits its bundle declares?"""

from __future__ import annotations

from typing import Protocol

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BundleError


class Choice(Protocol):
    """What of the caller's options matters here."""

    @property
    def vision(self) -> str | None: ...
    @property
    def language(self) -> str | None: ...
    @property
    def force(self) -> bool: ...


def combination(vision: str, language: str) -> str:
    """How bundle.json and fidelity.json name two artefacts used together."""
    return f"{vision}+{language}"


def detail_fidelity(bundle: Bundle, choice: Choice, exact: str, detail_px: int | None) -> str:
    """What was measured of the artefacts with a film shown in at most `detail_px` pixels.

    `exact` is what `check_fidelity` said of them with all of it. Never a refusal: less detail is the
    caller's own choice, and its cost is said.
    """
    if detail_px is None:
        return exact
    name = combination(
        bundle.artefact("vision", choice.vision).precision,
        bundle.artefact("language", choice.language).precision,
    )
    measured = (bundle.manifest.fidelity or {}).get("detail", {}).get(name, {})
    if str(detail_px) not in measured:
        found = "not measured"
    elif measured[str(detail_px)]:
        found = f"beyond the bundle's limits: {'; '.join(measured[str(detail_px)])}"
    else:
        found = "within the bundle's limits"
    return f"at exact detail {exact}; at detail {detail_px} {found}"


def check_fidelity(bundle: Bundle, choice: Choice) -> str:
    """Say what was measured of the artefacts about to be used, for every answer's provenance.

    Raises BundleError for a combination measured beyond the bundle's limits, unless `force` is set.
    """
    measured = bundle.manifest.fidelity
    name = combination(
        bundle.artefact("vision", choice.vision).precision,
        bundle.artefact("language", choice.language).precision,
    )
    if measured is None or name not in measured["beyond"]:
        return "not measured"
    beyond: list[str] = measured["beyond"][name]
    if not beyond:
        return "within the bundle's limits"
    if choice.force:
        return f"beyond the bundle's limits, used by force: {'; '.join(beyond)}"
    others = [other for other, what in measured["beyond"].items() if not what]
    advice = (
        "choose another (" + ", ".join(others) + ")" if others else "no measured combination is within them"
    )
    raise BundleError(
        f"{bundle.folder}: {name} answers differently from its checkpoint: {'; '.join(beyond)}; "
        f"{advice}, or pass --force to use it all the same"
    )
