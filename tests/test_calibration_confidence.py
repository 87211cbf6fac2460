"""A temperature against another implementation and known cases; what a bundle then says of its answers."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from radvlm_edge.benchmarks.confidence import FIRST_SEED, labelled_phantoms
from radvlm_edge.benchmarks.nano_suite import FIRST_SEED as SUITE_SEED
from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.calibration import temperature as fitting
from radvlm_edge.calibration.confidence import Asked, calibrate, write
from radvlm_edge.calibration.labelled import read_labelled
from radvlm_edge.cli import cli
from radvlm_edge.errors import RecipeError
from radvlm_edge.reseal import reseal
from radvlm_edge.runtime.confidence import UNCALIBRATED, Confidence, Temperature, of_answer, of_choice
from radvlm_edge.runtime.reader import Options, Reader

ROOT = Path(__file__).parents[1]
QUESTIONS = ("Is there pleural effusion?", "Is there pneumothorax?", "Is there cardiomegaly?")


def drawn(seed: int, sharpness: float, count: int = 4000) -> tuple[Any, Any, Any]:
    """Margins `sharpness` times too large, truths drawn from the right probabilities, 4 questions a film."""
    rng = np.random.default_rng(seed)
    real = rng.normal(0, 2, count)
    truths = rng.random(count) < 1 / (1 + np.exp(-real))
    return real * sharpness, truths, np.arange(count) // 4


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_found_and_mends_the_error(sharpness: float) -> None:
    margins, truths, groups = drawn(0, sharpness)
    found = fitting.fit_temperature(margins, truths)
    assert found == pytest.approx(sharpness, rel=0.08)
    margins, truths, groups = drawn(1, sharpness)
    figures: Any = fitting.compare(margins, truths, groups, found)
    assert figures["after"]["ece"] < 0.03
    if sharpness != 1.0:
        low, high = figures["ece_change_interval_95"]
        assert high < 0 and figures["after"]["nll"] < figures["before"]["nll"]
    for one in (figures["before"], figures["after"]):
        low, high = one["interval_95"]
        assert low <= one["ece"] * 1.5 + 0.02 and low < high


@pytest.mark.torch
@settings(deadline=None, max_examples=10)
@example(49, 0.87109375)
@given(st.integers(0, 1000), st.floats(0.3, 4))
def test_the_fit_is_torchs(seed: int, sharpness: float) -> None:
    """Against LBFGS on binary_cross_entropy_with_logits, as in the paper's own code."""
    torch = pytest.importorskip("torch")
    margins, truths, _ = drawn(seed, sharpness, 200)
    logits, wanted = torch.from_numpy(margins), torch.from_numpy(truths).double()
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = lambda: torch.nn.functional.binary_cross_entropy_with_logits(logits / log_t.exp(), wanted)  # noqa: E731
    # with its usual tolerance of change it stops short of the minimum at times, where ours does not
    optimiser = torch.optim.LBFGS(
        [log_t], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0
    )

    def closure() -> Any:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    found = fitting.fit_temperature(margins, truths)
    assert found == pytest.approx(float(log_t.detach().exp()), rel=1e-4)
    expected = float(loss().detach())
    assert fitting.negative_log_likelihood(margins, truths, found) == pytest.approx(expected, rel=1e-9)


def test_the_error_is_the_papers_sum_over_bins() -> None:
    margins = np.array([math.log(9), math.log(9), -math.log(4), 0.0])  # sure of 0.9, 0.9, 0.8, 0.5
    truths = np.array([True, False, False, True])
    one = fitting.binned(margins, truths, np.array([0, 0, 1, 1]), 1.0)
    assert one.count.sum() == 4 and one.right.sum() == 3
    expected = 2 / 4 * abs(0.9 - 0.5) + 1 / 4 * abs(0.8 - 1) + 1 / 4 * abs(0.5 - 1)
    assert one.error()[0] == pytest.approx(expected)
    assert one.error(np.array([[2.0, 0.0]]))[0] == pytest.approx(0.4)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(0.05, 20))
