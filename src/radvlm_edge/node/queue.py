"""The queue: a SQLite database that says how far every film and result is, whatever ends the process."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from radvlm_edge.errors import NodeError

SCHEMA = 1
TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS films (
    number INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, file TEXT,
    sender TEXT NOT NULL, received_s REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'working', 'done')),
    attempts INTEGER NOT NULL DEFAULT 0, due_s REAL NOT NULL DEFAULT 0, outcome TEXT
);
CREATE INDEX IF NOT EXISTS films_due ON films (state, number);
CREATE TABLE IF NOT EXISTS results (
    uid TEXT PRIMARY KEY, film TEXT NOT NULL REFERENCES films (uid), kind TEXT NOT NULL, file TEXT,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead')), made_s REAL NOT NULL,
    refused INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, due_s REAL NOT NULL DEFAULT 0,
    problem TEXT
);
CREATE INDEX IF NOT EXISTS results_due ON results (state, due_s);
CREATE INDEX IF NOT EXISTS results_film ON results (film);
"""


@dataclass(frozen=True)
class QueuedFilm:
    """A film that was acknowledged."""

    uid: str
    """SOP Instance UID."""
    digest: str
    """SHA-256 of the file as it was stored."""
    file: str | None
    """Within the folder; `None` once it is done with."""
    sender: str
    """Calling AE title."""
    received_s: float
    """Time since the epoch."""
    attempts: int = 0
    """Times work on it began."""


@dataclass(frozen=True)
class QueuedResult:
    """A result that waits to be sent."""

    uid: str
    film: str
    """SOP Instance UID of the film."""
    kind: str
    """`sr`, `gsps` or `capture`."""
    file: str
    made_s: float
    attempts: int = 0
    """Times sending it failed."""
    refused: int = 0
    """Times the PACS answered that it will not have it."""


