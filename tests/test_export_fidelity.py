"""Figures against known values and other implementations, and a bundle that is worse found to be worse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_export_lora import CONFIG, make_adapter
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import LIMITS, Bundle
from radvlm_edge.calibration.imatrix import collect
from radvlm_edge.cli import cli
from radvlm_edge.errors import BundleError, ParityError
from radvlm_edge.export import fidelity, fidelity_score, probe_films
from radvlm_edge.export import fidelity_metrics as metrics
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.fidelity_page import render_page
from radvlm_edge.export.fidelity_prompts import QUESTIONS
from radvlm_edge.export.fidelity_reference import answer_by_drafts
from radvlm_edge.export.fidelity_score import Score, beyond
from radvlm_edge.export.reference import build_reference, language_logits
from radvlm_edge.export.shared_prefix import Sequences
from radvlm_edge.runtime.reader import Options, Reader

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1.0)],
)
def test_wilson_is_the_published_interval(hits: int, count: int, low: float, high: float) -> None:
    """81 of 263: Newcombe, Statistics in Medicine 17 (1998) 857, method 3."""
    assert metrics.wilson(hits, count) == pytest.approx((low, high), abs=6e-5)


def test_nothing_counted_says_nothing() -> None:
    assert metrics.wilson(0, 0) == (0.0, 1.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_divergence_is_torchs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (3 * rng.standard_normal((4, 50)).astype(np.float32) for _ in range(2))
    a, b = (torch.from_numpy(x).double().log_softmax(-1) for x in (p, q))
    expected = torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum(-1).numpy()
    np.testing.assert_allclose(metrics.divergence(p, q), expected, rtol=1e-9)
    assert metrics.divergence(p, p).max() == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes, there is.", True), ("no.", False), (" NO evidence", False), ("Nodule", None), ("", None)],
)
def test_decisions(answer: str, expected: bool | None) -> None:
    assert metrics.decision(answer) is expected


def test_overlap_of_boxes() -> None:
    one, half = "at [0.0, 0.0, 0.5, 1.0]", "[0.0, 0.0, 0.5, 0.5]"
    assert metrics.box_overlap(one, one) == [1.0]
    assert metrics.box_overlap(one, half) == [0.5]
    assert metrics.box_overlap(one, "none") == [0.0] == metrics.box_overlap("none", one)
    assert metrics.box_overlap(one, f"{one} and {half}") == [1.0, 0.0]
    assert metrics.box_overlap("none", "none") == []


def test_score_counts_what_changed() -> None:
    score = Score()
    score.add_answer("Yes, a left pneumothorax.", "No, there is no left pneumothorax.", yes_no=True)
    score.add_answer("Yes.", "Perhaps.", yes_no=True)
    score.add_answer("No.", "No.", yes_no=True)
    score.add_answer("Left lung.", "Right lung.", yes_no=True)  # the checkpoint decided nothing
    score.add_answer("No effusion.", "No effusion.", yes_no=False)
    figures = score.figures()
    assert figures["yes_no"]["decided"] == 3 and figures["yes_no"]["flips"] == 2
    assert figures["yes_no"]["undecided"] == 1
    assert figures["labels"]["identical"] == 4 / 5 and figures["answers"]["identical"] == 2 / 5
    assert (figures["laterality_changes"], figures["negation_changes"]) == (1, 1)
    assert "2 of 3 yes/no answers turn round (66.7%, limit 1.0%)" in beyond(figures, LIMITS)[0]
    assert figures["boxes"]["mean_iou"] is None and figures["next_token"]["kld_mean"] is None


def test_limits_hold_at_the_limit_and_not_beyond() -> None:
    score = Score(decided=100, flips=1, overlaps=[0.98])
    assert beyond(score.figures(), {"flip_rate": 0.01, "box_iou_loss": 0.021}) == []
    assert len(beyond(Score(decided=99, flips=1, overlaps=[0.97]).figures(), LIMITS)) == 2


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("most_passes", [12, 1])
def test_drafted_answers_are_the_greedy_ones(checkpoint: Checkpoint, most_passes: int) -> None:
    """Against transformers, one token at a time, from drafts of which three in four tokens are wrong."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((9, checkpoint.config.language.hidden)).astype(np.float32)
    films = [Sequences([1, 2], image, [[5, 6, 7], [9]]), Sequences([3], image[:4], [[8, 8]])]
    model = build_reference(checkpoint)
    used = np.arange(checkpoint.config.language.vocab) < 300

    def greedy(film: Sequences, tail: list[int]) -> list[int]:
        answer: list[int] = []
        while len(answer) < 8 and not (answer and answer[-1] in checkpoint.prompting.stop_ids):
            logits = language_logits(model, film.head, film.image, tail + answer)[-1]
            answer.append(int(np.where(used, logits, -np.inf).argmax()))
        return answer

    expected = [[greedy(film, tail) for tail in film.tails] for film in films]

    def draft(film: int, begun: list[tuple[int, list[int]]]) -> list[list[int]]:
        whole = []
        for number, answer in begun:
            right = expected[film][number]
            rest = [t if i % 4 == 0 else (t + 1) % 300 for i, t in enumerate(right)][len(answer) :]
            whole.append(answer + rest)
        return whole

    found = answer_by_drafts(
        checkpoint,
        films,
        draft,
        max_tokens=8,
        most_passes=most_passes,
        used=used,
        progress=lambda line: None,
    )
    if most_passes == 1:
        assert not any(one for film in found.settled for one in film)
        return
    assert found.tokens == expected and all(one for film in found.settled for one in film)
    for film, states in zip(found.tokens, found.hidden, strict=True):
        assert [len(s) for s in states] == [len(a) for a in film]


