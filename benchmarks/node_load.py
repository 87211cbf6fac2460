"""A DICOM node under load that is killed again and again: does every acknowledged film get one report?

    python -m radvlm_edge.benchmarks.node_load --films 500 --senders 4 --detail 384 --kill-every 30

starts `radvlm-edge node`, senders and a PACS on loopback, sends SIGKILL to the node at the given pace, and
writes one JSON object to stdout; exits 1 if a film has no report, or two. Senders behave as modalities do:
what was not acknowledged is sent again. The PACS takes all it is sent, and remembers it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import (
    Comprehensive3DSRStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom import AE, evt

from radvlm_edge.benchmarks.bench_film import drawn_film
from radvlm_edge.benchmarks.latency import machine

REPORT = Comprehensive3DSRStorage
READ = "111222"
"""Code of `Succeeded` in a report's first group."""
PAUSE_S = 0.5
"""Before a sender calls a node that is down again."""


@dataclass
class Pacs:
    """Every report that came, by the film it is of: its SOP Instance UID and content."""

    reports: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    read: set[str] = field(default_factory=set)
    """Films whose report says that they were read."""

    def take(self, event: evt.Event) -> int:
        if event.request.AffectedSOPClassUID == REPORT:
            report = event.dataset
            evidence = report.get("CurrentRequestedProcedureEvidenceSequence")
            uid = str(
                evidence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            )
            digest = hashlib.sha256(event.encoded_dataset(include_meta=False)).hexdigest()
            self.reports[uid].append((str(report.SOPInstanceUID), digest))
            if any(e.value == READ for e in report.iterall() if e.keyword == "CodeValue"):
                self.read.add(uid)
        return 0x0000


class NodeProcess:
    """`radvlm-edge node`, started as often as it is killed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self.kills = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and start anew at once. Raises RuntimeError for a node that had ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"the node ended by itself with {code}: {self.tail()}")
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.kills += 1
        self._process = self._start()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def tail(self) -> str:
        return self._log.read_text("utf-8", "replace")[-2000:]


class Drawn:
    """Drawn films of `side` pixels, all different, each a study of its own; made when they are sent."""

    def __init__(self, side: int) -> None:
        self._content = drawn_film(side, side)
        self._grey = pydicom.dcmread(io.BytesIO(self._content)).pixel_array

    def film(self, number: int) -> pydicom.Dataset:
        one = pydicom.dcmread(io.BytesIO(self._content))
        for level in ("Study", "Series", "SOP"):
            keyword = f"{level}InstanceUID"
            setattr(one, keyword, generate_uid(entropy_srcs=["radvlm-edge node load", level, str(number)]))
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PixelData = np.roll(self._grey, number, axis=1).astype("<u2").tobytes()
        return one


def send(
    drawn: Drawn, share: list[int], port: int, title: str, acknowledged: set[str], tries: list[int]
) -> None:
    """One modality: its films in order, each until it is acknowledged."""
    entity, waiting = AE(title), list(share)
    entity.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    while waiting:
        association = entity.associate("127.0.0.1", port, ae_title="RADVLM")
        while waiting and association.is_established:
            one = drawn.film(waiting[0])
            tries.append(1)
            if association.send_c_store(one).get("Status") != 0x0000:
                break
            acknowledged.add(str(one.SOPInstanceUID))
            waiting.pop(0)
        if association.is_established:
            association.release()
        if waiting:
            time.sleep(PAUSE_S)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole trial; returns what is written."""
    pacs, entity = Pacs(), AE("PACS")
    for taken in (REPORT, GrayscaleSoftcopyPresentationStateStorage):
        entity.add_supported_context(taken, ImplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, pacs.take)])
    assert server is not None
    port = _free_port()
    questions = folder / "questions.txt"
    questions.write_text("\n".join(options.question or ["any effusion?"]) + "\n", "utf-8")
    command = [str(Path(sys.executable).with_name("radvlm-edge")), "node", "--port", str(port)]
    command += ["--to", f"PACS@127.0.0.1:{server.server_address[1]}", "--folder", str(folder / "node")]
    command += ["--questions", str(questions), "--detail", options.detail, "--threads", str(options.threads)]
    command += ["--reserve", "0"]
    command += ["--bundle", str(options.bundle)] if options.bundle else []
    drawn, numbers = Drawn(options.side), list(range(options.films))
    acknowledged: set[str] = set()
    tries: list[int] = []
    began = time.monotonic()
    node = NodeProcess(command, folder / "node.log")
    try:
        for index in range(options.senders):
            share = numbers[index :: options.senders]
            if share:
                arguments = (drawn, share, port, f"CR{index + 1}", acknowledged, tries)
                threading.Thread(target=send, args=arguments, daemon=True).start()
        stored_s = _watch(options, node, pacs, acknowledged, began)
        took_s = time.monotonic() - began
        time.sleep(2 * PAUSE_S)  # a second report would come now
    finally:
        node.end()
        entity.shutdown()
    return _verdict(options, pacs, acknowledged, tries, node, took_s, stored_s)


def _watch(
    options: argparse.Namespace, node: NodeProcess, pacs: Pacs, acknowledged: set[str], began: float
) -> float | None:
    """Kill at the pace asked for until all films have a report or the time is over."""
    killed, stored_s = time.monotonic(), None
    while time.monotonic() - began < options.limit_minutes * 60:
        if stored_s is None and len(acknowledged) == options.films:
            stored_s = time.monotonic() - began
        if stored_s is not None and len(pacs.reports) >= options.films:
            break
        if options.kill_every and time.monotonic() - killed >= options.kill_every:
            node.kill()
            killed = time.monotonic()
        time.sleep(0.1)
    return stored_s


def _verdict(
    options: argparse.Namespace,
    pacs: Pacs,
    acknowledged: set[str],
    tries: list[int],
    node: NodeProcess,
    took_s: float,
    stored_s: float | None,
) -> dict[str, Any]:
    distinct = {uid: {name for name, _ in came} for uid, came in pacs.reports.items()}
    changed = [uid for uid, came in pacs.reports.items() if len(set(came)) > len(distinct[uid])]
    return {
        "films": options.films,
        "senders": options.senders,
        "acknowledged": len(acknowledged),
        "c_store_requests": len(tries),
        "kills": node.kills,
        "films_with_exactly_one_report": sum(len(distinct.get(uid, ())) == 1 for uid in acknowledged),
        "films_without_report": sum(uid not in distinct for uid in acknowledged),
        "films_with_two_reports": sum(len(names) > 1 for names in distinct.values()),
        "reports_read": len(pacs.read),
        "reports_of_failure": len(distinct) - len(pacs.read),
        "reports_sent_again": sum(len(came) - 1 for came in pacs.reports.values()),
        "reports_sent_again_with_other_bytes": len(changed),
        "all_acknowledged_s": stored_s,
        "took_s": took_s,
        "films_a_minute": len(distinct) / took_s * 60,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "machine": machine(),
    }


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="SECONDS", help="0: never")
    parser.add_argument("--limit-minutes", type=float, default=40.0)
    parser.add_argument("--detail", default="384")
    parser.add_argument("--question", action="append", help="default: any effusion?")
    parser.add_argument("--side", type=int, default=1024, help="pixels of a film's side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
    whole = result["films_with_exactly_one_report"] == result["acknowledged"] == options.films
    sys.exit(0 if whole and not result["films_with_two_reports"] else 1)


if __name__ == "__main__":
    main()
