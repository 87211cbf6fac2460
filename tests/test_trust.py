"""No patient data where it does not belong, and no connection to anywhere."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.datadict import dictionary_VR, keyword_dict
from tests.test_runtime_film import make

from radvlm_edge.audit import AuditLog
from radvlm_edge.cli import FULL, cli, main
from radvlm_edge.errors import FilmError
from radvlm_edge.faults import keep_to_ourselves
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Options, Reader

ROOT = Path(__file__).parents[1]
FILM = ROOT / "examples" / "chest.dcm"
MARK = "ZQX"
"""Every value of a header holds it; no word, path or digest of ours does (digests are lower case)."""
LONGEST = {"SH": 16, "AE": 16, "CS": 16, "LO": 64, "PN": 64, "UI": 64}
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
DESCRIBED = (
    "Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation", "PresentationLUTShape",
    "VOILUTFunction", "PatientOrientation", "SOPInstanceUID", "SOPClassUID",
)  # fmt: skip
"""Texts the program reads; each is damaged alone, the others are filled all at once."""
NUMBERS = (
    "Rows", "BitsStored", "SamplesPerPixel", "NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleSlope",
    "RescaleIntercept", "PixelSpacing", "PixelPaddingValue",
)  # fmt: skip
GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x4008)


def marked() -> pydicom.Dataset:
    """A valid film whose every text that says nothing of the pixels is a marker, private ones included."""
    dataset = pydicom.dcmread(io.BytesIO(make()))
    for keyword, tag in keyword_dict.items():
        if (
            tag >> 16 in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x4008)
            and keyword not in DESCRIBED
        ):
            kind = dictionary_VR(tag)
            if kind in TEXTS and keyword != "SpecificCharacterSet":
                setattr(dataset, keyword, f"{MARK}{tag:08X}"[: LONGEST.get(kind, 64)])
    block = dataset.private_block(0x0029, f"{MARK} PRIVATE", create=True)
    block.add_new(1, "LO", f"{MARK} private value")
    return dataset


def written(dataset: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=False)
    return out.getvalue()


def films() -> Iterator[bytes]:
    """One good film and many that are wrong in one element, all full of markers."""
    yield written(marked())
    for keyword in (*DESCRIBED, *NUMBERS, "PixelData"):
        dataset = marked()
        element = pydicom.DataElement(pydicom.tag.Tag(keyword), "OB", f"{MARK}-{keyword}-".encode() * 2)
        element.VR = dictionary_VR(keyword) if keyword not in ("PixelData", "PixelPaddingValue") else "UN"
        element._value = f"{MARK}-{keyword}"[:15] if element.VR != "UN" else f"{MARK}-{keyword}-".encode()
        if element.VR in ("US", "SS"):
            element.VR = "LO"
        dataset[keyword] = element
        yield written(dataset)
    content = written(marked())
    yield content.replace(b"1.2.840.10008.1.2.1", f"1.2.840.{MARK}.1.2.1".encode()[:19].ljust(19, b"9"))
    for cut in (300, 900, len(content) // 2, len(content) - 100):
        yield content[:cut]
    dataset = marked()
    dataset.Modality = "CT"
    yield written(dataset)


def test_the_films_hold_markers_and_some_are_readable_some_not() -> None:
    readable = 0
    for content in films():
        assert content.count(MARK.encode()) > 20 or len(content) < 1000
        try:
            film = load_film(content, name="the film")
        except FilmError as error:
            assert MARK not in str(error) and "\n" not in str(error)
        else:
            readable += 1
            assert not [one for one in film.warnings if MARK in one]
    assert 3 <= readable < len(list(films())) - 10


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=4, threads=1)) as opened:
        yield opened


def test_no_log_metric_error_or_file_holds_patient_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    httpx = pytest.importorskip("httpx", reason="comes with the official client (extra `dev`)")
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from tests.service import serving

    made = list(films())  # pydicom warns of them while they are made
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    options = Options(max_tokens=4, threads=1, study_cache=tmp_path / "studies")
    complaints, statuses = [], []
    headers = {"Content-Type": "application/dicom"}
    with Reader.open(options=options) as opened, serving(opened, audit=tmp_path / "audit.log") as running:
        for content in made:
            reply = httpx.post(f"{running.url}/v1/studies", content=content, headers=headers, timeout=600)
            statuses.append(reply.status_code)
            if reply.status_code != 201:
                complaints.append(reply.text)
                continue
            image = {"type": "image_url", "image_url": {"url": f"study:{reply.json()['id']}"}}
            parts = [image, {"type": "text", "text": "any effusion?"}]
            asked = {
                "model": "radvlm-nano",
                "messages": [{"role": "user", "content": parts}],
                "max_tokens": 1,
            }
            answer = httpx.post(f"{running.url}/v1/chat/completions", json=asked, timeout=600)
            assert answer.status_code == 200, answer.text
        complaints.append(running.service.metrics.page())
    assert statuses.count(201) >= 3 and set(statuses) == {201, 400}
    seen = capfd.readouterr()
    for text in (*complaints, seen.out, seen.err, caplog.text):
        assert MARK not in text
    files = [
        path
        for place in (tmp_path, Path(os.environ["XDG_CACHE_HOME"]))
        for path in place.rglob("*")
        if path.is_file()
    ]
    assert {"audit.log", "audit.log.head"} <= {path.name for path in files} and any(
        p.suffix == ".kv" for p in files
    )
    for path in files:
        assert MARK.encode() not in path.read_bytes() and MARK not in path.name, path


def test_the_command_line_says_nothing_of_a_header(tmp_path: Path) -> None:
    names = []
    for number, content in enumerate(films()):
        names.append(str(tmp_path / f"{number}.dcm"))
        Path(names[-1]).write_bytes(content)
    log = str(tmp_path / "audit.log")
    asked = ["infer", *names, "--ask", "any effusion?", "--max-tokens", "1", "--threads", "1", "--audit", log]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 1 and MARK not in done.output
    assert MARK not in Path(log).read_text() and len(Path(log).read_text().splitlines()) == 1 + len(names)


def test_a_fault_is_said_without_its_text(monkeypatch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"{MARK} is in the header")

    monkeypatch.setattr(importlib.import_module("radvlm_edge.cli.infer"), "open_reader", fail)
    monkeypatch.setattr("radvlm_edge.cli.keep_to_ourselves", lambda: None)
    monkeypatch.setattr(sys, "argv", ["radvlm-edge", "infer", str(FILM), "--ask", "a?"])
    monkeypatch.delenv(FULL, raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 70 and said.count("\n") == 1
    assert "RuntimeError at fail:" in said and MARK not in said
    monkeypatch.setenv(FULL, "1")
    with pytest.raises(RuntimeError, match=MARK):
        main()


def test_threads_and_native_faults_say_nothing_either() -> None:
    code = (
        "import ctypes, resource, threading, os\n"
        f"from radvlm_edge.faults import {keep_to_ourselves.__name__} as keep\n"
        "keep()\n"
        "def fail(): raise ValueError('ZQX in a thread')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "class Late:\n"
        "    def __del__(self): raise ValueError('ZQX at the end')\n"
        "Late()\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0 and os.environ['GGML_NO_BACKTRACE'] == '1'\n"
        "ctypes.string_at(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -11 and MARK not in done.stderr
    assert [line.split(" at ")[0] for line in done.stderr.splitlines()] == [
        "radvlm-edge: a fault of the program: ValueError"
    ] * 2


OFFLINE = """
import contextlib, io, json, os, socket, sys, threading, urllib.request
from pathlib import Path
from click.testing import CliRunner
from radvlm_edge.cli import cli
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.serve.app import Service
from radvlm_edge.serve.server import address, listen, make_server
from radvlm_edge.serve.settings import Settings

