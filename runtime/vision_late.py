"""A tower opened when crops first come: a film in the study cache needs none, and opening takes seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.vision import Plan, VisionTower

KNOWN = {"onnx": "onnxruntime CPU"}
"""Engines whose `backend` is known before they are opened, as the study cache's keys need it."""


class LateTower:
    """See `vision.VisionTower`; what is wrong with the artefact is said at the first film, not before."""

    def __init__(self, backend: str, plan: Plan, open_engine: Callable[[], VisionTower]) -> None:
        self.backend, self.plan = backend, plan
        self._open = open_engine
        self._tower: VisionTower | None = None

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if self._tower is None:
            tower = self._open()
            if tower.backend != self.backend:
                raise BackendError(
                    f"vision runs on {tower.backend}, not on {self.backend} as the study cache was told; "
                    "name the engine with --vision-backend"
                )
            self._tower = tower
        return self._tower.encode(crops)

    @property
    def opened(self) -> bool:
        """Whether the engine is loaded."""
        return self._tower is not None
