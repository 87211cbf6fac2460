"""The one thread that has the model, and the bounded queue before it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from radvlm_edge.errors import BusyError, RequestError
from radvlm_edge.runtime.reader import Reader

Event = Any
"""What work yields: `str` while an answer is written, one record at its end; `None` is not passed on."""
Work = Callable[[Reader], Generator[Event, None, None]]
RECENT = 0.2
"""Weight of the newest piece of work in the mean that `Retry-After` is guessed from."""


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class _End:
    """No more events."""


@dataclass(eq=False)
class Ticket:
    """A piece of work in the queue or under way, as its client sees it."""

    work: Work
    deadline_s: float
    """Of `time.monotonic`."""
    loop: asyncio.AbstractEventLoop
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _left: threading.Event = field(default_factory=threading.Event)

    def leave(self) -> None:
        """The client wants it no more: it leaves the queue, or stops at the next token."""
        self._left.set()

    @property
    def over(self) -> bool:
        """Whether nobody waits any longer."""
        return self._left.is_set() or time.monotonic() > self.deadline_s

    def put(self, event: Event) -> None:
        """Hand an event to the client's event loop, from the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, so its clients are gone
            self._left.set()

    async def events(self) -> AsyncIterator[Event]:
        """What the work yields. Raises what it raised, or RequestError (504) when the time is over."""
        try:
            while True:
                rest_s = self.deadline_s - time.monotonic()
                try:
                    event = await asyncio.wait_for(self._events.get(), max(rest_s, 0.0))
                except asyncio.TimeoutError:
                    raise RequestError(
                        "the time limit of a request has passed; ask again later", 504
                    ) from None
                if isinstance(event, _End):
                    return
                if isinstance(event, _Failed):
                    raise event.error
                yield event
        finally:
            self.leave()


class Worker:
    """Runs tickets one at a time, in their order."""

    def __init__(self, reader: Reader, *, waiting: int, timeout_s: float) -> None:
        self.reader = reader
        self._limit, self._timeout_s = waiting, timeout_s
        self._queue: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._mean_s = 1.0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Ticket:
        """Queue work. Raises BusyError (429) if the queue is full, RequestError (503) at the end."""
        with self._changed:
            self._drop_left()
            if self._stopping or not self._thread.is_alive():
                raise RequestError("the service is stopping; ask another, or later", 503)
            if len(self._queue) >= self._limit:
                raise BusyError(
                    f"{len(self._queue)} requests wait for the model already; ask again later",
                    self._retry_after_s(),
                )
            ticket = Ticket(work, time.monotonic() + self._timeout_s, asyncio.get_running_loop())
            self._queue.append(ticket)
            self._changed.notify()
            return ticket

    @property
    def waiting(self) -> int:
        """Requests in the queue, without the one being answered."""
        with self._changed:
            self._drop_left()
            return len(self._queue)

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        """Answer nobody any more and end the thread; the answer being written stops at its next token."""
        with self._changed:
            self._stopping = True
            for ticket in (*self._queue, *([self._running] if self._running else [])):
                ticket.put(_Failed(RequestError("the service is stopping; ask another, or later", 503)))
                ticket.leave()
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    def _drop_left(self) -> None:
        """A client that left makes room at once, not when its turn would have come."""
        self._queue = deque(ticket for ticket in self._queue if not ticket.over)

    def _retry_after_s(self) -> int:
        """When a place should be free: the time one piece of work took lately."""
        return min(max(math.ceil(self._mean_s), 1), 120)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                ticket = self._running = self._queue.popleft()
            began = time.monotonic()
            try:
                if not ticket.over:
                    self._serve(ticket)
            finally:
                self._running = None
            self._mean_s += RECENT * (time.monotonic() - began - self._mean_s)

    def _serve(self, ticket: Ticket) -> None:
        events = ticket.work(self.reader)
        try:
            for event in events:
                if event is not None:
                    ticket.put(event)
                if ticket.over:
                    return
            ticket.put(_End())
        except Exception as error:  # noqa: BLE001 - one request's fault must not end the model's thread
            ticket.put(_Failed(error))
        finally:
            events.close()
