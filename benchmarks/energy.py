"""Energy counters where a machine has them: RAPL (x86 packages), NVML (NVIDIA GPUs), tegrastats (Jetson)."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
TEGRASTATS_MS = 100
INPUT_MW = re.compile(r"\b(?:VDD_IN|POM_5V_IN)\s+(\d+)(?:mW)?/")
"""A Jetson module's whole input; boards that do not name it are summed over all rails."""
RAIL_MW = re.compile(r"\b(?:VDD|VIN|POM)_\w+\s+(\d+)(?:mW)?/")


class Meter(Protocol):
    """A counter of energy since it was opened."""

    name: str

    def joules(self) -> float: ...

    def close(self) -> None: ...


class Rapl:
    """Intel's and AMD's package counters under /sys/class/powercap: microjoules that wrap around."""

    name = "RAPL packages"

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises OSError where no package counter is there or may be read."""
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        if not self._zones:
            raise FileNotFoundError("no RAPL package counter")
        self._limits = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._read()
        self._total_uj = 0

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def joules(self) -> float:
        """Right as long as it is asked at least once a wrap: minutes, at the power of a server."""
        now = self._read()
        for before, after, limit in zip(self._last, now, self._limits, strict=True):
            self._total_uj += after - before if after >= before else after - before + limit
        self._last = now
        return self._total_uj / 1e6

    def close(self) -> None:
        pass


class Nvml:
    """NVIDIA's library, called directly: total energy of every GPU in millijoules (Volta and newer)."""

    name = "NVML GPUs"

    def __init__(self, library: Any = None) -> None:
        """Raises OSError where the library or the counter is missing."""
        self._library = library if library is not None else ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = [ctypes.c_void_p() for _ in range(count.value)]
        for index, device in enumerate(self._devices):
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        self._first = self._read()

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise OSError(f"{function} failed with status {status}")

    def _read(self) -> int:
        total = 0
        for device in self._devices:
            value = ctypes.c_ulonglong()
            self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(value))
            total += value.value
        return total

    def joules(self) -> float:
        return (self._read() - self._first) / 1e3

    def close(self) -> None:
        self._call("nvmlShutdown")


class Tegrastats:
    """A Jetson's own tool, ten readings a second: power times the time since the last reading."""

    name = "tegrastats module input"

    def __init__(self, command: str = "tegrastats") -> None:
        """Raises OSError where there is no such tool."""
        found = shutil.which(command)
        if found is None:
            raise FileNotFoundError("no tegrastats")
        self._total = 0.0
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [found, "--interval", str(TEGRASTATS_MS)], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        last = time.perf_counter()
        for line in self._process.stdout or ():
            now = time.perf_counter()
            with self._lock:
                self._total += milliwatts(line) / 1e3 * (now - last)
            last = now

    def joules(self) -> float:
        with self._lock:
            return self._total

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()


def milliwatts(line: str) -> int:
    """Power in one line of tegrastats: the module's input, or all rails it names."""
    whole = INPUT_MW.search(line)
    return int(whole[1]) if whole else sum(map(int, RAIL_MW.findall(line)))


def open_meters() -> tuple[list[Meter], dict[str, str]]:
    """Every counter this machine has, and why the others are missing."""
    meters: list[Meter] = []
    missing = {}
    for kind in (Rapl, Nvml, Tegrastats):
        try:
            meters.append(kind())
        except OSError as error:
            missing[kind.name] = error.strerror or str(error)
    return meters, missing


class Spent:
    """Joules by meter over a `with` block."""

    def __init__(self, meters: list[Meter]) -> None:
        self._meters = meters
        self.joules: dict[str, float] = {}

    def __enter__(self) -> Spent:
        self._before = [meter.joules() for meter in self._meters]
        return self

    def __exit__(self, *_: object) -> None:
        self.joules = {
            meter.name: meter.joules() - before
            for meter, before in zip(self._meters, self._before, strict=True)
        }