def test_confidence_stays_a_probability(margins: list[float], temperature: float) -> None:
    values = fitting.confidences(np.array(margins), temperature)
    assert ((values >= 0.5) & (values <= 1)).all()
    softened = [Temperature(temperature, "x", "exact").soften(abs(margin)) for margin in margins]
    assert softened == pytest.approx(values.tolist())


def asked(films: int, sharpness: float = 3.0) -> list[Asked]:
    margins, truths, groups = drawn(3, sharpness, 4 * films)
    return [Asked(f"{g}", m, bool(t), 1.0) for m, t, g in zip(margins, truths, groups, strict=True)]


def test_halves_share_no_film_and_the_fit_never_sees_the_second() -> None:
    whole = asked(200)
    figures = calibrate(whole, "a test")
    assert (figures["fitted"]["groups"], figures["held_out"]["groups"]) == (100, 100)
    assert figures["fitted"]["questions"] + figures["held_out"]["questions"] == 800
    order = np.random.default_rng(0).permutation(200)
    held = {sorted({one.group for one in whole})[index] for index in order[100:]}
    turned = [dataclasses.replace(one, truth=not one.truth) if one.group in held else one for one in whole]
    again = calibrate(turned, "a test")
    assert again["temperature"] == figures["temperature"] and not figures["at_limit"]
    assert again["held_out"]["accuracy"] == pytest.approx(1 - figures["held_out"]["accuracy"])
    against = [dataclasses.replace(one, margin=-one.margin) for one in whole]
    assert calibrate(against, "wrong throughout")["at_limit"]


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (asked(3), "at least 4"),
        ([dataclasses.replace(one, truth=True) for one in asked(9)], "one and the same"),
    ],
)
def test_too_little_is_refused(part: list[Asked], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        calibrate(part, "too little")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("film,question\na.png,why?\n", "no column answer"),
        ("film,question,answer\na.png,why?,perhaps\n", "line 2: the answer 'perhaps'"),
        ("film,question,answer\nb.png,why?,yes\n", "line 2: 'b.png' is no file"),
        ("film,question,answer\na.png,,yes\n", "line 2: no question"),
        ("film,question,answer,patient\na.png,a?,No,1\na.png,b?,yes,2\n", "line 3: a.png belongs to '1'"),
        (None, "found none"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_line(tmp_path: Path, rows: str | None, complaint: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    if rows is not None:
        (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(RecipeError, match=complaint) as error:
        read_labelled(tmp_path)
    assert "\n" not in str(error.value)


def labelled_folder(folder: Path, films: int) -> Path:
    """Films of noise, answers as random as they are, one patient with two films."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["film,question,answer,patient"]
    for index in range(films):
        Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(folder / f"{index}.png")
        patient = "both" if index < 2 else ""
        lines += [
            f"{index}.png,{text},{'Yes' if n % 2 else 'no.'},{patient}" for n, text in enumerate(QUESTIONS)
        ]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_is_read_film_by_film_and_patients_stay_together(tmp_path: Path) -> None:
    films = read_labelled(labelled_folder(tmp_path / "f", 3))
    assert [film.group for film in films] == ["both", "both", "2.png"]
    assert films[0].questions == tuple(zip(QUESTIONS, (False, True, False), strict=True))


def test_a_bundle_calibrated_says_so_and_no_other_does(tmp_path: Path) -> None:
    for name in ("b", "plain"):  # the demonstration bundle without its own calibration
        shutil.copytree(demo_bundle(), tmp_path / name)
        held = Bundle.open(tmp_path / name)
        reseal(held, dataclasses.replace(held.manifest, confidence=None), {"confidence.json": b"{}"})
    folder = labelled_folder(tmp_path / "f", 6)
    command = [
        "fidelity",
        str(tmp_path / "b"),
        "--calibrate-confidence",
        str(folder),
        "--threads",
        "1",
        "--json",
    ]
    run = CliRunner().invoke(cli, [*command, "--calibration-name", "noise"])
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)
    assert figures["fitted"]["questions"] + figures["held_out"]["questions"] == 18
    assert figures["fitted"]["groups"] + figures["held_out"]["groups"] == 5
    bundle = Bundle.open(tmp_path / "b")
    bundle.verify()
    stored = json.loads((bundle.folder / "confidence.json").read_text())["combinations"]
    assert stored == {"fp16+Q8_0": {**figures, "detail": "exact"}}
    assert "noise" in (tmp_path / "b" / "bundle.json").read_text()
    film = ROOT / "examples" / "chest.dcm"
    seen = {}
    for name, where in (("before", tmp_path / "plain"), ("after", bundle.folder)):
        with Reader.open(where, Options(threads=1)) as reader:
            study = reader.look(film)
            choice, answers = (
                study.choose(QUESTIONS[0]),
                [study.ask(QUESTIONS[0]), *study.ask_many(QUESTIONS[:2])],
            )
            seen[name] = choice, answers, study.task("report").confidence, reader.look(film, detail=144)
            less = seen[name][3].choose(QUESTIONS[0])
            assert less.confidence.calibrated_on == UNCALIBRATED, "calibrated at another detail"
    before, after = seen["before"], seen["after"]
    assert before[0].probabilities == after[0].probabilities and before[0].calibrated is None
    margin = abs(math.log(after[0].probabilities["Yes"]) - math.log(after[0].probabilities["No"]))
    expected = 1 / (1 + math.exp(-margin / figures["temperature"]))
    assert after[0].confidence == Confidence(pytest.approx(expected), "noise")  # type: ignore[arg-type]
    assert after[0].calibrated[after[0].text] == pytest.approx(expected)
    assert sum(after[0].calibrated.values()) == pytest.approx(1)
    for alone, asked_before in zip(after[1], before[1], strict=True):
        assert (
            alone.confidence.calibrated_on == "noise"
            and asked_before.confidence.calibrated_on == UNCALIBRATED
        )
    assert after[1][0].confidence.value == pytest.approx(expected, rel=1e-3)
    assert after[1][1].confidence.value == pytest.approx(expected, rel=1e-2), "asked together"
    assert after[2] == before[2] and after[2].calibrated_on == UNCALIBRATED, "a report is no yes or no"


def test_every_combination_keeps_its_own(tmp_path: Path) -> None:
    shutil.copytree(demo_bundle(), tmp_path / "b")
    figures = calibrate(asked(8), "first")
    bundle = write(Bundle.open(tmp_path / "b"), "fp16+F16", "exact", figures)
    bundle = write(bundle, "fp16+Q8_0", "exact", {**figures, "calibrated_on": "second"})
    assert bundle.manifest.confidence is not None
    assert {name: one["calibrated_on"] for name, one in bundle.manifest.confidence.items()} == {
        "fp16+F16": "first",
        "fp16+Q8_0": "second",
    }
    bundle.verify()
    with Reader.open(bundle.folder, Options(language="Q4_K_M", threads=1)) as reader:
        assert reader.temperature is None


def test_other_choices_and_other_answers_are_uncalibrated() -> None:
    held = Temperature(2.0, "x", "exact")
    assert of_choice({"Left": 0.8, "Right": 0.2}, held) == (Confidence(0.8, UNCALIBRATED), None)
    assert of_choice({"No": 0.8, "Yes": 0.2}, held)[0].value == pytest.approx(2 / 3)
    assert of_answer([math.log(0.5), math.log(0.25)], None, held).value == pytest.approx(math.sqrt(0.125))
    assert of_answer([-1.0], 2.0, None).calibrated_on == UNCALIBRATED


def test_phantoms_asked_are_not_the_suites() -> None:
    (film,) = labelled_phantoms(1)
    assert len(film.questions) == 5 and FIRST_SEED + 1_000_000 < SUITE_SEED
