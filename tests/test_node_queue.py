"""What survives a kill: the node's folder and queue; and names that are always the same."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.errors import NodeError

pytest.importorskip("pynetdicom", reason="needs the extra `node`")
pytest.importorskip("highdicom", reason="needs the extra `node`")
from radvlm_edge.node.folder import FILM, RESULT, Folder
from radvlm_edge.node.identity import Aliases, Maker, derived_uid
from radvlm_edge.node.questions import Questions
from radvlm_edge.node.queue import Queue, QueuedFilm, QueuedResult
from radvlm_edge.node.settings import Peer, Settings

MAKER = Maker("1", "b", "ab" * 32, "fp16", "Q8_0", "exact", "voi", 256, "q")
KILLED = """
import sys
from radvlm_edge.node.folder import Folder
from radvlm_edge.node.queue import Queue, QueuedFilm
from pathlib import Path
folder = Folder(Path(sys.argv[1]))
queue = Queue(folder.queue)
for number in range(10**6):
    name = folder.keep("films", str(number).encode())
    queue.add(QueuedFilm(f"1.2.{number}", "d", name, "CR1", 1.0))
    print(number, flush=True)  # the acknowledgement
    if number == 3:
        queue.take()
"""


def queued(number: int, kind: str = "sr") -> QueuedResult:
    return QueuedResult(
        f"2.{number}.{kind}", f"1.{number}", kind, f"results/{number}{kind}.dcm", float(number)
    )


def test_every_film_said_to_be_kept_is_kept_when_the_process_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "node"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(12)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()

    folder = Folder(place)  # the lock went with the process
    queue = Queue(folder.queue)
    folder.sweep(queue.files())
    for number in said:
        film = queue.find(f"1.2.{number}")
        assert film is not None and film.file is not None
        assert folder.read(film.file) == str(number).encode()
    assert queue.counts()["films"].keys() == {"waiting"}, "the film at work waits again"
    first = queue.take()
    assert first is not None and (first.uid, first.attempts) == ("1.2.0", 2)
    left = {f"{FILM}/{path.name}" for path in (place / FILM).iterdir()}
    assert left == queue.files(), "files of films that were never acknowledged are swept"
    queue.close()
    folder.close()


def test_a_film_is_queued_once_and_worked_on_in_the_order_it_came(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q")
    films = [QueuedFilm(f"1.{n}", "d", f"films/{n}", "A", float(n)) for n in (3, 1, 2)]
    assert [queue.add(film) for film in films] == [True] * 3
    assert not queue.add(QueuedFilm("1.1", "other", "films/other", "B", 9.0))
    taken = [queue.take() for _ in range(4)]
    assert [film and film.uid for film in taken] == ["1.3", "1.1", "1.2", None]
    queue.put_back("1.1", 0.0, counted=False)
    queue.put_back("1.3", 3600.0, counted=True)
    again = queue.take()
    assert again is not None and (again.uid, again.attempts) == ("1.1", 1)
    assert queue.take() is None, "one put back for an hour is not due"


def test_results_and_their_film_go_together(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q")
    queue.add(QueuedFilm("1.7", "d", "films/7", "A", 1.0))
    queue.take()
    results = [queued(7, "sr"), queued(7, "gsps")]
    queue.finish("1.7", "read", results)
    queue.finish("1.7", "read", results)  # said twice: recorded once
    due = queue.due()
    assert sorted(result.kind for result in due) == ["gsps", "sr"]
    assert queue.sent(due[0]) == [due[0].file]
    assert queue.sent(due[1]) == [due[1].file, "films/7"], "the film's file is needed until all is sent"
    assert queue.due() == [] and queue.files() == set()
    assert queue.find("1.7") is not None, "its UID is remembered"


def test_dead_letters_wait_for_revival_only(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q")
    queue.add(QueuedFilm("1.7", "d", "films/7", "A", 1.0))
    queue.finish("1.7", "read", [queued(7)])
    (due,) = queue.due()
    queue.later(due, 0.0, "down", refused=False)
    queue.bury(queue.due()[0], "refused")
    assert queue.due() == [] and queue.dead() == [("1.7", "sr", "refused")]
    assert "films/7" in queue.files() and due.file in queue.files(), "nothing of a dead letter is removed"
    assert queue.revive() == 1
    (again,) = queue.due()
    assert (again.attempts, again.refused) == (0, 0)


def test_one_node_a_folder_and_nobody_else_in_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "node")
    with pytest.raises(NodeError, match="another node works in it"):
        Folder(tmp_path / "node")
    folder.close()
    (tmp_path / "node").chmod(0o750)
    with pytest.raises(NodeError, match="chmod 700"):
        Folder(tmp_path / "node")


def test_a_queue_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q").write_bytes(b"not a database at all" * 100)
    with pytest.raises(NodeError, match="not a queue"):
        Queue(tmp_path / "q")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = Folder(tmp_path / "node")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, call, full) if call == "fsync" else (Path, call, full)))
        with pytest.raises(OSError, match="No space"):
            folder.keep(RESULT, b"x" * 1000)
    assert list((tmp_path / "node" / RESULT).iterdir()) == []
    assert folder.read(folder.keep(RESULT, b"x")) == b"x"
    folder.close()


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_derived_uids_are_valid_and_tell_everything_apart(one: list[str], other: list[str]) -> None:
    uid = derived_uid(*one)
    assert uid == derived_uid(*one)
    assert len(uid) <= 64 and uid.startswith("2.25.") and not uid[5:].startswith("0")
    assert uuid.UUID(int=int(uid[5:])).version == 5
    assert (uid == derived_uid(*other)) == (one == other)


def test_a_result_is_named_by_film_bundle_and_questions_not_by_the_softwares_version() -> None:
    from dataclasses import replace

    uid = MAKER.result_uid("sr", "1.2.3")
    assert replace(MAKER, version="2").result_uid("sr", "1.2.3") == uid
    others = [replace(MAKER, bundle_sha256="cd" * 32), replace(MAKER, questions="other"),
              replace(MAKER, language="Q4_K_M"), replace(MAKER, detail="384")]  # fmt: skip
    uids = {other.result_uid("sr", "1.2.3") for other in others}
    uids |= {uid, MAKER.result_uid("gsps", "1.2.3"), MAKER.result_uid("sr", "1.2.4")}
    assert len(uids) == 7
    assert replace(MAKER, questions="other", detail="384").device_uid == MAKER.device_uid
    assert replace(MAKER, language="Q4_K_M").device_uid != MAKER.device_uid
    assert replace(MAKER, bundle_sha256="cd" * 32).device_uid != MAKER.device_uid


LOGGED = """
import logging
from radvlm_edge.node.trouble import log_to_stderr
from radvlm_edge.runtime.dicom import _quiet
log_to_stderr()
with _quiet():
    logging.getLogger("radvlm_edge.node").info("a film came")
