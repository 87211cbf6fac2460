"""What the INT8 tests share: a tiny tower's float graph, phantom films, and a calibration of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from radvlm_edge.calibration import film_sets
from radvlm_edge.calibration import vision as stage
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.int8_table import Table
from radvlm_edge.export.progress import Progress
from radvlm_edge.export.vision import write_vision
from radvlm_edge.runtime.crops import cut


@dataclass(frozen=True)
class Tower:
    """A checkpoint and its fp32 graph."""

    checkpoint: Checkpoint
    graph: Path

    def calibrate(self, films: stage.Films, unfinished: Path, crops: int = 40, **options: float) -> Table:
        return stage.calibrate(
            self.graph,
            self.checkpoint.sha256(),
            self.checkpoint.config.geometry,
            films,
            unfinished=unfinished,
            crops=crops,
            held_out=8,
            threads=1,
            progress=Progress(lambda line: None),
            **options,  # type: ignore[arg-type]
        )

    def crops(self, seed: int = 900) -> npt.NDArray[np.uint8]:
        """Crops of a phantom no test calibrates on."""
        return cut(phantom(seed).load().pixels, self.checkpoint.config.geometry)[0]


def phantom(seed: int) -> film_sets.Seen:
    return film_sets.look(partial(film_sets._phantom, seed, (50, 72)))


def phantoms(count: int = 6) -> stage.Films:
    return stage.Films([phantom(seed) for seed in range(count)], "phantoms of a test", "salt")


def make_tower(checkpoint: Path, folder: Path) -> Tower:
    opened = open_checkpoint(checkpoint)
    write_vision(opened, "fp32", folder / "fp32.onnx")
    return Tower(opened, folder / "fp32.onnx")


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
