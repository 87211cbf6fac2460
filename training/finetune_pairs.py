"""Shards that `dataset build` wrote → one table of pairs to draw from, and each pair's film.

Text is copied once into an Arrow file that is mapped, not read: a million pairs take no memory to speak of.
Films stay where they are: under their own path, or in the shard.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import ipc, parquet

from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.dataset_shards import file_digest
from radvlm_edge.training.dataset_state import MANIFEST

IMAGE_TAG = "<image>\n"
"""What stands before the first question in LLaVA's form."""
_TEXT = pyarrow.string()
_SCHEMA = pyarrow.schema(
    [
        *((name, _TEXT) for name in ("id", "task", "source", "image", "shard")),
        ("place", pyarrow.int64()),
        ("size", pyarrow.int64()),
        ("weight", pyarrow.float64()),
        ("turns", pyarrow.list_(_TEXT)),
    ]
)
"""`place` and `size`: a film's bytes in a tar; or its row in a Parquet shard and -1; or 0 and 0 where `image`
is the path. `turns`: question, answer, question, answer, …"""
_ROWS = 2000


def manifest_of(data: Path) -> dict[str, Any]:
    """dataset.json of a finished build. Raises RecipeError."""
    path = data / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: missing; give the folder of a finished `radvlm-edge dataset build`"
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); build the data set again") from error
    return manifest


def write_table(data: Path, path: Path) -> None:
    """Write the table of every pair, each shard's SHA-256 checked. Raises RecipeError for a damaged shard."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with ipc.new_file(partial, _SCHEMA) as writer:
            for shard in manifest_of(data)["shards"]:
                file = data / str(shard["name"])
                if not file.is_file() or file_digest(file) != shard["sha256"]:
                    raise RecipeError(
                        f"{file}: missing or not what was built; run `dataset build` again, which repairs it"
                    )
                rows = _parquet_rows(file) if file.suffix == ".parquet" else _tar_rows(file)
                for batch in _batches(rows):
                    writer.write_table(pyarrow.Table.from_pylist(batch, _SCHEMA))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    partial.replace(path)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _row(about: dict[str, Any], shard: str, place: int, size: int) -> dict[str, Any]:
    said = about["conversations"]
    turns = [str(one["value"]) for one in said]
    turns[0] = turns[0].removeprefix(IMAGE_TAG)
    kept = {name: about[name] for name in ("id", "task", "source", "image", "weight")}
    return kept | {"shard": shard, "place": place, "size": size, "turns": turns}


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    file = parquet.ParquetFile(path)
    columns = ["id", "task", "source", "image", "weight", "conversations", "image_bytes"]
    at = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns)
        embedded = table.column("image_bytes").is_valid().to_pylist()
        for about, held in zip(table.drop_columns("image_bytes").to_pylist(), embedded, strict=True):
            yield _row(about, path.name, at if held else 0, -1 if held else 0)
            at += 1


def _tar_rows(path: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(path) as archive:
        film: tarfile.TarInfo | None = None
        for member in archive:
            if not member.name.endswith(".json"):
                film = member
                continue
            content = archive.extractfile(member)
            if content is None or film is None or Path(film.name).stem != Path(member.name).stem:
                raise RecipeError(f"{path}: {member.name} has no film before it; build the data set again")
            yield _row(json.load(content), path.name, film.offset_data, film.size)


class Pairs:
    """The table, mapped: pair i's turns and film."""

    def __init__(self, table: Path, data: Path, root: Path | None) -> None:
        self._table = ipc.open_file(pyarrow.memory_map(str(table))).read_all()
        self._data, self._root = data, root

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def codes(self, column: str) -> tuple[npt.NDArray[np.int64], list[str]]:
        """A text column as indices into its distinct values, in the order they come."""
        encoded = self._table.column(column).combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy().astype(np.int64), [
            str(one) for one in encoded.dictionary.to_pylist()
        ]

    def ids(self) -> list[str]:
        return [str(one) for one in self._table.column("id").to_pylist()]

    def row(self, index: int) -> dict[str, Any]:
        """Everything known of a pair but its film."""
        row: dict[str, Any] = self._table.slice(index, 1).to_pylist()[0]
        said = row["turns"]
        row["turns"] = [Turn(said[at], said[at + 1]) for at in range(0, len(said), 2)]
        return row

    def film(self, row: dict[str, Any]) -> bytes | Path:
        """A film's own bytes, or its path. Raises RecipeError where no root leads to it."""
        if row["size"] < 0:
            return _embedded(self._data / row["shard"], row["place"])
        if row["size"] > 0:
            with (self._data / row["shard"]).open("rb") as file:
                file.seek(row["place"])
                content: bytes = file.read(row["size"])
                return content
        if self._root is None:
            raise RecipeError(
                f"{row['id']}: its film is not in the shard; pass --root, the folder `dataset build` had"
            )
        return self._root / str(row["image"])


def _embedded(shard: Path, row: int) -> bytes:
    file = parquet.ParquetFile(shard)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return bytes(_group(shard, group).column("image_bytes")[row].as_py())
        row -= rows
    raise RecipeError(f"{shard}: has no row {row}; build the data set again")


@lru_cache(maxsize=4)
def _group(shard: Path, group: int) -> Any:
    return parquet.ParquetFile(shard).read_row_group(group, columns=["image_bytes"])