film, place = sys.argv[1:]
for arguments in (
    ["infer", film, "--ask", "a?", "--threads", "1", "--audit", f"{place}/audit.log", "--max-tokens", "2"],
    ["plan", film],
    ["verify", "DEMO"],
    ["audit", "verify", f"{place}/audit.log"],
):
    import radvlm_edge.bundle as bundle
    arguments = [str(bundle.demo_bundle()) if one == "DEMO" else one for one in arguments]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
settings, ready = Settings(port=0), threading.Event()
options = Options(max_tokens=2, threads=1)
with Reader.open(options=options) as reader, contextlib.closing(listen(settings)) as listener:
    server = make_server(Service(reader, settings), ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(120)
    url = address(settings, listener)
    print(listener.getsockname()[1])
    def post(path, content, kind):
        request = urllib.request.Request(f"{url}{path}", content, {"Content-Type": kind})
        return json.load(urllib.request.urlopen(request, timeout=600))
    study = post("/v1/studies", Path(film).read_bytes(), "application/dicom")["id"]
    image = {"type": "image_url", "image_url": {"url": f"study:{study}"}}
    message = {"role": "user", "content": [image, {"type": "text", "text": "a?"}]}
    body = json.dumps({"model": "radvlm-nano", "messages": [message]}).encode()
    assert post("/v1/chat/completions", body, "application/json")["choices"]
    server.should_exit = True
    thread.join()
"""


@pytest.fixture(scope="module")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that records and refuses connections below Python, where native libraries make theirs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build tests/no_sockets.c with")
    path = tmp_path_factory.mktemp("library") / "no_sockets.so"
    source = Path(__file__).with_name("no_sockets.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def under(library: Path, log: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(library), "NO_SOCKETS_LOG": str(log)}
    environment |= {"http_proxy": "", "no_proxy": "*"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)


def test_the_recorder_records_and_refuses(interposer: Path, tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "for call in (lambda: socket.socket().connect(('192.0.2.1', 443)),\n"
        "    lambda: socket.getaddrinfo('example.org', 80),\n"
        "    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.2', 53))):\n"
        "    try: call()\n"
        "    except OSError: continue\n"
        "    raise SystemExit('it was let through')\n"
    )
    done = under(interposer, tmp_path / "log", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    seen = (tmp_path / "log").read_text().splitlines()
    assert {"connect 192.0.2.1 443", "getaddrinfo example.org 0", "sendto 192.0.2.2 53"} <= set(seen)


def test_no_connection_leaves_this_machine(interposer: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    done = under(interposer, tmp_path / "log", sys.executable, "-c", OFFLINE, FILM, tmp_path)
    assert done.returncode == 0, done.stderr
    port = done.stdout.split()[-1]
    seen = set((tmp_path / "log").read_text().splitlines())
    # The test's own client, and the address to listen on: nothing else was ever looked up or reached.
    assert seen == {f"connect 127.0.0.1 {port}", "getaddrinfo 127.0.0.1 0"}


def test_the_log_holds_no_uid(tmp_path: Path) -> None:
    film = load_film(make(SOPInstanceUID="2.25.987654321"))
    log = AuditLog(tmp_path / "audit.log")
    assert log.film(film) != log.film(load_film(make(SOPInstanceUID="2.25.987654322")))
    plain = load_film(make()).__class__(np.zeros((3, 4), np.uint8), "-", "voi")
    other = load_film(make()).__class__(np.zeros((4, 3), np.uint8), "-", "voi")
    assert (
        log.film(plain) != log.film(other)
        and json.loads((tmp_path / "audit.log.head").read_text())["lines"] == 1
    )
