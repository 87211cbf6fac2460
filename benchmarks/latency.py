"""What every benchmark here says of its machine and of a row of times."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.runtime.versions import installed_versions
from radvlm_edge.runtime.vision import available_cpus
from radvlm_edge.runtime.vision_choice import cpu_name

PACKAGES = ("radvlm-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "pillow", "pydicom")
BOARD = Path("/proc/device-tree/model")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "architecture": platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
        "load_average": [round(one, 2) for one in os.getloadavg()],
    }
    for name, path in (("board", BOARD), ("governor", GOVERNOR)):
        if path.exists():
            found[name] = path.read_text(encoding="utf-8").strip("\0\n ")
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and 95th percentile (linear between ranks)."""
    low, median, high = np.quantile(values, (0.0, 0.5, 0.95))
    return {"min": round(float(low), 3), "median": round(float(median), 3), "p95": round(float(high), 3)}
