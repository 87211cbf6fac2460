"""A film looked at once for good: what is kept of it, where, and that nothing broken is ever believed."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from radvlm_edge.errors import BackendError, StudyCacheError
from radvlm_edge.runtime import language, llama, studies, study_file
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.recall import Parked
from radvlm_edge.runtime.studies import StudyStore, entries, open_store, purge, study_key
from radvlm_edge.runtime.study_file import KEY_VARIABLE, load_secret

CLI = Path(sys.executable).with_name("radvlm-edge")
QUESTIONS = ("any effusion?", "left or right?")
SECRET = bytes(range(32))
KEYS = [f"{n:064x}" for n in range(8)]
GIB = 1 << 30
FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"Doe^Jane-{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 255, (60, 50 + 10 * seed), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def reader_on(bundle: Path, cache: Path | None = None, **options: Any) -> Reader:
    return Reader.open(bundle, Options(max_tokens=10, threads=1, study_cache=cache, **options))


def bits(answer: Answer) -> tuple[list[int], list[float]]:
    answer.finish()
    return answer._ids, answer._logprobs


@pytest.fixture(scope="module")
def cold(tiny_bundle: Path, films: list[Path]) -> list[list[tuple[list[int], list[float]]]]:
    """Answers to QUESTIONS about each film, each film looked at by a reader of its own."""
    found = []
    for film in films[:2]:
        with reader_on(tiny_bundle) as reader:
            study = reader.look(film)
            assert study.cache == "off"
            found.append([bits(study.ask(question)) for question in QUESTIONS])
    return found


class Counted:
    """Calls and tokens of llama_decode, and crops given to the tower."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.tokens = self.crops = 0
        decode = llama.llama_cpp.llama_decode

        def counting(context: Any, batch: Any) -> int:
            self.calls += 1
            self.tokens += batch.n_tokens
            return int(decode(context, batch))

        monkeypatch.setattr(llama.llama_cpp, "llama_decode", counting)

    def tower(self, reader: Reader) -> None:
        inner = reader.tower

        class Tower:
            backend = inner.backend

            def encode(tower, crops: Any) -> Any:  # noqa: N805
                self.crops += len(crops)
                return inner.encode(crops)

        reader.tower = Tower()


