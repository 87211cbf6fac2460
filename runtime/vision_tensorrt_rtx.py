"""The vision tower in TensorRT-RTX: the code of vision_tensorrt.py with the other library."""

from __future__ import annotations

from pathlib import Path

from radvlm_edge.runtime.vision import Plan
from radvlm_edge.runtime.vision_tensorrt import TensorRtTower, open_with


def open_tower(path: Path, plan: Plan) -> TensorRtTower:
    return open_with("tensorrt-rtx", path, plan)
