"""The frozen test questions that every claim about nano is measured with.

Phantoms of seeds no training uses are drawn anew wherever the suite runs; a committed file holds
the digests of questions, answers and films, so that a figure always belongs to the same questions.

    python -m radvlm_edge.benchmarks.nano_suite          # draw all of it and compare with the file
    python -m radvlm_edge.benchmarks.nano_suite --write  # freeze anew (a change of the task)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import RadvlmError
from radvlm_edge.training.curriculum import ask_about_findings
from radvlm_edge.training.films import RealSet
from radvlm_edge.training.instructions import Labels, labels_of, locate_finding, locate_region, report, yes_no
from radvlm_edge.training.nih_labels import PICK
from radvlm_edge.training.phantom import Box, Phantom, make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS

FIRST_SEED = 900_000_000
"""Seeds of the suite's phantoms; training stays far below."""
FILMS = 500
YES_NO = 5
"""Yes/no questions a film."""
FROZEN = Path(__file__).with_name("nano_suite.json")
ROUNDING = 0.25
"""Grey levels by which a film's mean may differ between machines (the last bit of exp and sin)."""


class SuiteError(RadvlmError):
    """The suite drawn here is not the frozen one."""


@dataclass(frozen=True)
class Item:
    """One question of the suite."""

    film: str
    """Seed of a phantom, or name of a real film."""
    task: str
    """`yesno`, `region`, `finding` or `report`."""
    question: str
    answer: str
    """The right one."""
    about: str
    """Finding (without side) or region; empty for a report."""
    truth: bool
    """Of a yes/no question: whether the finding is there."""
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    """Of a report: what the film shows."""


def items_of(seed: int, labels: Labels) -> list[Item]:
    """The questions about one phantom: five yes/no, two about boxes, one report."""
    rng = np.random.default_rng([seed, 77])
    film, items = str(seed), []
    for one in ask_about_findings(rng, labels, YES_NO):
        name = next(name for name in FINDINGS if one.about.endswith(name))
        items.append(Item(film, "yesno", one.question, one.answer, name, one.truth))
    regions, names = labels.regions or {}, sorted(labels.present)
    asked = [list(regions)[int(rng.integers(len(regions)))] for _ in range(1 if names else 2)]
    for name in asked:
        one = locate_region(rng, labels, name)
        items.append(Item(film, "region", one.question, one.answer, name, True, (regions[name],)))
    if names:
        name = names[int(rng.integers(len(names)))]
        one = locate_finding(rng, labels, name)
        items.append(Item(film, "finding", one.question, one.answer, name, True, tuple(labels.boxes(name))))
    one = report(rng, labels)
    items.append(Item(film, "report", one.question, one.answer, "", True, (), tuple(names)))
    return items


def draw(seed: int) -> tuple[npt.NDArray[np.uint8], list[Item]]:
    """A phantom's pixels `[H, W]` and its questions."""
    phantom: Phantom = make_phantom(seed)
    return phantom.pixels, items_of(seed, labels_of(phantom))


def phantoms(films: int = FILMS) -> Iterator[tuple[npt.NDArray[np.uint8], list[Item]]]:
    """The suite's first `films` phantoms, one by one."""
    return (draw(FIRST_SEED + index) for index in range(films))


def real_items(films: RealSet) -> list[Item]:
    """Yes/no questions about real films, one for every label that is known for the film."""
    rng = np.random.default_rng(78)
    items = []
    for film in films.films:
        for name in PICK:
            if film.known(name):
                one = yes_no(rng, film.labels, name)
                items.append(Item(film.name, "yesno", one.question, one.answer, name, one.truth))
    return items


def digest_of(items: list[Item]) -> str:
    """sha256 of questions and answers as JSON lines, coordinates left out: they go with the films."""
    sha = hashlib.sha256()
    for item in items:
        line = asdict(item) | {"boxes": len(item.boxes), "answer": re.sub(r"\[[^\]]*\]", "[]", item.answer)}
        sha.update((json.dumps(line, sort_keys=True) + "\n").encode())
    return sha.hexdigest()


def _summary(seed: int) -> tuple[str, float, list[Item]]:
    pixels, items = draw(seed)
    boxes = [[round(value, 4) for value in box] for item in items for box in item.boxes]
    content = f"{pixels.shape} {boxes}".encode() + pixels.tobytes()
    return hashlib.sha256(content).hexdigest(), round(float(pixels.mean()), 2), items


def freeze(workers: int, films: int = FILMS) -> dict[str, object]:
    """Draw the suite and say what it is."""
    seeds = range(FIRST_SEED, FIRST_SEED + films)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            drawn = list(pool.map(_summary, seeds, chunksize=8))
    else:
        drawn = [_summary(seed) for seed in seeds]
    items = [item for _, _, own in drawn for item in own]
    return {
        "first_seed": FIRST_SEED,
        "films": films,
        "questions": {
            task: sum(item.task == task for item in items)
            for task in ("yesno", "region", "finding", "report")
        },
        "questions_sha256": digest_of(items),
        "films_sha256": hashlib.sha256("".join(sha for sha, _, _ in drawn).encode()).hexdigest(),
        "mean_grey": [mean for _, mean, _ in drawn],
    }


def compare(found: dict[str, object], frozen: dict[str, object]) -> str:
    """`identical`, or `equal up to rounding` where another processor rounds pixels otherwise.

    Raises SuiteError where questions, answers or films are others.
    """
    for key in ("first_seed", "films", "questions", "questions_sha256"):
        if found[key] != frozen[key]:
            raise SuiteError(
                f"nano suite: {key} is {found[key]}, the frozen one is {frozen[key]}; phantoms or wordings "
                "have changed: figures cannot be compared; freeze anew with --write and measure again"
            )
    if found["films_sha256"] == frozen["films_sha256"]:
        return "identical"
    apart = float(np.abs(np.array(found["mean_grey"]) - np.array(frozen["mean_grey"])).max())
    if apart > ROUNDING:
        raise SuiteError(
            f"nano suite: a film's mean grey is {apart:.2f} levels from the frozen one, over {ROUNDING}: "
            "the phantoms have changed; freeze anew with --write and measure again"
        )
    return "equal up to rounding"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the frozen questions and compare or write them.")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = freeze(options.workers)
    if options.write:
        FROZEN.write_text(json.dumps(found) + "\n")
        sys.stdout.write(f"{FROZEN}: written\n")
        return
    try:
        verdict = compare(found, json.loads(FROZEN.read_text()))
    except SuiteError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{verdict}: {json.dumps(found['questions'])}, sha256 {found['questions_sha256']}\n")


if __name__ == "__main__":
    main()
