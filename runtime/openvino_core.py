"""OpenVINO as every part of this package is to use it: offline, in float32, beside other engines."""

from __future__ import annotations

import sys
from typing import Any

TELEMETRY = "openvino_telemetry"


def open_core() -> Any:
    """An `openvino.Core`, imported without its telemetry.

    `import openvino` (2025.2 to 2026.4 at least) writes a client id to ~/intel and reports the import to
    Google Analytics from a forked process. Where that package cannot be imported, OpenVINO does without.
    """
    if "openvino" not in sys.modules and TELEMETRY not in sys.modules:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment] # Python's own way to say: cannot be imported
        try:
            import openvino
        finally:
            del sys.modules[TELEMETRY]
    else:
        import openvino
    return openvino.Core()


def cpu_settings(threads: int) -> dict[str, Any]:
    """Settings of a graph compiled for the CPU, one request at a time on so many threads."""
    return {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Threads tied to CPUs fight with llama.cpp's in the same process.
        "ENABLE_CPU_PINNING": False,
        # Without these two it rounds to bf16 on CPUs that have it, and quantises what is in float.
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def complaint(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong; the first ones name its source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
