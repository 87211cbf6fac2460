"""The whole node with the demonstration model: film in, report out, whatever happens in between."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from radvlm_edge.audit import AuditLog
from radvlm_edge.errors import AuditError, NodeError
from radvlm_edge.runtime.reader import Options, Reader

pytest.importorskip("pynetdicom", reason="needs the extra `node`")
highdicom = pytest.importorskip("highdicom", reason="needs the extra `node`")
from tests.dicom_node import Lines, Pacs, content, film, free_port, pacs, settings, store, tool, until  # noqa: E402

from radvlm_edge.node import codes, work  # noqa: E402
from radvlm_edge.node.folder import FILM, RESULT, Folder  # noqa: E402
from radvlm_edge.node.node import Node, status  # noqa: E402
from radvlm_edge.node.questions import Questions  # noqa: E402
from radvlm_edge.node.queue import Queue, QueuedFilm  # noqa: E402

CLI = Path(sys.executable).with_name("radvlm-edge")
QUESTIONS = Questions(("any effusion?", "@locate=right lung"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "studies"


@pytest.fixture(scope="module")
def reader(kept: Path) -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=32, threads=1, detail=384, study_cache=kept)) as opened:
        yield opened


def said(report: pydicom.Dataset, name: Any) -> list[str]:
    """Texts of a report under a concept."""
    return [
        str(item.TextValue)
        for item in _items(report)
        if item.get("ValueType") == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == name.value
    ]


def _items(node: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    for item in node.get("ContentSequence", []):
        yield item
        yield from _items(item)


def test_films_become_reports_once_and_failures_are_reports_too(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="radvlm_edge")
    good, lateral, broken = film(1), film(2, ViewPosition="LL"), film(3)
    data = broken["PixelData"].value
    broken.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff" + data[200:4000]])
    uids = [one.SOPInstanceUID for one in (good, lateral, broken)]
    with pacs() as (taker, port):
        node = Node(reader, settings(tmp_path, port, capture=True), QUESTIONS)
        listening = node.start()
        try:
            answers = store(listening, good, lateral, broken)
            assert [answer.Status for answer in answers] == [0, 0, 0]
            until(lambda: node.queue.counts()["results"].get("sent") == 5, "three reports and two pictures")
            assert [answer.Status for answer in store(listening, good)] == [0]
            assert node.queue.waiting() == 0, "a film that is known makes no work"
            assert node.queue.counts()["outcomes"] == {"read": 1, "failed": 2}
        finally:
            node.stop()
    assert [len(taker.of(uid)) for uid in uids] == [1, 1, 1]
    (report,) = taker.of(uids[0])
    assert said(report, codes.QUESTION)[0] == "any effusion?"
    assert said(report, codes.ANSWER)[0].startswith(("Yes", "No"))
    assert said(taker.of(uids[1])[0], codes.REASON) == ["view LL: the model knows frontal films only"]
    assert "cannot be decoded" in said(taker.of(uids[2])[0], codes.REASON)[0]
    (overlay,) = taker.of(uids[0], "gsps")
    graphics = overlay.GraphicAnnotationSequence[0].GraphicObjectSequence
    regions = highdicom.sr.Comprehensive3DSR.from_dataset(report).content.get_planar_roi_measurement_groups()
    assert len(graphics) == len(regions) > 0
    assert list(graphics[0].GraphicData) == regions[0].roi.value.ravel().tolist()
    assert {f.name for kind in (FILM, RESULT) for f in (tmp_path / "node" / kind).iterdir()} == set()
    logged = "\n".join(record.getMessage() for record in caplog.records)
    secrets = [
        str(good.get(name)) for name in ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    ]
    assert len(logged.splitlines()) >= 9 and not [one for one in [*secrets, *uids] if one in logged]


def test_questions_asked_later_find_the_film_looked_at(reader: Reader) -> None:
    study = reader.look(content(film(1)))  # other UIDs, same picture: kept by the node above
    assert study.cache == "hit" and study.looked.vision_ms == 0.0


def test_a_film_that_fails_inside_gets_a_report_of_failure(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fault(*_: object, **__: object) -> None:
        tried.append(1)
        raise RuntimeError("of PATIENT^NAME")

    monkeypatch.setattr(work, "read", fault)
    monkeypatch.setattr(work, "AGAIN_S", 0.0)
    taker = _one_film(reader, tmp_path)
    assert said(taker.got[0], codes.REASON) == ["the analysis failed or ended the program 5 times"]
    assert len(tried) == 5


def test_a_disk_that_is_full_for_a_while_costs_no_film_its_answers(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, full = Folder.keep, [True] * 7

    def sometimes(self: Folder, kind: str, written: bytes) -> str:
        if kind == RESULT and full:
            full.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return keep(self, kind, written)

    def locked(name: str, times: int) -> None:
        real, left = getattr(Queue, name), [True] * times

        def method(self: Queue, *values: Any, **more: Any) -> Any:
            if left:
                left.pop()
                raise sqlite3.OperationalError("database or disk is full")
            return real(self, *values, **more)

        monkeypatch.setattr(Queue, name, method)

    monkeypatch.setattr(Folder, "keep", sometimes)
    locked("put_back", 3)
    locked("finish", 2)
    monkeypatch.setattr(work, "FULL_S", 0.0)
    monkeypatch.setattr(work, "IDLE_S", 0.05)
    taker = _one_film(reader, tmp_path)
    assert said(taker.got[0], codes.ANSWER), "more tries than a film has, and none was counted"


def test_a_film_whose_file_is_gone_is_lost_and_said_so(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = settings(tmp_path, free_port())
    folder = Folder(wanted.folder)
    queue = Queue(folder.queue)
    queue.add(QueuedFilm("1.2.3", "d", "films/gone.dcm", "CR1", 1.0))
    queue.close()
    folder.close()
    caplog.set_level(logging.INFO, logger="radvlm_edge")
    node = Node(reader, wanted, QUESTIONS)
    try:
        node.start()
        until(lambda: node.queue.counts()["outcomes"] == {"lost": 1}, "the loss")
    finally:
        node.stop()
    assert any("is lost: its file was removed" in record.getMessage() for record in caplog.records)


def test_answers_are_in_the_audit_log_before_they_are_sent(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, answered, tried = AuditLog(tmp_path / "audit.log"), AuditLog.answered, []

    def once_refused(self: AuditLog, *values: Any, **more: Any) -> int:
        tried.append(1)
        if len(tried) == 1:
            raise AuditError("audit.log: no space left")
        return answered(self, *values, **more)

    monkeypatch.setattr(AuditLog, "answered", once_refused)
    monkeypatch.setattr(work, "FULL_S", 0.0)
    monkeypatch.setattr(work, "IDLE_S", 0.05)
    taker = _one_film(reader, tmp_path, log)
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "answered"]
    assert len(tried) == 2 and len(taker.got) == 1
    assert (line["via"], line["who"], line["question"]) == ("node", {"ae": "CR1"}, "any effusion?")
    assert film(1).SOPInstanceUID not in str(lines)


def _one_film(reader: Reader, tmp_path: Path, audit: AuditLog | None = None) -> Pacs:
    with pacs(kinds=("sr", "gsps")) as (taker, port):
        node = Node(reader, settings(tmp_path, port), Questions(("any effusion?",)), audit=audit)
        try:
            store(node.start(), film(1))
            until(lambda: node.queue.counts()["results"].get("sent") == 1, "the report")
        finally:
            node.stop()
    return taker


def test_killed_again_and_again_every_acknowledged_film_gets_one_report(tmp_path: Path) -> None:
    films, acknowledged = [film(number) for number in range(3)], set()
    questions = tmp_path / "questions.txt"
    questions.write_text("any effusion?\n")
    listening = free_port()
    with pacs() as (taker, port):
        command = [CLI, "node", "--to", f"PACS@127.0.0.1:{port}", "--port", str(listening)]
        command += ["--folder", tmp_path / "node", "--questions", questions]
        command += ["--detail", "384", "--threads", "1", "--reserve", "0"]

        def started() -> subprocess.Popen[str]:
            process = subprocess.Popen([str(one) for one in command], stderr=subprocess.PIPE, text=True)
            Lines(process).wait("takes films")
            return process

        def stored(mine: list[pydicom.Dataset], ae: str) -> None:
            for one, answer in zip(mine, store(listening, *mine, ae=ae), strict=True):
                assert answer.Status == 0
                acknowledged.add(one.SOPInstanceUID)

        process = started()
        threads = [
            threading.Thread(target=stored, args=args) for args in ((films[:2], "CR1"), (films[1:], "CR2"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        process.kill()
        process.wait()
        assert len(acknowledged) == 3

        process = started()
        # A result is made, sent or not; on a fast machine by the process killed before.
        until(lambda: any(status(tmp_path / "node")["results"].values()), "a result")
        process.kill()
        process.wait()

        process = started()
        try:
            until(lambda: all(taker.of(uid) for uid in acknowledged), "all reports")
            until(lambda: status(tmp_path / "node")["results"].get("sent", 0) >= 3, "the queue's own word")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    for uid in acknowledged:
        reports = taker.of(uid)
        assert len({one.SOPInstanceUID for one in reports}) == 1, "sent again, it is the same report"
        assert len({one.to_json() for one in reports}) == 1
        assert said(reports[0], codes.ANSWER)
    state = json.loads(
        subprocess.run(
            [CLI, "node", "--status", "--folder", tmp_path / "node"], capture_output=True, check=True
        ).stdout
    )
    assert state["films"] == {"done": 3} and state["outcomes"] == {"read": 3} and state["dead"] == []


def test_a_folder_without_a_queue_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no node has worked there"):
        status(tmp_path)


@pytest.mark.skipif(tool("Orthanc") is None, reason="Orthanc is not installed (Debian: orthanc)")
def test_orthanc_takes_report_and_overlay_into_the_films_study(reader: Reader, tmp_path: Path) -> None:
    import urllib.request

    dicom, http = free_port(), free_port()
    config = {
        "Name": "PACS", "DicomAet": "PACS", "DicomPort": dicom, "HttpPort": http,
        "RemoteAccessAllowed": False, "HttpDescribeErrors": True, "DicomAlwaysAllowStore": True,
        "AuthenticationEnabled": False, "StorageDirectory": str(tmp_path / "orthanc"), "Plugins": [],
        "IndexDirectory": str(tmp_path / "orthanc"),
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [str(tool("Orthanc")), str(tmp_path / "orthanc.json")], stderr=subprocess.PIPE, text=True
    )

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}") as answer:
            return json.load(answer)

    try:
        Lines(process).wait("Orthanc has started")
        node = Node(reader, settings(tmp_path, dicom), QUESTIONS)
        try:
            listening = node.start()
            store(dicom, film(1), to="PACS")
            store(listening, film(1))
            until(lambda: node.queue.counts()["results"].get("sent") == 2, "delivery to Orthanc")
        finally:
            node.stop()
        (study,) = ask("/studies?expand")
        assert study["MainDicomTags"]["StudyInstanceUID"] == film(1).StudyInstanceUID
        modalities = [ask(f"/series/{one}")["MainDicomTags"]["Modality"] for one in study["Series"]]
        assert sorted(modalities) == ["CR", "PR", "SR"]
    finally:
        process.terminate()
        process.wait(60)


def test_a_line_is_seen_while_a_film_is_decoded(capfd: pytest.CaptureFixture[str]) -> None:
    from radvlm_edge.node.trouble import log_to_stderr
    from radvlm_edge.runtime.dicom import _quiet

    with log_to_stderr() as stderr, _quiet():
        stderr.write("takes films\n")
    assert capfd.readouterr().err == "takes films\n"
