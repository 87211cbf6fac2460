"""A folder of studies: K/V states that outlive the process, so that a film is looked at once for good.

What lies there is patient data: a state is a transform of the film. The folder must be its owner's alone;
names, paths and identifiers are not stored at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import StudyCacheError
from radvlm_edge.runtime.study_file import (
    DamagedError,
    Header,
    blocks,
    file_bytes,
    load_secret,
    new_header,
    read_header,
    read_study,
)

SUFFIX, PART = ".kv", ".part"
ENTRY = re.compile(r"[0-9a-f]{64}\.kv")
UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[^.]+\.part")
STALE_S = 3600.0
"""A file still unfinished after this long was left behind by a process that ended."""
DAY_S = 86400.0


def study_key(facts: Mapping[str, object], views: npt.NDArray[np.uint8]) -> str:
    """Identity of a state: everything it was computed from. `views` are the crops `[n, 3, S, S]`."""
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + b"\0")
    sha.update(np.ascontiguousarray(views).data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A kept study as the folder shows it."""

    path: Path
    bytes: int
    written_s: float
    """Time since the epoch, as `used_s`."""
    used_s: float
    header: Header | None
    """`None` where the file is damaged or unfinished."""


class StudyStore:
    """Studies in a folder: found by key, bounded in bytes, aged out.

    A file's modification time is when it was written, its access time when it was last used. Trouble
    with a file never stops an answer: it goes to `notes`, one line each.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, days: float, secret: bytes | None = None) -> None:
        check_folder(folder, create=True)
        self.folder = folder
        self.notes: list[str] = []
        self._limit_bytes, self._days, self._secret = limit_bytes, days, secret
        self._sweep()

    def get(self, key: str) -> tuple[int, bytearray | memoryview] | None:
        """Tokens and state of a study; `None` if it is not here, too old, or not to be used.

        Raises StudyCacheError for an encrypted one without its key.
        """
        path = self.folder / (key + SUFFIX)
        try:
            with path.open("rb") as file:
                written_ns = os.fstat(file.fileno()).st_mtime_ns
                if self._too_old(written_ns / 1e9):
                    path.unlink(missing_ok=True)
                    return None
                content = file.read()
            header, state = read_study(content, self._secret, path)
            if header.key != key:
                raise DamagedError("it is another study, renamed")
            os.utime(path, ns=(time.time_ns(), written_ns))
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.discard(key, str(error))
            return None
        except OSError as error:
            self.notes.append(f"{path}: cannot be read: {error.strerror}; the film is looked at again")
            return None
        return header.tokens, state

    def put(self, key: str, tokens: int, state: bytes | bytearray, bundle: str) -> None:
        """Keep a state: whole under its name or not at all, whatever ends this process meanwhile."""
        path = self.folder / (key + SUFFIX)
        header = new_header(key, tokens, len(state), bundle, encrypted=self._secret is not None)
        size = file_bytes(header)
        if size > self._limit_bytes:
            self.notes.append(f"{path}: not kept: its {size} bytes are over the limit of {self._limit_bytes}")
            return
        try:
            self._sweep()
            self._trim(self._limit_bytes - size, spare=path)
            self._write(path, blocks(header, state, self._secret))
            self._trim(self._limit_bytes, spare=path)
        except OSError as error:
            self.notes.append(f"{path}: not kept: {error.strerror}")

    def discard(self, key: str, reason: str) -> None:
        """Remove a file that must not be used, and say so."""
        path = self.folder / (key + SUFFIX)
        outcome = "removed"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            outcome = f"it cannot be removed ({error.strerror})"
        self.notes.append(f"{path}: {reason}; {outcome}, and the film is looked at again")

    def _write(self, path: Path, content: Iterable[bytes | memoryview]) -> None:
        # mkstemp's mode is 0600
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=PART, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                for block in content:
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)

    def _too_old(self, written_s: float) -> bool:
        return time.time() - written_s > self._days * DAY_S

    def _sweep(self) -> None:
        """Remove what is too old, and what ended writers left unfinished."""
        for path, seen in _files(self.folder):
            stale = path.suffix == PART and time.time() - seen.st_mtime > STALE_S
            if stale or self._too_old(seen.st_mtime):
                path.unlink(missing_ok=True)

    def _trim(self, room: int, *, spare: Path) -> None:
        """Remove the least recently used until the rest fits `room` bytes; `spare` goes last of all."""
        files = list(_files(self.folder))
        total = sum(seen.st_size for path, seen in files)
        whole = [(path, seen) for path, seen in files if path.suffix == SUFFIX]
        for path, seen in sorted(whole, key=lambda one: (one[0] == spare, one[1].st_atime_ns)):
            if total <= room:
                return
            path.unlink(missing_ok=True)
            total -= seen.st_size


def open_store(
    folder: Path | None, *, limit_bytes: int, days: float, key_file: Path | None
) -> StudyStore | None:
    """The store a caller's options ask for; `None` without a folder. Raises StudyCacheError."""
    if folder is None:
        if key_file is not None:
            raise StudyCacheError(f"{key_file}: a study key without a study cache; pass --study-cache DIR")
        return None
    return StudyStore(Path(folder), limit_bytes=limit_bytes, days=days, secret=load_secret(key_file))


def check_folder(folder: Path, *, create: bool = False) -> None:
    """Raise StudyCacheError unless `folder` is a folder of this user's that nobody else can read or write."""
    try:
        if create and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        seen = folder.stat()
    except FileNotFoundError:
        raise StudyCacheError(f"{folder}: no such folder; --study-cache DIR makes one") from None
    except OSError as error:
        raise StudyCacheError(
            f"{folder}: the study cache cannot be made or read: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(seen.st_mode):
        raise StudyCacheError(f"{folder}: not a folder; name one for the study cache")
    if seen.st_uid != os.geteuid():
        raise StudyCacheError(f"{folder}: belongs to user {seen.st_uid}, not to you; name another folder")
    if seen.st_mode & 0o077:
        raise StudyCacheError(
            f"{folder}: others can read or write it (mode {stat.S_IMODE(seen.st_mode):04o}) and studies are "
            f"patient data; run `chmod 700 {folder}`"
        )


def entries(folder: Path) -> list[Entry]:
    """What a study cache holds, last used first, unfinished files included. Raises StudyCacheError."""
    check_folder(folder)
    found = [
        Entry(path, seen.st_size, seen.st_mtime, seen.st_atime, _header(path))
        for path, seen in _files(folder)
    ]
    return sorted(found, key=lambda entry: (-entry.used_s, entry.path.name))


def purge(folder: Path, *, older_than_days: float = 0.0) -> tuple[int, int]:
    """Remove studies written that long ago (0: all); return how many files and bytes went.

    Files that are not studies are left alone. Raises StudyCacheError, OSError.
    """
    check_folder(folder)
    count = size = 0
    for path, seen in _files(folder):
        if not older_than_days or time.time() - seen.st_mtime > older_than_days * DAY_S:
            path.unlink(missing_ok=True)
            count, size = count + 1, size + seen.st_size
    return count, size


def _header(path: Path) -> Header | None:
    if path.suffix != SUFFIX:
        return None
    try:
        # O_NOATIME: looking at the list is no use of a study
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
            return read_header(file)
    except (OSError, DamagedError):
        return None


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Studies and unfinished ones; other files in the folder are not ours."""
    with os.scandir(folder) as listed:
        names = [one.name for one in listed if ENTRY.fullmatch(one.name) or UNFINISHED.fullmatch(one.name)]
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            yield folder / name, (folder / name).lstat()
