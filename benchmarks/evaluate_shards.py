"""Pairs back from the shards `dataset build` writes, Parquet or WebDataset, in the manifest's order."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radvlm_edge.errors import BackendError, RecipeError
from radvlm_edge.training.dataset_shards import file_digest

MANIFEST = "dataset.json"
BATCH = 64
"""Pairs read at once: embedded films are megabytes each."""


def pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """Every pair of a data set: the columns of its shards, `conversations` a list of from and value.

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
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            yield from batch.to_pylist()


def _webdataset(path: Path) -> Iterator[dict[str, Any]]:
    """A tar of pairs of files: film, then its JSON."""
    with tarfile.open(path) as archive:
        film: bytes | None = None
        for member in archive:
            file = archive.extractfile(member)
            content = file.read() if file else b""
            if not member.name.endswith(".json"):
                film = content
                continue
            yield {**json.loads(content), "image_bytes": film}
            film = None
