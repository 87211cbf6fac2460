"""Float vision graph → INT8: Q/DQ around the linear layers of the blocks, everything else untouched.

Works on nodes and names alone; the weights follow one at a time, so the tower is never in memory. The
weights are int8, symmetric, a scale for each output; the inputs are symmetric, one scale a tensor. The CPU
graph shifts them to uint8 around 128, which is the same grid and the one ONNX Runtime has kernels for; the
TensorRT graph must have int8 around 0 (tensorrt_check.py). Outputs are not quantised: ONNX Runtime then
fuses to MatMulIntegerToFloat, and TensorRT keeps its accumulators in half precision.

SmoothQuant (Xiao et al. 2022, eq. 3 and 4) divides the channels of a LayerNorm's output and multiplies the
rows of the weights behind it. Its factors are rounded to powers of two, so that folding changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.int8_table import GROUPS, LEVELS, NORM_BEFORE, Group, Table, half_steps

Floats = npt.NDArray[np.float32]
Fetch = Callable[[str], Floats]
"""A parameter's values by name, as the float graph holds them: weights `[in, out]`."""

KINDS = {"cpu": (TensorProto.UINT8, 128), "tensorrt": (TensorProto.INT8, 0)}
"""Type and zero point of quantised inputs for each target."""


@dataclass(frozen=True)
class Derived:
    """An initialiser of the INT8 graph that the float graph does not have, or has with other values."""

    name: str
    dims: tuple[int, ...]
    kind: int
    """onnx.TensorProto's INT8, UINT8 or FLOAT."""
    values: Callable[[Fetch], npt.NDArray[Any]]
    """Makes its values from those of the float graph."""


@dataclass(frozen=True)
class Rewrite:
    """What `insert_qdq` did to a graph's initialisers."""

    derived: dict[str, Derived]
    """New ones, and those with new values, by name."""
    removed: frozenset[str]
    """Those the INT8 graph no longer uses."""


