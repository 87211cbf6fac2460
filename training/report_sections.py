"""A report → the part an answer is made of: findings, else impression, else the last paragraph."""

from __future__ import annotations

import re
from collections.abc import Mapping

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /()&,-]{2,60}?)[ \t]*:", re.MULTILINE)
_FINDINGS = ("FINDINGS", "FINDING", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "REPORT")
_IMPRESSIONS = ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "SUMMARY")
_ASIDE = re.compile(
    r"^\s*(?:FINAL REPORT|WET READ|_+|"
    r"(?:CLINICAL )?(?:INDICATION|HISTORY|INFORMATION)|COMPARISONS?|TECHNIQUE|EXAM|REASON|CHEST|STUDY)"
)
"""How a paragraph begins that describes no film."""
_SPACE = re.compile(r"\s+")
_EMPTY = ("", "nan", "none", "n/a")


def squeeze(text: str) -> str:
    """One line, single spaces."""
    return _SPACE.sub(" ", text).strip()


def of_sections(row: Mapping[str, str]) -> str:
    """Findings, else impression, else the last paragraph of a sectioned row: RadVLM's order."""
    for name in ("findings", "impression", "last_paragraph"):
        text = squeeze(row.get(name, ""))
        if text.lower() not in _EMPTY:
            return text
    return ""


def sections(text: str) -> dict[str, str]:
    """Heading in capitals → the text below it; what precedes the first heading is under `""`."""
    found: dict[str, str] = {}
    name, start = "", 0
    for match in _HEADING.finditer(text):
        found[name] = f"{found.get(name, '')} {text[start : match.start()]}".strip()
        name, start = squeeze(match[1]), match.end()
    found[name] = f"{found.get(name, '')} {text[start:]}".strip()
    return found


def section_report(text: str) -> str:
    """The usable part of a whole report, chosen as `of_sections` does."""
    found = sections(text)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip() and not _ASIDE.match(part)]
    chosen = {
        "findings": next((found[name] for name in _FINDINGS if found.get(name)), ""),
        "impression": next((found[name] for name in _IMPRESSIONS if found.get(name)), ""),
        "last_paragraph": _HEADING.sub("", paragraphs[-1]) if paragraphs else "",
    }
    return of_sections(chosen)
