"""What an export is doing: bytes done, of how many, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 2.0


class Progress:
    """Counts a stage's units and says so now and then; one stage at a time."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._every_s, self._clock = say, every_s, clock
        self._label, self._unit = "", ""
        self._total = self._done = 0
        self._began = self._said = clock()

    def stage(self, label: str, total: int = 0, unit: str = "bytes") -> None:
        """Begin a stage of `total` units (0: unknown, and nothing but its name is said)."""
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._began = self._said = self._clock()
        self._say(label)

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        self._done += count
        now = self._clock()
        if self._total and now - self._said >= self._every_s:
            self._said = now
            done = min(self._done, self._total)
            left_s = (now - self._began) * (self._total - done) / max(done, 1)
            self._say(f"{self._label}: {self._amounts(done)}, {_duration(left_s)} left")

    def _amounts(self, done: int) -> str:
        if self._unit == "bytes":
            return f"{done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        return f"{done} of {self._total} {self._unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
