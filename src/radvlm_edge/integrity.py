"""Is a folder what was sealed? Digests in parallel, and a memory of those already checked.

SHA256SUMS is read strictly: one canonical spelling, so that a changed byte in it is found as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from radvlm_edge.errors import BundleError

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
MEMORY_FORMAT = 1
RACY_NS = 2_000_000_000
"""A file changed less than this long ago may change again within its timestamps' resolution; such a
file is hashed once more next time. The rule git's index follows (its documentation, racy-git)."""

_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f]+)")

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""


def digest(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a file, in hex; `advance` is told how many bytes each read gave."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
            advance(len(block))
    return sha.hexdigest()


def digests(files: Mapping[str, Path], progress: Progress | None = None) -> dict[str, str]:
    """Digest of every file by name, on as many threads as this process has CPUs.

    hashlib lets other threads run while it hashes, so threads are enough. Raises OSError.
    """
    from concurrent.futures import ThreadPoolExecutor  # only where something is hashed

    total = sum(path.stat().st_size for path in files.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count  # lost updates between threads would only make the bar late
        if progress is not None:
            progress(min(done, total), total)

    largest_first = sorted(files, key=lambda name: -files[name].stat().st_size)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda name: digest(files[name], advance), largest_first)
        return dict(zip(largest_first, found, strict=True))


def sums_text(sums: Mapping[str, str]) -> str:
    """SHA256SUMS as written: sorted by name, in sha256sum's own format."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def read_sums(folder: Path) -> dict[str, str]:
    """SHA256SUMS of a bundle: name → digest.

    Raises BundleError unless it is exactly what `sums_text` writes.
    """
    path = folder / SUMS
    try:
        text = path.read_bytes().decode("utf-8")
        lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
        sums = {line[2]: line[1] for line in lines if line}
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: missing or malformed; copy the bundle again") from error
    if sums_text(sums) != text:
        raise BundleError(f"{path}: missing or malformed; copy the bundle again")
    return sums


def problems(folder: Path, progress: Progress | None = None, *, known: Iterable[str] = ()) -> list[str]:
    """What is not as sealed, one short phrase a file; files `known` to be unchanged are not read.

    Raises BundleError for a SHA256SUMS that is none, or a file that cannot be read.
    """
    listed = read_sums(folder)
    present = _present(folder)
    found = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    found += [f"{name} is not listed" for name in sorted(present - listed.keys())]
    to_read = (listed.keys() & present) - set(known)
    try:
        seen = digests({name: folder / name for name in to_read}, progress)
    except OSError as error:
        raise BundleError(f"{folder}: {error.filename} cannot be read: {error.strerror}") from error
    return found + [f"{name} was altered" for name in sorted(seen) if seen[name] != listed[name]]


def _present(folder: Path) -> set[str]:
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    return names - {SUMS, SIGNATURE}


class Memory:
    """Which files of a bundle were found as sealed, and how they looked then.

    Kept in `$XDG_CACHE_HOME/radvlm-edge/verified` (else `~/.cache`), one small file a bundle, readable
    by its owner alone. A file counts as unchanged while size, modification time, change time, inode and
    device are what they were, and SHA256SUMS is byte for byte the one that was checked. Damage below
    the file system shows in none of these: `radvlm-edge verify` always reads everything.
    """

    def __init__(self, folder: Path, manifest_sha256: str) -> None:
        self._folder = folder
        self._sums = digest(folder / SUMS)
        where = folder.resolve().stat()
        name = f"{manifest_sha256[:32]}-{where.st_dev:x}-{where.st_ino:x}.json"
        self._path = _memory_folder() / name

    def unchanged(self) -> set[str]:
        """Names of the files that look exactly as when they were last hashed."""
        record = self._read()
        if record.get("format") != MEMORY_FORMAT or record.get("sums") != self._sums:
            return set()
        return {name for name, looks in record["files"].items() if looks == self._look(name)}

    def looks(self) -> dict[str, list[int]]:
        """How every listed file looks now; to be taken before hashing."""
        seen = {name: self._look(name) for name in read_sums(self._folder)}
        return {name: look for name, look in seen.items() if look is not None}

    def remember(self, before: Mapping[str, list[int]]) -> bool:
        """Note files found as sealed; those that changed since `before` or very lately are left out.

        Returns False where the cache cannot be written: everything is hashed again next time then.
        """
        now = time.time_ns()
        files = {
            name: look
            for name, look in before.items()
            if look == self._look(name) and now - max(look[1], look[2]) > RACY_NS
        }
        record = {"format": MEMORY_FORMAT, "sums": self._sums, "files": files}
        return _write_private(self._path, json.dumps(record))

    def _look(self, name: str) -> list[int] | None:
        try:
            seen = (self._folder / name).stat()
        except OSError:
            return None
        return [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]

    def _read(self) -> dict[str, Any]:
        """The record; empty where there is none, or where others could have written it."""
        try:
            with self._path.open("rb") as file:
                owner = os.fstat(file.fileno())
                record = json.load(file)
        except (OSError, ValueError):
            return {}
        private = owner.st_uid == os.geteuid() and not owner.st_mode & 0o077
        well_formed = isinstance(record, dict) and isinstance(record.get("files"), dict)
        return record if private and well_formed else {}


def _memory_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "radvlm-edge" / "verified"


def _write_private(path: Path, text: str) -> bool:
    """Write a file whole or not at all, readable by its owner alone (mkstemp's mode is 0600)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return False
    return True
