"""Too many requests, bytes or seconds; a client that leaves; a service that is told to end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from radvlm_edge.errors import BusyError, RequestError, ServiceError
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.reader import Options, Reader

pytest.importorskip("starlette", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="comes with the official client (extra `dev`)")
openai = pytest.importorskip("openai", reason="the official client (extra `dev`)")
from tests.service import Running, serving  # noqa: E402

from radvlm_edge.serve.films import Library  # noqa: E402
from radvlm_edge.serve.settings import Settings, load_token  # noqa: E402
from radvlm_edge.serve.worker import Ticket, Worker  # noqa: E402

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
CLI = Path(sys.executable).with_name("radvlm-edge")
MODEL, LONG = "radvlm-nano", "Where is the left lung located in this Chest X-ray?"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=64, threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(reader: Reader) -> int:
    """Steps of the answer to LONG, the one that ends it included."""
    answer = reader.look(FILM).ask(LONG).finish()
    assert answer.stop == "eos" and answer.tokens > 3 * Gate.BEFORE
    return answer.tokens + 1


class Gate:
    """Lets the model write `BEFORE` tokens, then holds it until opened; counts all it wrote."""

    BEFORE = 3

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open, self.steps = threading.Event(), threading.Event(), 0
        steps = LanguageModel.steps

        def held(model: LanguageModel, **options: Any) -> Iterator[Any]:
            for index, step in enumerate(steps(model, **options)):
                if index == self.BEFORE:
                    self.reached.set()
                    assert self.open.wait(PATIENCE_S)
                self.steps += 1
                yield step

        monkeypatch.setattr(LanguageModel, "steps", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    one = Gate(monkeypatch)
    yield one
    one.open.set()


def until(true: Callable[[], bool]) -> None:
    """Wait for something another thread will make true."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def body(running: Running, question: str = LONG, **more: Any) -> dict[str, Any]:
    """A request about the example film, uploaded now."""
    headers = {"Content-Type": "application/dicom"}
    study = httpx.post(
        f"{running.url}/v1/studies", content=FILM.read_bytes(), headers=headers, timeout=PATIENCE_S
    )
    image = {"type": "image_url", "image_url": {"url": f"study:{study.json()['id']}"}}
    parts = [image, {"type": "text", "text": question}]
    return {"model": MODEL, "messages": [{"role": "user", "content": parts}], **more}


class Asking:
    """A request in its own thread, whose connection can be cut."""

    def __init__(self, running: Running, request: dict[str, Any]) -> None:
        self.client = httpx.Client(timeout=PATIENCE_S)
        self.status, self.text = 0, ""
        self._thread = threading.Thread(
            target=self._ask, args=(f"{running.url}/v1/chat/completions", request)
        )
        self._thread.start()

    def _ask(self, url: str, request: dict[str, Any]) -> None:
        try:
            reply = self.client.post(url, json=request)
            self.status, self.text = reply.status_code, reply.text
        except (httpx.TransportError, OSError, RuntimeError):
            self.status = -1

    def done(self) -> Asking:
        self._thread.join(PATIENCE_S)
        return self


def cut(running: Running, request: dict[str, Any]) -> socket.socket:
    """Send a request on a bare socket; closing it is the client's leaving."""
    import json

    content = json.dumps(request).encode()
    host, _, port = running.url.rpartition("//")[2].rpartition(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_stops_writing_when_the_client_leaves(reader: Reader, gate: Gate, stream: bool) -> None:
    with serving(reader) as running:
        connection = cut(running, body(running, stream=stream))
        assert gate.reached.wait(PATIENCE_S)
        ticket = running.service.worker._running
        assert ticket is not None and not ticket.over
        connection.close()
        until(lambda: ticket.over)
        gate.open.set()
        until(lambda: not running.service.worker.busy)
        assert gate.steps == Gate.BEFORE + 1  # the token being written when it left
        assert running.metric("radvlm_answers_total", stop="cancelled") == 1
        until(lambda: running.metric("radvlm_requests_total", endpoint="chat") == 1)
        reply = running.client().chat.completions.create(**body(running, "any effusion?"))
        assert reply.choices[0].finish_reason == "stop"
        assert gate.steps == Gate.BEFORE + 1 + reply.usage.completion_tokens + 1


def test_a_full_queue_says_when_to_come_back_and_who_leaves_makes_room(
    reader: Reader, whole: int, gate: Gate
) -> None:
    with serving(reader, queue=2) as running:
        request = body(running)
        first = Asking(running, request)
        assert gate.reached.wait(PATIENCE_S)
        leaving = cut(running, request)
        until(lambda: running.service.worker.waiting == 1)
        waiting = Asking(running, request)
        until(lambda: running.service.worker.waiting == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            running.client().chat.completions.create(**request)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        leaving.close()
        until(lambda: running.service.worker.waiting == 1)
        late = Asking(running, request)
        until(lambda: running.service.worker.waiting == 2)
        gate.open.set()
        answers = [one.done() for one in (first, waiting, late)]
        assert [one.status for one in answers] == [200] * 3
        assert gate.steps == 3 * whole  # who left was not answered


def test_a_request_over_its_time_is_given_up(reader: Reader, gate: Gate) -> None:
    with serving(reader, timeout_s=PATIENCE_S) as running:
        request = body(running)
        running.service.worker._timeout_s = 0.5
        with pytest.raises(openai.InternalServerError, match="time limit") as late:
            running.client().chat.completions.create(**request)
        assert late.value.status_code == 504
        gate.open.set()
        until(lambda: not running.service.worker.busy)
        assert gate.steps <= Gate.BEFORE + 1


def test_uploads_are_bounded_in_bytes_and_time(reader: Reader) -> None:
    with serving(reader, upload_bytes=4096, upload_s=0.3) as running:
        url, headers = f"{running.url}/v1/studies", {"Content-Type": "application/dicom"}
        assert httpx.post(url, content=bytes(4097), headers=headers).status_code == 413
        assert httpx.post(url, content=iter([bytes(3000)] * 2), headers=headers).status_code == 413
        assert httpx.post(url, content=bytes(4096), headers=headers).status_code == 400
        assert httpx.post(url, content=b"", headers=headers).status_code == 400
        for media in ("multipart/form-data", "text/html", ""):
            assert httpx.post(url, content=b"x", headers={"Content-Type": media}).status_code == 415
        host, _, port = running.url.rpartition("//")[2].rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                f"POST /v1/studies HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n"
                "Content-Length: 100\r\n\r\n".encode()
            )
            slow.settimeout(PATIENCE_S)
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: running.metric("radvlm_upload_bytes") == 0)
        assert running.metric("radvlm_studies") == 0


