"""MODEL_CARD.md: what the bundle says of itself, after the author's own card if there is one."""

from __future__ import annotations

from collections.abc import Iterator

from radvlm_edge.bundle import Bundle


def card(bundle: Bundle, given: str | None = None) -> str:
    """Markdown; `given` is a card somebody wrote, which comes first."""
    first = given.rstrip() + "\n\n" if given else f"# {bundle.manifest.name}\n\n"
    return first + "\n".join(_facts(bundle)) + "\n"


def _facts(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield "## What the bundle says of itself\n"
    yield "**Research use only.** Not a medical device; no answer is a diagnosis.\n"
    if manifest.demonstration:
        yield "This is a demonstration model: it shows the software, not radiology.\n"
    if not manifest.redistributable:
        yield "**Not redistributable**: whoever was given this kit must hold the licence of its weights.\n"
    yield "| | |\n|---|---|"
    yield f"| name | {manifest.name} |"
    yield f"| licence | {manifest.licence} |"
    yield f"| may be passed on | {'yes' if manifest.redistributable else 'no'} |"
    yield f"| bundle.json, SHA-256 | `{bundle.sha256}` |"
    yield f"| checkpoint, SHA-256 | `{manifest.source.get('sha256', 'not recorded')}` |"
    yield f"| architecture | {manifest.source.get('architecture', 'not recorded')} |"
    geometry = manifest.geometry
    yield f"| image | crops of {geometry.crop_px} px, at most {geometry.max_image_tokens} tokens a film |"
    yield f"| context | {geometry.context} tokens |"
    yield f"| films are rendered | {manifest.render} |"
    yield "\n| artefact | precision | MiB | SHA-256 |\n|---|---|---|---|"
    for artefact in manifest.artefacts:
        size = f"{artefact.bytes / 2**20:.1f}"
        yield f"| {artefact.path} | {artefact.precision} | {size} | `{artefact.sha256[:16]}…` |"
    yield from _measured(bundle)


def _measured(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield "\nAgreement with the checkpoint is in `bundle/parity.json`."
    for name, beyond in (manifest.fidelity or {}).get("beyond", {}).items():
        yield f"Answers of {name}: {'; '.join(beyond) if beyond else 'within the declared limits'}."
    for name, fitted in (manifest.confidence or {}).items():
        yield f"Confidence of {name}: calibrated on {fitted['calibrated_on']}."
    if manifest.fidelity is None:
        yield "How answers of the artefacts differ from the checkpoint's was not measured."
    if not manifest.confidence:
        yield "Confidence was not calibrated."
