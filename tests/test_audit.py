"""The audit log: nothing is given that is not in it, and no line of it can be changed unnoticed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radvlm_edge.audit import AuditLog, beside, concealed, load_salt
from radvlm_edge.audit_check import records, verify
from radvlm_edge.cli import FULL, main
from radvlm_edge.errors import AuditError

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
LINES = 12


def write(folder: Path, lines: int = LINES) -> Path:
    """A log of `lines` lines: one that opens it, the others answers."""
    path = folder / "audit.log"
    log = AuditLog(path)
    for number in range(2, lines + 1):
        assert (
            log.note("answered", question=f"question {number}", answer=log.conceal("answer", "No.")) == number
        )
    return path


@dataclass
class Done:
    """What a command gave back."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """The command line in this process: a new interpreter for each would take longer than all it does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["radvlm-edge", *map(str, arguments)])
        patch.setenv(FULL, "1")  # faults are raised here
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def test_each_line_holds_its_number_and_the_digest_of_the_one_before(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = "0" * 64
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        record = json.loads(line)
        assert (record["n"], record["prev"]) == (number, before)
        before = hashlib.sha256(line).hexdigest()
    found = verify(path)
    assert (found.head.lines, found.head.sha256) == (LINES, before)
    assert (found.torn, found.unfinished, found.uncounted) == ((), False, 0)
    assert all(one.stat().st_mode & 0o077 == 0 for one in (path, *beside(path)))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original"))


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_change_is_found_and_its_line_named(original: Path, tmp_path: Path, data: st.DataObject) -> None:
    lines = original.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, LINES - 1))
    how = data.draw(st.sampled_from(["byte", "remove", "double", "swap", "cut"]))
    other = data.draw(st.integers(0, LINES - 1))
    if how == "byte":
        place = data.draw(st.integers(0, len(lines[at]) - 2))
        flip = data.draw(st.integers(1, 255).filter(lambda bits: lines[at][place] ^ bits != ord("\n")))
        lines[at] = lines[at][:place] + bytes([lines[at][place] ^ flip]) + lines[at][place + 1 :]
    elif how == "remove":
        del lines[at]
    elif how == "double":
        lines.insert(at + 1, lines[at])
        at += 1
    elif how == "swap":
        if at == other:
            return
        lines[at], lines[other] = lines[other], lines[at]
        at = min(at, other)
    else:
        del lines[at:]
    path = tmp_path / "audit.log"
    path.write_bytes(b"".join(lines))
    for copy, kept in zip(beside(path), beside(original), strict=True):
        copy.write_bytes(kept.read_bytes())
    with pytest.raises(
        AuditError, match=rf"line {at + 1} is|the first line" if at == 0 else f"line {at + 1} is"
    ):
        verify(path)


def test_a_log_written_anew_is_found_by_a_digest_noted_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path)
    noted = verify(path).head.sha256
    AuditLog(path).note("answered", question="one more")
    assert verify(path, anchor=noted).head.lines == LINES + 1
    assert verify(path, anchor=noted[:16].upper()).head.lines == LINES + 1
    for file in (path, *beside(path)):
        file.unlink()
    write(tmp_path, LINES + 1)
    assert verify(path).head.lines == LINES + 1
    with pytest.raises(AuditError, match="no line has the digest"):
        verify(path, anchor=noted)
    with pytest.raises(AuditError, match="too short"):
        verify(path, anchor="ab")


def test_a_line_torn_by_a_crash_is_said_and_the_log_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for kept in (1, 20, 60):
        path.write_bytes(whole + whole.splitlines()[-1][:kept])
        assert verify(path).unfinished
        done = run("audit", "verify", path)
        assert done.returncode == 0 and f"line {LINES + 1} is a beginning only" in done.stderr
    log = AuditLog(path)
    assert log.note("answered", question="after the crash") == LINES + 3
    found = verify(path)
    assert (found.torn, found.unfinished, found.head.lines) == ((LINES + 1,), False, LINES + 3)
    assert [record["event"] for record in records(path)][-2:] == ["torn", "answered"]
    done = run("audit", "verify", path)
    assert done.returncode == 0 and f"line {LINES + 1} was cut short by a crash" in done.stderr
    # A line that was whole once cannot be passed off as torn.
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:30] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match="line 5 is changed"):
        verify(path)


def test_a_shortened_log_is_not_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path)
    log, lines = AuditLog(path), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(AuditError, match="lines were removed"):
        log.note("answered")
    with pytest.raises(AuditError, match=f"holds {LINES - 2} lines of the {LINES}"):
        AuditLog(path)
    path.write_bytes(b"")
    with pytest.raises(AuditError, match=f"holds 0 lines of the {LINES}"):
        AuditLog(path)
    path.unlink()
    with pytest.raises(AuditError, match="not the file it was"):
        log.note("answered")


