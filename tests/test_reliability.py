"""Full disks, unwritable caches, clocks that jump, bundles altered at run time, damaged study caches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from radvlm_edge.audit import AuditLog
from radvlm_edge.audit_check import records, verify
from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.errors import AuditError, BundleError
from radvlm_edge.runtime.reader import Options, Reader

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
QUESTION = "any effusion?"


def test_a_full_disk_gives_no_answer_without_its_line(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to("/dev/full")
    with pytest.raises(
        AuditError, match="cannot be written \\(No space left on device\\); without it no answer"
    ):
        AuditLog(tmp_path / "audit.log")


def test_a_log_that_fills_up_stops_answers_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.note("answered", question="one")
    write, room = os.write, [40]

    def until_full(file: int, content: Any) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = min(room[0], len(content))
        room[0] -= taken
        return write(file, bytes(content[:taken]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radvlm_edge.audit.os.write", until_full)
        with pytest.raises(AuditError, match="No space left"):
            log.note("answered", question="two")
    assert verify(path).unfinished
    log.note("answered", question="three")
    found = verify(path)
    assert found.torn == (3,) and [one.get("question") for one in records(path)] == [
        None,
        "one",
        None,
        "three",
    ]


def test_a_clock_that_jumps_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    for now in (4e9, 1e9, 2e9):
        monkeypatch.setattr("radvlm_edge.audit.time.time", lambda now=now: now)
        log.note("answered")
    years = [one["at"][:4] for one in records(path)][1:]
    assert verify(path).head.lines == 4 and years == ["2096", "2001", "2033"]


def test_nothing_needs_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")  # a folder cannot be made below it, by root either
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "cache"))
    opened = Bundle.open(demo_bundle())
    files = opened.check()
    assert files > 5 and opened.check() == files  # hashed again: nothing could be remembered


def test_what_is_altered_at_run_time_and_what_of_it_is_noticed(tmp_path: Path) -> None:
    """Renamed over, a running reader keeps what it opened; a damaged study is looked at anew."""
    folder = tmp_path / "copy.bundle"
    shutil.copytree(demo_bundle(), folder)
    options = Options(max_tokens=8, threads=1, study_cache=tmp_path / "studies")
    with Reader.open(folder, options) as reader:
        before = reader.look(FILM).ask(QUESTION).text
        for path in [one for one in folder.rglob("*") if one.is_file()]:
            other = path.with_name("other")
            other.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()[:1000]))
            other.replace(path)
        (kept,) = (tmp_path / "studies").glob("*.kv")
        content = bytearray(kept.read_bytes())
        content[len(content) // 2] ^= 1
        kept.write_bytes(content)
        study = reader.look(FILM)
        assert study.cache == "miss" and any("damaged" in note for note in study.notes)
        assert study.ask(QUESTION).text == before
        assert reader.look(FILM).cache == "hit"
    with pytest.raises(BundleError):
        Reader.open(folder, options)
