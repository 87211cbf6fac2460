"""Overlap changes when things are computed and nothing else: bits, errors, the study cache."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from radvlm_edge.errors import BackendError, BundleError, FilmError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime import anyres, crops
from radvlm_edge.runtime import reader as stage
from radvlm_edge.runtime.overlap import Ahead, Coming, pays
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.vision_late import KNOWN, LateTower

GEOMETRY = Geometry(
    12, 3, tuple((12 * h, 12 * w) for h in (1, 2, 3) for w in (1, 2, 3)), 2, 5, 1, 1, 8, 512, 64
)
QUESTION = "any effusion?"
OPTIONS = Options(max_tokens=8, threads=1)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(20, 90), width=st.integers(20, 90), data=st.data())
def test_tokens_packed_piece_by_piece_are_the_same_bits(height: int, width: int, data: st.DataObject) -> None:
    layout = crops.plan(height, width, GEOMETRY)
    rng = np.random.default_rng(height * 100 + width)
    features = rng.standard_normal((layout.crops, layout.tokens_per_crop, 5)).astype(np.float32)
    newline = rng.standard_normal(5).astype(np.float32)
    whole = anyres.pack(features, layout, newline)
    packer, at = anyres.Packer(layout, newline), 0
    while at < layout.crops:
        before = packer.ready
        step = data.draw(st.integers(1, layout.crops - at))
        packer.add(features[at : at + step])
        at += step
        assert before <= packer.ready and (at < layout.crops or packer.ready == layout.image_tokens)
        complete = packer.tokens[: packer.ready]
        assert complete.tobytes() == whole[: packer.ready].tobytes()
    with pytest.raises(BackendError, match="the film has"):
        packer.add(features[:1])


def test_a_row_of_tokens_waits_for_every_tile_it_shows() -> None:
    layout = crops.plan(36, 36, replace(GEOMETRY, max_crops=9))
    assert layout.grid == (3, 3) and layout.features == (12, 12)
    packer = anyres.Packer(layout, np.zeros(5, np.float32))
    ready = []
    for _ in range(layout.crops):
        packer.add(np.ones((1, 16, 5), np.float32))
        ready.append(packer.ready)
    line = 4 * 13
    assert ready == [16, 16, 16, 16 + line, 16 + line, 16 + line, *[16 + 2 * line] * 3, 16 + 3 * line]
    with pytest.raises(BackendError, match="of 9 crops; the film has 10"):
        anyres.pack(np.ones((9, 16, 5), np.float32), layout, np.zeros(5, np.float32))


@pytest.mark.parametrize(("vision", "language"), [(True, True), (False, False), (True, False), (False, True)])
def test_it_pays_on_two_processors_only(vision: bool, language: bool) -> None:
    assert pays(vision_on_cpu=vision, language_on_cpu=language) == (vision != language)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 280), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader.open(options=OPTIONS) as reader:
        reader._language._llama.batch = 64  # so that the few image tokens are several batches
        reader.tower.plan = replace(reader.tower.plan, crops_per_batch=2)
        yield reader


def overlapped(reader: Reader, wanted: bool) -> None:
    reader.options = replace(reader.options, overlap=wanted)


def looked(reader: Reader, film: Path) -> tuple[str, str]:
    """Digest of the K/V a look leaves, and an answer."""
    study = reader.look(film)
    digest = hashlib.sha256(reader._language.save_prefix()).hexdigest()
    return digest, study.ask(QUESTION).text


def no_vision_thread() -> bool:
    return not any(thread.name in ("vision", "film") for thread in threading.enumerate())


def test_the_same_keys_values_and_answer_and_really_at_once(
    reader: Reader, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlapped(reader, False)
    expected, study = looked(reader, film), reader.look(film)
    assert study.layout.crops == 5 and study.looked.overlapped_ms == 0
    began = threading.Event()
    encode, decode = reader.tower.encode, reader._language._llama._decode_batch
    sizes: list[int] = []

    def late(views: Any) -> Any:
        """The last batch of crops is only encoded once some image tokens have been prefilled."""
        sizes.append(len(views))
        assert sum(sizes) < 5 or began.wait(60)
        return encode(views)

    def noted(items: Any, *rest: Any) -> None:
        decode(items, *rest)
        if isinstance(items, np.ndarray):
            began.set()

    monkeypatch.setattr(reader.tower, "encode", late)
    monkeypatch.setattr(reader._language._llama, "_decode_batch", noted)
    overlapped(reader, True)
    assert looked(reader, film) == expected
    assert sizes == [2, 2, 1] and no_vision_thread()
    again = reader.look(film)
    assert again.image.tobytes() == study.image.tobytes()
    assert again.looked.vision_ms >= 0 and set(again.looked.prefill_by_ms) == {"llama.cpp"}


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_tower_that_fails_raises_its_own_error(
    reader: Reader, film: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    overlapped(reader, False)
    expected = looked(reader, film)
    encode, calls = reader.tower.encode, iter(range(100))

    def failing(views: Any) -> Any:
        if next(calls) == fails_at:
            raise BackendError("the tower has no memory")
        return encode(views)

    overlapped(reader, True)
    with monkeypatch.context() as patch:
        patch.setattr(reader.tower, "encode", failing)
        with pytest.raises(BackendError, match=r"^the tower has no memory$"):
            reader.look(film)
    assert no_vision_thread() and looked(reader, film) == expected


def test_a_tower_that_gives_too_little_is_no_deadlock(
    reader: Reader, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = reader.tower.encode
    overlapped(reader, True)
    monkeypatch.setattr(reader.tower, "encode", lambda views: encode(views)[:1])
    with pytest.raises(BackendError, match="gave .* image tokens; the film has"):
        reader.look(film)


def test_a_prefill_that_fails_stops_the_tower(
    reader: Reader, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlapped(reader, False)
    expected = looked(reader, film)
    encode, calls, failed = reader.tower.encode, [], threading.Event()

    def slow(views: Any) -> Any:
        calls.append(len(views))
        if len(calls) == 2:
            assert failed.wait(60)
        return encode(views)

    def refuse(items: Any, *rest: Any) -> None:
        failed.set()
        raise BackendError("llama.cpp could not run 64 tokens")

    overlapped(reader, True)
    with monkeypatch.context() as patch:
        patch.setattr(reader.tower, "encode", slow)
        patch.setattr(reader._language._llama, "_decode_batch", refuse)
        with pytest.raises(BackendError, match="could not run 64 tokens"):
            reader.look(film)
    assert len(calls) < 3 and no_vision_thread()
    assert looked(reader, film) == expected


class Other:
    """An engine that takes tokens as they come, and then fails."""

    engine = type("Engine", (), {"backend": "other"})

    def __init__(self) -> None:
        self.seen = 0

    def extend(self, state: Any, embeddings: Any) -> bytearray:
        for start in range(0, len(embeddings), 7):
            self.seen += len(embeddings[start : start + 7])
        raise BackendError("the other engine fails")

    def described(self) -> dict[str, object]:
        return {}


def test_another_prefill_engine_takes_tokens_as_they_come(
    reader: Reader, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlapped(reader, False)
    expected = looked(reader, film)
    overlapped(reader, True)
    other: Any = Other()
    monkeypatch.setattr(reader._language, "split", other)
    study = reader.look(film)
    assert other.seen == study.layout.image_tokens
    assert study.notes == ["the other engine fails; llama.cpp prefills from here on"]
    assert hashlib.sha256(reader._language.save_prefix()).hexdigest() == expected[0]

    def fail(views: Any) -> Any:
        raise BackendError("the tower fails")

    monkeypatch.setattr(reader._language, "split", other)
    monkeypatch.setattr(reader.tower, "encode", fail)
    with pytest.raises(BackendError, match="the tower fails"):
        reader.look(film)
    assert reader._language.split is other and reader._language.notes == []


def test_the_study_cache_knows_no_difference(film: Path, tmp_path: Path) -> None:
    found = []
    for overlap in (True, False):
        options = replace(OPTIONS, overlap=overlap, study_cache=tmp_path / "studies")
        with Reader.open(None, options) as reader:
            found.append(reader.look(film).cache)
    assert found == ["miss", "hit"] and len(list((tmp_path / "studies").iterdir())) == 1


def test_a_film_is_read_in_its_own_thread_and_once(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    load = stage.load_film

    def noted(source: Any, **settings: Any) -> Any:
        read.append((threading.current_thread().name, str(source)))
        return load(source, **settings)

    monkeypatch.setattr(stage, "load_film", noted)
    options = replace(OPTIONS, overlap=True)
    with Reader.open(None, options, ahead=film) as reader:
        assert read == [("film", str(film))] and no_vision_thread()
        first, again = reader.look(str(film)), reader.look(film)
        assert first.layout == again.layout and first.key == again.key
        assert first.image.tobytes() == again.image.tobytes()
        assert first.film.pixels.tobytes() == again.film.pixels.tobytes()
    assert [name for name, _ in read] == ["film", "MainThread"], "read ahead once, then as ever"
    with Reader.open(None, options, ahead=film) as reader:
        less = reader.look(film, detail=144)
        assert less.layout.crops == 2 and less.film is not None, "cut anew for another detail"
    del read[2:]
    with Reader.open(None, replace(options, overlap=False), ahead=film) as reader:
        assert len(read) == 2


def test_trouble_ahead_is_raised_where_it_belongs(
    tmp_path: Path, film: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, overlap=True)
    with Reader.open(None, options, ahead=tmp_path / "none.dcm") as reader:
        with pytest.raises(FilmError, match="none.dcm: no such file"):
            reader.look(tmp_path / "none.dcm")
        assert reader.look(film).ask(QUESTION).finish().tokens <= 8
    with pytest.raises(BundleError, match="no bundle.json"):
        Reader.open(tmp_path, options, ahead=film)
    assert no_vision_thread() and capfd.readouterr().err == ""


@pytest.mark.parametrize("work", [lambda: 7, lambda: 1 // 0])
def test_what_was_begun_ends_as_it_would_have(work: Callable[[], int]) -> None:
    ahead = Ahead(work, "film")
    ahead.wait()
    for _ in range(2):
        try:
            expected: object = work()
        except ZeroDivisionError:
            with pytest.raises(ZeroDivisionError):
                ahead.result()
        else:
            assert ahead.result() == expected


def test_slices_are_numpys(reader: Reader) -> None:
    views, layout = crops.cut(np.zeros((40, 40), np.uint8), reader.bundle.manifest.geometry)
    with Coming(reader.tower, views, layout, reader._newline) as coming:
        whole = coming.whole()
        assert coming[3:999].tobytes() == whole[3:].tobytes() and len(coming[5:5]) == 0
        assert len(coming) == layout.image_tokens and not coming.failed


def test_with_a_study_cache_the_tower_is_opened_by_the_first_film_that_needs_it(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, study_cache=tmp_path / "studies")
    with Reader.open(None, OPTIONS) as reader:
        expected, plan, backend = looked(reader, film), reader.tower.plan, reader.tower.backend
    for found in ("miss", "hit"):
        with Reader.open(None, options) as reader:
            assert (reader.tower.plan, reader.tower.backend) == (plan, backend)
            assert isinstance(reader.tower, LateTower) and not reader.tower.opened
            assert looked(reader, film) == expected
            assert reader.tower.opened == (found == "miss")
    (tmp_path / "studies").chmod(0o700)
    for path in (tmp_path / "studies").iterdir():
        path.unlink()
    monkeypatch.setitem(KNOWN, "onnx", "onnxruntime of another kind")
    with (
        Reader.open(None, options) as reader,
        pytest.raises(BackendError, match="runs on onnxruntime CPU, not on onnxruntime of another kind"),
    ):
        reader.look(film)
