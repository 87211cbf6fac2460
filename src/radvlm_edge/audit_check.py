"""Is an audit log what was written? Its chain, followed from the first line to the last (audit.py)."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.audit import FIRST, LONGEST_LINE, OPENED, TORN, Head, beside, read_head
from radvlm_edge.errors import AuditError

SHORTEST_ANCHOR = 16


@dataclass(frozen=True)
class Verified:
    """A log whose chain holds."""

    head: Head
    torn: tuple[int, ...] = ()
    """Numbers of lines a crash left unfinished, each followed by one that says so."""
    unfinished: bool = False
    """Whether the file ends with the beginning of a line: a crash, and nothing was written since."""
    uncounted: int = 0
    """Lines behind those LOG.head counts: a process ended between writing the one and the other."""


@dataclass(frozen=True)
class _Line:
    """A whole line of the file."""

    number: int
    sha256: str
    record: dict[str, Any] | None
    """`None` where it is no JSON object."""

    @property
    def prev(self) -> object:
        return (self.record or {}).get("prev")


def verify(path: Path, *, anchor: str | None = None) -> Verified:
    """Follow a log's chain.

    `anchor`: digest of a line, or its first 16 digits or more, noted elsewhere at an earlier time; it must be
    among the lines. Raises AuditError with the number of the line that is changed, missing or out of place.
    """
    if anchor is not None and len(anchor) < SHORTEST_ANCHOR:
        raise AuditError(f"{anchor}: too short for a digest; give {SHORTEST_ANCHOR} digits or more")
    held, torn, found, unfinished = read_head(beside(path)[1]), list[int](), anchor is None, False
    before = _Line(0, FIRST, {})
    content = list(_lines(path))
    if content and not content[-1].endswith(b"\n"):
        content.pop()
        unfinished = True
    for index, raw in enumerate(content):
        line = _line(index + 1, raw)
        following = _line(index + 2, content[index + 1]) if index + 1 < len(content) else None
        if line.record is None:
            if following is None or (following.record or {}).get("event") != TORN:
                raise _changed(path, line.number)
            torn.append(line.number)
        else:
            _check(path, line, before, following, held)
        if held is not None and line.number == held.lines and line.sha256 != held.sha256:
            raise _changed(path, line.number)
        found = found or (anchor is not None and line.sha256.startswith(anchor.lower()))
        before = line
    _check_end(path, before.number, held)
    if not found:
        raise AuditError(
            f"{path}: no line has the digest {str(anchor)[:64]}; the log was cut, or written anew, since"
        )
    uncounted = before.number - held.lines if held is not None else 0
    return Verified(Head(before.number, before.sha256), tuple(torn), unfinished, uncounted)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """What the whole lines of a log say; `verify` it first. Raises AuditError."""
    for number, raw in enumerate(_lines(path), 1):
        record = _line(number, raw).record if raw.endswith(b"\n") else None
        if record is not None:
            yield record


def _check(path: Path, line: _Line, before: _Line, following: _Line | None, held: Head | None) -> None:
    """Raise AuditError unless a line has the number of its place and follows the one before it."""
    record = line.record or {}
    if record.get("n") != line.number:
        raise AuditError(
            f"{path}: line {line.number} is missing, out of place or changed: there is one that calls itself "
            f"{str(record.get('n'))[:20]}"
        )
    if line.prev != before.sha256:
        # A line that the next one, or LOG.head, vouches for is as written: then the one before it is not.
        vouched = following is not None and following.prev == line.sha256
        vouched = vouched or (held is not None and (held.lines, held.sha256) == (line.number, line.sha256))
        raise _changed(path, line.number - 1 if vouched and before.number else line.number)
    if (line.number == 1) != (record.get("event") == OPENED):
        raise _changed(path, line.number)
    if (record.get("event") == TORN) != (before.record is None):
        raise _changed(path, before.number)


def _check_end(path: Path, lines: int, held: Head | None) -> None:
    if held is None:
        raise AuditError(
            f"{beside(path)[1]}: missing; without it nobody can tell whether lines are missing at the end"
        )
    if lines < held.lines:
        raise AuditError(f"{path}: line {lines + 1} is missing, and all others up to line {held.lines}")


def _changed(path: Path, number: int) -> AuditError:
    return AuditError(f"{path}: line {number} is changed: it is not what was written there")


def _line(number: int, raw: bytes) -> _Line:
    content = raw.removesuffix(b"\n")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    sha256 = hashlib.sha256(content).hexdigest()
    return _Line(number, sha256, record if isinstance(record, dict) else None)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of the file, the last perhaps without newline; nobody writes while it is read."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            while line := file.readline(LONGEST_LINE + 1):
                yield line
    except OSError as error:
        raise AuditError(f"{path}: the audit log cannot be read: {error.strerror}") from error
