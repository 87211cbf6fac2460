"""What comparisons of an export share: the figures they leave, and what did not agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = 1 << 28
"""Bytes of an artefact from which engines are held to mapped weights: repacked copies would fill memory."""


@dataclass
class Findings:
    """Figures for parity.json, and what did not agree."""

    figures: dict[str, Any] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    def require(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.mismatches.append(complaint)


def artefact_bytes(path: Path) -> int:
    """Size of an artefact, with the weights beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
