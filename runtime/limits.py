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
