"""Films looked at, kept in memory for further questions; bounded in number, bytes and time."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from radvlm_edge.errors import RequestError
from radvlm_edge.runtime.reader import Study

HISTORY = 200
"""Questions remembered for a study; the oldest go first."""


@dataclass(eq=False)
class Kept:
    """A film in the library."""

    id: str
    """Not to be guessed: whoever has it may see the film."""
    digest: str
    """Of the upload and how it was read, to find the same film again."""
    study: Study
    created_s: int
    """Seconds since the epoch."""
    used_s: float
    """Of `time.monotonic`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Questions asked with this id, and their answers, oldest first."""

    @property
    def bytes(self) -> int:
        return int(self.study.film.pixels.nbytes)

    def note(self, record: dict[str, Any]) -> None:
        """Remember a question and its answer."""
        self.history.append(record)
        del self.history[:-HISTORY]


def upload_digest(content: bytes, render: str | None, frame: int | None) -> str:
    """What makes two uploads the same film."""
    sha = hashlib.sha256(repr((render, frame)).encode() + b"\0")
    sha.update(content)
    return sha.hexdigest()


class Library:
    """Studies by id; those least recently used, or unused too long, are forgotten."""

    def __init__(self, *, studies: int, limit_bytes: int, idle_s: float) -> None:
        self._limit, self._limit_bytes, self._idle_s = studies, limit_bytes, idle_s
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._forget_idle()
            return len(self._kept)

    @property
    def held_bytes(self) -> int:
        """Bytes of pixels held."""
        with self._lock:
            return sum(kept.bytes for kept in self._kept.values())

    def add(self, study: Study, digest: str) -> Kept:
        """Keep a study under a new id, at the cost of those least recently used."""
        kept = Kept(f"study-{secrets.token_urlsafe(18)}", digest, study, int(time.time()), time.monotonic())
        with self._lock:
            self._forget_idle()
            self._kept[kept.id] = kept
            while len(self._kept) > 1 and (
                len(self._kept) > self._limit
                or sum(one.bytes for one in self._kept.values()) > self._limit_bytes
            ):
                self._kept.popitem(last=False)
        return kept

    def get(self, study_id: str) -> Kept:
        """A study by its id. Raises RequestError (404) where it is unknown or forgotten."""
        with self._lock:
            self._forget_idle()
            kept = self._kept.get(study_id)
            if kept is None:
                raise RequestError("no such study: unknown, or forgotten since; upload the film again", 404)
            self._use(kept)
            return kept

    def find(self, digest: str) -> Kept | None:
        """A study of the same upload."""
        with self._lock:
            self._forget_idle()
            for kept in self._kept.values():
                if kept.digest == digest:
                    self._use(kept)
                    return kept
            return None

    def forget(self, study_id: str) -> None:
        """Let go of a film and its history. Raises RequestError (404) for an unknown id."""
        self.get(study_id)
        with self._lock:
            self._kept.pop(study_id, None)

    def _use(self, kept: Kept) -> None:
        kept.used_s = time.monotonic()
        self._kept.move_to_end(kept.id)

    def _forget_idle(self) -> None:
        border_s = time.monotonic() - self._idle_s
        for kept in [kept for kept in self._kept.values() if kept.used_s < border_s]:
            del self._kept[kept.id]
