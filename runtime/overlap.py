"""Parts of a first answer at once: crops are encoded while complete image tokens are prefilled, and a film is
read while weights are opened.

Nothing is computed in another way: the tower gets the same batches of crops, the language model the same
batches of tokens, so tokens and K/V are the same bit for bit. Whether it pays is another matter (`pays`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.anyres import Packer
from radvlm_edge.runtime.crops import Layout
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.vision import VisionTower

Floats = npt.NDArray[np.float32]
T = TypeVar("T")


def pays(*, vision_on_cpu: bool, language_on_cpu: bool) -> bool:
    """Whether encoding and prefilling at once is worth it: only where they do not share a processor.

    On one CPU both want all of it (docs/decisions/0026); on one GPU likewise.
    """
    return vision_on_cpu != language_on_cpu


class Coming:
    """Image tokens `[t, d]` of a film whose crops are being encoded in a thread of their own.

    `len` is what there will be; a slice waits until it is there, and raises what the tower raised. Leaving
    the `with` block stops the thread at the next batch of crops and waits for it.
    """

    def __init__(
        self, tower: VisionTower, views: npt.NDArray[np.uint8], layout: Layout, newline: Floats
    ) -> None:
        self._tower, self._views = tower, views
        self._packer = Packer(layout, newline)
        self._ready = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="vision", daemon=True)
        self.worked_ms = 0.0
        """The tower's time so far."""
        self.waited_ms = 0.0
        """How long slices had to be waited for."""

    def __enter__(self) -> Coming:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._thread.join()

    def __len__(self) -> int:
        return len(self._packer.tokens)

    def __getitem__(self, part: slice) -> Floats:
        """Tokens of a slice, waited for; from its start to its stop, as numpy's."""
        start, stop, _ = part.indices(len(self))
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready >= stop or self._error is not None)
            self.waited_ms += (time.perf_counter() - began) * 1e3
            if self._ready < stop and self._error is not None:
                raise self._error
        return self._packer.tokens[start:stop]

    @property
    def failed(self) -> bool:
        """Whether the tower gave up."""
        return self._error is not None

    def whole(self) -> Floats:
        """All tokens, waited for."""
        return self[:]

    def _run(self) -> None:
        try:
            self._encode()
        except BaseException as error:  # noqa: BLE001 - raised where the tokens are wanted
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _encode(self) -> None:
        """The batches that `VisionTower.encode` would make of all crops, one by one."""
        size = self._tower.plan.crops_per_batch
        for start in range(0, len(self._views), size):
            if self._stopped:
                return
            began = time.perf_counter()
            self._packer.add(self._tower.encode(self._views[start : start + size]))
            self.worked_ms += (time.perf_counter() - began) * 1e3
            with self._changed:
                self._ready = self._packer.ready
                self._changed.notify_all()
        if self._ready < len(self):
            raise BackendError(f"the vision engine gave {self._ready} image tokens; the film has {len(self)}")


class Prepared(NamedTuple):
    """A film read and cut before it was asked for."""

    film: Film
    geometry: Geometry
    """It was cut by; another one cuts it anew."""
    views: npt.NDArray[np.uint8]
    layout: Layout


class Ahead(Generic[T]):
    """Something begun in a thread of its own, whose result or error is taken later."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._found: list[T] = []
        self._error: BaseException | None = None
        self.took_ms = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            self._found.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._error = error
        self.took_ms = (time.perf_counter() - began) * 1e3

    def wait(self) -> None:
        """Until it has ended, well or not."""
        self._thread.join()

    def result(self) -> T:
        """What the work returned, waited for; raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found[0]
