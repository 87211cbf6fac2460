"""Pairs back from the shards `dataset build` writes, Parquet or WebDataset, in the manifest's order."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.errors import BackendError, RecipeError
from radvlm_edge.training.dataset_shards import digest, file_digest

MANIFEST = "dataset.json"
BATCH = 64
"""Pairs read at once: embedded films are megabytes each."""


@dataclass(frozen=True)
class Embedded:
    """A film inside a shard, read when it is looked at: a data set's films together need not fit memory."""

    shard: Path
    at: int
    """Byte in a tar, or row of a Parquet file."""
    size: int
    sha256: str

    def read(self) -> bytes:
        """The film's file. Raises RecipeError if the shard has changed since it was listed."""
        content = self._row() if self.shard.suffix == ".parquet" else self._bytes()
        if digest(content) != self.sha256:
            raise RecipeError(f"{self.shard}: has changed while it was read; build the data set again")
        return content

    def _bytes(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.at)
            return file.read(self.size)

    def _row(self) -> bytes:
        from pyarrow import parquet

        row = self.at
        with parquet.ParquetFile(self.shard) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < rows:
                    column = file.read_row_group(group, columns=["image_bytes"])["image_bytes"]
                    return bytes(column[row].as_py() or b"")
                row -= rows
        return b""


def pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """Every pair of a data set: the columns of its shards, `conversations` a list of from and value.

    In place of `image_bytes` stands `embedded`: an `Embedded`, or None where the film is named by path.

    Raises RecipeError for a folder that holds no finished data set or a shard that is not what was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = [(str(shard["name"]), str(shard["sha256"])) for shard in manifest["shards"]]
    except FileNotFoundError:
        raise RecipeError(
            f"{folder}: no {MANIFEST} there; give a .jsonl file, or what `radvlm-edge dataset build` finished"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{folder / MANIFEST}: cannot be read: {error}") from error
    for name, sha256 in shards:
        path = folder / name
        if not path.is_file() or file_digest(path) != sha256:
            raise RecipeError(
                f"{path}: missing, or not what was built; run `radvlm-edge dataset build` again"
            )
        yield from _parquet(path) if path.suffix == ".parquet" else _webdataset(path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise BackendError(
            f"{path}: reading it needs pyarrow, not installed here; run `pip install 'radvlm-edge[train]'`"
        ) from None
    row = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            for pair in batch.to_pylist():
                content = pair.pop("image_bytes")
                held = Embedded(path, row, len(content), digest(content)) if content else None
                yield {**pair, "embedded": held}
                row += 1


def _webdataset(path: Path) -> Iterator[dict[str, Any]]:
    """A tar of pairs of files: film, then its JSON."""
    with tarfile.open(path) as archive:
        held: Embedded | None = None
        for member in archive:
            file = archive.extractfile(member)
            content = file.read() if file else b""
            if not member.name.endswith(".json"):
                held = Embedded(path, member.offset_data, member.size, digest(content))
                continue
            yield {**json.loads(content), "embedded": held}
            held = None
