"""Studies on disk: whose they are, how many, how long, and what a kill, a race or a full disk leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.studies import (
    FEW,
    GIB,
    KEYS,
    QUESTIONS,
    bits,
    path_of,
    reader_on,
    store_on,
    total,
)

from radvlm_edge.errors import StudyCacheError
from radvlm_edge.runtime import studies
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.studies import StudyStore, entries, purge


def test_a_broken_or_refused_state_is_a_miss_and_the_answer_comes(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any
) -> None:
    cache = tmp_path / "cache"
    with reader_on(tiny_bundle, cache) as reader:
        key = reader.look(named_films[0]).key or ""
        path = path_of(cache, key)
        whole = path.read_bytes()
        _, state = StudyStore(cache, limit_bytes=GIB, days=7).get(key) or (0, b"")
        shorter = reader.look(named_films[1])  # the context now holds another film of another length
        other = reader._language.save_prefix()
        assert shorter.prefix_tokens != reader.look(named_films[0]).prefix_tokens

        def damaged() -> None:
            path.write_bytes(whole[: len(whole) // 2])

        def refused() -> None:
            store_on(cache).put(key, 3, bytes(state[:100]), "b")

        def another() -> None:
            store_on(cache).put(key, 3, bytes(other), "b")

        for spoil in (damaged, refused, another):
            spoil()
            study = reader.look(named_films[0])
            assert study.cache == "miss" and len(study.notes) == 1 and "\n" not in study.notes[0]
            assert [bits(study.ask(question)) for question in QUESTIONS] == cold[0]
            assert reader.look(named_films[0]).cache == "hit", "it was kept anew"


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
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with reader_on(tiny_bundle, tmp_path / "c") as reader:
        monkeypatch.setattr(studies.os, "fsync", full)
        study = reader.look(named_films[0])
        assert study.cache == "miss" and bits(study.ask(QUESTIONS[0])) == cold[0][0]
    (note,) = study.notes
    assert note.endswith("not kept: No space left on device")
    assert not list((tmp_path / "c").iterdir())
