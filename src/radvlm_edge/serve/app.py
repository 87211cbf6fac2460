"""The service's addresses and what each does."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from radvlm_edge.audit import AuditLog
from radvlm_edge.errors import RadvlmError, RequestError
from radvlm_edge.runtime.reader import Reader
from radvlm_edge.runtime.render import RENDERS
from radvlm_edge.serve import replies, work
from radvlm_edge.serve.films import Kept, Library
from radvlm_edge.serve.gate import App, Gate
from radvlm_edge.serve.metrics import CONTENT_TYPE, Metrics
from radvlm_edge.serve.openapi import docs_page, document
from radvlm_edge.serve.questions import MEDIA_TYPES, read_chat
from radvlm_edge.serve.settings import Settings
from radvlm_edge.serve.streams import LEFT, EventStream, LeftError, collect, reply, unless_gone
from radvlm_edge.serve.uploads import Uploads
from radvlm_edge.serve.worker import Worker

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
BASE64 = 1.4
"""How much longer a film is in a JSON request: 4/3, and the request around it."""
SWEEP_S = 30.0
"""How often films nobody asks about are looked for."""


class Service:
    """One reader, its worker and the studies it holds, behind HTTP."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self.reader, self.settings, self.metrics = reader, settings, Metrics()
        self.studies = Library(
            studies=settings.studies, limit_bytes=settings.study_bytes, idle_s=settings.study_s
        )
        self.worker = Worker(reader, waiting=settings.queue, timeout_s=settings.timeout_s)
        audit = AuditLog(settings.audit) if settings.audit is not None else None
        self._desk = work.Desk(self.studies, self.metrics, audit)
        self._uploads = Uploads(limit_bytes=settings.upload_bytes, limit_s=settings.upload_s)
        self._started_s = int(time.time())
        self._drawing = asyncio.Semaphore(2)
        self._page = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in PAGE_TYPES}
        self._document = document()
        self._gauges()

    def app(self, ready: Callable[[], None] | None = None) -> App:
        """The ASGI application; `ready` is called when it takes requests."""
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/page/{name}", self.page, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model}", self.models, methods=["GET"]),
            Route("/v1/studies", self.upload, methods=["POST"]),
            Route("/v1/studies/{study}", self.study, methods=["GET"]),
            Route("/v1/studies/{study}", self.forget, methods=["DELETE"]),
            Route("/v1/studies/{study}/film.png", self.film, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.prometheus, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", self.docs, methods=["GET"]),
        ]

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            sweeping = asyncio.create_task(self._sweep())
            if ready is not None:
                ready()
            try:
                yield
            finally:
                sweeping.cancel()
                await run_in_threadpool(self.worker.stop)

        handlers = {RadvlmError: _complain, HTTPException: _http_error, LeftError: _left}
        inner = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
        return Gate(inner, self.settings, self.metrics)

    async def chat(self, request: Request) -> Response:
        """Answer a question about a film."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError("the body's Content-Type must be application/json", 415)
        async with self._uploads.body(request, overhead=BASE64) as body:
            asked = await run_in_threadpool(read_chat, body, self.reader.bundle.manifest.name)
            who = {"address": request.client.host if request.client else None, "user": asked.user}
            ticket = self.worker.submit(work.chat(self._desk, asked, who))
            completion = replies.Completion(self.reader, asked)
            if not asked.stream:
                *_, result = await unless_gone(request, collect(ticket))
                return reply(completion.whole(result.text, result))
            events = ticket.events()
            try:
                first = await unless_gone(request, anext_(events))
            except BaseException:
                ticket.leave()
                raise
            return EventStream(first, events, completion)

    async def upload(self, request: Request) -> Response:
        """Look at a film and keep it for questions."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in MEDIA_TYPES:
            raise RequestError(
                f"Content-Type {media[:60]!r}: send the file itself as the body, as {', '.join(MEDIA_TYPES)}",
                415,
            )
        render, frame = request.query_params.get("render"), request.query_params.get("frame")
        if render is not None and render not in RENDERS:
            raise RequestError(f"render {render[:20]!r} is unknown; one of {', '.join(RENDERS)} is")
        if frame is not None and not (frame.isdecimal() and len(frame) < 7):
            raise RequestError(f"frame {frame[:20]!r} is no number; frames count from 0")
        async with self._uploads.body(request) as content:
            number = None if frame is None else int(frame)
            ticket = self.worker.submit(work.look(self._desk, content, render=render, frame=number))
            (kept,) = await unless_gone(request, collect(ticket))
        return reply(replies.study(kept), 201, {"Location": f"/v1/studies/{kept.id}"})

    async def study(self, request: Request) -> Response:
        """A film's facts, and what was asked about it."""
        return reply(replies.study(self._kept(request)))

    async def forget(self, request: Request) -> Response:
        """Let go of a film and its history."""
        self.studies.forget(request.path_params["study"])
        return Response(status_code=204)

    async def film(self, request: Request) -> Response:
        """The film as the model saw it: 8-bit grey PNG at its own size."""
        pixels = self._kept(request).study.film.pixels
        async with self._drawing:
            return Response(await run_in_threadpool(_png, pixels), media_type="image/png")

    async def models(self, request: Request) -> Response:
        """The model that answers, and its tasks."""
        listed = replies.models(self.reader, self._started_s)
        name = request.path_params.get("model")
        if name is None:
            return reply(listed)
        (model,) = listed["data"]
        if name != model["id"]:
            raise RequestError(f"model {name[:80]!r} is not here; {model['id']!r} is", 404)
        return reply(model)

    async def healthz(self, request: Request) -> Response:
        """Whether the service answers: 200, or 503."""
        alive = self.worker.alive
        return reply({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    async def prometheus(self, request: Request) -> Response:
        """Counts and times."""
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """This API, as OpenAPI 3.1."""
        return reply(self._document)

    async def docs(self, request: Request) -> Response:
        """The same for people."""
        return Response(docs_page(self._document), media_type="text/html")

    async def page(self, request: Request) -> Response:
        """The viewer and its files."""
        name = request.path_params.get("name", "index.html")
        content = self._page.get(name)
        if content is None:
            raise RequestError("no such page", 404)
        return Response(
            content, media_type=PAGE_TYPES[Path(name).suffix], headers={"Cache-Control": "no-cache"}
        )

    def _kept(self, request: Request) -> Kept:
        return self.studies.get(request.path_params["study"])

    async def _sweep(self) -> None:
        """Forget idle films even when nobody asks for any."""
        while True:
            await asyncio.sleep(SWEEP_S)
            len(self.studies)

    def _gauges(self) -> None:
        from radvlm_edge import __version__

        bundle = self.reader.bundle
        self.metrics.describe(version=__version__, model=bundle.manifest.name, bundle=bundle.sha256)
        for name, read in {
            "radvlm_queue_waiting": lambda: self.worker.waiting,
            "radvlm_queue_limit": lambda: self.settings.queue,
            "radvlm_model_busy": lambda: self.worker.busy,
            "radvlm_studies": lambda: len(self.studies),
            "radvlm_study_pixel_bytes": lambda: self.studies.held_bytes,
            "radvlm_upload_bytes": lambda: self._uploads.held_bytes,
        }.items():
            self.metrics.gauge(name, read)


async def anext_(events: AsyncIterator[object]) -> object:
    """The first event; `anext` needs a coroutine to be made a task of."""
    return await events.__anext__()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)  # speed: it goes to the next process
    return buffer.getvalue()


async def _complain(request: Request, error: Exception) -> Response:
    assert isinstance(error, RadvlmError)
    status = replies.status_of(error)
    return reply(replies.complaint(str(error), status), status, replies.complaint_headers(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return reply(
        replies.complaint(error.detail, error.status_code), error.status_code, dict(error.headers or {})
    )


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)
