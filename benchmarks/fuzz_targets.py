"""What the fuzzing calls: each target takes an input's bytes and says how it ended.

`accepted` or the name of a typed error is as it should be; any other exception is a finding, and let through.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.fuzz_films import pictures
from radvlm_edge.benchmarks.fuzz_inputs import (
    GGUF,
    GGUF_HEAD_BYTES,
    STUDY,
    manifests,
    stand_in,
)
from radvlm_edge.bundle import MANIFEST, Bundle, demo_bundle
from radvlm_edge.errors import BundleError, RadvlmError
from radvlm_edge.integrity import SUMS, sums_text
from radvlm_edge.runtime import crops, prompts
from radvlm_edge.runtime.confidence import temperature_of
from radvlm_edge.runtime.film import Film, load_film
from radvlm_edge.runtime.limits import check_fidelity, combination
from radvlm_edge.runtime.reader import Options, Reader, Study

MAX_PIXELS = 40_000_000
"""As the service's."""
Target = Callable[[bytes], str]


class UntypedError(Exception):
    """An answer of the service that says its fault was not foreseen."""


@contextlib.contextmanager
def film_target() -> Iterator[Target]:
    """File → film → crops, as every command begins."""
    geometry = Bundle.open(demo_bundle()).manifest.geometry

    def run(content: bytes) -> str:
        try:
            film = load_film(content, name="the film", max_pixels=MAX_PIXELS)
            crops.cut(film.pixels, geometry)
        except RadvlmError as error:
            return _typed(error)
        return "accepted"

    yield run


@contextlib.contextmanager
def bundle_target() -> Iterator[Target]:
    """bundle.json → bundle; sealed anew around the damage it is used as far as it can be without engines."""
    pixels = np.zeros((40, 30), np.uint8)
    (original,) = manifests()
    with tempfile.TemporaryDirectory() as place:
        folder, sums = _folder(Path(place))

        def run(content: bytes) -> str:
            (folder / MANIFEST).write_bytes(content)
            (folder / SUMS).write_text(sums_text(sums), encoding="utf-8")
            try:
                opened = Bundle.open(folder)
                if content != original:
                    _must_be_refused(opened)
                sealed = {**sums, MANIFEST: opened.sha256}
                (folder / SUMS).write_text(sums_text(sealed), encoding="utf-8")
                opened.verify()
                _use(opened, pixels)
            except RadvlmError as error:
                return _typed(error)
            return "accepted, sealed anew"

        yield run


def _must_be_refused(bundle: Bundle) -> None:
    try:
        bundle.verify()
    except BundleError:
        return
    raise UntypedError("an altered bundle was found as sealed")


def _folder(place: Path) -> tuple[Path, dict[str, str]]:
    """A bundle of stand-ins (fuzz_inputs.py) and its sums."""
    folder, (manifest,) = place / "fuzzed.bundle", manifests()
    names = {artefact["path"] for artefact in json.loads(manifest)["artefacts"]}
    content = {MANIFEST: manifest, **{name: stand_in(name) for name in names}}
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    (folder / SUMS).write_text(sums_text(sums), encoding="utf-8")
    Bundle.open(folder).verify()
    return folder, sums


def _use(bundle: Bundle, pixels: Any) -> None:
    manifest, options = bundle.manifest, Options()
    vision, language = bundle.artefact("vision"), bundle.artefact("language")
    for artefact in manifest.artefacts:
        bundle.path(artefact)
    check_fidelity(bundle, options)
    temperature_of(bundle, combination(vision.precision, language.precision))
    _, layout = crops.cut(pixels, manifest.geometry)
    assert layout.image_tokens <= manifest.geometry.max_image_tokens
    prompts.check_question("any effusion?", manifest.prompting)
    prompts.render([prompts.Turn("any effusion?")], manifest.prompting)


@contextlib.contextmanager
def gguf_target() -> Iterator[Target]:
    """A damaged GGUF in a bundle: refused by its digest; taken all the same, given to llama.cpp."""
    from radvlm_edge.runtime.language import LanguageModel

    whole = (demo_bundle() / "language" / GGUF).read_bytes()
    with tempfile.TemporaryDirectory() as place:
        folder, sums = _folder(Path(place))
        path = folder / "language" / GGUF
        (folder / SUMS).write_text(
            sums_text({**sums, f"language/{GGUF}": hashlib.sha256(whole).hexdigest()}), encoding="utf-8"
        )
        opened = Bundle.open(folder)

        def run(content: bytes) -> str:
            damaged = content + whole[GGUF_HEAD_BYTES:] if len(content) >= GGUF_HEAD_BYTES // 2 else content
            path.write_bytes(damaged)
            if damaged != whole:
                _must_be_refused(opened)
            try:
                LanguageModel(path, context=256, threads=1).close()
            except RadvlmError as error:
                return f"refused by its digest; without it {_typed(error)}"
            return "refused by its digest; without it loaded"

        yield run


