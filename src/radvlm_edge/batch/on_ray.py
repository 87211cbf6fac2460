"""Parts of a job on a Ray cluster, as one Ray Data pipeline; this process alone writes files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow

from radvlm_edge import errors
from radvlm_edge.batch.job import Job, Progress
from radvlm_edge.batch.rows import write_part
from radvlm_edge.errors import BackendError, RadvlmError

LOCAL = "local"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_DEDUP_LOGS": "0"}
"""Ray reports its use to its makers unless told not to."""


class PartAnswerer:
    """What a worker of the cluster holds: a reader, for as long as the job takes."""

    def __init__(self, job: Job, deaths: dict[int, str]) -> None:
        self._job, self._deaths = job, deaths
        self._answering: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Parts by number → their tables as Arrow streams, or what ended the work."""
        from radvlm_edge.batch.answering import Answering
        from radvlm_edge.batch.rows import table_of
        from radvlm_edge.runtime.reader import Reader

        parts = [int(part) for part in batch["part"]]
        try:
            if self._answering is None:
                self._answering = Answering(self._job, Reader.open(self._job.bundle, self._job.options))
            tables = [_packed(table_of(self._answering.part(part, self._deaths))) for part in parts]
            return {"part": parts, "table": tables, "failed": [""] * len(parts)}
        except RadvlmError as error:
            failed = f"{type(error).__name__}\0{error}"
            return {"part": parts, "table": [b""] * len(parts), "failed": [failed] * len(parts)}


def run(
    progress: Progress,
    address: str,
    *,
    workers: int,
    threads: int | None,
    gpus: int,
    answered: Callable[[int], None],
) -> None:
    """Do all missing parts on the cluster at `address` (`local`: one started here, and ended).

    Every machine needs this package, the bundle and the films under the same paths. `gpus` per worker;
    `answered` is told how many films came back. Raises what a worker's reader raised, BackendError where Ray
    fails.
    """
    os.environ.update(QUIET)
    import ray

    job = replace(progress.job, options=replace(progress.job.options, threads=threads or 1))
    begun_here = not ray.is_initialized()
    try:
        if begun_here:
            local = (
                {"num_cpus": workers * (threads or 1), "include_dashboard": False} if address == LOCAL else {}
            )
            ray.init(address=address, configure_logging=False, log_to_driver=False, **local)
        rows = [{"part": part} for part in progress.missing()]
        results = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1)).map_batches(
            PartAnswerer,
            fn_constructor_args=(job, progress.deaths()),
            batch_size=1,
            concurrency=workers,
            num_cpus=threads or 1,
            num_gpus=gpus or None,
        )
        for row in results.iter_rows():
            _take(progress, row)
            answered(len(job.films_of(int(row["part"]))))
    except ray.exceptions.RayError as error:
        raise BackendError(
            f"Ray at {address}: {type(error).__name__}; see its own logs, then run again"
        ) from error
    except ConnectionError as error:
        raise BackendError(
            f"Ray at {address}: no cluster answers there; start one with `ray start`"
        ) from error
    finally:
        if begun_here and ray.is_initialized():
            ray.shutdown()


def _take(progress: Progress, row: dict[str, Any]) -> None:
    """Write a part that came back, or raise what the worker's reader raised."""
    if row["failed"]:
        name, _, text = row["failed"].partition("\0")
        raise getattr(errors, name, RadvlmError)(text)
    with pyarrow.ipc.open_stream(row["table"]) as stream:
        write_part(progress.path(int(row["part"])), stream.read_all())


def _packed(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content