class Queue:
    """Every change is on disk when its method returns. Safe to use from several threads of one process."""

    def __init__(self, path: Path, *, owner: bool = True) -> None:
        """Open or make the database; its owner lets films a dead process was at work on wait again.

        Raises NodeError for a file that is no such database.
        """
        self._lock = threading.Lock()
        path.touch(mode=0o600)
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")  # a commit outlives a power cut, too
            with self._change() as base:
                for statement in TABLES.split(";"):
                    base.execute(statement)
                base.execute("INSERT OR IGNORE INTO facts VALUES ('schema', ?)", (SCHEMA,))
                base.execute("INSERT OR IGNORE INTO facts VALUES ('salt', ?)", (os.urandom(16),))
                if owner:
                    base.execute("UPDATE films SET state = 'waiting' WHERE state = 'working'")
            schema = self._fact("schema")
        except sqlite3.DatabaseError as error:
            raise NodeError(
                f"{path}: not a queue that can be used ({error}); restore it, or name another --folder"
            ) from error
        if schema != SCHEMA:
            raise NodeError(f"{path}: a queue of version {schema}, not {SCHEMA}; use the radvlm-edge of it")

    def close(self) -> None:
        with self._lock:
            self._base.close()

    @property
    def salt(self) -> bytes:
        """Made once; what log aliases are hashed with."""
        salt = self._fact("salt")
        assert isinstance(salt, bytes)
        return salt

    def find(self, uid: str) -> QueuedFilm | None:
        """A film that was acknowledged before."""
        rows = self._rows(f"SELECT {FILM} FROM films WHERE uid = ?", (uid,))
        return QueuedFilm(*rows[0]) if rows else None

    def add(self, film: QueuedFilm) -> bool:
        """Queue a film; False if one of its UID is there already, which then stays as it is."""
        values = film.uid, film.digest, film.file, film.sender, film.received_s
        with self._change() as base:
            added = base.execute(
                "INSERT OR IGNORE INTO films (uid, digest, file, sender, received_s, state) "
                "VALUES (?, ?, ?, ?, ?, 'waiting')",
                values,
            )
            return added.rowcount == 1

    def take(self) -> QueuedFilm | None:
        """The film that came first and may be worked on; the attempt is counted before it begins."""
        with self._change() as base:
            due = "WHERE state = 'waiting' AND due_s <= ? ORDER BY number LIMIT 1"
            row = base.execute(f"SELECT {FILM} FROM films {due}", (time.time(),)).fetchone()
            if row is None:
                return None
            base.execute(
                "UPDATE films SET state = 'working', attempts = attempts + 1 WHERE uid = ?", (row[0],)
            )
            return replace(QueuedFilm(*row), attempts=row[-1] + 1)

    def put_back(self, uid: str, pause_s: float, *, counted: bool) -> None:
        """Let a film wait again; `counted`: the attempt was the film's fault, perhaps."""
        with self._change() as base:
            base.execute(
                "UPDATE films SET state = 'waiting', due_s = ?, attempts = attempts - ? WHERE uid = ?",
                (time.time() + pause_s, 0 if counted else 1, uid),
            )

    def finish(self, uid: str, outcome: str, results: Sequence[QueuedResult]) -> None:
        """A film is worked off: its results wait to be sent. Both or neither are recorded."""
        rows = [(one.uid, one.film, one.kind, one.file, one.made_s) for one in results]
        with self._change() as base:
            base.executemany(
                "INSERT INTO results (uid, film, kind, file, state, made_s) "
                "VALUES (?, ?, ?, ?, 'waiting', ?) ON CONFLICT (uid) DO NOTHING",
                rows,
            )
            base.execute("UPDATE films SET state = 'done', outcome = ? WHERE uid = ?", (outcome, uid))

    def due(self, most: int = 64) -> list[QueuedResult]:
        """Results to be sent now, oldest first."""
        query = (
            "SELECT uid, film, kind, file, made_s, attempts, refused FROM results "
            "WHERE state = 'waiting' AND due_s <= ? ORDER BY made_s, uid LIMIT ?"
        )
        return [QueuedResult(*row) for row in self._rows(query, (time.time(), most))]

    def sent(self, result: QueuedResult) -> list[str]:
        """A result is with the PACS; returns the files that nothing needs any more."""
        with self._change() as base:
            base.execute(
                "UPDATE results SET state = 'sent', file = NULL, problem = NULL WHERE uid = ?", (result.uid,)
            )
            done = [result.file]
            unsent = "SELECT count(*) FROM results WHERE film = ? AND state != 'sent'"
            if base.execute(unsent, (result.film,)).fetchone()[0] == 0:
                film = "SELECT file FROM films WHERE uid = ? AND file IS NOT NULL"
                done += [row[0] for row in base.execute(film, (result.film,))]
                base.execute("UPDATE films SET file = NULL WHERE uid = ?", (result.film,))
            return done

    def later(self, result: QueuedResult, pause_s: float, problem: str, *, refused: bool) -> None:
        """A result was not delivered; it is tried again."""
        with self._change() as base:
            base.execute(
                "UPDATE results SET attempts = attempts + 1, refused = refused + ?, due_s = ?, problem = ? "
                "WHERE uid = ?",
                (int(refused), time.time() + pause_s, problem, result.uid),
            )

    def bury(self, result: QueuedResult, problem: str) -> None:
        """A result is a dead letter: kept with its film, and sent only when `revive` says so."""
        with self._change() as base:
            base.execute(
                "UPDATE results SET state = 'dead', attempts = attempts + 1, problem = ? WHERE uid = ?",
                (problem, result.uid),
            )

    def revive(self) -> int:
        """Let dead letters wait again, as if just made; returns how many."""
        with self._change() as base:
            return base.execute(
                "UPDATE results SET state = 'waiting', attempts = 0, refused = 0, due_s = 0, made_s = ? "
                "WHERE state = 'dead'",
                (time.time(),),
            ).rowcount

    def files(self) -> set[str]:
        """Every file a record names."""
        rows = self._rows("SELECT file FROM films UNION SELECT file FROM results")
        return {str(file) for (file,) in rows if file is not None}

    def waiting(self) -> int:
        """Films not worked off yet."""
        return int(self._rows("SELECT count(*) FROM films WHERE state != 'done'")[0][0])

    def counts(self) -> dict[str, dict[str, int]]:
        """Films and results by state."""
        return {
            table: {str(state): int(n) for state, n in self._rows(query)}
            for table, query in {
                "films": "SELECT state, count(*) FROM films GROUP BY state",
                "results": "SELECT state, count(*) FROM results GROUP BY state",
                "outcomes": "SELECT outcome, count(*) FROM films WHERE outcome IS NOT NULL GROUP BY outcome",
            }.items()
        }

    def dead(self) -> list[tuple[str, str, str]]:
        """(film, kind, problem) of every dead letter."""
        return [
            (str(film), str(kind), str(problem))
            for film, kind, problem in self._rows(
                "SELECT film, kind, problem FROM results WHERE state = 'dead' ORDER BY made_s"
            )
        ]

    def _fact(self, name: str) -> object:
        return self._rows("SELECT value FROM facts WHERE name = ?", (name,))[0][0]

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(query, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # a full disk may have rolled it back already
                    self._base.execute("ROLLBACK")
                raise


FILM = "uid, digest, file, sender, received_s, attempts"
