"""What a batch is, and which of its parts are done."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow

from radvlm_edge.batch.rows import digest_path, read_part, write_table
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import OutputError
from radvlm_edge.runtime.reader import Options

JOB, DEATHS, LOCK = "job.json", "deaths.json", "lock"
PART_FILMS = 32
"""Films a part holds: what a killed process loses at most, per process."""
NOT_RESULTS = (
    "threads",
    "study_memory",
    "study_cache",
    "study_cache_limit",
    "study_cache_days",
    "study_cache_key",
)
"""Options that change no answer."""
NOTICE = "AI output for research, not for diagnosis."
PACKAGES = ("radvlm-edge", "pyarrow", "numpy", "pillow", "pydicom", "llama-cpp-python")


@dataclass(frozen=True)
class Job:
    """Films, questions and how they are answered. Small and picklable: every process gets one."""

    films: tuple[str, ...]
    questions: tuple[str, ...]
    choices: tuple[str, ...] | None
    bundle: Path
    options: Options
    part_films: int = PART_FILMS
    audit: Path | None = None
    """Audit log each answer is noted in before its part is written."""

    @property
    def parts(self) -> int:
        return -(-len(self.films) // self.part_films)

    def films_of(self, part: int) -> range:
        """Indices of a part's films."""
        return range(part * self.part_films, min((part + 1) * self.part_films, len(self.films)))

    def inputs(self) -> dict[str, Any]:
        """Everything the result's bytes depend on but the films' content and the engines."""
        options = {name: value for name, value in asdict(self.options).items() if name not in NOT_RESULTS}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        return {
            "films": list(self.films),
            "questions": list(self.questions),
            "choices": list(self.choices) if self.choices is not None else None,
            "bundle": Bundle.open(self.bundle).sha256,
            "options": plain,
            "part films": self.part_films,
            "versions": {name: version(name) for name in PACKAGES},
        }

    def about(self) -> dict[str, str]:
        """What the finished file says of itself."""
        inputs = self.inputs()
        told = {name: inputs[name] for name in ("questions", "choices", "bundle", "options", "versions")}
        return {
            "radvlm_edge": json.dumps(told, sort_keys=True),
            "notice": NOTICE,
        }


class Progress:
    """A job's folder beside its output: finished parts, and what it was begun with."""

    def __init__(self, job: Job, out: Path, *, replacing: bool = False) -> None:
        """Raises OutputError if the output exists, or the folder belongs to another job or a running one."""
        self.job, self.out = job, out
        self.folder = out.with_name(f"{out.name}.parts")
        if out.exists() and not replacing:
            raise OutputError(f"{out}: exists already; choose another -o, or pass --replace")
        wanted = job.inputs()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written: {error.strerror}; choose another -o"
            ) from error
        self._take_lock()
        try:
            self._begin(wanted, replacing=replacing)
        except BaseException:
            self.close()
            raise

    def _begin(self, wanted: dict[str, Any], *, replacing: bool) -> None:
        """Go on with the folder's job if it is this one. Raises OutputError where it is another."""
        begun = self._begun()
        if begun is not None and begun != wanted:
            different = sorted(name for name in wanted if begun.get(name) != wanted[name])
            if not replacing:
                raise OutputError(
                    f"{self.folder}: begun with other {', '.join(different)}; finish it with those, or pass "
                    "--replace to begin anew"
                )
            for path in self.folder.glob("part-*"):
                path.unlink()
            (self.folder / DEATHS).unlink(missing_ok=True)
        for path in self.folder.glob(".*.partial-*"):
            path.unlink()  # of a process that was killed
        write_json(self.folder / JOB, wanted)

    def close(self) -> None:
        """Let another process take the job."""
        os.close(self._lock)

    def path(self, part: int) -> Path:
        return part_path(self.folder, part)

    def missing(self) -> list[int]:
        """Parts to do; what is there and whole is kept."""
        return [part for part in range(self.job.parts) if read_part(self.path(part)) is None]

    def deaths(self) -> dict[int, str]:
        """Films that ended the process that read them, twice, by index."""
        try:
            return {int(index): how for index, how in json.loads((self.folder / DEATHS).read_bytes()).items()}
        except FileNotFoundError:
            return {}

    def note_death(self, film: int, how: str) -> None:
        write_json(
            self.folder / DEATHS, {**{str(i): how for i, how in self.deaths().items()}, str(film): how}
        )

    def finish(self) -> int:
        """Join the parts to the output, remove the folder; returns how many films have an error row.

        Raises OutputError where a part is damaged: it is removed, and made again by the next run.
        """
        errors = 0

        def tables() -> Iterator[pyarrow.Table]:
            nonlocal errors
            for part in range(self.job.parts):
                table = read_part(self.path(part))
                if table is None:
                    digest_path(self.path(part)).unlink(missing_ok=True)
                    raise OutputError(
                        f"{self.path(part)}: damaged; run the same command again to make it anew"
                    )
                errors += len(table) - table["error"].null_count
                yield table

        write_table(self.out, tables(), self.job.about())
        shutil.rmtree(self.folder, ignore_errors=True)
        return errors

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise OutputError(f"{self.folder}: another process works on it; wait for it to end") from None

    def _begun(self) -> dict[str, Any] | None:
        try:
            begun = json.loads((self.folder / JOB).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}  # damaged: as good as another job's
        return begun if isinstance(begun, dict) else {}


def part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.parquet"


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all. Raises OutputError."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(record, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror}; make room and run again") from error


def reproducible(options: Options) -> Options:
    """Options under which a second run computes what the first did: nothing is chosen by measuring anew."""
    return replace(options, prefill_backend="llama") if options.prefill_backend == "auto" else options
