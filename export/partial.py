"""An unfinished export on disk: what is finished in it, so that a killed one can go on.

`.NAME.partial/` beside the destination holds `bundle/` (what will be renamed), `spare/` (what is not
shipped), `journal.json` (finished files with their digests, written after each) and `lock`. The bundle's
manifest is written last, so nothing in it can be taken for a bundle before everything else is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from radvlm_edge.bundle import Artefact, Bundle, BundleWriter, digest, raise_unwritten
from radvlm_edge.errors import OutputError

JOURNAL = "journal.json"


class ResumableWriter(BundleWriter):
    """A BundleWriter that records finished files.

    A failure removes everything, as with BundleWriter. A kill or an interrupt leaves the folder, and with
    `resume` so does a disk that refuses; the next export with `resume` keeps the files of the same request
    whose digests still hold, and any other starts anew.
    """

    def __init__(self, out: Path, *, force: bool = False, resume: bool = False) -> None:
        super().__init__(out, force=force)
        self.root = out.parent / f".{out.name}.partial"
        self.folder = self.root / "bundle"
        self._resume = resume
        self._finished: dict[str, dict[str, Any]] = {}
        self._request: dict[str, Any] = {}
        self._lock: BinaryIO | None = None

    def __enter__(self) -> ResumableWriter:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.out}: another export is writing it; wait for it or choose -o"
            ) from error
        except OSError as error:
            raise OutputError(f"{self.out.parent}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disk = isinstance(error, OSError) and error.errno is not None
        keep = isinstance(error, KeyboardInterrupt) or (self._resume and disk)
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        raise_unwritten(self.out, error, "--resume continues it" if keep else "nothing was left behind")

    def begin(self, request: dict[str, Any]) -> list[str]:
        """State what is being exported; returns the finished files that are kept.

        Everything else of an earlier export is removed.
        """
        journal = self._read() if self._resume else {}
        self._request = json.loads(json.dumps(request))
        held = journal.get("finished", {}) if journal.get("request") == self._request else {}
        broken = {
            name.removesuffix(".data")
            for name, entry in held.items()
            if not (self.root / name).is_file() or digest(self.root / name) != entry["sha256"]
        }
        self._finished = {n: entry for n, entry in held.items() if n.removesuffix(".data") not in broken}
        for path in [*self.root.rglob("*")]:
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and name not in {*self._finished, "lock"}:
                path.unlink()
        self.folder.mkdir(exist_ok=True)
        self._write()
        return sorted(self._finished)

    def place(self, name: str, *, shipped: bool = True) -> Path:
        """Path for a file of the bundle, or for one that is only needed to make it."""
        path = (self.folder if shipped else self.root / "spare") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def make(self, path: Path, write: Callable[[Path], None], made_with: str = "") -> None:
        """Write a file (and `….data` beside it) unless it is finished already, and record it.

        `made_with` is what this file depends on beside the request: one finished with another is made anew.
        """
        if self.finished(path, made_with):
            return
        write(path)
        for part in sorted(path.parent.glob(f"{path.name}*"), reverse=True):  # itself last
            with part.open("rb") as file:
                os.fsync(file.fileno())
            self._finished[self._name(part)] = {
                "sha256": digest(part),
                "bytes": part.stat().st_size,
                "made_with": made_with,
            }
        self._write()

    def finished(self, path: Path, made_with: str = "") -> bool:
        entry = self._finished.get(self._name(path))
        return entry is not None and entry.get("made_with") == made_with

    def discard(self, path: Path) -> None:
        """Remove a file that was only needed to make others."""
        path.unlink(missing_ok=True)
        self._finished.pop(self._name(path), None)
        self._write()

    def add(self, role: str, precision: str, backend: str, name: str) -> Artefact:
        """Record a file made by `make` as an artefact, with the digest it had then."""
        entry = self._finished[self._name(self.folder / name)]
        artefact = Artefact(role, precision, backend, name, entry["sha256"], entry["bytes"])
        self.artefacts.append(artefact)
        return artefact

    def digests(self, files: Mapping[str, Path]) -> dict[str, str]:
        """As recorded when a file was finished; the others are read."""
        known = {
            name: str(self._finished[self._name(path)]["sha256"])
            for name, path in files.items()
            if self._name(path) in self._finished
        }
        return known | super().digests({name: path for name, path in files.items() if name not in known})

    def seal(self) -> Bundle:
        bundle = super().seal()
        shutil.rmtree(self.root)
        return bundle

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _read(self) -> dict[str, Any]:
        try:
            journal = json.loads((self.root / JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # none, or cut short: nothing can be kept
        return journal if isinstance(journal, dict) else {}

    def _write(self) -> None:
        text = json.dumps({"request": self._request, "finished": self._finished}, indent=1, sort_keys=True)
        temporary = self.root / f"{JOURNAL}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.root / JOURNAL)
