"""An append-only audit log: who asked what about which film, and which answer was given.

A log is a file of JSON lines. Each holds its number and the SHA-256 of the line before it, so that a line
changed, removed or put elsewhere breaks the chain there. Two small files lie beside it:

LOG.salt   32 random bytes: films and answers stand in the log as HMAC-SHA256 under it (RFC 2104). Without it
           nobody can tell from the log which film a line is about, nor which of two answers was given.
LOG.head   how many lines there are and the digest of the last, so that lines missing at the end are noticed.

`audit_check.py` follows the chain.

Whoever may write all three files can write a history of their own: keep the digest that `radvlm-edge audit
verify` prints elsewhere, from time to time, and pass it to `--head` later.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import pwd
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.errors import AuditError

FORMAT = 1
SALT_BYTES = 32
FIRST = "0" * 64
"""What the first line holds as the digest of the line before it."""
LONGEST_LINE = 1 << 20
OPENED, ASKED, ANSWERED, REFUSED, LEFT, TORN = "opened", "asked", "answered", "refused", "left", "torn"
"""What a line says: the log was begun; a question whose answer is shown while it is written; an answer; a
film or question refused; a client that left before its answer was whole; the line before is a beginning only,
because the process or machine ended while it was written."""


@dataclass(frozen=True)
class Head:
    """How far a log goes."""

    lines: int
    sha256: str
    """Of the last line, without its newline; `FIRST` where there is none."""


class AuditLog:
    """A log that lines can be added to, by several threads and processes at once.

    A line is on the disk before `note` returns. Raises AuditError where the log cannot be written, or is
    shorter than it was: an answer that cannot be recorded must not be given.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._salt_path, self._head_path = beside(self.path)
        self._thread = threading.Lock()
        self._at_byte, self._head, self._file = 0, Head(0, FIRST), (0, 0)
        with self._reported(), self._locked() as file:
            self._salt = self._load_salt(fresh=os.fstat(file).st_size == 0)
            self._catch_up(file)
            if self._head.lines == 0:
                self._append(file, {"event": OPENED, "format": FORMAT, "salt": _fingerprint(self._salt)})

    def conceal(self, kind: str, value: str) -> str:
        """HMAC-SHA256 of a value under the log's salt, in hex; `kind` keeps sorts of values apart."""
        return concealed(self._salt, kind, value)

    def film(self, film: Any) -> str:
        """What stands for a film: its SOP Instance UID, or its pixels where it has none, concealed."""
        uid = (film.provenance or {}).get("sop_instance_uid")
        if uid:
            return self.conceal("uid", uid)
        shape = repr(film.pixels.shape).encode()
        return self.conceal("pixels", hashlib.sha256(shape + film.pixels.tobytes()).hexdigest())

    def note(self, event: str, **fields: Any) -> int:
        """Add a line, return its number. Fields must be JSON; none may hold anything of a film's header."""
        with self._thread, self._reported(), self._locked() as file:
            self._catch_up(file)
            return self._append(file, {"event": event, **fields})

    def answered(
        self,
        study: Any,
        question: str,
        text: str,
        *,
        via: str,
        who: Mapping[str, Any] | str,
        event: str = ANSWERED,
        **more: Any,
    ) -> int:
        """Note a question about a study (runtime/reader.py) and its answer, which is concealed."""
        return self.note(
            event,
            via=via,
            who=who,
            film=self.film(study.film),
            question=question,
            **({} if event == ASKED else {"answer": self.conceal("answer", text)}),
            bundle=study.reader.bundle.sha256,
            options=told_options(study),
            **more,
        )

    def _append(self, file: int, fields: dict[str, Any]) -> int:
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"n": self._head.lines + 1, "at": at, **fields, "prev": self._head.sha256}
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        line = text.encode("utf-8", "backslashreplace") + b"\n"  # which JSON reads as the same character
        if len(line) > LONGEST_LINE:
            raise AuditError(f"{self.path}: a line of {len(line)} bytes is too long; ask a shorter question")
        _write_all(file, line)
        os.fsync(file)
        self._at_byte += len(line)
        self._head = Head(record["n"], hashlib.sha256(line[:-1]).hexdigest())
        self._keep_head()
        return self._head.lines

    def _catch_up(self, file: int) -> None:
        """Take in what other processes added; close a line a crash left unfinished."""
        seen = os.fstat(file)
        size, identity = seen.st_size, (seen.st_dev, seen.st_ino)
        if self._at_byte and (size < self._at_byte or identity != self._file):
            raise AuditError(f"{self.path}: not the file it was: lines were removed; put the log back")
        self._file = identity
        if size > self._at_byte or not self._at_byte:
            torn = self._read_on(file)
            held = read_head(self._head_path)
            if held is not None and held.lines > self._head.lines + bool(torn):
                raise AuditError(
                    f"{self.path}: holds {self._head.lines} lines of the {held.lines} that {self._head_path} "
                    "counts; put the log back, or move both away to begin a new one"
                )
            if torn:
                _write_all(file, b"\n")
                self._at_byte += len(torn) + 1
                self._head = Head(self._head.lines + 1, hashlib.sha256(torn).hexdigest())
                self._append(file, {"event": TORN, "bytes": len(torn)})

    def _read_on(self, file: int) -> bytes:
        """Follow the chain over lines not seen yet; returns what stands behind the last newline."""
        rest, end = b"", os.fstat(file).st_size  # a device has no end
        while block := os.pread(
            file, min(1 << 20, end - self._at_byte - len(rest)), self._at_byte + len(rest)
        ):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._head = Head(self._head.lines + 1, hashlib.sha256(line).hexdigest())
                self._at_byte += len(line) + 1
        return rest

    def _keep_head(self) -> None:
        text = json.dumps(asdict(self._head)) + "\n"
        partial = self._head_path.with_name(f"{self._head_path.name}.partial")
        with _opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            _write_all(file, text.encode())
            os.fsync(file)
        partial.replace(self._head_path)

    def _load_salt(self, *, fresh: bool) -> bytes:
        """The salt beside the log; made where the log is only begun."""
        path = self._salt_path
        if fresh and not path.exists():
            with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                _write_all(file, os.urandom(SALT_BYTES))
                os.fsync(file)
        salt = load_salt(self.path)
        with self.path.open("rb") as log:
            begun = _begun_with(log.readline(LONGEST_LINE))
        if begun is not None and begun != _fingerprint(salt):
            raise AuditError(f"{path}: not the salt {self.path} was begun with; put that one back")
        return salt

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The log's descriptor, held by no other process."""
        with _opened(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when it is closed, or when the process ends
            yield file

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AuditError(
                f"{self.path}: the audit log cannot be written ({error.strerror or error}); without it no "
                "answer is given"
            ) from error


def beside(path: Path) -> tuple[Path, Path]:
    """Salt and head of a log."""
    return path.with_name(f"{path.name}.salt"), path.with_name(f"{path.name}.head")


def load_salt(log: Path) -> bytes:
    """The salt of a log. Raises AuditError where it is missing, cut, or open to others."""
    path, _ = beside(log)
    try:
        salt, seen = path.read_bytes(), path.stat()
    except OSError as error:
        raise AuditError(f"{path}: the log's salt cannot be read: {error.strerror}; put it back") from error
    if len(salt) != SALT_BYTES:
        raise AuditError(f"{path}: {len(salt)} bytes are no salt; {SALT_BYTES} are; put it back")
    if seen.st_mode & 0o077:
        raise AuditError(
            f"{path}: others can read or write it (mode {stat.S_IMODE(seen.st_mode):04o}); "
            f"run `chmod 600 {path}`"
        )
    return salt


def concealed(salt: bytes, kind: str, value: str) -> str:
    return hmac.new(salt, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def told_options(study: Any) -> dict[str, Any]:
    """How a study's answers are computed: everything they depend on, and no path."""
    reader = study.reader
    options = reader.options
    told = {
        "vision": reader.vision_artefact.precision,
        "vision_backend": reader.tower.backend,
        "language": reader.language_artefact.precision,
        "prefill_backend": reader.prefilling.backend,
        "render": study.film.render,
        "detail": study.detail,
        "max_tokens": options.max_tokens,
    }
    for name in ("gpu_layers", "flash_attention", "kv_type", "frame"):
        if getattr(options, name) is not None:
            told[name] = getattr(options, name)
    for name in ("any_modality", "drafts", "force"):
        if getattr(options, name):
            told[name] = True
    return told


def this_user() -> str:
    """Login name of the user this process runs as, or its number."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _fingerprint(salt: bytes) -> str:
    return concealed(salt, "salt", "of an audit log")[:16]


def _begun_with(line: bytes) -> str | None:
    """The salt's fingerprint in a log's first line; `None` where there is no whole line."""
    try:
        return str(json.loads(line)["salt"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def read_head(path: Path) -> Head | None:
    """What LOG.head says; `None` where there is none. Raises AuditError for one that is damaged."""
    try:
        record = json.loads(path.read_bytes())
        head = Head(**record)
        if type(head.lines) is not int or not isinstance(head.sha256, str):
            raise TypeError("lines is no number")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise AuditError(f"{path}: damaged; it holds `lines` and `sha256` of the log's end") from error
    return head


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _write_all(file: int, content: bytes) -> None:
    """`os.write` until all is written: it may take less at once."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
