"""Choosing among given answers: the probabilities are the model's own, and say so when they mean little."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radvlm_edge.errors import QuestionError
from radvlm_edge.runtime import llama, prompts
from radvlm_edge.runtime.choices import choice_tokens, choose
from radvlm_edge.runtime.confidence import UNCALIBRATED, Confidence
from radvlm_edge.runtime.reader import Options, Reader, Study

ROOT = Path(__file__).parents[1]
CLI = Path(sys.executable).with_name("radvlm-edge")
QUESTION = "Is there pleural effusion?"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=32, threads=1)) as reader:
        yield reader


@pytest.fixture(scope="module")
def study(reader: Reader) -> Study:
    return reader.look(ROOT / "examples" / "chest.dcm")


def one_by_one(study: Study, question: str, choice: str) -> float:
    """Log probability of a choice, its tokens run one after another: no branches, no batch of several."""
    study.ask(question, max_tokens=1).finish()
    language = study.reader._language
    _, text = prompts.render([prompts.Turn(question)], study.reader.bundle.manifest.prompting)
    tail, total = language.tokenize(text), 0.0
    for token in language.tokenize(choice, special=False):
        language.prefill(tail)
        logits = language.logits().astype(np.float64)
        total += float(logits[token] - np.logaddexp.reduce(logits))
        tail = [*tail, token]
    return total


def test_probabilities_are_those_of_the_tokens_one_by_one(study: Study) -> None:
    choices = ("Yes, there is", "No", "Yes, a small", "Unclear what this may be")
    logprobs = [one_by_one(study, QUESTION, choice) for choice in choices]
    assert max(len(study.reader._language.tokenize(choice)) for choice in choices) > 2
    found = study.choose(QUESTION, choices)
    masses = np.exp(logprobs)
    assert list(found.probabilities) == list(choices) and found.text == choices[int(masses.argmax())]
    assert list(found.probabilities.values()) == pytest.approx(masses / masses.sum(), rel=2e-3)
    assert found.mass == pytest.approx(masses.sum(), rel=2e-3)
    assert sum(found.probabilities.values()) == pytest.approx(1) and found.calibrated is None
    assert found.confidence == Confidence(found.probabilities[found.text], UNCALIBRATED)


def test_yes_or_no_is_what_the_model_would_begin_with(study: Study) -> None:
    for label in ("pleural effusion", "pneumothorax", "fracture"):
        question = f"Is there {label}?"
        found, words = study.choose(question), study.ask(question)
        assert words.text.startswith(found.text) and found.mass > 0.9
        first = math.exp(words._logprobs[0])
        assert first == pytest.approx(found.probabilities[found.text] * found.mass, rel=1e-3)
    assert study.choose(QUESTION, ("zebra", "quagga")).mass < 0.01


def test_a_decision_is_one_step(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = study.ask(QUESTION).finish()
    calls: list[int] = []
    decode = llama.llama_cpp.llama_decode

    def counting(context: Any, batch: Any) -> int:
        calls.append(int(batch.n_tokens))
        return int(decode(context, batch))

    monkeypatch.setattr(llama.llama_cpp, "llama_decode", counting)
    tokenize = study.reader._language.tokenize
    assert [len(tokenize(word)) for word in ("Yes", "No")] == [1, 1]
    found = study.choose(QUESTION)
    assert calls == [alone.prefill_tokens] == [found.prefill_tokens]
    calls.clear()
    longer = ("Yes, there is", "No, there is no", "Maybe")
    found = study.choose(QUESTION, longer)
    assert calls == [alone.prefill_tokens, sum(len(tokenize(one)) - 1 for one in longer)]
    assert found.prefill_tokens == sum(calls)
    again = study.ask(QUESTION).finish()
    assert again._logprobs == alone._logprobs, "it leaves nothing behind"


def test_a_films_first_decision_counts_the_film(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(path)
    study = reader.look(path)
    film = study.uncharged_tokens
    first, second = study.choose(QUESTION), study.choose(QUESTION)
    assert first.prefill_tokens == film + second.prefill_tokens and film >= study.layout.image_tokens
    assert first.probabilities == second.probabilities


@pytest.mark.parametrize(
    "choices", [(), ("Yes",), ("Yes", "Yes "), ("Yes", ""), ("No", "No finding"), [str(n) for n in range(17)]]
)
def test_choices_that_are_none_are_refused(study: Study, choices: tuple[str, ...]) -> None:
    with pytest.raises(QuestionError) as error:
        study.choose(QUESTION, choices)
    assert "\n" not in str(error.value)


@given(st.lists(st.floats(-2000, 0), min_size=2, max_size=8))
def test_shares_are_a_distribution_however_unlikely(logprobs: list[float]) -> None:
    tokens = {str(n): [n] for n in range(len(logprobs))}
    text, shares, mass = choose(tokens, logprobs)
    assert math.isclose(sum(shares.values()), 1) and shares[text] == max(shares.values())
    assert mass == pytest.approx(sum(math.exp(one) for one in logprobs), rel=1e-9, abs=1e-300)


def test_tokens_are_what_a_choice_begins_with() -> None:
    spelled = choice_tokens([" ab", "b "], lambda text: [ord(letter) for letter in text])
    assert spelled == {"ab": [97, 98], "b": [98]}


def test_the_command_line_decides(tiny_bundle: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(film)
    base = [CLI, "infer", film, "--ask", "a?", "--bundle", tiny_bundle, "--threads", "1", "--choose"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *arguments], capture_output=True, text=True, check=False)

    (answer,) = json.loads(run("Yes|No", "--json").stdout)["answers"]
    choice = answer["choice"]
    assert set(choice) == {"text", "probabilities", "mass", "calibrated"} and choice["calibrated"] is None
    assert set(choice["probabilities"]) == {"Yes", "No"} and choice["text"] == answer["text"]
    plain = run("Yes|No")
    assert plain.stdout == choice["text"] + "\n" and "(uncalibrated)" in plain.stderr
    refused = run("Yes")
    assert refused.returncode == 1 and refused.stdout == "" and "--choose 'Yes|No'" in refused.stderr


@pytest.mark.parametrize("choices", [("Yes", "No"), ("Yes, there is", "No, there is no", "Maybe")])
def test_decisions_together_are_those_one_by_one(
    study: Study, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...]
) -> None:
    questions = [*prompts.task_questions("checklist"), QUESTION, "Is the heart enlarged?", "left?", "right?"]
    alone = [study.choose(question, choices) for question in questions]
    calls: list[int] = []
    decode = llama.llama_cpp.llama_decode

    def counting(context: Any, batch: Any) -> int:
        calls.append(int(batch.n_tokens))
        return int(decode(context, batch))

    monkeypatch.setattr(llama.llama_cpp, "llama_decode", counting)
    together = study.choose_many(questions, choices)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.question == theirs.question and ours.prompt_tokens == theirs.prompt_tokens
        assert list(ours.probabilities.values()) == pytest.approx(
            list(theirs.probabilities.values()), abs=0.01
        )
        assert ours.mass == pytest.approx(theirs.mass, abs=0.01)
    assert sum(one.prefill_tokens for one in together) == sum(calls) < sum(c.prefill_tokens for c in alone)
    if choices == ("Yes", "No"):
        assert len(calls) == 3, "what all begin with, 16 questions, the one more"
    assert study.choose_many([]) == []
    with pytest.raises(QuestionError):
        study.choose_many([*questions, " "], choices)
    assert study.choose(QUESTION, choices).probabilities == alone[13].probabilities, (
        "it leaves nothing behind"
    )