@pytest.fixture(scope="module")
def copy(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fidelity") / "b"
    shutil.copytree(tiny_bundle, folder)
    return folder


@pytest.fixture(scope="module")
def figures(checkpoint: Checkpoint, copy: Path) -> dict[str, Any]:
    films = probe_films.phantoms(1, 7, checkpoint.config.geometry)
    return fidelity.measure(Bundle.open(copy), checkpoint, films, threads=1)


def test_every_combination_is_measured_and_the_exact_one_is_exact(figures: dict[str, Any]) -> None:
    assert set(figures["combinations"]) == {
        f"{v}+{lm}" for v in ("fp32", "fp16") for lm in ("F16", "Q8_0", "Q4_K_M")
    }
    exact, eight, four = (
        figures["combinations"][f"fp32+{name}"]["next_token"] for name in ("F16", "Q8_0", "Q4_K_M")
    )
    assert exact["kld_mean"] < 1e-6 and exact["top1"] > 0.99
    assert exact["kld_mean"] < eight["kld_mean"] < four["kld_mean"]
    assert exact["tokens"] == four["tokens"] > len(QUESTIONS)
    assert figures["vision"]["fp32"]["cosine_min"] > 0.999999
    assert figures["vision"]["fp16"]["cosine_min"] < figures["vision"]["fp32"]["cosine_min"]
    assert figures["asked"]["unsettled"] == 0


def test_another_checkpoint_is_refused(copy: Path, tmp_path: Path) -> None:
    other = open_checkpoint(make_checkpoint(tmp_path / "c", seed=8))
    films = probe_films.phantoms(1, 7, other.config.geometry)
    with pytest.raises(ParityError, match="was not made from"):
        fidelity.measure(Bundle.open(copy), other, films)


def test_the_training_layout_with_an_adapter_and_no_padding(tmp_path: Path) -> None:
    """The folder holds no tokenizer.json; what the export was told, fidelity must be told."""
    spelling = "LLaVA-NeXT training"
    folder, adapter = make_checkpoint(tmp_path / "c", spelling=spelling), tmp_path / "l"
    make_adapter(adapter, folder, spelling, CONFIG)
    (folder / "tokenizer.json").unlink()
    films = probe_films.phantoms(1, 7, open_checkpoint(folder).config.geometry)
    bundle = export_checkpoint(
        folder,
        tmp_path / "b",
        vision=("fp32",),
        language=("F16", "Q4_K_M"),
        parity="none",
        lora=adapter,
        trim_vocab=True,
        imatrix=lambda checkpoint: collect(checkpoint, films),
    )
    with pytest.raises(ParityError, match="was not made from.*--lora"):
        fidelity.measure(bundle, open_checkpoint(folder, trim_vocab=True), films)
    with pytest.raises(ParityError, match="has 300 rows of vocabulary, not 320; give --trim-vocab"):
        fidelity.measure(bundle, open_checkpoint(folder, lora=adapter), films)
    said = ["--lora", str(adapter), "--trim-vocab", "--phantoms", "1", "--threads", "1", "--json"]
    result = CliRunner().invoke(cli, ["fidelity", str(bundle.folder), "--against", str(folder), *said])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["combinations"]
    assert set(found) == {"fp32+F16", "fp32+Q4_K_M"}
    exact = found["fp32+F16"]["next_token"]
    assert exact["kld_mean"] < 1e-6 and exact["top1"] > 0.99
    Bundle.open(bundle.folder).verify()


def bad(figures: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same figures with some combinations flipping every other answer, the others none."""
    combinations = {
        name: {**one, "yes_no": Score(decided=10, flips=5 if name in names else 0).figures()["yes_no"]}
        for name, one in figures["combinations"].items()
    }
    return {**figures, "combinations": combinations}


def test_beyond_its_limits_a_combination_is_refused_and_remembered(
    copy: Path, figures: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(copy, tmp_path / "b")
    bundle = fidelity.write(Bundle.open(tmp_path / "b"), bad(figures, "fp32+Q4_K_M"), LIMITS)
    bundle.verify()
    with pytest.raises(BundleError, match=r"5 of 10 yes/no .* choose another \(.*fp32\+F16.*--force"):
        Reader.open(bundle.folder, Options(vision="fp32", language="Q4_K_M"))
    with Reader.open(bundle.folder, Options(vision="fp32", language="F16")) as reader:
        assert reader.fidelity == "within the bundle's limits"
    with Reader.open(bundle.folder, Options(vision="fp32", language="Q4_K_M", force=True)) as reader:
        assert "used by force: 5 of 10" in reader.fidelity
    again = fidelity.write(bundle, bad(figures), LIMITS)
    assert again.manifest.fidelity is not None
    assert again.manifest.fidelity["beyond"]["fp32+Q4_K_M"] == []
    assert again.manifest.fidelity["ever_beyond"] == ["fp32+Q4_K_M"]
    limits = {"flip_rate": 0.6, "box_iou_loss": 1.0}
    looser = fidelity.write(again, bad(figures, "fp32+F16"), limits)
    assert looser.manifest.limits == limits and looser.manifest.fidelity is not None
    assert not any(looser.manifest.fidelity["beyond"].values())


def test_what_was_not_compared_is_not_called_within(
    copy: Path, figures: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(copy, tmp_path / "b")
    nothing = {
        **figures,
        "combinations": {"fp32+F16": Score(divergences=[0.0], same_choice=1, answers=1).figures()},
    }
    bundle = fidelity.write(Bundle.open(tmp_path / "b"), nothing, LIMITS)
    assert bundle.manifest.fidelity == {"beyond": {}, "ever_beyond": []}
    with Reader.open(bundle.folder, Options(vision="fp32", language="F16")) as reader:
        assert reader.fidelity == "not measured"


def test_only_aggregates_are_stored(
    checkpoint: Checkpoint, copy: Path, figures: dict[str, Any], tmp_path: Path
) -> None:
    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list) else [value]

    texts = [leaf for leaf in leaves(figures) if isinstance(leaf, str)]
    assert sorted(texts) == sorted(["phantoms", checkpoint.sha256()])


class Page(HTMLParser):
    """Tags balanced, nothing fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "link", "iframe") and not {"src", "href"} & dict(attrs).keys()
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_self_contained(figures: dict[str, Any]) -> None:
    stored = {**bad(figures, "fp16+Q4_K_M"), "limits": LIMITS}
    verdicts = {name: beyond(one, LIMITS) for name, one in stored["combinations"].items()}
    del verdicts["fp32+Q8_0"]
    html = render_page("a <b> & c", "0" * 64, stored, verdicts)
    page = Page()
    page.feed(html)
    assert page.open == [] and "://" not in html and "url(" not in html
    for expected in (
        "a <b> & c",
        "5/10 (23.7% to 76.3%)",
        "not judged",
        "beyond its limits",
        "not for diagnosis",
    ):
        assert expected in page.text


def test_score_is_a_dataclass_of_counts() -> None:
    assert replace(fidelity_score.Score(), flips=2).flips == 2
    assert json.dumps(Score().figures())
