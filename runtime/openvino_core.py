"""OpenVINO as every part of this package is to use it: offline, in float32, exact, beside other engines."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from radvlm_edge.errors import BackendError

TELEMETRY = "openvino_telemetry"


def open_core() -> Any:
    """An `openvino.Core`, imported without its telemetry.

    `import openvino` (2025.2 to 2026.4 at least) writes a client id to ~/intel and reports the import to
    Google Analytics from a forked process. Where that package cannot be imported, OpenVINO does without.
    """
    return _openvino().Core()


def _openvino() -> Any:
    if "openvino" not in sys.modules and TELEMETRY not in sys.modules:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment] # Python's own way to say: cannot be imported
        try:
            import openvino
        finally:
            del sys.modules[TELEMETRY]
    else:
        import openvino
    return openvino


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


def compile_graph(path: str, threads: int) -> tuple[Any, bool]:
    """Compile an ONNX file for the CPU; also says whether INT8 layers had to be computed in float.

    Where integer products saturate (`sums_exactly`), quantised layers keep their rounding and are
    multiplied in float32: the same numbers, without INT8's speed. Raises BackendError where this OpenVINO
    cannot do that, RuntimeError for a graph it cannot read.
    """
    core, settings = open_core(), cpu_settings(threads)
    model = core.read_model(path)
    quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    in_float = quantised and not sums_exactly()
    if in_float:
        settings["LP_TRANSFORMS_MODE"] = (
            "NO"  # a setting of its CPU plug-in that its documentation leaves out
        )
    try:
        return core.compile_model(model, "CPU", settings), in_float
    except RuntimeError as error:
        if in_float and "LP_TRANSFORMS_MODE" in str(error):
            raise BackendError(
                f"{path}: OpenVINO sums INT8 products in 16 bits on this CPU, which saturates, and this "
                "version cannot compute them in float; use --vision-backend onnx, or a float artefact"
            ) from error
        raise


@lru_cache(maxsize=1)
def sums_exactly() -> bool:
    """Does OpenVINO add up uint8 by int8 products exactly on this CPU?

    Without VNNI it adds pairs of them in 16 bits: 255 x 127 twice is 64,770 and becomes 32,767 (a tiny
    tower's tokens: cosine 0.992 with the float graph's instead of 0.9999). Tried with the largest products
    there are, rather than read from the CPU's flags.
    """
    openvino = _openvino()
    op = openvino.opset13
    rows, depth, columns = 8, 64, 64
    given = op.parameter([rows, depth], np.float32)
    codes = op.fake_quantize(given, *map(np.float32, (0, 255, 0, 255)), 256)
    stored = op.convert(op.constant(np.full((depth, columns), 127, np.int8)), "f32")
    weight = op.multiply(stored, op.constant(np.ones((1, columns), np.float32)))
    model = openvino.Model([op.matmul(codes, weight, False, False)], [given])
    compiled = open_core().compile_model(model, "CPU", cpu_settings(1))
    sums = compiled.create_infer_request().infer([np.full((rows, depth), 255, np.float32)])[0]
    return bool(np.all(np.asarray(sums) == 255 * 127 * depth))


def complaint(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong; the first ones name its source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
