"""The one thread that has the model: takes films from the queue, leaves results in it."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from radvlm_edge.audit import REFUSED, AuditLog
from radvlm_edge.errors import AuditError
from radvlm_edge.node import capture, gsps, sr
from radvlm_edge.node.folder import RESULT, Folder
from radvlm_edge.node.heading import Heading, encoded
from radvlm_edge.node.identity import Aliases, Maker
from radvlm_edge.node.questions import Questions
from radvlm_edge.node.queue import Queue, QueuedFilm, QueuedResult
from radvlm_edge.node.reading import Failure, Reading, read
from radvlm_edge.node.settings import Settings
from radvlm_edge.node.trouble import where
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.reader import Reader, Study

log = logging.getLogger("radvlm_edge.node")

IDLE_S = 1.0
"""How often films put back are looked for; new ones wake the thread."""
FULL_S = 30.0
"""Pause when results cannot be written."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk is no fault of the film, and no try of it."""
AGAIN_S = 5.0
"""Pause before a film that failed inside is tried again."""


LAST_TRIES = 3
"""How often a report of failure is tried to be made."""


class LostError(Exception):
    """A film no report can be made of; what the log says."""


class Worker:
    """Works films off one at a time, in the order they came."""

    def __init__(
        self,
        reader: Reader,
        questions: Questions,
        settings: Settings,
        folder: Folder,
        queue: Queue,
        made: Callable[[], None],
        *,
        any_view: bool = False,
        audit: AuditLog | None = None,
    ) -> None:
        """`made` is called when results wait to be sent; answers are in `audit` before they do."""
        self._audit = audit
        self._reader, self._questions, self._settings = reader, questions, settings
        self._folder, self._queue, self._made, self._any_view = folder, queue, made, any_view
        self.maker = Maker.of(reader, questions)
        self._alias = Aliases(queue.salt)
        self._awake = threading.Event()
        self._stopping = False
        self._owed: list[tuple[QueuedFilm, float, bool]] = []
        """Films still to be put back."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """A film has come."""
        self._awake.set()

    def stop(self, wait_s: float) -> bool:
        """Begin no further film; True if the one under way was finished, else it is begun anew next time."""
        self._stopping = True
        self._awake.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._pay()
            try:
                film = self._queue.take()
            except sqlite3.Error as error:
                log.error("the queue cannot be read: %s", where(error))
                film = None
            if film is None:
                self._awake.wait(IDLE_S)
                self._awake.clear()
            else:
                self._work(film)

    def _work(self, film: QueuedFilm) -> None:
        """One film, whatever happens: results, or another try."""
        name, began = self._alias(film.uid), time.monotonic()
        try:
            content = self._content(film)
            outcome = self._outcome(film, content)
            results = self._results(film, content, outcome)
            state = "read" if isinstance(outcome, Reading) else "failed"
            self._queue.finish(film.uid, state, results)
        except (OSError, sqlite3.Error) as error:
            log.error("film %s waits, its results cannot be kept: %s", name, where(error))
            full = isinstance(error, sqlite3.Error) or error.errno in FULL
            self._wait(film, FULL_S, counted=not full)
        except AuditError as error:
            log.error("film %s waits, its answers cannot be noted: %s", name, error)
            self._wait(film, FULL_S, counted=False)
        except LostError as error:
            log.error("film %s is lost: %s", name, error)
        except Exception as error:  # noqa: BLE001 - one film's fault must not end the model's thread
            log.error("film %s: try %d failed: %s", name, film.attempts, where(error))
            self._wait(film, AGAIN_S, counted=True)
        else:
            kinds = ", ".join(result.kind for result in results)
            took_ms = round((time.monotonic() - began) * 1e3)
            log.info("film %s %s in %d ms: %s", name, state, took_ms, kinds)
            self._made()

    def _content(self, film: QueuedFilm) -> bytes:
        """The stored film. Raises LostError where no report can be made of it, the last thing to happen."""
        try:
            if film.attempts > self._settings.tries + LAST_TRIES:
                raise LostError("not even a report of failure could be made")
            assert film.file is not None
            return self._folder.read(film.file)
        except (FileNotFoundError, LostError) as error:
            self._queue.finish(film.uid, "lost", [])
            reason = str(error) if isinstance(error, LostError) else "its file was removed"
            raise LostError(reason) from None

    def _outcome(self, film: QueuedFilm, content: bytes) -> Reading | Failure:
        tries = self._settings.tries
        if film.attempts > tries:
            return Failure(f"the analysis failed or ended the program {tries} times")
        audit = self._audit
        if audit is None:
            return read(self._reader, content, self._questions, any_view=self._any_view)
        who = {"ae": film.sender}

        def note(study: Study, answer: Answer) -> None:
            audit.answered(study, answer.question, answer.text, via="node", who=who)

        outcome = read(self._reader, content, self._questions, any_view=self._any_view, note=note)
        if isinstance(outcome, Failure):
            audit.note(REFUSED, via="node", who=who, why="shown" if outcome.attempted else "not shown")
        return outcome

    def _results(self, film: QueuedFilm, content: bytes, outcome: Reading | Failure) -> list[QueuedResult]:
        """Write what is to be sent. The report is never missing; pictures are, if they cannot be made."""
        heading = Heading.of(content, self.maker, film.received_s)
        contents = {"sr": encoded(sr.report(heading, outcome))}
        if isinstance(outcome, Reading):
            try:
                state = gsps.overlay(heading, outcome)
                if state is not None:
                    contents["gsps"] = encoded(state)
                if self._settings.capture:
                    contents["capture"] = encoded(capture.captured(heading, outcome))
            except (AttributeError, KeyError, TypeError, ValueError) as error:  # of an odd film's header
                log.error("film %s: no picture of its boxes: %s", self._alias(film.uid), where(error))
        return [
            QueuedResult(
                self.maker.result_uid(kind, film.uid),
                film.uid,
                kind,
                self._folder.keep(RESULT, content),
                time.time(),
            )
            for kind, content in contents.items()
        ]

    def _wait(self, film: QueuedFilm, pause_s: float, *, counted: bool) -> None:
        """Put a film back; where the disk is too full even for that, when it is not."""
        try:
            self._queue.put_back(film.uid, pause_s, counted=counted)
        except sqlite3.Error as error:
            log.error("film %s cannot be put back yet: %s", self._alias(film.uid), where(error))
            self._owed.append((film, pause_s, counted))

    def _pay(self) -> None:
        owed, self._owed = self._owed, []
        for film, pause_s, counted in owed:
            self._wait(film, pause_s, counted=counted)
