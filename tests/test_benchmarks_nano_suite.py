"""The suite is frozen, and a checkpoint and its bundle give it the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from radvlm_edge.benchmarks import nano_suite
from radvlm_edge.benchmarks.nano_run import Reply, figures_of, measure, replies
from radvlm_edge.benchmarks.nano_suite import FIRST_SEED, FROZEN, Item, SuiteError, compare, draw, freeze

FEW = 6


@pytest.fixture(scope="module")
def few() -> list[tuple[np.ndarray, list[Item]]]:
    return [draw(FIRST_SEED + index) for index in range(FEW)]


def test_the_frozen_file_is_of_these_films(few: list[tuple[np.ndarray, list[Item]]]) -> None:
    frozen = json.loads(FROZEN.read_text())
    assert frozen["first_seed"] == FIRST_SEED and frozen["films"] == nano_suite.FILMS
    for (pixels, _), mean in zip(few, frozen["mean_grey"], strict=False):
        assert abs(float(pixels.mean()) - mean) < nano_suite.ROUNDING
    questions = frozen["questions"]
    assert questions["yesno"] >= 2000 and questions["report"] == 500
    assert questions["region"] + questions["finding"] == 1000


def test_a_changed_suite_is_noticed() -> None:
    frozen = freeze(workers=1, films=3)
    assert compare(freeze(workers=1, films=3), frozen) == "identical"
    rounded = frozen | {"films_sha256": "0", "mean_grey": [m + 0.01 for m in frozen["mean_grey"]]}  # type: ignore[attr-defined]
    assert compare(rounded, frozen) == "equal up to rounding"
    redrawn = rounded | {"mean_grey": [m + 1.0 for m in frozen["mean_grey"]]}  # type: ignore[attr-defined]
    for changed in (redrawn, frozen | {"questions_sha256": "0"}, frozen | {"first_seed": 1}):
        with pytest.raises(SuiteError, match="--write"):
            compare(changed, frozen)


def test_every_digest_depends_on_what_it_covers(few: list[tuple[np.ndarray, list[Item]]]) -> None:
    import dataclasses

    items = few[0][1]
    first = nano_suite.digest_of(items)
    for change in ({"question": "?"}, {"truth": not items[0].truth}, {"about": "x"}, {"film": "1"}):
        assert nano_suite.digest_of([dataclasses.replace(items[0], **change), *items[1:]]) != first


def test_training_seeds_stay_out_of_the_suite() -> None:
    from radvlm_edge.training.evaluate import FIRST_HELD_OUT

    recipes = (Path(__file__).parents[1] / "recipes").glob("*.yaml")
    seeds = [int(line.split()[1]) for path in recipes for line in path.read_text().splitlines()
             if line.startswith("seed:")]  # fmt: skip
    assert seeds and all(seed + 10_000_000 < FIRST_SEED for seed in (*seeds, FIRST_HELD_OUT))


def test_right_answers_score_full_marks(few: list[tuple[np.ndarray, list[Item]]]) -> None:
    """The suite's own answers through the same parsers: nothing is lost on the way."""
    items = [item for _, own in few for item in own]
    perfect = [
        Reply(item, float(item.answer.startswith("Yes")), "" if item.task == "yesno" else item.answer)
        for item in items
    ]
    figures = figures_of(perfect)
    assert figures["yes_no"]["right"] == 1 and figures["yes_no"]["doubtful"] == 0
    assert figures["anatomy"]["map50"] == 1 and figures["anatomy"]["mean_iou"] > 0.9
    assert figures["abnormality"]["mean_iou"] > 0.5
    assert figures["reports"]["exact"] == 1
    silent = figures_of([Reply(item, 0.5, "") for item in items])
    assert silent["anatomy"]["map50"] == silent["abnormality"]["map50"] == 0
    assert silent["yes_no"]["doubtful"] == 1


@pytest.mark.torch
def test_a_checkpoint_and_its_bundle_answer_alike(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    from radvlm_edge.benchmarks.nano_answerers import open_answerer

    films = [
        (pixels[::3, ::3].copy(), items[:6]) for pixels, items in (draw(FIRST_SEED + k) for k in range(2))
    ]
    said = {}
    for folder in (tiny_checkpoint, tiny_bundle):
        precision = {"vision": "fp32", "language": "F16"} if folder == tiny_bundle else {}
        with open_answerer(folder, **precision) as answerer:  # type: ignore[arg-type]
            for base_only in (False, True):
                said[folder, base_only] = replies(answerer, films, base_only=base_only, tasks={"yesno"})
            figures = measure(answerer, 1, tasks={"yesno"})
            assert figures["yes_no"]["questions"] == 5 and figures["anatomy"]["questions"] == 0
    for base_only in (False, True):
        ours, theirs = (
            [one.probability for one in said[folder, base_only]] for folder in (tiny_bundle, tiny_checkpoint)
        )
        assert np.allclose(ours, theirs, atol=0.01)
    plain, squashed = (
        [one.probability for one in said[tiny_checkpoint, base_only]] for base_only in (False, True)
    )
    assert not np.allclose(plain, squashed, atol=1e-6)  # the tiles were really changed


@pytest.mark.realdata
def test_real_films_are_asked_only_what_is_known_of_them() -> None:
    import os

    from radvlm_edge.training.films import load_real

    folder = Path(os.environ["RADVLM_EDGE_DATA"])
    val = load_real(folder, "val")
    known = {film.name: film for film in val.films}
    items = nano_suite.real_items(val)
    assert len(items) > 3 * len(val.films)
    for item in items:
        film = known[item.film]
        assert film.known(item.about) and item.truth == (item.about in film.present)
    drawn = [film for split in ("train", "val") for film in load_real(folder, split).films if film.drawn]
    assert sum(len(film.drawn) for film in drawn) == 39
