"""Prefill in another engine: the answers of llama.cpp alone, and llama.cpp alone where anything is odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radvlm_edge.bundle import Artefact, Bundle, demo_bundle, digest
from radvlm_edge.errors import BackendError
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.prefill import write_prefill
from radvlm_edge.reseal import reseal
from radvlm_edge.runtime import kv_state, prefill, prefill_choice
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.prefill_choice import LLAMA
from radvlm_edge.runtime.prefill_onnx import OnnxPrefill
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.training.phantom import make_phantom

NANO = Path(__file__).parents[1] / "training" / "nano"
QUESTIONS = (
    "any effusion?",
    "Where is the right lung located in this Chest X-ray?",
    "Is the heart enlarged?",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration bundle with a prefill graph of its checkpoint."""
    folder = tmp_path_factory.mktemp("split") / "nano.bundle"
    shutil.copytree(demo_bundle(), folder)
    graph = folder.parent / "fp32.onnx"
    write_prefill(open_checkpoint(NANO), "fp32", graph)
    sealed = Bundle.open(folder)
    artefact = Artefact("prefill", "fp32", "onnx", "prefill/fp32.onnx", digest(graph), graph.stat().st_size)
    manifest = replace(
        sealed.manifest,
        artefacts=(*sealed.manifest.artefacts, artefact),
        defaults={**sealed.manifest.defaults, "prefill": "fp32"},
    )
    reseal(sealed, manifest, {"prefill/fp32.onnx": graph.read_bytes()})
    return folder


@pytest.fixture(scope="module")
def films() -> list[Film]:
    pixels = [make_phantom(seed, (150, 200)).pixels for seed in (7001, 7002)]
    return [Film(one, "test", "voi", provenance={}) for one in pixels]


def options(backend: str = "onnx", **more: Any) -> Options:
    return Options(language="F16", prefill_backend=backend, threads=1, max_tokens=24, **more)


@pytest.fixture(scope="module")
def expected(bundle: Path, films: list[Film]) -> list[list[str]]:
    """llama.cpp's own answers."""
    with Reader.open(bundle, options(LLAMA)) as reader:
        return [[reader.look(film).ask(q).text for q in QUESTIONS] for film in films]


def test_answers_are_llama_cpps_own(bundle: Path, films: list[Film], expected: list[list[str]]) -> None:
    with Reader.open(bundle, options()) as reader:
        assert reader.prefilling.backend == "onnxruntime CPU" and reader.prefilling.precision == "fp32"
        studies = [reader.look(film) for film in films]
        for study in studies:
            assert set(study.looked.prefill_by_ms) <= {"llama.cpp", "onnxruntime CPU"}
            assert study.looked.prefill_by_ms["onnxruntime CPU"] > 0
            assert study.provenance["prefill"] == reader.prefilling.told()
            assert study.notes == []
        for _ in range(2):  # the other study's state comes back from memory
            found = [[study.ask(q).text for q in QUESTIONS] for study in studies]
            assert found == expected
        assert [one.text for one in studies[0].ask_many(QUESTIONS)] == expected[0]


