"""Rows of a batch, and Parquet files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from radvlm_edge.errors import OutputError
from radvlm_edge.integrity import digest

TEXT, INTEGER, REAL = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
BOX = pyarrow.struct(
    [("label", TEXT), ("xyxy_fraction", pyarrow.list_(REAL)), ("xyxy_pixels", pyarrow.list_(INTEGER))]
)
SHARE = pyarrow.struct([("text", TEXT), ("probability", REAL)])
SCHEMA = pyarrow.schema(
    [
        ("film", TEXT),
        ("film_sha256", TEXT),
        ("sop_instance_uid", TEXT),
        ("question", TEXT),
        ("text", TEXT),
        ("labels", pyarrow.list_(TEXT)),
        ("boxes", pyarrow.list_(BOX)),
        ("choices", pyarrow.list_(SHARE)),
        ("confidence", REAL),
        ("calibrated_on", TEXT),
        ("tokens", INTEGER),
        ("stop", TEXT),
        ("height", INTEGER),
        ("width", INTEGER),
        ("view", TEXT),
        ("crops", INTEGER),
        ("image_tokens", INTEGER),
        ("render", TEXT),
        ("detail", TEXT),
        ("warnings", pyarrow.list_(TEXT)),
        ("vision", TEXT),
        ("vision_backend", TEXT),
        ("language", TEXT),
        ("prefill_backend", TEXT),
        ("bundle", TEXT),
        ("error", TEXT),
    ]
)
"""One row an answer, or one a film that could not be read. No times: the same job gives the same bytes."""


def table_of(rows: list[dict[str, Any]]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(rows, SCHEMA)


def write_table(path: Path, tables: Iterable[pyarrow.Table], about: dict[str, str] | None = None) -> None:
    """Write tables as row groups of one file, under a temporary name, then rename it.

    `about`: the file's own key-value metadata. Raises OutputError where the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    schema = SCHEMA.with_metadata(about) if about else SCHEMA
    try:
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        # Parquet writes its footer even when it gives up, so the name must go.
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); make room and run the same command "
            "again: finished parts are kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_part(path: Path, table: pyarrow.Table) -> None:
    """Write a part and, once it is whole, its digest beside it. Raises OutputError."""
    write_table(path, [table])
    partial = path.with_name(f".{path.name}.digest.partial-{os.getpid()}")
    try:
        partial.write_text(digest(path), encoding="ascii")
        sync(partial)
        partial.replace(digest_path(path))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); make room and run again") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_part(path: Path) -> pyarrow.Table | None:
    """A part written before; `None` where there is none, or it is not to the bit what was written."""
    try:
        if digest(path) != digest_path(path).read_text(encoding="ascii"):
            return None
        table = parquet.read_table(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        return None
    return table if table.schema.equals(SCHEMA) else None


def digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def sync(path: Path) -> None:
    """Have a file's or folder's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
