"""Reports about phantoms → phrases.txt, which the runtime guesses an answer's next tokens from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from radvlm_edge.bundle import PHRASES
from radvlm_edge.training.instructions import Labels, classify, report

REPORTS = 240


def write_phrases(labels: Sequence[Labels], seed: int, folder: Path) -> Path:
    """Write answers of the kind training gives, one a line: synthetic text, free of anyone's data."""
    rng = np.random.default_rng([seed, 9])
    lines = [report(rng, one).answer for one in labels[:REPORTS]]
    lines += [classify(rng, one).answer for one in labels[: REPORTS // 2]]
    path = folder / Path(PHRASES).name
    path.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)), encoding="utf-8")
    return path
