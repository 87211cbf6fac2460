"""Where TensorRT engines are kept, under what they depend on.

An engine runs on one library version and one GPU only, and is never part of a bundle. Its folder holds
the engine, named by its digest, and, written last, `facts.json`: what it was built from, that digest, and how
it compared with golden.npz. An engine facts.json does not name is an unfinished build and counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from radvlm_edge.errors import BackendError, OutputError

FORMAT = 1
"""Of the cache and of how engines are built; a change makes every engine anew."""
FACTS, TIMING = "facts.json", "timing.cache"


@dataclass(frozen=True)
class Key:
    """All an engine depends on."""

    artefact: str
    """sha256 of the ONNX file."""
    backend: str
    """`tensorrt` or `tensorrt-rtx`."""
    version: str
    gpu: str
    compute: str
    """Compute capability, e.g. `8.7`."""
    driver: str
    profile: tuple[int, int, int]
    """Least, best and most crops of one run."""
    flags: tuple[str, ...] = ()
    """What else was asked of the builder, e.g. `workspace=4096`."""

    def digest(self) -> str:
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def machine(self) -> str:
        """Digest of what a timing cache depends on: everything but the graph and how it is run."""
        text = json.dumps([FORMAT, self.backend, self.version, self.gpu, self.compute, self.driver])
        return hashlib.sha256(text.encode()).hexdigest()


def root() -> Path:
    """Folder of all engines."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "radvlm-edge" / "engines"


@dataclass(frozen=True)
class Entry:
    """One engine's place, whether it is there or not."""

    key: Key

    @property
    def folder(self) -> Path:
        return root() / self.key.digest()[:20]

    def engine(self, sha256: str) -> Path:
        """File of an engine with this digest."""
        return self.folder / f"{sha256[:20]}.engine"

    @property
    def timing(self) -> Path:
        """Timing cache of this machine, shared by its engines."""
        return root() / f"{self.key.machine()[:20]}.{TIMING}"

    def facts(self) -> dict[str, Any] | None:
        """What was written of a finished engine; `None` for none, or one built from something else."""
        try:
            found = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(asdict(self.key)))
            return found if found["key"] == wanted and found["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, engine: memoryview | bytes, golden: dict[str, Any] | None) -> str:
        """Keep an engine, return its digest; one that was there stays until the new one is whole."""
        sha = hashlib.sha256(engine).hexdigest()
        atomically(self.engine(sha), lambda file: file.write(engine))
        self.note(sha, golden)
        for path in self.folder.glob("*.engine"):
            if path != self.engine(sha):
                path.unlink(missing_ok=True)
        return sha

    def note(self, engine_sha256: str, golden: dict[str, Any] | None) -> None:
        """Write what is known of the engine: `golden` holds its figures, `None`: not compared yet."""
        facts = {
            "format": FORMAT,
            "key": asdict(self.key),
            "engine_sha256": engine_sha256,
            "golden": golden,
        }
        text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
        atomically(self.folder / FACTS, lambda file: file.write(text.encode()))

    def read(self) -> bytes:
        """A finished engine, its digest checked. Raises BackendError for none, or a damaged one."""
        facts = self.facts()
        if facts is None:
            raise BackendError(f"no engine is built for this graph on this machine; {self.advice()}")
        path = self.engine(facts["engine_sha256"])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BackendError(f"{path}: cannot be read: {error.strerror}; {self.advice()}") from error
        if hashlib.sha256(content).hexdigest() != facts["engine_sha256"]:
            raise BackendError(f"{path}: damaged; {self.advice()}")
        return content

    def remove(self) -> None:
        """Forget an engine; facts first, so that half of one is never taken for it."""
        for path in (self.folder / FACTS, *self.folder.glob("*.engine")):
            path.unlink(missing_ok=True)

    def read_timing(self) -> bytes:
        """Timings measured here before; empty where there are none."""
        try:
            return self.timing.read_bytes()
        except OSError:
            return b""

    def write_timing(self, timings: bytes) -> None:
        """Keep a machine's timings for its next build, if it has any."""
        if timings:
            atomically(self.timing, lambda file: file.write(timings))

    def advice(self) -> str:
        return f"run `radvlm-edge build BUNDLE --backend {self.key.backend}`"


def atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole, on disk, or not at all. Raises OutputError."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
