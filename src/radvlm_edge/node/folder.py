"""The node's folder: whole files or none, one node at a time, nobody else's eyes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path

from radvlm_edge.errors import NodeError

PART = ".part"
FILM, RESULT = "films", "results"


class Folder:
    """Where films and results lie until they are done with."""

    def __init__(self, path: Path) -> None:
        """Make or take the folder. Raises NodeError where others could read it, or another node has it."""
        self.path = path
        _check(path)
        try:
            for name in (FILM, RESULT):
                (path / name).mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeError(f"{path}: cannot be written: {error.strerror}; name another --folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise NodeError(
                f"{path}: another node works in it; stop that, or name another --folder"
            ) from None

    @property
    def queue(self) -> Path:
        """The queue's database."""
        return self.path / "queue.sqlite"

    def close(self) -> None:
        """Let another node have the folder."""
        os.close(self._lock)

    def free_bytes(self) -> int:
        """What the disk has left for this user."""
        return shutil.disk_usage(self.path).free

    def keep(self, kind: str, content: bytes) -> str:
        """Write a file durably under a name made of its content; returns the name within the folder.

        Whole and on disk when this returns; if it raises OSError, nothing is left. The same content again
        is the same file.
        """
        name = f"{kind}/{hashlib.sha256(content).hexdigest()}.dcm"
        handle, part = tempfile.mkstemp(prefix=".", suffix=PART, dir=self.path / kind)  # its mode is 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(self.path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(part).unlink()
            raise
        self._sync(kind)  # the rename itself
        return name

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def drop(self, name: str) -> None:
        """Remove a file that is done with."""
        (self.path / name).unlink(missing_ok=True)

    def sweep(self, wanted: Collection[str]) -> int:
        """Remove files no record names: written by a process that ended before it could say so."""
        count = 0
        for kind in (FILM, RESULT):
            for path in (self.path / kind).iterdir():
                if f"{kind}/{path.name}" not in wanted and path.suffix in (PART, ".dcm"):
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def _sync(self, kind: str) -> None:
        folder = os.open(self.path / kind, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def default_folder() -> Path:
    """`$XDG_STATE_HOME/radvlm-edge/node`, or the same below `~/.local/state`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "radvlm-edge" / "node"


def _check(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = path.stat()
    except OSError as error:
        raise NodeError(f"{path}: cannot be made or read: {error.strerror}; name another --folder") from error
    if seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        raise NodeError(
            f"{path}: films are patient data and others can read it (user {seen.st_uid}, mode "
            f"{stat.S_IMODE(seen.st_mode):04o}); run `chmod 700 {path}` as its owner, or name another"
        )
