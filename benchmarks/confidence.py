"""A temperature for the demonstration model's yes/no confidence, from drawn films, sealed into its bundle.

    python -m radvlm_edge.benchmarks.confidence BUNDLE [--films 300] [--dry-run]

The films are phantoms of seeds of their own: none of the frozen suite's, training's or any calibration's.
Half of them is fitted on, the other half measured on. Figures go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from radvlm_edge.benchmarks.nano_suite import draw
from radvlm_edge.calibration.confidence import ask, calibrate, line, write
from radvlm_edge.calibration.labelled import Labelled
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.limits import combination
from radvlm_edge.runtime.reader import Options, Reader

FIRST_SEED = 60_000_000
FILMS = 300


def labelled_phantoms(count: int, first_seed: int = FIRST_SEED) -> Iterator[Labelled]:
    """Drawn films with five yes/no questions each, in the suite's wordings, half of the answers yes."""
    for seed in range(first_seed, first_seed + count):
        pixels, items = draw(seed)
        questions = tuple(
            (item.question, item.answer.startswith("Yes")) for item in items if item.task == "yesno"
        )
        yield Labelled(str(seed), Film(pixels, str(seed), "voi", provenance={}), questions)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--vision", help="precision of the vision artefact")
    parser.add_argument("--language", help="precision of the language artefact")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dry-run", action="store_true", help="leave the bundle as it is")
    given = parser.parse_args()
    name = f"{given.films} drawn films, seeds {FIRST_SEED} to {FIRST_SEED + given.films - 1}"
    options = Options(vision=given.vision, language=given.language, threads=given.threads)
    with Reader.open(given.bundle, options) as reader:
        used = combination(reader.vision_artefact.precision, reader.language_artefact.precision)
        asked = ask(reader, labelled_phantoms(given.films), _say)
        figures = calibrate(asked, name)
        if not given.dry_run:
            write(reader.bundle, used, "exact", figures)
    json.dump({used: figures}, sys.stdout, indent=1)
    sys.stdout.write("\n")
    _say(f"{used}: {line(figures)}")


if __name__ == "__main__":
    main()
