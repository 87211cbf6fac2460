"""Look once, ask many: what is prefilled, what is shared, and that no answer depends on another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny import write_film

from radvlm_edge.errors import BackendError, BundleError, QuestionError
from radvlm_edge.runtime.reader import Options, Reader

QUESTIONS = ("any effusion?", "Provide a radiology report for this Chest X-Ray.", "left or right?")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    shapes = [(60, 50), (90, 40), (30, 30)]
    return [write_film(folder / f"film{seed}.png", seed, *shape) for seed, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def reader(tiny_bundle: Path) -> Iterator[Reader]:
    with Reader.open(tiny_bundle, Options(max_tokens=24)) as reader:
        yield reader


def test_a_film_is_prefilled_once_and_questions_alone_after_that(reader: Reader, films: list[Path]) -> None:
    study = reader.look(films[0])
    prefilled = study.uncharged_tokens
    first, second = study.ask("any effusion?"), study.ask("any effusion?")
    assert first.prefill_tokens == prefilled + second.prefill_tokens
    assert prefilled in (study.prefix_tokens, study.prefix_tokens - len(reader._recall.head))
    assert study.prefix_tokens > study.layout.image_tokens == len(study.image)
    assert 0 < second.prefill_tokens < 60


def test_the_same_question_gets_the_same_answer_whatever_was_asked_before(
    reader: Reader, films: list[Path]
) -> None:
    fresh = {q: reader.look(films[0]).ask(q) for q in QUESTIONS}
    study = reader.look(films[0])
    study.say("what do you see?").finish()
    for question in reversed(QUESTIONS):
        again = study.ask(question)
        assert (again.text, again.confidence) == (fresh[question].text, fresh[question].confidence)


def test_films_take_turns_without_being_prefilled_again(reader: Reader, films: list[Path]) -> None:
    alone = [reader.look(film).ask(QUESTIONS[0]) for film in films]
    studies = [reader.look(film) for film in films]
    for _ in range(2):
        for study, expected in zip(studies, alone, strict=True):
            answer = study.ask(QUESTIONS[0])
            assert (answer.text, answer.confidence) == (expected.text, expected.confidence)
    assert studies[0].ask("again?").prefill_tokens < 60


def test_a_conversation_prefills_only_what_a_turn_adds(reader: Reader, films: list[Path]) -> None:
    study = reader.look(films[0])
    first = study.say("any effusion?")
    second = study.say("where?")
    assert [turn.question for turn in study.turns] == ["any effusion?"]
    second.finish()
    assert [turn.answer for turn in study.turns] == [first.text, second.text]
    whole = reader.look(films[0])
    whole.turns = study.turns[:1]
    film_tokens = whole.uncharged_tokens
    assert second.prefill_tokens < whole.say("where?").prefill_tokens - film_tokens


def test_streaming_gives_the_same_text_and_can_be_repeated(reader: Reader, films: list[Path]) -> None:
    study = reader.look(films[0])
    answer = study.ask(QUESTIONS[0])
    pieces = list(answer)
    assert "".join(pieces).strip() == answer.text == "".join(answer).strip()


def test_an_unfinished_answer_is_finished_before_the_next_question(reader: Reader, films: list[Path]) -> None:
    study = reader.look(films[0])
    expected = [study.ask(question).text for question in QUESTIONS]
    answers = []
    for question in QUESTIONS:
        answer = study.ask(question)
        next(iter(answer), None)
        answers.append(answer)
    assert [answer.text for answer in answers] == expected


def test_max_tokens_is_a_limit_and_says_so(reader: Reader, films: list[Path]) -> None:
    answer = reader.look(films[0]).ask(QUESTIONS[1], max_tokens=3)
    assert answer.tokens <= 3
    assert answer.stop == ("length" if answer.tokens == 3 else "eos")


@pytest.mark.parametrize("question", ["", " ", "<image>", "a<|im_end|>b", "why? " * 3000])
def test_questions_that_cannot_be_asked_leave_the_study_usable(
    reader: Reader, films: list[Path], question: str
) -> None:
    study = reader.look(films[0])
    expected = study.ask(QUESTIONS[0]).text
    with pytest.raises(QuestionError) as error:
        study.ask(question)
    assert "\n" not in str(error.value)
    assert study.ask(QUESTIONS[0]).text == expected


def test_threads_and_artefacts_can_be_chosen(tiny_bundle: Path, films: list[Path]) -> None:
    with Reader.open(tiny_bundle, Options(vision="fp32", language="F16", threads=1, max_tokens=4)) as reader:
        provenance = reader.look(films[0]).ask("any effusion?").provenance
        assert (provenance["vision"], provenance["language"]) == ("fp32", "F16")
    with pytest.raises(BundleError, match="no vision artefact 'int4'"):
        Reader.open(tiny_bundle, Options(vision="int4"))


def test_a_film_larger_than_the_context_is_refused(tiny_bundle: Path, films: list[Path]) -> None:
    with (
        Reader.open(tiny_bundle, Options(context=48, max_tokens=8)) as reader,
        pytest.raises(QuestionError, match="do not fit the context"),
    ):
        reader.look(films[0])


def test_damaged_weights_are_refused_even_unverified(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    for role in ("vision", "language"):
        copy = tmp_path / role
        shutil.copytree(tiny_bundle, copy)
        for path in (copy / role).iterdir():
            if path.suffix in (".onnx", ".gguf"):
                path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(BundleError, match="altered"):
            Reader.open(copy)
        with pytest.raises(BackendError, match="cannot load"):
            Reader.open(copy, verify=False)


def test_a_closed_reader_is_one_line_and_no_crash(tiny_bundle: Path, films: list[Path]) -> None:
    with Reader.open(tiny_bundle, Options(max_tokens=4)) as reader:
        study = reader.look(films[0])
        lazy = study.ask("any effusion?")
    with pytest.raises(BackendError, match="the reader has been closed"):
        _ = lazy.text
    with pytest.raises(BackendError, match="the reader has been closed"):
        study.ask("any edema?")
