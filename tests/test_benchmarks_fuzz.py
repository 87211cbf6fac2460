"""The fuzzing finds what it looks for, and finds nothing in a small run."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="the service is fuzzed, too: needs the extra `serve`")
from radvlm_edge.benchmarks.fuzz import SHARES, Limits, fuzz, report
from radvlm_edge.benchmarks.fuzz_inputs import CORPORA, make
from radvlm_edge.benchmarks.fuzz_probe import PROBE
from radvlm_edge.benchmarks.fuzz_targets import TARGETS, film_target
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BundleError


def test_it_finds_crashes_hangs_memory_and_what_is_not_typed() -> None:
    found = fuzz(PROBE, 12, 0, limits=Limits(cpu_s=1.0, memory_bytes=128 << 20))
    assert found.inputs == 12
    assert {one["what"]: one["number"] for one in found.findings} == {
        "crash": 3,
        "untyped": 5,
        "hang": 7,
        "memory": 9,
    }
    assert found.outcomes["accepted"] == 12 - 3  # the one that took too much memory was accepted all the same
    assert report({PROBE: found}, 0)["findings"] == {"crash": 1, "hang": 1, "memory": 1, "untyped": 1}
    crash = next(one for one in found.findings if one["what"] == "crash")
    assert crash["text"] == "SIGSEGV"


def test_inputs_are_named_by_their_numbers_and_differ() -> None:
    assert sum(SHARES.values()) == 100 and set(SHARES) == set(CORPORA) == set(TARGETS)
    for kind, seeds in CORPORA.items():
        made = [make(kind, 0, number) for number in range(30)]
        seeds.cache_clear()  # as another process would make them
        assert made == [make(kind, 0, number) for number in range(30)]
        assert len(set(made)) > 20 and len(set(made) - set(seeds())) > 20


@pytest.mark.parametrize("kind", ["dicom", "picture"])
def test_undamaged_films_are_accepted(kind: str) -> None:
    with film_target() as target:
        outcomes = [target(content) for content in CORPORA[kind]()]
    assert outcomes.count("accepted") >= len(outcomes) - 1  # the one of two frames needs --frame


@pytest.mark.parametrize("kind", ["dicom", "picture", "bundle", "chat"])
def test_a_small_run_finds_nothing(kind: str) -> None:
    found = fuzz(kind, 60, seed=11)
    assert found.inputs == 60 and not found.findings, found.findings
    assert len(found.outcomes) >= 2  # some are refused, some are not


def test_what_fuzzing_found_once() -> None:
    """JPEG-LS of another size than its header says used to end the process, half a pair to be a 500."""
    with film_target() as target:
        assert target(make("dicom", 0, 44)) == "FilmError"
        assert target(make("dicom", 0, 14)) == "FilmError"
    with TARGETS["bundle"]() as target:
        assert target(make("bundle", 0, 25)) == "BundleError"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"crop_px": 144', '"crop_px": 1000000'),
        ('"layers": ', '"layers": -'),
        ('"path": "', '"path": "../'),
        ('"stop_ids": [', '"stop_ids": ["x", '),
        ('"image_token": "<image>"', '"image_token": ""'),
        ('"temperature": ', '"temperature": -'),
    ],
)
def test_a_bundle_that_says_what_cannot_be_is_refused(old: str, new: str, tmp_path: object) -> None:
    from pathlib import Path

    (manifest,) = CORPORA["bundle"]()
    text = manifest.decode()
    assert old in text, old
    folder = Path(str(tmp_path))
    (folder / "bundle.json").write_text(text.replace(old, new))
    with pytest.raises(BundleError, match="not a bundle manifest") as error:
        Bundle.open(folder)
    assert "\n" not in str(error.value)
