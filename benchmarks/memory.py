"""Peak anonymous memory of a process and its children, sampled: what it needs, not what it maps.

    python -m radvlm_edge.benchmarks.memory -- radvlm-edge export CKPT

runs a command and writes its peak to stderr as JSON. Pages of mapped files are not counted: the kernel
takes them back when it wants to.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.05
PROC = Path("/proc")


def anonymous_bytes(pid: int | str = "self") -> int:
    """RssAnon of one process; 0 once it is gone."""
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended between two samples
    return 0


def family(pid: int) -> list[int]:
    """A process and everything it started, as far as it still runs."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for task in (PROC / str(one) / "task").glob("*/children"):
            try:
                waiting += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # the thread ended
    return found


class Sampler:
    """Samples RssAnon of a process and its children every 50 ms while the `with` block runs."""

    def __init__(self, pid: int | None = None, every_s: float = EVERY_S) -> None:
        self._pid, self._every_s = pid, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.first_bytes = self.peak_bytes = self.samples = 0

    def __enter__(self) -> Sampler:
        self.first_bytes = self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    @property
    def growth_bytes(self) -> int:
        """Peak above what the process had when sampling began."""
        return self.peak_bytes - self.first_bytes

    def _sample(self) -> int:
        pids: Sequence[int | str] = ["self"] if self._pid is None else family(self._pid)
        now = sum(anonymous_bytes(pid) for pid in pids)
        self.peak_bytes = max(self.peak_bytes, now)
        self.samples += 1
        return now

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()


@dataclass(frozen=True)
class Run:
    """What a command took."""

    status: int
    seconds: float
    peak_anonymous_bytes: int
    samples: int


def run(command: Sequence[str]) -> Run:
    """Run a command to its end, sampling it and its children."""
    began = time.perf_counter()
    with subprocess.Popen(command) as process, Sampler(process.pid) as sampler:
        status = process.wait()
    return Run(status, time.perf_counter() - began, sampler.peak_bytes, sampler.samples)


def main() -> None:
    result = run(sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:])
    sys.stderr.write(json.dumps(vars(result)) + "\n")
    sys.exit(result.status)


if __name__ == "__main__":
    main()