def test_no_body_brings_it_down(reader: Reader) -> None:
    bodies = [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": 1}', b'{"model": "radvlm-nano"}']
    with serving(reader) as running:
        for content in bodies:
            headers = {"Content-Type": "application/json"}
            reply = httpx.post(f"{running.url}/v1/chat/completions", content=content, headers=headers)
            assert reply.status_code in (400, 404) and set(reply.json()) == {"error"}
        assert httpx.get(f"{running.url}/healthz").status_code == 200


def test_an_orderly_end_finishes_what_is_being_written(reader: Reader, whole: int, gate: Gate) -> None:
    with serving(reader) as running:
        asking = Asking(running, body(running, stream=True))
        assert gate.reached.wait(PATIENCE_S)
        running.server.should_exit = True
        until(lambda: refused(running.url))
        gate.open.set()
        assert asking.done().status == 200 and asking.text.rstrip().endswith("data: [DONE]")
        assert gate.steps == whole


def refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=PATIENCE_S)
    except httpx.TransportError:
        return True
    return False


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [CLI, "serve", "--port", "0", "--threads", "1"], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert process.stderr is not None
        url = process.stderr.readline().rpartition(" ")[2].strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE_S).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert "not for diagnosis" in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines"),
        (["--host", "::"], ":: can be reached from other machines"),
        (["--tls-cert", "none.pem"], "both --tls-cert and --tls-key"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "not a certificate"),
        (["--token-file", "none"], "none: the token cannot be read"),
    ],
)
def test_it_refuses_to_start_unsafely(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RADVLM_EDGE_TOKEN"}
    result = subprocess.run(
        [CLI, "serve", *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert result.returncode == 1 and complaint in result.stderr and result.stderr.count("\n") == 1


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADVLM_EDGE_TOKEN", raising=False)
    assert load_token(None) is None
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert load_token(file) == "0123456789abcdef"
    monkeypatch.setenv("RADVLM_EDGE_TOKEN", "f" * 32)
    assert load_token(None) == "f" * 32
    for bad in ("short", "with blank in the middle", "ümlaut-ümlaut-ümlaut", ""):
        file.write_text(bad)
        with pytest.raises(ServiceError, match="no token"):
            load_token(file)
    settings = Settings(host="192.0.2.1", token="f" * 32)
    settings.check()
    assert "f" * 32 not in repr(settings)


def numbers(count: int, done: list[int]) -> Callable[[Any], Generator[int, None, None]]:
    def work(_: Any) -> Generator[int, None, None]:
        for number in range(count):
            done.append(number)
            yield number

    return work


def test_a_stopped_worker_answers_everybody_with_503() -> None:
    started, go = threading.Event(), threading.Event()

    def work(_: Any) -> Generator[int, None, None]:
        started.set()
        assert go.wait(PATIENCE_S)
        yield 1

    async def all_of(ticket: Ticket) -> list[Any]:
        return [event async for event in ticket.events()]

    async def main() -> list[Any]:
        worker = Worker(None, waiting=2, timeout_s=PATIENCE_S)  # type: ignore[arg-type]
        assert await all_of(worker.submit(numbers(3, []))) == [0, 1, 2]
        tickets = [worker.submit(work)]
        assert await asyncio.to_thread(started.wait, PATIENCE_S)
        tickets += [worker.submit(numbers(1, [])) for _ in range(2)]
        with pytest.raises(BusyError):
            worker.submit(numbers(1, []))
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
        results = await asyncio.gather(*map(all_of, tickets), return_exceptions=True)
        go.set()
        await stopping
        with pytest.raises(RequestError, match="stopping"):
            worker.submit(numbers(1, []))
        return results

    errors = asyncio.run(main())
    assert [(type(error), error.status) for error in errors] == [(RequestError, 503)] * 3


class FakeStudy:
    def __init__(self, size: int) -> None:
        self.film = type("Film", (), {"pixels": type("Pixels", (), {"nbytes": size})()})()


def test_the_library_forgets_by_number_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("radvlm_edge.serve.films.time.monotonic", lambda: now[0])
    library = Library(studies=3, limit_bytes=100, idle_s=60)
    a, b, c = (library.add(FakeStudy(10), name) for name in "abc")  # type: ignore[arg-type]
    assert library.get(a.id) is a and library.find("b") is b
    d = library.add(FakeStudy(10), "d")  # type: ignore[arg-type]
    assert len(library) == 3 and library.find("c") is None
    library.add(FakeStudy(95), "e")  # type: ignore[arg-type]
    assert len(library) == 1 and library.held_bytes == 95
    now[0] += 61
    assert len(library) == 0 and library.held_bytes == 0
    for gone in (a, b, c, d):
        with pytest.raises(RequestError, match="no such study"):
            library.get(gone.id)
