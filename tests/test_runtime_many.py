"""Many questions at once: the answers of one by one, at the price of the longest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import write_film

from radvlm_edge.benchmarks.studies import TIE, leads, parting
from radvlm_edge.errors import QuestionError
from radvlm_edge.runtime import llama, prompts
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.runtime.many import common_stem
from radvlm_edge.runtime.reader import Options, Reader, Study

ROOT = Path(__file__).parents[1]
CLI = Path(sys.executable).with_name("radvlm-edge")
CHECKLIST = prompts.task_questions("checklist")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.png", 7, 60, 50)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Iterator[Reader]:
    with Reader.open(tiny_bundle, Options(max_tokens=12, threads=1)) as reader:
        yield reader


@pytest.fixture(scope="module")
def demo() -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=64, threads=1)) as reader:
        yield reader


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every llama_decode call from here on."""
    calls: list[int] = []
    decode = llama.llama_cpp.llama_decode

    def counting(context: Any, batch: Any) -> int:
        calls.append(int(batch.n_tokens))
        return int(decode(context, batch))

    monkeypatch.setattr(llama.llama_cpp, "llama_decode", counting)
    return calls


def ids(answer: Answer) -> list[int]:
    answer.finish()
    return answer._ids


def tail(reader: Reader, question: str) -> list[int]:
    _, text = prompts.render([prompts.Turn(question)], reader.bundle.manifest.prompting)
    return reader._language.tokenize(text)


def assert_same_but_for_ties(study: Study, together: list[Answer], alone: list[Answer]) -> int:
    """Compare token ids up to the first tie; returns how many answers part at one."""
    assert [one.question for one in together] == [one.question for one in alone]
    leads = [parting(study, *pair) for pair in zip(together, alone, strict=True)]
    parted = [lead for lead in leads if lead is not None]
    assert all(lead < TIE for lead in parted), parted
    return len(parted)


def test_a_lead_is_read_off_the_steps_of_the_answer(demo: Reader) -> None:
    study = demo.look(ROOT / "examples" / "chest.dcm")
    yes, no = study.ask("Is there fracture?").finish(), study.ask("Is there pneumothorax?").finish()
    found = leads(study, yes)
    assert len(found) == len(yes._logprobs) and all(lead > 0 for lead in found)
    assert parting(study, yes, yes) is None
    at = next((i for i, (a, b) in enumerate(zip(yes._ids, no._ids, strict=False)) if a != b), None)
    assert at is not None and parting(study, no, yes) == found[at]


@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_answers_are_those_of_one_by_one(model: str, film: Path, request: pytest.FixtureRequest) -> None:
    reader: Reader = request.getfixturevalue(model)
    study = reader.look(film if model == "tiny" else ROOT / "examples" / "chest.dcm")
    questions = [*CHECKLIST, *(wording for wording in prompts.TASKS.values() if "{}" not in wording)]
    alone = [study.ask(question).finish() for question in questions]
    together = study.ask_many(questions)
    ties = assert_same_but_for_ties(study, together, alone)
    assert ties <= 1, "a tie is rare; many are a fault"
    for one, other in zip(together, alone, strict=True):
        if ids(one) == ids(other):
            assert (one.text, one.labels, one.boxes) == (other.text, other.labels, other.boxes)
            assert one.confidence.value == pytest.approx(other.confidence.value, rel=1e-2)
    again = [study.ask(question).finish() for question in questions[:3]]
    assert [a._logprobs for a in again] == [a._logprobs for a in alone[:3]], "it leaves nothing behind"


def test_a_step_serves_all_questions(demo: Reader, batches: list[int]) -> None:
    study = demo.look(ROOT / "examples" / "chest.dcm")
    prefilled = study.uncharged_tokens
    questions = [*CHECKLIST, prompts.TASKS["report"]]
    batches.clear()
    answers = study.ask_many(questions)
    steps = [len(answer._logprobs) for answer in answers]  # the stop token is chosen, but never run
    tails = [tail(demo, question) for question in questions]
    stem = len(common_stem(tails))
    assert len(set(steps)) > 1, "answers of one length prove nothing here"
    assert len(batches) == (stem > 0) + 1 + max(steps) - 1
    assert batches[stem > 0] == sum(len(one) - stem for one in tails)
    assert batches[(stem > 0) + 1 :] == [sum(n > k for n in steps) for k in range(1, max(steps))]
    counted = [answer.prefill_tokens for answer in answers]
    assert counted == [prefilled + len(tails[0])] + [len(one) - stem for one in tails[1:]]