def test_the_salt_is_guarded(tmp_path: Path) -> None:
    path = write(tmp_path)
    salt, _ = beside(path)
    kept = salt.read_bytes()
    salt.write_bytes(os.urandom(32))
    with pytest.raises(AuditError, match="not the salt"):
        AuditLog(path)
    salt.write_bytes(kept)
    salt.chmod(0o644)
    with pytest.raises(AuditError, match="chmod 600"):
        AuditLog(path)
    salt.unlink()
    with pytest.raises(AuditError, match="cannot be read"):
        AuditLog(path)
    assert concealed(kept, "uid", "1.2.3") != concealed(kept, "answer", "1.2.3")


WRITER = """
import sys
from pathlib import Path
from radvlm_edge.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    log.note("answered", question=f"{sys.argv[3]} {number}", filler="x" * 300)
"""


def test_several_processes_write_one_chain_even_when_some_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    command = [sys.executable, "-c", WRITER, path]
    steady = [subprocess.Popen([*command, "30", name]) for name in "ab"]
    for _ in range(4):
        with subprocess.Popen([*command, "100000", "killed"], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == b"ready\n"
            time.sleep(0.05)
            victim.send_signal(signal.SIGKILL)
    assert [process.wait(120) for process in steady] == [0, 0]
    found = verify(path)
    said = [record.get("question", "") for record in records(path)]
    for name in "ab":
        assert [one for one in said if one.startswith(name)] == [f"{name} {number}" for number in range(30)]
    assert found.head.lines == len(said) + len(found.torn)


def test_infer_gives_no_answer_it_cannot_note(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"not a film")
    ask = ["infer", FILM, "--threads", "1", "--audit", path]
    done = run(*ask, bad, "--ask", "any effusion?", "--ask", "Is there a pacemaker?")
    assert done.returncode == 1  # the bad film
    told = list(records(path))
    assert [one["event"] for one in told] == ["opened", "answered", "answered", "refused"]
    salt = load_salt(path)
    answers = [concealed(salt, "answer", line) for line in done.stdout.splitlines()]
    assert [one["answer"] for one in told[1:3]] == answers
    assert told[1]["question"] == "any effusion?" and len(told[1]["bundle"]) == 64
    assert told[1]["options"]["max_tokens"] == 512 and told[3]["why"] == "FilmError"
    import pydicom

    uid = str(pydicom.dcmread(FILM, stop_before_pixels=True).SOPInstanceUID)
    assert told[1]["film"] == concealed(salt, "uid", uid) and uid not in path.read_text()
    found = run("audit", "find", path, "--uid", uid)
    assert [json.loads(line)["n"] for line in found.stdout.splitlines()] == [2, 3]
    found = run("audit", "find", path, "--answer", done.stdout.splitlines()[0])
    assert json.loads(found.stdout.splitlines()[0])["n"] == 2
    # A log that cannot be written: no answer on stdout, one line on stderr.
    (tmp_path / "full.log").symlink_to("/dev/full")
    done = run("infer", FILM, "--threads", "1", "--audit", tmp_path / "full.log", "--ask", "a?")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "the audit log cannot be written (No space left on device)" in done.stderr


def test_chat_notes_a_question_before_its_answer_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    monkeypatch.setattr(sys, "stdin", io.StringIO("any effusion?\n" + "word " * 5000 + "\nwhere is it?\n"))
    done = run("chat", FILM, "--threads", "1", "--audit", path)
    assert done.returncode == 0 and done.stderr.count("radvlm-edge: ") == 1  # a question far too long
    told = list(records(path))
    events = ["opened", "asked", "answered", "refused", "asked", "answered"]
    assert [one["event"] for one in told] == events and {one["via"] for one in told[1:]} == {"chat"}
    answers = [concealed(load_salt(path), "answer", line) for line in done.stdout.splitlines()]
    assert [one["answer"] for one in told if one["event"] == "answered"] == answers
    verify(path)

    class Broken(io.StringIO):  # a terminal that goes away behind the first words
        def flush(self) -> None:
            if self.getvalue():
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.StringIO("any effusion?\n"))
    monkeypatch.setattr(
        sys, "argv", ["radvlm-edge", "chat", str(FILM), "--threads", "1", "--audit", str(path)]
    )
    monkeypatch.setenv(FULL, "1")
    with redirect_stdout(Broken()) as shown, redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        main()
    last = list(records(path))[-1]
    assert last["event"] == "left" and shown.getvalue().strip()
    assert last["answer"] == concealed(load_salt(path), "answer", shown.getvalue())

    (tmp_path / "full.log").symlink_to("/dev/full")
    monkeypatch.setattr(sys, "stdin", io.StringIO("any effusion?\n"))
    done = run("chat", FILM, "--threads", "1", "--audit", tmp_path / "full.log")
    assert done.returncode == 1 and done.stdout == "" and "No space left on device" in done.stderr


def test_the_command_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    done = run("audit", "verify", path)
    assert (
        done.returncode == 0 and f"{LINES} lines" in done.stdout and verify(path).head.sha256 in done.stdout
    )
    path.write_bytes(path.read_bytes().replace(b"question 7", b"question 8"))
    done = run("audit", "verify", path)
    assert done.returncode == 1 and "line 7 is changed" in done.stderr and done.stderr.count("\n") == 1
    assert "cannot be read" in run("audit", "verify", tmp_path / "none").stderr
