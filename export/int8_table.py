"""The calibration file: from which the two INT8 vision graphs are made.

Scales, counts and salted hashes: nothing in it shows a film or names one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.errors import CheckpointError, OutputError

FORMAT = 1
GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out_proj": ("out_proj",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
"""Linear layers of a block that share an input, which is quantised once for all of them."""
NORM_BEFORE = {"qkv": "norm1", "fc1": "norm2"}
"""Groups whose input comes straight from a LayerNorm, into which smoothing can be folded."""
METHODS = ("minmax", "entropy", "p99.9", "p99.99", "mse")
LEVELS = 127
"""Steps of int8 on either side of zero; -128 is not used."""
GATE = 0.995
"""Least cosine the worst hundredth of projected tokens must keep with the float graph's."""
LEAST_SCALE = 2.0**-20
"""Keeps a dead column's scale representable in half precision."""


@dataclass(frozen=True)
class Group:
    """How the input of one group of linear layers is quantised."""

    thresholds: dict[str, float]
    """Largest magnitude kept, by method, behind smoothing."""
    method: str
    """The method used."""
    alpha: float | None = None
    """SmoothQuant's migration strength; `None`: not smoothed."""
    shifts: tuple[int, ...] = ()
    """The input's channel c is divided by 2**shifts[c]; empty: not smoothed."""
    error: float = 0.0
    """Mean square error of the group's output over its mean square, on sampled rows."""

    @property
    def scale(self) -> np.float32:
        """Step of the quantised input."""
        return np.float32(half_steps(np.array(self.thresholds[self.method]))[()])


@dataclass(frozen=True)
class Table:
    """What calibrate found, and what export needs."""

    source_sha256: str
    """Digest of the checkpoint, as in bundle.json."""
    groups: dict[str, Group]
    """By name, e.g. `blocks.3.fc1`."""
    float_groups: tuple[str, ...] = ()
    """Groups that stay in float, in the order they were returned to it."""
    gate: float = GATE
    films: dict[str, Any] = field(default_factory=dict)
    """What was looked at: counts, and salted hashes."""
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)
    """Token cosine (`p1`, `min`) with one block quantised and everything else in float."""
    curve: tuple[dict[str, Any], ...] = ()
    """Token cosine of the whole graph as groups return to float."""

    def quantised(self, block: int) -> list[str]:
        """Kinds of groups (keys of GROUPS) that are INT8 in a block."""
        names = [f"blocks.{block}.{kind}" for kind in GROUPS]
        return [n.split(".")[2] for n in names if n in self.groups and n not in self.float_groups]

    def text(self) -> str:
        """The file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    def sha256(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        temporary = path.with_name(f"{path.name}.new")
        try:
            temporary.write_text(self.text(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def half_steps(thresholds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Thresholds → steps, float32 values that half precision holds exactly.

    Both graphs use the same steps, and the TensorRT one keeps them in half precision.
    """
    steps = np.maximum(np.asarray(thresholds, np.float64) / LEVELS, LEAST_SCALE)
    return steps.astype(np.float16).astype(np.float32)


def load_table(path: Path) -> Table:
    """Read a calibration file. Raises CheckpointError for anything that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a calibration is made by `radvlm-edge calibrate`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no calibration file (not JSON); make it anew") from error
    return parse_table(data, str(path))


def parse_table(data: Any, name: str) -> Table:
    """The same from JSON already read; `name` for messages."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else None
        raise CheckpointError(
            f"{name}: calibration format {found!r}, not {FORMAT}; make it anew with `radvlm-edge calibrate`"
        )
    try:
        fields = {key: value for key, value in data.items() if key != "format"}
        groups = {n: Group(**{**g, "shifts": tuple(g["shifts"])}) for n, g in fields.pop("groups").items()}
        floats, curve = tuple(fields.pop("float_groups")), tuple(fields.pop("curve"))
        table = Table(groups=groups, float_groups=floats, curve=curve, **fields)
        for group_name, group in groups.items():
            _check(group_name, group)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: damaged calibration file ({error}); make it anew") from error
    return table


def _check(name: str, group: Group) -> None:
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit() or parts[2] not in GROUPS:
        raise ValueError(f"unknown group {name!r}")
    threshold = group.thresholds[group.method]
    if not math.isfinite(threshold) or threshold < 0:
        raise ValueError(f"{name}: threshold {threshold}")
    if group.shifts and parts[2] not in NORM_BEFORE:
        raise ValueError(f"{name}: smoothed, but no LayerNorm stands before it")
