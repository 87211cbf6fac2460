"""Pairs → shard files, Parquet or WebDataset, the same bytes for the same pairs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from radvlm_edge.errors import OutputError
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.prompts import Turn

SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}
GROUP_BYTES = 32 * 2**20
"""Pairs are gathered to row groups of about this size, so that memory does not grow with the shard."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Pair:
    """One line of the data set."""

    name: str
    task: str
    source: str
    film: str
    patient: str
    split: str
    weight: float
    turns: tuple[Turn, ...]
    image: str
    """The film's file relative to the root the set was built from."""
    content: bytes | None
    """The film itself, JPEG or PNG, where it is embedded."""

    @property
    def conversations(self) -> list[dict[str, str]]:
        """LLaVA's form; the image stands in the first question."""
        said: list[dict[str, str]] = []
        for index, turn in enumerate(self.turns):
            said.append({"from": "human", "value": ("" if index else "<image>\n") + turn.question})
            said.append({"from": "gpt", "value": turn.answer or ""})
        return said


def film_bytes(path: Path, longest_px: int | None) -> bytes:
    """A film as JPEG or PNG: its own bytes where it is one and small enough, else rendered and scaled.

    Raises FilmError for a film that cannot be read.
    """
    content = path.read_bytes()
    is_picture = content.startswith((b"\x89PNG", b"\xff\xd8\xff"))
    if is_picture and longest_px is None:
        return content
    image = Image.fromarray(load_film(content, name=str(path)).pixels)
    if longest_px is not None:
        if is_picture and max(image.size) <= longest_px:
            return content
        image.thumbnail((longest_px, longest_px), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def write_shard(path: Path, pairs: Iterable[Pair], form: str) -> tuple[int, str, int]:
    """Write one shard under a temporary name, then rename it; returns pairs, SHA-256 and bytes.

    Raises OutputError if the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial")
    count = 0

    def counted() -> Iterator[Pair]:
        nonlocal count
        for pair in pairs:
            count += 1
            yield pair

    try:
        (_parquet if form == "parquet" else _webdataset)(partial, counted())
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        sha256, size = file_digest(partial), partial.stat().st_size
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the shard cannot be written: {error.strerror or error}") from error
    return count, sha256, size


def _parquet(path: Path, pairs: Iterator[Pair]) -> None:
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    turn = pyarrow.struct([("from", text), ("value", text)])
    schema = pyarrow.schema(
        [
            *((name, text) for name in ("id", "task", "source", "film", "patient", "split", "image")),
            ("image_bytes", pyarrow.binary()),
            ("weight", pyarrow.float64()),
            ("conversations", pyarrow.list_(turn)),
        ]
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for pair in pairs:
            rows.append(
                {"id": pair.name, "image_bytes": pair.content}
                | {name: getattr(pair, name) for name in schema.names if name not in ("id", "image_bytes")}
            )
            size += 1000 + len(pair.content or b"")
            if size > GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _webdataset(path: Path, pairs: Iterator[Pair]) -> None:
    """A tar of `000000000.jpg` and `000000000.json`, no times, no owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, pair in enumerate(pairs):
            assert pair.content is not None
            suffix = "png" if pair.content.startswith(b"\x89PNG") else "jpg"
            about = {
                name: getattr(pair, name) for name in ("task", "source", "film", "patient", "split", "weight")
            }
            about |= {"id": pair.name, "image": pair.image, "conversations": pair.conversations}
            text = json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
            for name, content in ((f"{index:09d}.{suffix}", pair.content), (f"{index:09d}.json", text)):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            sha.update(piece)
    return sha.hexdigest()
