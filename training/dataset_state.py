"""What a build has done so far, so that a killed one goes on, and one of other inputs is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from radvlm_edge.errors import OutputError
from radvlm_edge.training.dataset_recipe import DataRecipe
from radvlm_edge.training.dataset_shards import digest, file_digest
from radvlm_edge.training.source_tables import find
from radvlm_edge.training.sources import SOURCES

MANIFEST = "dataset.json"
INPUTS = "inputs.json"
JOURNAL = "shards.jsonl"
REPLIES = "replies.jsonl"


def inputs_of(recipe: DataRecipe, folders: dict[str, Path], writer: str) -> dict[str, Any]:
    """Everything a build's bytes depend on but the films: recipe, index files, writer, versions."""
    tables = {}
    for name, folder in folders.items():
        for expected in SOURCES[name].files:
            path = find(folder, expected.paths)
            if path is not None and path.is_file():
                tables[f"{name}/{path.relative_to(folder).as_posix()}"] = file_digest(path)
    return {
        "recipe": dataclasses.asdict(recipe),
        "writer": writer,
        "tables": tables,
        "versions": {name: version(name) for name in ("radvlm-edge", "numpy", "pillow", "pyarrow")},
    }


class State:
    """The journal of finished shards in the output folder."""

    def __init__(self, out: Path, inputs: dict[str, Any], force: bool) -> None:
        """Raises OutputError for a folder that holds something else, or a build from other inputs."""
        self._out = out
        wanted = json.loads(json.dumps(inputs))
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: not a folder; choose another")
        if out.is_dir() and any(out.iterdir()):
            if not (out / INPUTS).is_file():
                raise OutputError(f"{out}: holds files that are no data set; choose another folder")
            different = _differences(json.loads((out / INPUTS).read_text(encoding="utf-8")), wanted)
            if different and not force:
                raise OutputError(
                    f"{out}: was built from other inputs ({different}); "
                    "choose another folder, or pass --force"
                )
            if different or force:
                for path in out.iterdir():
                    if path.is_file() and path.name != REPLIES:
                        path.unlink()
        out.mkdir(parents=True, exist_ok=True)
        _write(out / INPUTS, wanted)
        self.done = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        """Finished shards whose files are still what was written; everything else is made again."""
        journal, found = self._out / JOURNAL, []
        if journal.is_file():
            lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
        elif (self._out / MANIFEST).is_file():
            found = json.loads((self._out / MANIFEST).read_text(encoding="utf-8"))["shards"]
        whole = {}
        for shard in found:
            path = self._out / shard["name"]
            right_size = path.is_file() and path.stat().st_size == shard["bytes"]
            if right_size and file_digest(path) == shard["sha256"]:
                whole[shard["name"]] = shard
        for path in self._out.glob(".*.partial"):
            path.unlink()
        journal.write_text("".join(_line(shard) for shard in whole.values()), encoding="utf-8")
        return whole

    def add(self, shard: dict[str, Any]) -> None:
        """Note a finished shard, on the disk before the next begins."""
        with (self._out / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(_line(shard))
            file.flush()
            os.fsync(file.fileno())
        self.done[shard["name"]] = shard

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write dataset.json and drop the journal."""
        _write(self._out / MANIFEST, manifest)
        (self._out / JOURNAL).unlink()


def _line(shard: dict[str, Any]) -> str:
    return json.dumps(shard, sort_keys=True) + "\n"


def _write(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first few inputs that differ, by name."""
    names = []
    for part in sorted(old.keys() | new.keys()):
        was, now = old.get(part), new.get(part)
        if was != now and isinstance(was, dict) and isinstance(now, dict):
            names += [
                f"{part}: {key}" for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)
            ]
        elif was != now:
            names.append(part)
    return ", ".join(names[:3])


def fingerprint(inputs: dict[str, Any]) -> str:
    return digest(json.dumps(inputs, sort_keys=True).encode())