def test_what_each_engine_runs(bundle: Path, films: list[Film], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph gets the image alone, in bounded chunks; llama.cpp never sees an embedding."""
    ran: list[tuple[int, int]] = []
    run = OnnxPrefill.run

    def counting(self: OnnxPrefill, embeddings: Any, past: Sequence[Any]) -> Any:
        ran.append((len(past[0]), len(embeddings)))
        return run(self, embeddings, past)

    with Reader.open(bundle, options()) as reader:
        monkeypatch.setattr(OnnxPrefill, "run", counting)
        reader._language.split.chunk = 32  # type: ignore[union-attr]
        study = reader.look(films[0])
        head, image = len(reader._recall.head), study.layout.image_tokens
        assert [past for past, _ in ran] == list(range(head, head + image, 32))
        assert sum(count for _, count in ran) == image and max(count for _, count in ran) == 32
        assert study.ask(QUESTIONS[0]).prefill_tokens >= head + image


def test_the_study_cache_tells_prefills_apart(
    bundle: Path, films: list[Film], expected: list[list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "studies"
    seen = []
    for backend in ("onnx", LLAMA, "onnx", LLAMA):
        with Reader.open(bundle, options(backend, study_cache=cache)) as reader:
            study = reader.look(films[0])
            seen.append(study.cache)
            assert study.ask(QUESTIONS[0]).text == expected[0][0]
    assert seen == ["miss", "miss", "hit", "hit"]


def test_an_unknown_state_format_leaves_it_to_llama_cpp(
    bundle: Path, films: list[Film], expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_state, "MAGIC", 0xAF143CD9)
    with Reader.open(bundle, options()) as reader:
        assert reader.prefilling.backend == "llama.cpp" and reader._language.split is None
        (note,) = reader.prefilling.notes
        assert "magic 2937339096" in note and note.endswith("llama.cpp prefills instead")
        assert reader.look(films[0]).ask(QUESTIONS[0]).text == expected[0][0]


def mixed_up(rows: list[Any]) -> list[Any]:
    return [one[::-1] for one in rows]


def keys_for_values(rows: list[Any]) -> list[Any]:
    return [rows[index ^ 1] for index in range(len(rows))]


def heads_swapped(rows: list[Any]) -> list[Any]:
    return [np.roll(one, 64, axis=1) for one in rows]


def not_a_number(rows: list[Any]) -> list[Any]:
    return [one * np.float32("nan") for one in rows]


@pytest.mark.parametrize("wrong", [mixed_up, keys_for_values, heads_swapped, not_a_number])
def test_an_engine_that_computes_something_else_is_not_used(
    wrong: Callable[[list[Any]], list[Any]], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxPrefill.run
    monkeypatch.setattr(OnnxPrefill, "run", lambda self, *given: wrong(run(self, *given)))
    with Reader.open(bundle, options()) as reader:
        assert reader.prefilling.backend == "llama.cpp"
        assert "llama.cpp prefills instead" in reader.prefilling.notes[0]


def test_an_engine_that_fails_in_use_leaves_it_to_llama_cpp(
    bundle: Path,
    films: list[Film],
    expected: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: OnnxPrefill, *given: Any) -> Any:
        raise BackendError("out of memory")

    with Reader.open(bundle, options(study_cache=tmp_path / "studies")) as reader:
        monkeypatch.setattr(OnnxPrefill, "run", fail)
        study = reader.look(films[0])
        assert study.notes == ["out of memory; llama.cpp prefills from here on"]
        assert [study.ask(q).text for q in QUESTIONS] == expected[0]
        assert list((tmp_path / "studies").iterdir()) == []  # its key names the engine that failed
        assert [reader.look(films[1]).ask(q).text for q in QUESTIONS] == expected[1]
    monkeypatch.undo()
    with Reader.open(bundle, options(study_cache=tmp_path / "studies")) as reader:
        assert reader.look(films[1]).cache == "miss"
    with Reader.open(bundle, options(LLAMA, study_cache=tmp_path / "studies")) as reader:
        assert reader.look(films[1]).cache == "hit"


def test_a_state_llama_cpp_refuses_leaves_its_own(
    bundle: Path, films: list[Film], expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader.open(bundle, options()) as reader:
        whole = prefill.write_state
        monkeypatch.setattr(prefill, "write_state", lambda *given: whole(*given)[:-1])
        study = reader.look(films[0])
        assert len(study.notes) == 1 and "refused" in study.notes[0]
        assert [study.ask(q).text for q in QUESTIONS] == expected[0]


def test_auto_measures_once(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(prefill_choice, "BUDGET_S", 0.02)
    monkeypatch.delitem(prefill.ENGINES, "openvino")
    with Reader.open(bundle, options("auto")) as reader:
        rates = reader.prefilling.tokens_per_s
    assert set(rates) == {LLAMA, "onnx"} and min(rates.values()) > 0
    (kept,) = (tmp_path / "radvlm-edge" / "prefill").iterdir()
    assert json.loads(kept.read_text())["tokens_per_s"] == rates

    def forbidden(*given: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(prefill_choice._Opening, "_measure", forbidden)
    for onnx, wanted in ((3 * rates[LLAMA], "onnxruntime CPU"), (rates[LLAMA], "llama.cpp")):
        kept.write_text(json.dumps({"tokens_per_s": {**rates, "onnx": onnx}}))
        with Reader.open(bundle, options("auto")) as reader:
            assert reader.prefilling.backend == wanted
            assert (reader._language.split is not None) == (wanted != "llama.cpp")
    kept.write_text('{"tokens_per_s": {"llama": 1, "onnx": "x"}}')
    with pytest.raises(AssertionError, match="measured again"):
        Reader.open(bundle, options("auto"))


def test_engines_that_cannot_be_had_are_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="holds no prefill graph; export with --prefill int8"):
        Reader.open(options=options("onnx"))
    with Reader.open(options=options("auto")) as reader:
        assert reader.prefilling.reason == "the bundle holds no prefill graph"
    with pytest.raises(BackendError, match="choose from llama, onnx, openvino, auto"):
        Reader.open(bundle, options("tensorrt"))
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'radvlm-edge\[openvino\]'"):
        Reader.open(bundle, options("openvino"))