def test_a_hit_runs_no_tower_and_no_prefill_and_answers_bit_for_bit(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        first = reader.look(films[0])
        assert first.cache == "miss" and not first.notes
        assert [bits(first.ask(question)) for question in QUESTIONS] == cold[0]
        image = first.image
    with reader_on(tiny_bundle, cache, context=700) as reader:  # room is no part of the identity
        counted = Counted(monkeypatch)
        counted.tower(reader)
        study = reader.look(films[0])
        assert study.cache == "hit" and not study.notes
        assert (counted.calls, counted.tokens, counted.crops) == (0, 0, 0)
        answers = [study.ask(question) for question in QUESTIONS]
        assert [bits(answer) for answer in answers] == cold[0]
        assert answers[0].prefill_tokens == study.ask(QUESTIONS[0]).prefill_tokens < 60
        assert counted.crops == 0
        assert np.array_equal(study.image, image) and counted.crops == study.layout.crops
        assert reader.look(films[1]).cache == "miss"


def test_whatever_the_state_was_computed_from_is_part_of_its_identity(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        reader.look(films[0])
    for options in ({"vision": "fp32"}, {"language": "Q4_K_M"}, {"render": "mimic"}):  # none is the default
        with reader_on(tiny_bundle, cache, **options) as reader:
            assert reader.look(films[0]).cache == "miss", options
    build = {**language.build_identity(), "libraries": "another"}
    monkeypatch.setattr(language, "build_identity", lambda: build)
    with reader_on(tiny_bundle, cache) as reader:
        study = reader.look(films[0])
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
    tiny_bundle: Path, films: list[Path], cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reader_on(tiny_bundle) as reader:
        counted = Counted(monkeypatch)
        head = len(reader._recall.head)
        first = reader.look(films[0])
        assert counted.tokens == first.prefix_tokens == first.uncharged_tokens
        first.say("x?").finish()
        counted.tokens = 0
        second = reader.look(films[1])
        assert head > 0 and counted.tokens == second.prefix_tokens - head == second.uncharged_tokens
        assert [bits(second.ask(question)) for question in QUESTIONS] == cold[1]


def test_memory_is_bounded_and_an_evicted_study_is_prefilled_again(
    tiny_bundle: Path, films: list[Path], cold: Any
) -> None:
    with reader_on(tiny_bundle, study_memory=0) as reader:
        pair = [reader.look(film) for film in films[:2]]
        assert reader._recall.parked.held_bytes() == 0
        for study, expected in zip(pair, cold, strict=True):
            answer = study.ask(QUESTIONS[0])
            assert bits(answer) == expected[0] and answer.prefill_tokens > study.layout.image_tokens
            assert bits(study.ask(QUESTIONS[1])) == expected[1]
    with reader_on(tiny_bundle) as reader:
        three = [reader.look(film) for film in films]
        size = reader._recall.parked.held_bytes()
    with reader_on(tiny_bundle, study_memory=size) as reader:  # of three, two at a time lie aside
        parked = reader._recall.parked
        three = [reader.look(film) for film in films]
        for _ in range(2):
            for study in three:
                study.ask(QUESTIONS[0], max_tokens=1).finish()
                assert parked.held_bytes() <= size
        held = parked.held_bytes()
        del study, three
        gc.collect()
        assert held > 0 and parked.held_bytes() == 0, "a study that is gone takes its state along"
        for film in films:
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
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any
) -> None:
    with reader_on(tiny_bundle, tmp_path / "cache", study_memory=0) as reader:
        pair = [reader.look(film) for film in films[:2]]
        pair[0].ask(QUESTIONS[0]).finish()
        pair[1].ask(QUESTIONS[0]).finish()
        answer = pair[0].ask(QUESTIONS[1])
        assert bits(answer) == cold[0][1] and answer.prefill_tokens < 60
        purge(tmp_path / "cache")
        answer = pair[1].ask(QUESTIONS[1])
        assert bits(answer) == cold[1][1] and answer.prefill_tokens > pair[1].layout.image_tokens


def store_on(folder: Path, *, limit: int = GIB, days: float = 7.0, secret: bytes | None = None) -> StudyStore:
    return StudyStore(folder, limit_bytes=limit, days=days, secret=secret)


def path_of(folder: Path, key: str = KEYS[0]) -> Path:
    return folder / f"{key}.kv"


@pytest.mark.parametrize("secret", [None, SECRET], ids=["clear", "encrypted"])
@FEW
@given(
    state=st.binary(min_size=1, max_size=300),
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_is_found(
    tmp_path: Path, secret: bytes | None, state: bytes, where: float, flip: int
) -> None:
    store = store_on(tmp_path / "c", secret=secret)
    store.put(KEYS[0], 7, state, "bundle")
    tokens, held = store.get(KEYS[0]) or (0, b"")
    assert (tokens, bytes(held)) == (7, state)
    whole = path_of(store.folder).read_bytes()
    at = int(where * len(whole))
    path_of(store.folder).write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    assert store.get(KEYS[0]) is None
    (note,) = store.notes
    assert "\n" not in note and "looked at again" in note
    assert not path_of(store.folder).exists()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["clear", "encrypted"])
def test_every_byte_of_a_small_file_matters_and_every_length(tmp_path: Path, secret: bytes | None) -> None:
    store = store_on(tmp_path / "c", secret=secret)
    store.put(KEYS[0], 7, b"state", "bundle")
    path = path_of(store.folder)
    whole = path.read_bytes()
    broken = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    broken += [whole[:length] for length in range(len(whole))] + [whole + b"\0", b"", b"\0" * 500]
    for content in broken:
        path.write_bytes(content)
        assert store.get(KEYS[0]) is None and not path.exists()
    assert len(store.notes) == len(broken)


def test_a_valid_file_under_another_name_is_not_believed(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    store.put(KEYS[0], 7, b"state", "bundle")
    path_of(store.folder).rename(path_of(store.folder, KEYS[1]))
    assert store.get(KEYS[1]) is None and "renamed" in store.notes[0]


def test_a_broken_or_refused_state_is_a_miss_and_the_answer_comes(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        key = reader.look(films[0]).key or ""
        path = path_of(cache, key)
        whole = path.read_bytes()
        _, state = StudyStore(cache, limit_bytes=GIB, days=7).get(key) or (0, b"")
        shorter = reader.look(films[1])  # the context now holds another film of another length
        other = reader._language.save_prefix()
        assert shorter.prefix_tokens != reader.look(films[0]).prefix_tokens

        def damaged() -> None:
            path.write_bytes(whole[: len(whole) // 2])

        def refused() -> None:
            store_on(cache).put(key, 3, bytes(state[:100]), "b")

        def another() -> None:
            store_on(cache).put(key, 3, bytes(other), "b")

        for spoil in (damaged, refused, another):
            spoil()
            study = reader.look(films[0])
            assert study.cache == "miss" and len(study.notes) == 1 and "\n" not in study.notes[0]
            assert [bits(study.ask(question)) for question in QUESTIONS] == cold[0]
            assert reader.look(films[0]).cache == "hit", "it was kept anew"


def test_folder_and_files_are_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_on(tmp_path / "deep" / "c")
    store.put(KEYS[0], 7, b"state", "bundle")
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path_of(store.folder).stat().st_mode) == 0o600
    for mode in (0o701, 0o710, 0o720, 0o740, 0o704, 0o702, 0o777):
        store.folder.chmod(mode)
        for use in (
            lambda: store_on(store.folder),
            lambda: entries(store.folder),
            lambda: purge(store.folder),
        ):
            with pytest.raises(StudyCacheError, match=f"chmod 700 {store.folder}"):
                use()
    store.folder.chmod(0o700)
    assert len(entries(store.folder)) == 1
    file = tmp_path / "file"
    file.touch(0o600)
    with pytest.raises(StudyCacheError, match="not a folder"):
        store_on(file)
    with pytest.raises(StudyCacheError, match="no such folder"):
        entries(tmp_path / "none")
    monkeypatch.setattr(studies.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StudyCacheError, match="belongs to user"):
        store_on(store.folder)


def test_an_unverified_bundle_keeps_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyCacheError, match="verify=True"):
        Reader.open(tiny_bundle, Options(study_cache=tmp_path / "c"), verify=False)


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.kv"))


@FEW
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 400)), max_size=25))
def test_the_disk_is_bounded_and_the_least_recently_used_go(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("lru") / "c"
    limit = 2000
    store = store_on(folder, limit=limit)
    bystander = folder / "notes.txt"
    bystander.write_text("x" * 5000)
    model: dict[str, int] = {}
    clock = time.time_ns()
    for put, index, size in steps:
        key = KEYS[index]
        if put:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(studies.os, "fsync", lambda handle: None)  # hundreds of files
                store.put(key, 1, bytes(size), "bundle")
            length = path_of(folder, key).stat().st_size
            while sum(model.values()) + length > limit:  # the file it replaces is there until the end
                del model[next(iter([other for other in model if other != key] or [key]))]
            model.pop(key, None)
            model[key] = length
        else:
            assert (store.get(key) is not None) == (key in model)
            if key in model:
                model[key] = model.pop(key)
        if key in model:  # distinct times on a coarse clock
            clock += 1_000_000
            os.utime(path_of(folder, key), ns=(clock, path_of(folder, key).stat().st_mtime_ns))
        assert {path.stem for path in folder.glob("*.kv")} == set(model)
        assert total(folder) <= limit
    store.put(KEYS[0], 1, bytes(limit), "bundle")
    assert "over the limit" in store.notes[-1] and total(folder) <= limit
    assert purge(folder)[0] == len(model) and bystander.exists()


def test_studies_age_out_by_when_they_were_written_not_used(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    for key, days in ((KEYS[0], 6.9), (KEYS[1], 7.1), (KEYS[2], 7.1)):
        store.put(key, 1, b"state", "bundle")
        written = time.time() - days * 86400
        os.utime(path_of(store.folder, key), (time.time(), written))
    assert store.get(KEYS[0]) and store.get(KEYS[0]), "use does not move the time of writing"
    assert store.get(KEYS[1]) is None and not path_of(store.folder, KEYS[1]).exists()
    assert path_of(store.folder, KEYS[2]).exists()
    store_on(store.folder)
    assert [entry.path.stem for entry in entries(store.folder)] == [KEYS[0]]
    assert purge(store.folder, older_than_days=6.95)[0] == 0
    assert purge(store.folder, older_than_days=6.85)[0] == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from radvlm_edge.runtime import studies
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
point = sys.argv[2]
if point == "fsync":
    os.fsync = die
elif point == "rename":
    Path.replace = die
else:
    whole = studies.blocks
    def some(*given):
        for index, block in enumerate(whole(*given)):
            if index == int(point):
                die()
            yield block[: len(block) // 2] if index + 1 == int(point) else block
    studies.blocks = some
store = studies.StudyStore(Path(sys.argv[1]), limit_bytes=1 << 30, days=7)
store.put("0" * 64, 7, bytes(range(256)) * 20000, "bundle")
"""


@pytest.mark.parametrize("point", ["1", "4", "fsync", "rename"])
@pytest.mark.parametrize("before", [False, True])
def test_a_writer_killed_anywhere_leaves_what_was_there(tmp_path: Path, point: str, before: bool) -> None:
    store = store_on(tmp_path / "c")
    if before:
        store.put(KEYS[0], 3, b"earlier", "bundle")
    result = subprocess.run([sys.executable, "-c", KILLED, store.folder, point], check=False)
    assert result.returncode == -signal.SIGKILL
    held = store.get(KEYS[0])
    assert (held and (held[0], bytes(held[1]))) == ((3, b"earlier") if before else None)
    assert not store.notes
    (left,) = store.folder.glob(".*.part")
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert [entry.header for entry in entries(store.folder) if entry.path == left] == [None]
    store_on(store.folder)
    assert left.exists(), "it may belong to a writer still at work"
    os.utime(left, (time.time() - 3601,) * 2)
    store_on(store.folder)
    assert not left.exists()


WRITER = """
import sys
from pathlib import Path
from radvlm_edge.runtime.studies import StudyStore
store = StudyStore(Path(sys.argv[1]), limit_bytes=1 << 30, days=7)
for _ in range(40):
    store.put("0" * 64, 7, sys.argv[2].encode() * 400_000, "bundle")
assert not store.notes, store.notes
"""


def test_two_processes_may_write_the_same_study_at_once(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    started = [subprocess.Popen([sys.executable, "-c", WRITER, store.folder, letter]) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in started):
        held = store.get(KEYS[0])
        if held is not None:
            seen.add(bytes(held[1]))
    assert [process.returncode for process in started] == [0, 0]
    assert not store.notes and seen and seen <= {b"a" * 400_000, b"b" * 400_000}
    assert [entry.path for entry in entries(store.folder)] == [path_of(store.folder)]


def test_a_full_disk_costs_the_cache_not_the_answer(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with reader_on(tiny_bundle, tmp_path / "c") as reader:
        monkeypatch.setattr(studies.os, "fsync", full)
        study = reader.look(films[0])
        assert study.cache == "miss" and bits(study.ask(QUESTIONS[0])) == cold[0][0]
    (note,) = study.notes
    assert note.endswith("not kept: No space left on device")
    assert not list((tmp_path / "c").iterdir())


def test_encryption_hides_the_state_and_another_implementation_reads_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    state = np.random.default_rng(0).bytes((1 << 20) + 5)
    store = store_on(tmp_path / "c", secret=SECRET)
    contents = []
    for _ in range(2):
        store.put(KEYS[0], 7, state, "bundle")
        contents.append(path_of(store.folder).read_bytes())
    for content in contents:
        assert not any(state[at : at + 8] in content for at in range(0, len(state), 16411))
        start = 12 + int.from_bytes(content[8:12], "little")
        nonce = bytes.fromhex(json.loads(content[12:start])["nonce"])
        assert AESGCM(SECRET).decrypt(nonce, content[start:-32], content[:start]) == state
    assert contents[0] != contents[1], "every file has a nonce of its own"
    tokens, held = store.get(KEYS[0]) or (0, b"")
    assert (tokens, bytes(held)) == (7, state)


def test_a_wrong_or_missing_key_is_an_error_and_overwrites_nothing(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, cold: Any
) -> None:
    cache, right, wrong = tmp_path / "c", tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(SECRET)
    wrong.write_text(SECRET[::-1].hex() + "\n")
    with reader_on(tiny_bundle, cache, study_cache_key=right) as reader:
        key = reader.look(films[0]).key or ""
    before = path_of(cache, key).read_bytes()
    for chosen, complaint in ((wrong, "not encrypted with this key"), (None, "no key is given")):
        with reader_on(tiny_bundle, cache, study_cache_key=chosen) as reader:
            with pytest.raises(StudyCacheError, match=complaint) as error:
                reader.look(films[0])
            assert "\n" not in str(error.value)
        assert path_of(cache, key).read_bytes() == before
    with reader_on(tiny_bundle, cache, study_cache_key=right) as reader:
        study = reader.look(films[0])
        assert study.cache == "hit" and bits(study.ask(QUESTIONS[0])) == cold[0][0]


def test_what_lies_in_the_clear_is_replaced_once_there_is_a_key(tmp_path: Path) -> None:
    store_on(tmp_path / "c").put(KEYS[0], 7, b"state", "bundle")
    store = store_on(tmp_path / "c", secret=SECRET)
    assert store.get(KEYS[0]) is None and "not encrypted" in store.notes[0]
    assert not path_of(store.folder).exists()


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    file = tmp_path / "key"
    for content in (SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode() + b"\n"):
        file.write_bytes(content)
        assert load_secret(file) == SECRET
    assert load_secret(None) is None
    for content in (b"", SECRET[1:], SECRET.hex().encode()[1:], b"zz" * 32):
        file.write_bytes(content)
        with pytest.raises(StudyCacheError, match="openssl rand -out KEY 32"):
            load_secret(file)
    monkeypatch.setenv(KEY_VARIABLE, SECRET.hex())
    assert load_secret(None) == SECRET
    for value in ("0" * 63, "x" * 64, "0" * 32):
        monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(StudyCacheError, match=KEY_VARIABLE):
            load_secret(None)
    with pytest.raises(StudyCacheError, match="cannot be read"):
        load_secret(tmp_path / "none")
    with pytest.raises(StudyCacheError, match="without a study cache"):
        open_store(None, limit_bytes=1, days=1, key_file=file)


def test_without_cryptography_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    (tmp_path / "key").write_bytes(SECRET)
    with pytest.raises(BackendError, match=r"pip install 'radvlm-edge\[studies\]'"):
        open_store(tmp_path / "c", limit_bytes=GIB, days=7, key_file=tmp_path / "key")
    assert not (tmp_path / "c").exists()


def run(*arguments: object) -> tuple[int, str, str]:
    result = subprocess.run([CLI, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def hidden(films: list[Path]) -> Iterator[list[str]]:
    """What must never lie in a cache or be shown of it."""
    yield ["Doe", "Jane", str(films[0].parent)]


def test_a_second_process_hits_and_the_listing_tells_nothing(
    tiny_bundle: Path, films: list[Path], tmp_path: Path, hidden: list[str]
) -> None:
    cache = tmp_path / "cache"
    infer = ["infer", films[0], "--ask", QUESTIONS[0], "--json", "--bundle", tiny_bundle]
    infer += ["--max-tokens", 10, "--threads", 1]
    records = []
    for extra in ([], ["--study-cache", cache], ["--study-cache", cache, "--study-cache-limit", "1MB"]):
        code, out, _ = run(*infer, *extra)
        assert code == 0
        records.append(json.loads(out))
    assert [record["cache"] for record in records] == ["off", "miss", "hit"]
    answers = [record["answers"][0] for record in records]
    assert len({answer["text"] for answer in answers}) == 1
    image = records[0]["image"]["image_tokens"]
    assert answers[0]["prefill_tokens"] == answers[1]["prefill_tokens"] > image > answers[2]["prefill_tokens"]
    assert records[2]["timing_ms"]["vision"] == 0

    code, out, _ = run("studies", "list", cache, "--json")
    listed = json.loads(out)
    (one,) = listed["studies"]
    assert code == 0 and one["whole"] and not one["encrypted"] and one["tokens"] > image
    assert one["bundle"] == records[0]["bundle"]["sha256"] and listed["bytes"] == one["bytes"] == total(cache)
    code, text, _ = run("studies", "list", cache)
    assert code == 0 and one["study"][:12] in text
    content = next(cache.glob("*.kv")).read_bytes()
    assert not any(word in out + text or word.encode() in content for word in hidden)

    assert run("studies", "purge", cache)[0] == 2
    assert run("studies", "purge", cache, "--older-than", "1")[1].endswith("0 files, 0.0 MiB removed\n")
    assert "1 files" in run("studies", "purge", cache, "--all")[1] and not list(cache.iterdir())


def test_what_is_wrong_with_a_cache_is_one_line(tiny_bundle: Path, films: list[Path], tmp_path: Path) -> None:
    infer = ["infer", films[0], "--ask", "a?", "--bundle", tiny_bundle, "--max-tokens", 2, "--threads", 1]
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    code, out, err = run(*infer, "--study-cache", shared)
    assert (code, out) == (1, "") and "chmod 700" in err and err.count("\n") == 1
    code, _, err = run(*infer, "--study-cache", tmp_path / "c", "--study-cache-limit", "8 apples")
    assert code == 2 and "8 apples" in err
    cache = tmp_path / "own"
    assert run(*infer, "--study-cache", cache)[0] == 0
    kept = next(cache.glob("*.kv"))
    kept.write_bytes(kept.read_bytes()[:-1])
    code, out, err = run(*infer, "--study-cache", cache)
    assert code == 0 and out
    assert len([line for line in err.splitlines() if line.startswith("radvlm-edge: ")]) == 1
    assert "damaged or incomplete" in err


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("8589934592", 8 << 30),
        ("8GiB", 8 << 30),
        ("1.5 mib", 3 << 19),
        ("2KB", 2000),
        ("3kib", 3072),
        ("4MB", 4 * 10**6),
        ("5GB", 5 * 10**9),
    ],
)
def test_sizes_are_read_as_written(written: str, expected: int) -> None:
    import click

    from radvlm_edge.cli.options import parse_size

    option = click.Option(["--size"])
    assert parse_size(click.Context(click.Command("x")), option, written) == expected


def test_study_file_is_what_its_docstring_says(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    store.put(KEYS[0], 7, b"state", "bundle")
    content = path_of(store.folder).read_bytes()
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + length])
    assert content[:8] == b"radvlmKV" and content[12 + length : -32] == b"state"
    assert set(header) == {"key", "tokens", "bytes", "bundle", "nonce", "format"}
    summed = subprocess.run(["sha256sum"], input=content[:-32], capture_output=True, check=True).stdout
    assert summed.split()[0].decode() == content[-32:].hex()
    assert header["format"] == study_file.FORMAT
