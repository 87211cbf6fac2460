"""A film looked at once: what a hit spares, what it depends on, and what memory holds of it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.studies import (
    FEW,
    QUESTIONS,
    Counted,
    bits,
    reader_on,
)

from radvlm_edge.runtime import language, llama
from radvlm_edge.runtime.recall import Parked
from radvlm_edge.runtime.studies import purge, study_key


def test_a_hit_runs_no_tower_and_no_prefill_and_answers_bit_for_bit(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        first = reader.look(named_films[0])
        assert first.cache == "miss" and not first.notes
        assert [bits(first.ask(question)) for question in QUESTIONS] == cold[0]
        image = first.image
    with reader_on(tiny_bundle, cache, context=700) as reader:  # room is no part of the identity
        counted = Counted(monkeypatch)
        counted.tower(reader)
        study = reader.look(named_films[0])
        assert study.cache == "hit" and not study.notes
        assert (counted.calls, counted.tokens, counted.crops) == (0, 0, 0)
        answers = [study.ask(question) for question in QUESTIONS]
        assert [bits(answer) for answer in answers] == cold[0]
        assert answers[0].prefill_tokens == study.ask(QUESTIONS[0]).prefill_tokens < 60
        assert counted.crops == 0
        assert np.array_equal(study.image, image) and counted.crops == study.layout.crops
        assert reader.look(named_films[1]).cache == "miss"


def test_whatever_the_state_was_computed_from_is_part_of_its_identity(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        reader.look(named_films[0])
    for options in ({"vision": "fp32"}, {"language": "Q4_K_M"}, {"render": "mimic"}):  # none is the default
        with reader_on(tiny_bundle, cache, **options) as reader:
            assert reader.look(named_films[0]).cache == "miss", options
    build = {**language.build_identity(), "libraries": "another"}
    monkeypatch.setattr(language, "build_identity", lambda: build)
    with reader_on(tiny_bundle, cache) as reader:
        study = reader.look(named_films[0])
        assert study.cache == "miss" and bits(study.ask(QUESTIONS[0])) == cold[0][0]
    facts = {"bundle": "a", "head": [1, 2], "layout": "b"}
    views = np.zeros((2, 3, 4, 4), np.uint8)
    changed = views.copy()
    changed[1, 2, 3, 3] = 1
    known = {study_key(facts, views), study_key(facts, changed), study_key({**facts, "head": [1]}, views)}
    assert len(known | {study_key({**facts, "bundle": "c"}, views), study_key({**facts, "x": 1}, views)}) == 5


def test_the_build_is_the_loaded_libraries_content() -> None:
    loaded = llama.build_identity()
    maps = Path("/proc/self/maps").read_text()
    assert "libllama." in maps and "libggml" in maps
    assert loaded == llama.build_identity() and len(str(loaded["libraries"])) == 64


def test_the_prompts_head_is_prefilled_once_a_reader(
    tiny_bundle: Path, named_films: list[Path], cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reader_on(tiny_bundle) as reader:
        counted = Counted(monkeypatch)
        head = len(reader._recall.head)
        first = reader.look(named_films[0])
        assert counted.tokens == first.prefix_tokens == first.uncharged_tokens
        first.say("x?").finish()
        counted.tokens = 0
        second = reader.look(named_films[1])
        assert head > 0 and counted.tokens == second.prefix_tokens - head == second.uncharged_tokens
        assert [bits(second.ask(question)) for question in QUESTIONS] == cold[1]


def test_memory_is_bounded_and_an_evicted_study_is_prefilled_again(
    tiny_bundle: Path, named_films: list[Path], cold: Any
) -> None:
    with reader_on(tiny_bundle, study_memory=0) as reader:
        pair = [reader.look(film) for film in named_films[:2]]
        assert reader._recall.parked.held_bytes() == 0
        for study, expected in zip(pair, cold, strict=True):
            answer = study.ask(QUESTIONS[0])
            assert bits(answer) == expected[0] and answer.prefill_tokens > study.layout.image_tokens
            assert bits(study.ask(QUESTIONS[1])) == expected[1]
    with reader_on(tiny_bundle) as reader:
        three = [reader.look(film) for film in named_films]
        size = reader._recall.parked.held_bytes()
    with reader_on(tiny_bundle, study_memory=size) as reader:  # of three, two at a time lie aside
        parked = reader._recall.parked
        three = [reader.look(film) for film in named_films]
        for _ in range(2):
            for study in three:
                study.ask(QUESTIONS[0], max_tokens=1).finish()
                assert parked.held_bytes() <= size
        held = parked.held_bytes()
        del study, three
        gc.collect()
        assert held > 0 and parked.held_bytes() == 0, "a study that is gone takes its state along"
        for film in named_films:
            reader.look(film).ask(QUESTIONS[0]).finish()
            assert parked.held_bytes() == 0, "nobody can ask the one before any more"


class Thing:
    """Stands for a study: hashable, weakly referable."""


@FEW
@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=30))
def test_parked_states_are_the_most_recently_used_that_fit(limit: int, puts: list[tuple[int, int]]) -> None:
    things: Any = [Thing() for _ in range(6)]
    parked = Parked(limit)
    model: dict[int, int] = {}
    for index, size in puts:
        model.pop(index, None)
        if parked.get(things[index]) is None or size % 2:
            parked.put(things[index], bytes(size))
            if size <= limit:
                while sum(model.values()) + size > limit:
                    del model[next(iter(model))]
                model[index] = size
        else:
            state = parked.get(things[index])
            assert state is not None
            model[index] = len(state)
        assert parked.held_bytes() == sum(model.values()) <= limit
        assert {i for i in range(6) if things[i] in parked} == set(model)


def test_an_evicted_study_comes_back_from_disk_uncounted(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any
) -> None:
    with reader_on(tiny_bundle, tmp_path / "cache", study_memory=0) as reader:
        pair = [reader.look(film) for film in named_films[:2]]
        pair[0].ask(QUESTIONS[0]).finish()
        pair[1].ask(QUESTIONS[0]).finish()
        answer = pair[0].ask(QUESTIONS[1])
        assert bits(answer) == cold[0][1] and answer.prefill_tokens < 60
        purge(tmp_path / "cache")
        answer = pair[1].ask(QUESTIONS[1])
        assert bits(answer) == cold[1][1] and answer.prefill_tokens > pair[1].layout.image_tokens