def test_more_than_a_batch_holds_become_several(tiny: Reader, film: Path, batches: list[int]) -> None:
    questions = [f"Is there {label} or {n}?" for n, label in enumerate(LABELS * 2)]
    study = tiny.look(film)
    alone = [study.ask(question).finish() for question in questions]
    batches.clear()
    together = study.ask_many(questions)
    steps = [len(answer._logprobs) for answer in together]
    groups = [steps[i : i + llama.BRANCHES] for i in range(0, len(steps), llama.BRANCHES)]
    assert len(groups) == math.ceil(26 / llama.BRANCHES) > 1
    assert len(batches) == 1 + sum(max(group) for group in groups)
    assert_same_but_for_ties(study, together, alone)


@pytest.mark.parametrize("spare", [0, 40, 90])
def test_a_context_without_room_for_all_still_answers_all(
    tiny_bundle: Path,
    tiny: Reader,
    film: Path,
    spare: int,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[int],
) -> None:
    monkeypatch.setattr("radvlm_edge.runtime.many.EXPECTED_TOKENS", 1)
    wide = tiny.look(film)
    longest = max(len(tail(tiny, question)) for question in CHECKLIST)
    context = wide.prefix_tokens + longest + 12 + spare
    alone = [wide.ask(question).finish() for question in CHECKLIST]
    with Reader.open(tiny_bundle, Options(max_tokens=12, threads=1, context=context)) as reader:
        study = reader.look(film)
        batches.clear()
        together = study.ask_many(CHECKLIST)
        assert_same_but_for_ties(wide, together, alone)
        run = sum(batches)
        chosen = sum(len(answer._logprobs) for answer in together)
        prefilled = sum(answer.prefill_tokens for answer in together) - study.prefix_tokens
        wasted = run - prefilled - (chosen - len(together))  # run for answers that were put off later
        assert wasted > 0 if spare == 0 else wasted >= 0
        with pytest.raises(QuestionError, match="does not fit"):
            study.ask_many(["short?", "long? " * (longest + 12 + spare)])


def test_what_cannot_be_asked_is_said_before_anything_runs(
    tiny: Reader, film: Path, batches: list[int]
) -> None:
    study = tiny.look(film)
    expected = ids(study.ask("any effusion?"))
    batches.clear()
    for questions in (["any effusion?", " "], ["a<|im_end|>b", "b?"], ["a?", "why? " * 3000]):
        with pytest.raises(QuestionError):
            study.ask_many(questions)
    with pytest.raises(QuestionError, match="at least 1"):
        study.ask_many(["a?", "b?"], max_tokens=0)
    assert study.ask_many([]) == [] and not batches
    assert ids(study.ask_many(["any effusion?"])[0]) == expected
    twice = study.ask_many(["any effusion?"] * 2)
    assert ids(twice[0]) == ids(twice[1])
    with pytest.raises(QuestionError, match="13 questions"):
        study.task("checklist")


def test_a_conversation_goes_on_after_it(tiny: Reader, film: Path) -> None:
    study, other = tiny.look(film), tiny.look(film)
    first = study.say("any effusion?").text
    study.ask_many(["a?", "b?", "c?"])
    assert [turn.answer for turn in study.turns] == [first]
    other.turns = list(study.turns)
    assert ids(study.say("where?")) == ids(other.say("where?"))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_stem_is_the_longest_common_beginning_that_leaves_a_token(tails: list[list[int]]) -> None:
    stem = common_stem(tails)
    assert all(one[: len(stem)] == stem and len(one) > len(stem) for one in tails)
    longer = len(stem) + 1
    assert any(len(one) == longer for one in tails) or len({tuple(one[:longer]) for one in tails}) > 1


def test_the_command_line_answers_in_the_order_asked(tiny_bundle: Path, film: Path) -> None:
    base = ["--bundle", tiny_bundle, "--max-tokens", 6, "--threads", 1]

    def run(*arguments: object) -> tuple[str, str]:
        command = [CLI, "infer", film, *map(str, [*arguments, *base])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    record = json.loads(run("--ask", "z?", "--task", "checklist", "--ask", "a?", "--json")[0])
    questions = [answer["question"] for answer in record["answers"]]
    assert questions == ["z?", "a?", *CHECKLIST] and len(CHECKLIST) == len(LABELS) == 13
    parts = record["timing_ms"]
    assert parts["prefill"] + parts["decode"] <= parts["total"]
    out, err = run("--ask", "z?", "--ask", "a?")
    both = [answer["text"] for answer in record["answers"][:2]]
    assert out.splitlines() == [text for answer in both for text in answer.splitlines() or [""]]
    assert [line for line in err.splitlines() if line.startswith(str(film))] == [f"{film}: z?", f"{film}: a?"]
