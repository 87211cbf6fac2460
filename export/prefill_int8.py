"""The prefill graph in INT8: Q/DQ around the linear layers a calibration names, everything else float32.

Weights are int8 with a scale for every output; inputs uint8 around 128 with one scale a tensor, the form
ONNX Runtime has kernels for. Smoothing (powers of two, so that folding changes no bit) goes into the norm
before q, k, v and before gate and up, and into up's outputs for down, where Qwen2's largest activations are.
K and V themselves are never scaled: they leave the graph. Engines that scale inputs as they come leave the
inputs' Q/DQ out (runtime/prefill_openvino.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto, helper

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.graph_file import Initializer, write_graph
from radvlm_edge.export.int8_graph import KINDS, quantise_weight
from radvlm_edge.export.int8_table import Group, Table
from radvlm_edge.export.prefill import KV_KINDS, initializer
from radvlm_edge.export.prefill_graph import Nodes, build, float_linear, parameters

Floats = npt.NDArray[np.float32]

PREFILL_GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Linear layers that share an input, which is quantised once for all of them."""
SMOOTHED = {"qkv": "norm1", "gate_up": "norm2", "down_proj": "up_proj"}
"""Groups whose input may be smoothed, and what is divided for it."""
GROUP_OF = {linear: group for group, linears in PREFILL_GROUPS.items() for linear in linears}
BYTE, ZERO = KINDS["cpu"]


def write_int8(
    checkpoint: Checkpoint, table: Table, path: Path, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Write the graph with the table's groups in INT8; one weight is in memory at a time."""
    language = checkpoint.config.language
    shapes = parameters(language)
    rewrite = _Rewrite(checkpoint, table, shapes)
    model = build(language, TensorProto.FLOAT, KV_KINDS["int8"], rewrite.linear)
    write_graph(model, rewrite.initializers(), path, advance)


@dataclass
class _Rewrite:
    """Adds quantised layers to a graph, and makes its initialisers from the float graph's."""

    checkpoint: Checkpoint
    table: Table
    shapes: dict[str, tuple[int, ...]]
    quantised: set[str] = field(default_factory=set)
    """Linear layers by name."""
    seen: dict[tuple[str, str], str] = field(default_factory=dict)
    """Group and input → the input behind Q/DQ."""

    def group(self, layer: str, kind: str) -> Group | None:
        """A group that is INT8, by `layers.3` and its kind."""
        name = f"{layer}.{kind}"
        return None if name in self.table.float_groups else self.table.groups.get(name)

    def shifts(self, layer: str, kind: str) -> npt.NDArray[np.int32] | None:
        group = self.group(layer, kind)
        return np.array(group.shifts, np.int32) if group is not None and group.shifts else None

    def linear(self, nodes: Nodes, name: str, value: str, output: str) -> str:
        layer, _, last = name.rpartition(".")
        kind = GROUP_OF[last]
        group = self.group(layer, kind)
        if group is None:
            return float_linear(nodes, name, value, output)
        if group.shifts and len(group.shifts) != self.shapes[f"{name}.weight"][0]:
            raise CheckpointError(f"calibration: {layer}.{kind} is another model's; calibrate this one")
        self.quantised.add(name)
        weight = f"{name}.weight"
        nodes.nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{weight}_codes", f"{weight}_scale", f"{weight}_zero_point"],
                [f"{weight}_values"],
                f"/{weight}/DequantizeLinear",
                axis=1,
            )
        )
        rounded = self._input(nodes, f"{layer}.{kind}", value, group)
        return nodes.add("MatMul", [rounded, f"{weight}_values"], output)

    def _input(self, nodes: Nodes, group_name: str, value: str, group: Group) -> str:
        if (group_name, value) in self.seen:
            return self.seen[group_name, value]
        scale = nodes.constant(f"{group_name}.input_scale", group.scale, np.float32)
        zero = nodes.constant(f"{group_name}.input_zero_point", ZERO, helper.tensor_dtype_to_np_dtype(BYTE))
        codes = nodes.add("QuantizeLinear", [value, scale, zero], f"{value}_codes")
        rounded = nodes.add("DequantizeLinear", [codes, scale, zero], f"{value}_values")
        self.seen[group_name, value] = rounded
        return rounded

    def initializers(self) -> list[Initializer]:
        """Of the graph `linear` was used for."""
        found = []
        for parameter, shape in self.shapes.items():
            name, _, kind = parameter.rpartition(".")
            layer, _, last = name.rpartition(".")
            if kind == "weight" and name in self.quantised:
                found += self._codes(parameter, shape, layer, last)
            elif any(
                last == divided and self.shifts(layer, group) is not None
                for group, divided in SMOOTHED.items()
            ):
                found.append(
                    self._derived(parameter, shape, TensorProto.FLOAT, partial(self._float, parameter))
                )
            else:
                found.append(initializer(self.checkpoint, parameter, shape))
        return found

    def _float(self, parameter: str) -> Floats:
        """A weight as the float graph holds it, divided where smoothing wants it so."""
        blocks = list(initializer(self.checkpoint, parameter, self.shapes[parameter]).blocks())
        values: Floats = torch.cat([b.reshape(-1) for b in blocks]).reshape(self.shapes[parameter]).numpy()
        layer, _, last = parameter.removesuffix(".weight").rpartition(".")
        for kind, divided in SMOOTHED.items():
            shifts = self.shifts(layer, kind)
            if last == divided and shifts is not None:
                values = np.ldexp(values, -shifts).astype(
                    np.float32
                )  # the last axis: a norm's, or up's outputs
        return values

    def _codes(self, parameter: str, shape: tuple[int, ...], layer: str, last: str) -> list[Initializer]:
        group = self.group(layer, GROUP_OF[last])
        assert group is not None
        shifts, outputs = group.shifts, shape[1]

        def half(index: int) -> Callable[[], npt.NDArray[Any]]:
            return lambda: quantise_weight(self._float(parameter), shifts)[index]

        return [
            self._derived(f"{parameter}_codes", shape, TensorProto.INT8, half(0)),
            self._derived(f"{parameter}_scale", (outputs,), TensorProto.FLOAT, half(1)),
            self._derived(
                f"{parameter}_zero_point", (outputs,), TensorProto.INT8, lambda: np.zeros(outputs, np.int8)
            ),
        ]

    @staticmethod
    def _derived(
        name: str, dims: tuple[int, ...], kind: int, values: Callable[[], npt.NDArray[Any]]
    ) -> Initializer:
        def blocks() -> Iterator[torch.Tensor]:
            yield torch.from_numpy(np.ascontiguousarray(values()))

        return Initializer(name, dims, kind, blocks)