def insert_qdq(
    model: onnx.ModelProto, table: Table, shapes: dict[str, tuple[int, ...]], target: str
) -> Rewrite:
    """Rewrite the nodes of a float graph in place for `target` (`cpu` or `tensorrt`).

    `shapes` gives the float graph's parameters. Raises CheckpointError where the table is of another tower.
    """
    kind, zero = KINDS[target]
    derived: dict[str, Derived] = {}
    users = {node.input[1]: node for node in model.graph.node if _is_linear(node)}
    before: dict[int, list[onnx.NodeProto]] = {}
    removed = set()
    for block in sorted({int(name.split(".")[1]) for name in users}):
        for group_kind in table.quantised(block):
            name, group = f"blocks.{block}.{group_kind}", table.groups[f"blocks.{block}.{group_kind}"]
            weights = [f"blocks.{block}.{linear}.weight" for linear in GROUPS[group_kind]]
            _check_width(name, group, shapes, weights[0])
            nodes = [users[weight] for weight in weights]
            first = min(_index(model, node) for node in nodes)
            before.setdefault(first, []).extend(_quantise_input(name, group, nodes, kind, zero, derived))
            for weight, node in zip(weights, nodes, strict=True):
                dequantise = _quantise_weight(weight, shapes[weight], group, node, derived)
                before.setdefault(_index(model, node), []).append(dequantise)
            removed |= set(weights)
            if group.shifts:
                _smooth_norm(f"blocks.{block}.{NORM_BEFORE[group_kind]}", shapes, group, derived)
    nodes = []
    for index, node in enumerate(model.graph.node):
        nodes += [*before.get(index, []), node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return Rewrite(derived, frozenset(removed))


def quantise_weight(weight: Floats, shifts: tuple[int, ...]) -> tuple[npt.NDArray[np.int8], Floats]:
    """`[in, out]` → int8 of the same shape, and the step of every output `[out]`; smoothed before."""
    smoothed = smoothed_weight(weight, shifts)
    steps = half_steps(np.abs(smoothed).max(axis=0))
    codes = np.clip(np.rint(smoothed / steps), -LEVELS, LEVELS)
    return codes.astype(np.int8), steps


def smoothed_weight(weight: Floats, shifts: tuple[int, ...]) -> Floats:
    """`[in, out]` with row c multiplied by 2**shifts[c], to the bit."""
    return np.ldexp(weight, np.array(shifts, np.int32)[:, None]).astype(np.float32) if shifts else weight


def _is_linear(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "MatMul" and node.input[1].startswith("blocks."))


def _index(model: onnx.ModelProto, wanted: onnx.NodeProto) -> int:
    return next(i for i, node in enumerate(model.graph.node) if node.output[0] == wanted.output[0])


def _check_width(name: str, group: Group, shapes: dict[str, tuple[int, ...]], weight: str) -> None:
    width = shapes[weight][0]
    if group.shifts and len(group.shifts) != width:
        raise CheckpointError(
            f"calibration: {name} has {len(group.shifts)} channels, this tower {width}; "
            "calibrate the checkpoint that is exported"
        )


def _quantise_input(
    name: str,
    group: Group,
    nodes: list[onnx.NodeProto],
    kind: int,
    zero: int,
    derived: dict[str, Derived],
) -> list[onnx.NodeProto]:
    """One Q and DQ for the tensor all of a group's products read."""
    source = nodes[0].input[0]
    scale, zero_point = f"{name}.input_scale", f"{name}.input_zero_point"
    integers = helper.tensor_dtype_to_np_dtype(kind)
    derived[scale] = Derived(scale, (), TensorProto.FLOAT, lambda fetch: np.array(group.scale, np.float32))
    derived[zero_point] = Derived(zero_point, (), kind, lambda fetch: np.array(zero, integers))
    codes, values = f"{name}.input_codes", f"{name}.input_values"
    for node in nodes:
        if node.input[0] != source:
            raise CheckpointError(f"the graph's {name} layers do not share their input")
        node.input[0] = values
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero_point], [codes], f"/{name}/QuantizeLinear"),
        helper.make_node(
            "DequantizeLinear", [codes, scale, zero_point], [values], f"/{name}/DequantizeLinear"
        ),
    ]


def _quantise_weight(
    weight: str, shape: tuple[int, ...], group: Group, node: onnx.NodeProto, derived: dict[str, Derived]
) -> onnx.NodeProto:
    codes, scale, zero_point = f"{weight}_codes", f"{weight}_scale", f"{weight}_zero_point"
    shifts, outputs = group.shifts, shape[1]
    derived[codes] = Derived(
        codes, shape, TensorProto.INT8, lambda fetch: quantise_weight(fetch(weight), shifts)[0]
    )
    derived[scale] = Derived(
        scale, (outputs,), TensorProto.FLOAT, lambda fetch: quantise_weight(fetch(weight), shifts)[1]
    )
    derived[zero_point] = Derived(
        zero_point, (outputs,), TensorProto.INT8, lambda fetch: np.zeros(outputs, np.int8)
    )
    node.input[1] = f"{weight}_values"
    return helper.make_node(
        "DequantizeLinear", [codes, scale, zero_point], [node.input[1]], f"/{weight}/DequantizeLinear", axis=1
    )


def _smooth_norm(
    norm: str, shapes: dict[str, tuple[int, ...]], group: Group, derived: dict[str, Derived]
) -> None:
    """A LayerNorm whose output channel c comes out divided by 2**shifts[c]."""
    negative = -np.array(group.shifts, np.int32)
    for part in ("weight", "bias"):
        name = f"{norm}.{part}"

        def values(fetch: Fetch, name: str = name) -> npt.NDArray[Any]:
            return np.ldexp(fetch(name), negative).astype(np.float32)

        derived[name] = Derived(name, shapes[name], TensorProto.FLOAT, values)
