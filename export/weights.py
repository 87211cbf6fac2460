"""The files a checkpoint's tensors lie in, memory-mapped: safetensors, or torch's own without its pickles."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from radvlm_edge.errors import CheckpointError

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
FORMATS = (("model.safetensors.index.json", "*.safetensors"), ("pytorch_model.bin.index.json", "*model*.bin"))
"""Index, and what is read where there is none; safetensors is preferred."""

Shape = tuple[int, ...]


class WeightFile(Protocol):
    """A mapped file: `tensor` gives a view of its pages, which are no anonymous memory."""

    shapes: dict[str, Shape]
    kinds: dict[str, str]
    """Name → `F16`, `BF16`, `F32`, or what else the file calls the type."""

    def tensor(self, name: str) -> torch.Tensor: ...


class _Safetensors:
    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
        self._file = file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.kinds = {name: str(part.get_dtype()) for name, part in slices.items()}

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class _Torch:
    """A `.bin` of torch.save: tensors only, anything else in its pickle is refused unread."""

    def __init__(self, path: Path) -> None:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: holds more than tensors, so it was not loaded; get the checkpoint as safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: not a whole torch file ({first}); copy it again") from error
        if not isinstance(held, dict) or not all(isinstance(t, torch.Tensor) for t in held.values()):
            raise CheckpointError(f"{path}: no state dict of tensors")
        self._held: dict[str, torch.Tensor] = held
        names = {kind: name for name, kind in FLOATS.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
        self.kinds = {name: names.get(tensor.dtype, str(tensor.dtype)) for name, tensor in held.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._held[name]


def open_file(path: Path) -> WeightFile:
    """Map a weight file. Raises CheckpointError when it is cut short or not only tensors."""
    return _Safetensors(path) if path.suffix == ".safetensors" else _Torch(path)


class Weights:
    """Every tensor of a folder under canonical names; read when asked for."""

    def __init__(self, folder: Path, canonical: Callable[[str], str | None]) -> None:
        """Raises CheckpointError: no weights, a file cut short, or one line with all that disagrees."""
        paths, index = _files(folder)
        self._files = {path: open_file(path) for path in paths}
        self.where: dict[str, tuple[Path, str]] = {}
        """Canonical name → file and the name inside it."""
        problems = []
        for path, file in self._files.items():
            for inside in file.shapes:
                name = canonical(inside)
                if index and index.get(inside) != path.name:
                    problems.append(f"{inside} is in {path.name}, the index says {index.get(inside)}")
                if name is None:
                    continue
                if name in self.where:
                    problems.append(f"{path.name}: {inside} is {name}, held twice")
                if file.kinds[inside] not in FLOATS:
                    problems.append(f"{inside} is {file.kinds[inside]}, not one of {', '.join(FLOATS)}")
                self.where[name] = path, inside
        problems += [
            f"the index says {inside} is in {index[inside]}, it is not"
            for inside in sorted(index)
            if inside not in self._files[folder / index[inside]].shapes
        ]
        if problems:
            raise CheckpointError(f"{folder}: {'; '.join(dict.fromkeys(problems))}")

    @property
    def paths(self) -> list[Path]:
        return list(self._files)

    def shapes(self) -> dict[str, Shape]:
        """Canonical name → shape as the file has it."""
        return {name: self._files[path].shapes[inside] for name, (path, inside) in self.where.items()}

    def drop(self, name: str) -> None:
        """Forget a tensor that no model needs."""
        del self.where[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as the file has it, a view of mapped pages."""
        path, inside = self.where[name]
        return self._files[path].tensor(inside)


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Weight files in order, and the index: tensor → file name (empty without one)."""
    for index_name, pattern in FORMATS:
        index = read_json(folder / index_name, optional=True).get("weight_map", {})
        if not isinstance(index, dict):
            raise CheckpointError(f"{folder / index_name}: weight_map is no object; copy the index again")
        wanted = sorted({str(name) for name in index.values()})
        odd = [name for name in wanted if Path(name).name != name]
        missing = [name for name in wanted if name not in odd and not (folder / name).exists()]
        if odd or missing:
            raise CheckpointError(
                f"{folder}: {index_name} names {', '.join(odd + missing)}, not there; copy them again"
            )
        found = [folder / name for name in wanted] or [
            path for path in sorted(folder.glob(pattern)) if not path.name.startswith("adapter_")
        ]
        if found:
            return found, index
    raise CheckpointError(f"{folder}: no *.safetensors and no pytorch_model*.bin; other formats are not read")


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a checkpoint's folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{path}: missing; the checkpoint folder is not complete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return value