class _Looked:
    """Looks once, at the first film: every other is cut into crops and takes that study's answers."""

    def __init__(self, reader: Reader) -> None:
        self._look, self._geometry = reader.look, reader.bundle.manifest.geometry
        self._first: Study | None = None

    def __call__(self, film: Film) -> Study:
        _, layout = crops.cut(film.pixels, self._geometry)
        if self._first is None:
            self._first = self._look(film)
        study = self._first
        return replace(
            study, film=film, layout=replace(study.layout, height=layout.height, width=layout.width)
        )


@contextlib.contextmanager
def _service() -> Iterator[Any]:
    from radvlm_edge.serve.app import Service
    from radvlm_edge.serve.settings import Settings

    with Reader.open(options=Options(max_tokens=1, threads=1)) as reader:
        reader.look = _Looked(reader)  # type: ignore[method-assign,assignment]
        yield Service(reader, Settings(port=0, timeout_s=60, upload_s=5, shutdown_s=1, studies=4))


@contextlib.contextmanager
def chat_target() -> Iterator[Target]:
    """A chat request's JSON, or a film where it is none, through the whole ASGI application."""
    with _service() as service:
        loop, app = asyncio.new_event_loop(), service.app()
        made = loop.run_until_complete(_call(app, "/v1/studies", "image/png", pictures()[0]))
        study = made[1].partition(b'"id": "')[2].partition(b'"')[0]

        def run(content: bytes) -> str:
            body = content.replace(STUDY.encode(), b"study:" + study)
            status, said = loop.run_until_complete(
                _call(app, "/v1/chat/completions", "application/json", body)
            )
            return _judged(status, said)

        yield run
        service.worker.stop()
        loop.close()


async def _call(app: Any, path: str, media: str, body: bytes) -> tuple[int, bytes]:
    """One request to an ASGI application; status and body of its reply."""
    came, status, said = asyncio.Event(), 0, bytearray()

    async def receive() -> dict[str, Any]:
        if not came.is_set():
            came.set()
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        said.extend(message.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", media.encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return status, bytes(said)


@contextlib.contextmanager
def http_target() -> Iterator[Target]:
    """A whole request's bytes, over a socket to the running server."""
    from radvlm_edge.serve.server import listen, make_server

    with _service() as service, contextlib.closing(listen(service.settings)) as listener:
        ready = threading.Event()
        server = make_server(service, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert ready.wait(120)
        address = listener.getsockname()

        def run(content: bytes) -> str:
            with socket.create_connection(address) as connection:
                connection.settimeout(30)
                said = bytearray()
                with contextlib.suppress(ConnectionError):
                    connection.sendall(content)
                    connection.shutdown(socket.SHUT_WR)
                    while part := connection.recv(1 << 16):
                        said += part
            if not thread.is_alive() or not service.worker.alive:
                raise UntypedError("the server has ended")
            if not said:
                return "closed without a reply"
            return _judged(int(bytes(said[9:12])), bytes(said).partition(b"\r\n\r\n")[2])

        yield run
        server.should_exit = True
        thread.join(30)


def _judged(status: int, said: bytes) -> str:
    if status == 0 or (status >= 500 and status not in (503, 504)) or b"its log says where" in said:
        raise UntypedError(f"status {status}: {said[:200]!r}")
    if status >= 400 and status != 499 and b'"error"' not in said and b"Invalid HTTP request" not in said:
        raise UntypedError(f"status {status} without an error object: {said[:200]!r}")
    return f"status {status}"


def _typed(error: RadvlmError) -> str:
    """Name of an error; its text must be one line."""
    text = str(error)
    if "\n" in text or "\r" in text or not text:
        raise UntypedError(f"the text of a {type(error).__name__} is no line: {text[:200]!r}")
    return type(error).__name__


TARGETS: dict[str, Callable[[], contextlib.AbstractContextManager[Target]]] = {
    "dicom": film_target,
    "picture": film_target,
    "bundle": bundle_target,
    "gguf": gguf_target,
    "chat": chat_target,
    "http": http_target,
}