"""


def test_what_is_logged_while_another_film_is_decoded_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGED], capture_output=True, text=True, check=True)
    assert "INFO a film came" in done.stderr


def test_aliases_hide_uids_and_follow_a_film(tmp_path: Path) -> None:
    first = Queue(tmp_path / "q")
    alias = Aliases(first.salt)("1.2.3")
    first.close()
    assert Aliases(Queue(tmp_path / "q").salt)("1.2.3") == alias, "the salt outlives the process"
    assert Aliases(b"other")("1.2.3") != alias and "1.2.3" not in alias


def test_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("# ours\n@checklist\n\nIs the tube well placed?\n@locate=pleural effusion\n")
    questions = Questions.load(file)
    assert len(questions.checklist) == 13
    assert questions.others == (
        "Is the tube well placed?",
        "Where is the pleural effusion located in this Chest X-ray?",
    )
    assert Questions.load(None).digest != questions.digest
    for text, complaint in {"": "0 questions", "@nonsense": "nonsense", "a\n" * 65: "65 questions"}.items():
        file.write_text(text)
        with pytest.raises(NodeError, match=complaint):
            Questions.load(file)
    with pytest.raises(NodeError, match="cannot be read"):
        Questions.load(tmp_path / "missing")


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:1",
                                  "A\\B@host:1", "SEVENTEEN_LETTERS@host:1", "P@::1:104"])  # fmt: skip
def test_peers_that_are_none(text: str) -> None:
    with pytest.raises(NodeError):
        Peer.parse(text)


def test_peers() -> None:
    assert Peer.parse("PACS@pacs.local:104") == Peer("PACS", "pacs.local", 104)
    assert Peer.parse("MY PACS@[::1]:11112") == Peer("MY PACS", "::1", 11112)


@settings(max_examples=50)
@given(st.text(max_size=20))
def test_settings_take_titles_or_say_one_line(title: str) -> None:
    try:
        Settings(Peer("P", "127.0.0.1", 1), Path("x"), ae=title).check()
    except NodeError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < len(title.strip()) <= 16 and title.isascii() and "\\" not in title


def test_off_loopback_senders_must_be_named(tmp_path: Path) -> None:
    peer = Peer("P", "127.0.0.1", 1)
    with pytest.raises(NodeError, match="--allow"):
        Settings(peer, tmp_path, host="0.0.0.0").check()
    Settings(peer, tmp_path, host="0.0.0.0", allow=("CR1",)).check()
    with pytest.raises(NodeError, match="only one"):
        Settings(peer, tmp_path, tls_cert=tmp_path / "c").check()
    with pytest.raises(NodeError, match="must be PEM"):
        Settings(peer, tmp_path, to_tls=tmp_path / "missing").check()
