"""The node's provider and sender with pynetdicom and dcmtk: what is acknowledged is kept and arrives once."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from radvlm_edge.errors import NodeError

pytest.importorskip("pynetdicom", reason="needs the extra `node`")
pytest.importorskip("highdicom", reason="needs the extra `node`")
from tests.dicom_node import (
    certificate,
    content,
    film,
    free_port,
    pacs,
    settings,
    store,
    tool,
    until,
)

from radvlm_edge.node import scp
from radvlm_edge.node.folder import FILM, RESULT, Folder
from radvlm_edge.node.heading import Heading, encoded
from radvlm_edge.node.identity import Maker
from radvlm_edge.node.queue import Queue, QueuedFilm, QueuedResult
from radvlm_edge.node.reading import Failure
from radvlm_edge.node.scp import Receiver
from radvlm_edge.node.send import Sender
from radvlm_edge.node.settings import Settings
from radvlm_edge.node.sr import report

MAKER = Maker("0.1.0", "nano", "ab" * 32, "fp16", "Q8_0", "exact", "voi", 256, "cd" * 32)


class Desk:
    """Folder, queue and provider without a model."""

    def __init__(self, wanted: Settings) -> None:
        self.folder = Folder(wanted.folder)
        self.queue = Queue(self.folder.queue)
        self.arrived = 0
        self.receiver = Receiver(wanted, self.folder, self.queue, self._count)
        self.port = self.receiver.start()

    def _count(self) -> None:
        self.arrived += 1

    @property
    def films(self) -> list[Path]:
        return list((self.folder.path / FILM).iterdir())

    def close(self) -> None:
        self.receiver.stop()
        self.queue.close()
        self.folder.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(settings(tmp_path, 1))
    yield opened
    opened.close()


def status(answers: list[Dataset]) -> list[int]:
    return [answer.Status for answer in answers]


def test_a_film_is_on_disk_before_it_is_acknowledged_and_queued_once(desk: Desk) -> None:
    one, two = film(1), film(2)
    assert status(store(desk.port, one, two, one)) == [0, 0, 0]
    assert desk.arrived == 2 and len(desk.films) == 2
    queued = desk.queue.find(one.SOPInstanceUID)
    assert queued is not None and queued.file is not None and queued.sender == "CR1"
    assert f"{FILM}/{queued.digest}" not in queued.file, "the name is of the whole file"
    from radvlm_edge.runtime.film import load_film

    kept = load_film(desk.folder.read(queued.file))
    assert (kept.pixels == load_film(content(one)).pixels).all()


def test_other_content_under_a_known_uid_is_said_not_taken(desk: Desk) -> None:
    store(desk.port, film(1))
    (answer,) = store(desk.port, film(1, PatientID="another"))
    assert answer.Status == scp.DISCARDED and "first content is kept" in answer.ErrorComment
    assert len(desk.films) == 1


def test_senders_with_the_same_films_at_once(desk: Desk) -> None:
    films, answers = [film(number) for number in range(3)], []
    threads = [
        threading.Thread(target=lambda ae=ae: answers.extend(status(store(desk.port, *films, ae=ae))))
        for ae in ("A", "B", "C", "D")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [0] * 12
    assert desk.queue.counts()["films"] == {"waiting": 3} and len(desk.films) == 3


def test_what_is_no_film_is_refused_with_a_reason(desk: Desk) -> None:
    answer = store(desk.port, film(1, StudyInstanceUID=""))[0]
    assert answer.Status == scp.MISMATCH and "StudyInstanceUID" in answer.ErrorComment
    with pytest.raises((ConnectionError, ValueError)):  # no presentation context
        store(desk.port, film(2, SOPClassUID=CTImageStorage))
    assert desk.films == [] and desk.queue.counts()["films"] == {}


@pytest.mark.parametrize("fault", ["reserve", "write", "queue"])
def test_a_full_disk_or_queue_refuses_and_loses_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if fault == "reserve":
            patch.setattr(Folder, "free_bytes", lambda self: -1)
        elif fault == "write":
            patch.setattr("radvlm_edge.node.folder.os.fsync", full)
        else:
            patch.setattr(Queue, "waiting", lambda self: 10**6)
        (answer,) = store(desk.port, film(1))
        assert answer.Status == scp.OUT_OF_RESOURCES and "again later" in answer.ErrorComment
        assert desk.films == [] and desk.arrived == 0
    assert status(store(desk.port, film(1))) == [0], "when there is room again the same film is taken"


def test_only_named_senders_that_name_the_node(tmp_path: Path) -> None:
    desk = Desk(settings(tmp_path, 1, allow=("CR1", "DX 2")))
    try:
        for wrong in ({"ae": "CR3"}, {"to": "OTHER"}):
            with pytest.raises(ConnectionError):
                store(desk.port, film(1), **wrong)
        assert status(store(desk.port, film(1), ae="DX 2")) == [0]
    finally:
        desk.close()


def test_echo(desk: Desk) -> None:
    entity = AE("CR1")
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", desk.port, ae_title="RADVLM")
    assert association.send_c_echo().Status == 0
    association.release()


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NodeError, match="cannot be listened on"):
            Desk(settings(tmp_path, 1, port=taken.getsockname()[1]))


def test_tls_both_ways_with_certificates_of_both(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="makes the test's certificates (extra `sign`)")
    ours, theirs = certificate(tmp_path, "node"), certificate(tmp_path, "pacs")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*theirs)
    server.load_verify_locations(ours[0])
    server.verify_mode = ssl.CERT_REQUIRED
    with pacs(tls=server) as (taker, port):
        own = {"tls_cert": ours[0], "tls_key": ours[1], "tls_clients": theirs[0], "to_tls": theirs[0]}
        wanted = settings(tmp_path, port, **own)
        wanted.check()
        desk = Desk(wanted)
        sender = Sender(wanted, desk.folder, desk.queue)
        try:
            with pytest.raises(ConnectionError):
                store(desk.port, film(1))  # in clear
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.load_verify_locations(ours[0])
            with pytest.raises(ConnectionError):
                store(desk.port, film(1), tls=client)  # without a certificate
            client.load_cert_chain(*theirs)
            assert status(store(desk.port, film(1), tls=client)) == [0]
            (name,) = results(desk, 1)
            sender.start()
            until(lambda: taker.of(film(1).SOPInstanceUID), "the report over TLS")
            assert taker.got[0].SOPInstanceUID == name
        finally:
            sender.stop(30)
            desk.close()


def results(desk: Desk, *numbers: int, kind: str = "sr") -> list[str]:
    """Queue a (failure) report of films; their UIDs."""
    uids = []
    for number in numbers:
        source = film(number)
        desk.queue.add(QueuedFilm(source.SOPInstanceUID, "d", f"{FILM}/none-{number}", "A", 1.0))
        document = report(Heading.of(content(source), MAKER, 1.0), Failure("a test"))
        file = desk.folder.keep(RESULT, encoded(document))
        result = QueuedResult(
            MAKER.result_uid(kind, source.SOPInstanceUID), source.SOPInstanceUID, kind, file, 4e9
        )
        desk.queue.finish(source.SOPInstanceUID, "failed", [result])
        uids.append(result.uid)
    return uids


@pytest.fixture
def send(tmp_path: Path) -> Iterator[Any]:
    """Start a sender in the desk's folder."""
    started: list[tuple[Sender, Desk]] = []

    def start(port: int, **more: Any) -> Desk:
        wanted = settings(tmp_path, port, **more)
        desk = Desk(wanted)
        sender = Sender(wanted, desk.folder, desk.queue)
        started.append((sender, desk))
        desk.start = sender.start  # type: ignore[attr-defined]
        return desk

    yield start
    for sender, desk in started:
        sender.stop(30)
        desk.close()


