"""Findings → the phrases, sentences and whole reports that say them; numpy-free."""

from __future__ import annotations

from collections.abc import Sequence

from radvlm_edge.training.phantom import Finding

IN_LUNG = ("consolidation", "lung lesion", "atelectasis")
"""Findings whose place in the lung is said."""
SLOTS = (
    ("cardiomegaly",),
    ("consolidation", "lung lesion", "edema", "atelectasis"),
    ("pleural effusion", "pneumothorax"),
    ("fracture",),
    ("support devices",),
)
"""The order of a report: heart, lungs, pleura, bones, devices."""


def joined(parts: Sequence[str], last: str = " and ") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


def describe(name: str, found: Sequence[Finding] = (), graded: bool = False) -> str:
    """A finding as an answer names it: `a right pleural effusion`, `edema`; `graded` adds how bad it is.

    `found` are the places it was found in, all of this name; empty where only presence is known.
    """
    sides = {one.side for one in found if one.side}
    one = found[0] if len(found) == 1 else None
    grade = f"{one.severity} " if graded and one and one.severity else ""
    if name in ("cardiomegaly", "edema"):
        return grade + name
    if name == "support devices":
        return name
    if name == "fracture":
        side = f"{one.side} " if one and one.side else ""
        return _article(f"{grade}{side}rib fracture") if found else "a fracture"
    if name in ("pleural effusion", "pneumothorax", "lung opacity"):
        if len(sides) == 2:
            return "bilateral pleural effusions" if name == "pleural effusion" else f"bilateral {name}"
        return _article(grade + (f"{one.side} " if one else "") + name)
    if name not in IN_LUNG:
        return name
    if len(sides) == 2:
        return f"{_plural(name)} in both lungs"
    what = _article(f"{grade}{name}") if name == "lung lesion" else name
    if graded and one and one.kind:
        what = {"plate": "plate atelectasis", "collapse": "atelectasis with volume loss"}[one.kind]
    elif graded and one and name == "consolidation":
        what = grade + name
    if one is None:
        return what
    zone = f"{one.side} {one.site} lung zone" if one.site else f"{one.side} lung"
    return f"{what} in the {zone}"


def absent(name: str, side: str = "") -> str:
    """What is not there: `no right pleural effusion`, `no consolidation in the left lung`."""
    if not side:
        return f"no {name}"
    if name in IN_LUNG:
        return f"no {name} in the {side} lung"
    return f"no {side} rib fracture" if name == "fracture" else f"no {side} {name}"


def there(what: str) -> str:
    """`there is a right pleural effusion`, `there are bilateral pleural effusions`."""
    plural = what.startswith(("bilateral", "lung lesions", "support devices", "no support devices"))
    return f"there {'are' if plural else 'is'} {what}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def report_text(found: Sequence[Finding]) -> str:
    """A whole report: for heart, lungs, pleura, bones and devices what is there, then what is not."""
    sentences = []
    for slot in SLOTS:
        missing = []
        for name in slot:
            own = [one for one in found if one.name == name]
            if not own:
                missing.append(name)
            elif name == "support devices":
                sentences.append(f"Support devices: {joined([one.kind for one in own])}.")
            else:
                sentences.append(sentence(there(describe(name, own, graded=True))))
        if missing == ["cardiomegaly"]:
            sentences.append("The heart size is normal.")
        elif missing == list(slot) and len(slot) == 4:
            sentences.append("The lungs are clear.")
        elif missing:
            sentences.append(sentence(f"no {joined(missing, ' or ')}"))
    return " ".join(sentences)


def _article(what: str) -> str:
    return f"a {what}"


def _plural(name: str) -> str:
    return "lung lesions" if name == "lung lesion" else name
