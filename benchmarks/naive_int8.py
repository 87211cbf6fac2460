"""Naive INT8 of everything beside the calibrated, gated one: what it does to nano's answers.

    python -m radvlm_edge.benchmarks.naive_int8 BUNDLE CHECKPOINT --films 60 --threads 1

The naive graph is ONNX Runtime's own `quantize_static`, MinMax, one scale a tensor for activations and
weights, for every operator there is: patch embedding, attention products, softmax, LayerNorm, GELU, sums,
projector. It is a warning: made for this comparison in a temporary folder, in no bundle. BUNDLE must hold an
`int8` vision artefact and be CHECKPOINT's. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.nano_answerers import BundleAnswerer
from radvlm_edge.benchmarks.nano_flips import compared, put_to_all
from radvlm_edge.benchmarks.nano_run import TASKS, decisions_of
from radvlm_edge.benchmarks.nano_scores import yes_no_figures
from radvlm_edge.benchmarks.nano_suite import FILMS
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import CheckpointError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.vision import open_tower

Crops = npt.NDArray[np.uint8]

CALIBRATION_SEED = 46_000_000
"""Of the phantoms whose crops give the ranges, and of one behind them whose tokens are compared."""
CALIBRATION_FILMS = 24
BATCH = 2
NO_ARITHMETIC = ("Constant", "Cast", "Shape", "QuantizeLinear", "DequantizeLinear")


def quantise_everything(graph: Path, out: Path, crops: Crops) -> None:
    """Write the naive INT8 graph of a float32 one; `crops` `[n, 3, S, S]` give the ranges."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    kinds = {node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node}
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises folding the graph first, which the gated one is not
    try:
        quantize_static(
            str(graph),
            str(out),
            _reader(crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(kinds - set(NO_ARITHMETIC)),
            per_channel=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        logger.setLevel(level)


def _reader(crops: Crops) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(range(0, len(crops), BATCH))

        def get_next(self) -> dict[str, Crops] | None:
            start = next(self.rest, None)
            return None if start is None else {"crops": crops[start : start + BATCH]}

    return Batches()


def reading_floats(graph: Path) -> Counter[str]:
    """Operators of a quantised graph that read a float tensor no DequantizeLinear made, by kind."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(graph)))
    floats = {
        value.name
        for value in (*model.graph.value_info, *model.graph.input)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    floats |= {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    floats -= {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    working = [node for node in model.graph.node if node.op_type not in NO_ARITHMETIC]
    return Counter(node.op_type for node in working if floats & set(node.input))


def phantom_crops(films: range, geometry: Geometry) -> Crops:
    """Crops of phantoms by number, `[n, 3, S, S]`."""
    from radvlm_edge.export.probe_films import phantoms

    drawn = phantoms(len(films), CALIBRATION_SEED + films.start, geometry).films
    return np.concatenate([cut(film.pixels, geometry)[0] for film in drawn])


def naive_graph(bundle: Bundle, checkpoint: Path, folder: Path, films: int = CALIBRATION_FILMS) -> Path:
    """The naive INT8 graph of a bundle's checkpoint, in `folder`. Raises CheckpointError for another's."""
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.vision import write_vision

    opened = open_checkpoint(checkpoint)
    if opened.sha256() != bundle.manifest.source["sha256"]:
        raise CheckpointError(f"{checkpoint}: {bundle.folder} was exported from another checkpoint")
    write_vision(opened, "fp32", folder / "fp32.onnx")
    geometry = bundle.manifest.geometry
    quantise_everything(folder / "fp32.onnx", folder / "naive.onnx", phantom_crops(range(films), geometry))
    return folder / "naive.onnx"


def measure(
    folder: Path,
    checkpoint: Path,
    films: int = FILMS,
    *,
    threads: int | None = None,
    tasks: Sequence[str] = ("yesno",),
    calibration_films: int = CALIBRATION_FILMS,
) -> dict[str, Any]:
    """Flips of the gated and of the naive INT8 tower against the bundle's default one, and their tokens.

    `token_cosine` (p1, min) is with the checkpoint's float32 graph, on a phantom no scale was made from.
    """
    bundle = Bundle.open(folder)
    held = {one.precision for one in bundle.manifest.artefacts if one.role == "vision"}
    gated = [one for one in ("int8", "int8-trt") if one in held]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        naive = naive_graph(bundle, checkpoint, place, calibration_films)
        readers = {
            way: stack.enter_context(Reader.open(folder, Options(threads=threads, vision=vision)))
            for way, vision in (("", None), *((one, one) for one in gated), ("naive", None))
        }
        readers["naive"].tower = open_tower(naive, threads)
        views = phantom_crops(range(calibration_films, calibration_films + 1), bundle.manifest.geometry)
        reference = open_tower(place / "fp32.onnx", threads).encode(views)
        cosines = {way: _cosines(reader.tower.encode(views), reference) for way, reader in readers.items()}
        said = put_to_all({way: BundleAnswerer(reader) for way, reader in readers.items()}, films, tasks)
        left, size = reading_floats(naive), naive.stat().st_size
    accuracy = {way: yes_no_figures(decisions_of(one))["mean_balanced_accuracy"] for way, one in said.items()}
    return {
        "bundle": bundle.manifest.name,
        "sha256": bundle.sha256,
        "machine": machine(),
        "films": films,
        "naive": {"bytes": size, "calibration_films": calibration_films, "reading_floats": dict(left)},
        "default": {"token_cosine": cosines[""], "mean_balanced_accuracy": accuracy[""]},
        "ways": {
            way: compared(said[""], said[way])
            | {"token_cosine": cosines[way], "mean_balanced_accuracy": accuracy[way]}
            for way in (*gated, "naive")
        },
    }


def _cosines(tokens: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> dict[str, float]:
    from radvlm_edge.calibration.sensitivity import cosines, figures

    return figures(cosines(tokens, reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--films", type=int, default=FILMS, help="of the suite, five yes/no questions each")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=("yesno",))
    given = parser.parse_args()
    found = measure(given.bundle, given.checkpoint, given.films, threads=given.threads, tasks=given.tasks)
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