def test_results_wait_while_the_pacs_is_down_and_arrive_once_when_it_is_back(send: Any) -> None:
    port = free_port()
    desk = send(port)
    uids = results(desk, 1, 2)
    desk.start()
    until(lambda: any(result.attempts > 1 for result in desk.queue.due()), "a second try")
    with pacs(port) as (taker, _):
        until(lambda: desk.queue.counts()["results"] == {"sent": 2}, "delivery")
        assert sorted(one.SOPInstanceUID for one in taker.got) == sorted(uids)
        assert taker.senders == {"RADVLM"}
    assert list((desk.folder.path / RESULT).iterdir()) == [], "what arrived is removed"


def test_what_the_pacs_refuses_becomes_a_dead_letter_and_can_be_revived(send: Any) -> None:
    with pacs() as (taker, port):
        desk = send(port, refusals=2)
        taker.status = 0xC001
        results(desk, 1)
        desk.start()
        until(desk.queue.dead, "the dead letter")
        assert desk.queue.dead()[0][2] == "the PACS refused it with C001"
        assert len(list((desk.folder.path / RESULT).iterdir())) == 1, "it is kept"
        taker.status = 0
        desk.queue.revive()
        until(lambda: desk.queue.counts()["results"] == {"sent": 1}, "delivery after revival")
        assert len(taker.got) == 1


def test_a_pacs_without_reports_gets_none_and_time_runs_out_for_one_that_is_down(send: Any) -> None:
    with pacs(kinds=("gsps",)) as (_, port):
        desk = send(port, refusals=1, give_up_s=-1e12)
        results(desk, 1)
        desk.start()
        until(desk.queue.dead, "the dead letter")
        assert "does not take Comprehensive 3D SR" in desk.queue.dead()[0][2]
    results(desk, 2)
    until(lambda: len(desk.queue.dead()) == 2, "the second dead letter")
    assert any("cannot be reached" in problem for _, _, problem in desk.queue.dead())


def test_nothing_is_connected_to_but_the_pacs(send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = set()
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        reached.add(address)
        connect(self, address)

    with pacs() as (_, port):
        desk = send(port)
        results(desk, 1)
        monkeypatch.setattr(socket.socket, "connect", noted)
        desk.start()
        until(lambda: desk.queue.counts()["results"] == {"sent": 1}, "delivery")
    assert reached == {("127.0.0.1", port)}


@pytest.mark.skipif(tool("storescu") is None, reason="storescu is not installed (Debian: dcmtk)")
def test_dcmtk_echoes_and_stores(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(content(film(1)))
    peer = ["-aet", "CR1", "-aec", "RADVLM", "127.0.0.1", str(desk.port)]
    subprocess.run(["echoscu", *peer], check=True)
    subprocess.run(["storescu", "-xt", *peer, path], check=True)  # -xt: proposes JPEG-LS
    subprocess.run(["storescu", "-xt", *peer, path], check=True)
    assert desk.queue.counts()["films"] == {"waiting": 1}


@pytest.mark.skipif(tool("storescp") is None, reason="storescp is not installed (Debian: dcmtk)")
def test_dcmtk_takes_the_report(send: Any, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(["storescp", "-od", out, str(port)])
    try:
        desk = send(port)
        results(desk, 1)
        desk.start()
        until(lambda: desk.queue.counts()["results"] == {"sent": 1}, "delivery to storescp")
    finally:
        process.terminate()
        process.wait()
    (stored,) = out.iterdir()
    done = subprocess.run(["dsrdump", stored], capture_output=True, text=True, check=True)
    assert "Reason of failure" in done.stdout
