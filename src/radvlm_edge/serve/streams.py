"""A client's side of a ticket: its whole answer or its stream, given up as soon as the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from radvlm_edge.errors import RadvlmError
from radvlm_edge.faults import where
from radvlm_edge.serve.gate import Receive, Scope, Send, log
from radvlm_edge.serve.replies import Completion, complaint, sse, status_of
from radvlm_edge.serve.worker import Ticket

T = TypeVar("T")
LEFT = 499
"""Status of a request whose client left, as nginx counts it; nobody receives it."""


class LeftError(Exception):
    """The client is gone."""


async def gone(receive: Receive) -> None:
    """Return when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, waited_for: Coroutine[Any, Any, T]) -> T:
    """Await something; raises LeftError, and cancels it, if the client leaves first."""
    task, leaving = asyncio.ensure_future(waited_for), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LeftError
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def collect(ticket: Ticket) -> list[Any]:
    """All a ticket yields."""
    events = ticket.events()
    try:
        return [event async for event in events]
    finally:
        await events.aclose()  # type: ignore[attr-defined]


class EventStream(Response):
    """Server-sent events of a chat completion, from a first event already there to `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, first: Any, rest: AsyncIterator[Any], completion: Completion) -> None:
        super().__init__(None, headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._completion = first, rest, completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await unless_gone(request, self._send(send))
        except LeftError:
            return

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def push(content: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        try:
            await push(sse(self._completion.first()))
            await push(b"".join(map(sse, self._completion.chunks([self._first]))))
            async for event in self._rest:
                await push(b"".join(map(sse, self._completion.chunks([event]))))
            await push(sse("[DONE]"), more=False)
        except RadvlmError as error:
            await push(sse(complaint(str(error), status_of(error))), more=False)
        except Exception as error:  # noqa: BLE001 - the stream has begun: its client is told, the log says where
            log.error("a stream failed: %s", where(error))
            await push(sse(complaint("the service failed; its log says where", 500)), more=False)
        finally:
            await self._rest.aclose()  # type: ignore[attr-defined]


def reply(record: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON."""
    content = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")  # halves of surrogate pairs
    return Response(content, status, headers, "application/json")
