"""A float vision graph cut at its blocks, so that each can be run, watched and quantised alone.

The weights are in memory once (and packed once more by ONNX Runtime); a crop's activations come and go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from radvlm_edge.errors import BundleError
from radvlm_edge.export.int8_graph import insert_qdq
from radvlm_edge.export.int8_table import GROUPS, Table
from radvlm_edge.runtime.vision_onnx import open_session

Floats = npt.NDArray[np.float32]

BATCH = 2
"""Crops run at once: bounds the activations in memory."""


class Pieces:
    """Stem (crops → hidden states), blocks (hidden states → hidden states), head (→ projected tokens)."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Open a `fp32` or `fp16` vision graph; arithmetic is in float32 either way.

        Raises BundleError for a graph this program did not write.
        """
        self._folder, self._threads = str(path.parent), threads
        self._model = onnx.load(str(path), load_external_data=False)
        _widen_nodes(self._model)
        self._stored = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._maker = {name: node for node in self._model.graph.node for name in node.output}
        numbers = [re.match(r"blocks\.(\d+)\.norm1\.weight$", name) for name in self._stored]
        self.blocks = 1 + max((int(found[1]) for found in numbers if found), default=-1)
        if self.blocks == 0:
            raise BundleError(f"{path}: no vision graph of `radvlm-edge export` (it has no blocks)")
        self._edges = [self._input_of(f"blocks.{i}.norm1.weight") for i in range(self.blocks)]
        self._edges.append(self._input_of("linear_1.weight"))
        self.stem = self._session(self._part(["crops"], [self._edges[0]]))
        self.head = self._session(self._part([self._edges[-1]], ["tokens"]))
        self._float = [self._session(self._block(i, watched=True)) for i in range(self.blocks)]

    def shape(self, parameter: str) -> tuple[int, ...]:
        return tuple(self._stored[parameter].dims)

    def weight(self, parameter: str) -> Floats:
        """A parameter's values in float32."""
        stored = self._stored[parameter]
        if stored.data_location == TensorProto.EXTERNAL:
            stored = TensorProto.FromString(stored.SerializeToString())
            external_data_helper.load_external_data_for_tensor(stored, self._folder)
        values: Floats = numpy_helper.to_array(stored).astype(np.float32)
        return values

    def start(self, crops: npt.NDArray[np.uint8]) -> Floats:
        """Crops `[n, 3, S, S]` → hidden states `[n, tokens, width]`."""
        hidden: Floats = self.stem.run(None, {"crops": crops})[0]
        return hidden

    def step(self, index: int, hidden: Floats) -> tuple[Floats, dict[str, Floats]]:
        """Run a block in float; also returns the input of each group of linear layers, by kind."""
        found = self._float[index].run(None, {self._edges[index]: hidden})
        return found[0], dict(zip(GROUPS, found[1:], strict=True))

    def finish(self, hidden: Floats) -> Floats:
        """Hidden states → projected tokens `[n, tokens, d]`."""
        tokens: Floats = self.head.run(None, {self._edges[-1]: hidden})[0]
        return tokens

    def quantised(self, index: int, table: Table) -> Any:
        """A session of a block with the groups the table has for it in INT8 (the CPU's graph)."""
        return self._session(self._block(index, table=table))

    def run(self, index: int, session: Any, hidden: Floats) -> Floats:
        """Run a session of `quantised`."""
        out: Floats = session.run(None, {self._edges[index]: hidden})[0]
        return out

    def _input_of(self, parameter: str) -> str:
        users = [node for node in self._model.graph.node if parameter in node.input]
        if len(users) != 1:
            raise BundleError(
                f"{self._folder}: the vision graph uses {parameter} {len(users)} times; export anew"
            )
        return str(users[0].input[0])

    def _block(self, index: int, table: Table | None = None, *, watched: bool = False) -> onnx.ModelProto:
        outputs = [self._edges[index + 1]]
        if watched:
            outputs += [self._input_of(f"blocks.{index}.{linears[0]}.weight") for linears in GROUPS.values()]
        return self._part([self._edges[index]], outputs, table)

    def _part(
        self, inputs: Sequence[str], outputs: Sequence[str], table: Table | None = None
    ) -> onnx.ModelProto:
        """The nodes between tensors as a graph of their own, with its weights."""
        needed, waiting = set(), [name for name in outputs if name not in inputs]
        while waiting:
            name = waiting.pop()
            if name in needed or name in inputs or name not in self._maker:
                continue
            needed.add(name)
            waiting += self._maker[name].input
        nodes = [node for node in self._model.graph.node if needed & set(node.output)]
        kinds = [TensorProto.UINT8 if name == "crops" else TensorProto.FLOAT for name in inputs]
        given = [
            helper.make_tensor_value_info(name, kind, ["n", None, None, None][: 4 if name == "crops" else 3])
            for name, kind in zip(inputs, kinds, strict=True)
        ]
        wanted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        model = helper.make_model(
            helper.make_graph(nodes, "part", given, wanted),
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
        )
        names = {name for node in nodes for name in node.input if name in self._stored}
        arrays: dict[str, npt.NDArray[Any]] = {}
        if table is not None:
            rewrite = insert_qdq(model, table, {name: self.shape(name) for name in names}, "cpu")
            names -= rewrite.removed | set(rewrite.derived)
            arrays = {name: one.values(self.weight) for name, one in rewrite.derived.items()}
        arrays |= {name: self.weight(name) for name in names}
        model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in arrays.items())
        return model

    def _session(self, model: onnx.ModelProto) -> Any:
        return open_session(model.SerializeToString(), self._threads, arena=False)


def _widen_nodes(model: onnx.ModelProto) -> None:
    """Turn half-precision arithmetic into float32, in place."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
            elif node.op_type == "Constant" and attribute.t.data_type == half:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
