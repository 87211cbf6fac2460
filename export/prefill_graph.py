"""The language model's prefill as ONNX nodes: a chunk of embeddings and K/V so far in, its K/V out.

Qwen2 as transformers computes it (RMSNorm, biased q, k and v, RoPE in half-split order, grouped queries,
SwiGLU), without embedding and output matrices. Attention is causal over what came before and the chunk, so
that a long prompt run in chunks computes little of the masked half, and its scores never exceed heads x chunk
x all tokens. Only the query is scaled, before the product. The last layer computes K and V for every token
and everything else for the last one alone: nothing more is ever asked of it.

inputs   embeddings [1, t, d] float32; start int64 [1], position of the first; for each layer i
         past_k.i, past_v.i [p, kv heads * head width], p >= 0
outputs  k.i, v.i [t, kv heads * head width] of this chunk, k behind RoPE; hidden [1, 1, d] float32, the last
         token's normed hidden state, from which the output matrix makes logits
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from radvlm_edge.export.config import Language
from radvlm_edge.export.vision import IR_VERSION, OPSET

MASKED = {TensorProto.FLOAT: -1e30, TensorProto.FLOAT16: -6e4}
"""Score of what a token must not see; finite, since engines disagree about infinities."""


@dataclass
class Nodes:
    """A graph being written: nodes in order, and the small constants they use."""

    kind: int
    """FLOAT or FLOAT16, of all arithmetic but norms and angles."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], f"/{output}", **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        value = numpy_helper.from_array(np.asarray(values, dtype))
        self.constants[name] = helper.make_node("Constant", [], [name], f"/{name}", value=value)
        return name

    def number(self, name: str, value: float) -> str:
        """A constant of the arithmetic's type."""
        return self.constant(name, value, helper.tensor_dtype_to_np_dtype(self.kind))

    def cast(self, name: str, output: str, kind: int, unless: int) -> str:
        """`name` in `kind`; itself where it is so already (`unless`)."""
        return name if kind == unless else self.add("Cast", [name], output, to=kind)


Linear = Callable[[Nodes, str, str, str], str]
"""Adds a matrix product: nodes, the layer's name (`layers.3.q_proj`), its input, the output's name."""


def float_linear(nodes: Nodes, name: str, value: str, output: str) -> str:
    """A product with `<name>.weight`, `[in, out]`."""
    return nodes.add("MatMul", [value, f"{name}.weight"], output)


def build(language: Language, kind: int, kv_kind: int, linear: Linear = float_linear) -> onnx.ModelProto:
    """The graph without its weights (names: `parameters`), its K and V of type `kv_kind`."""
    nodes = Nodes(kind)
    _shared(nodes, language)
    x = nodes.cast("embeddings", "x", kind, TensorProto.FLOAT)
    for index in range(language.layers):
        x = _layer(nodes, language, index, x, kv_kind, linear)
    hidden = _norm(nodes, "norm", x)
    if kind == TensorProto.FLOAT:
        nodes.add("Identity", [hidden], "hidden")
    else:
        nodes.add("Cast", [hidden], "hidden", to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [*nodes.constants.values(), *nodes.nodes],
        "prefill",
        _inputs(language, kv_kind),
        _outputs(language, kv_kind),
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="radvlm-edge",
    )


def parameters(language: Language) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights the float graph wants beside its constants, linear layers `[in, out]`."""
    d, width = language.hidden, language.kv_heads * language.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(language.layers):
        for name, outputs in (("q_proj", d), ("k_proj", width), ("v_proj", width)):
            shapes[f"layers.{index}.{name}.weight"] = (d, outputs)
            shapes[f"layers.{index}.{name}.bias"] = (outputs,)
        shapes[f"layers.{index}.o_proj.weight"] = (d, d)
        shapes[f"layers.{index}.gate_proj.weight"] = shapes[f"layers.{index}.up_proj.weight"] = (
            d,
            language.mlp,
        )
        shapes[f"layers.{index}.down_proj.weight"] = (language.mlp, d)
        for norm in ("norm1", "norm2"):
            shapes[f"layers.{index}.{norm}.weight"] = (d,)
    shapes["norm.weight"] = (d,)
    return shapes


def source(parameter: str) -> str:
    """A parameter of the graph → the checkpoint's canonical tensor name."""
    root = "language_model.model."
    if parameter == "norm.weight":
        return root + parameter
    _, index, name, kind = parameter.split(".")
    place = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}.get(name)
    if place is None:
        place = f"mlp.{name}" if name in ("gate_proj", "up_proj", "down_proj") else f"self_attn.{name}"
    return f"{root}layers.{index}.{place}.{kind}"


def _inputs(language: Language, kv_kind: int) -> list[onnx.ValueInfoProto]:
    width = language.kv_heads * language.head_dim
    return [
        helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, "t", language.hidden]),
        helper.make_tensor_value_info("start", TensorProto.INT64, [1]),
        *(
            helper.make_tensor_value_info(f"past_{name}.{index}", kv_kind, ["p", width])
            for index in range(language.layers)
            for name in "kv"
        ),
    ]


def _outputs(language: Language, kv_kind: int) -> list[onnx.ValueInfoProto]:
    width = language.kv_heads * language.head_dim
    return [
        *(
            helper.make_tensor_value_info(f"{name}.{index}", kv_kind, ["t", width])
            for index in range(language.layers)
            for name in "kv"
        ),
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, 1, language.hidden]),
    ]


def _shared(nodes: Nodes, language: Language) -> None:
    """What all layers use: angles of the chunk's positions, the mask, shapes."""
    n, heads, kv, width = nodes, language.heads, language.kv_heads, language.head_dim
    integers: dict[str, Any] = {
        "zero": 0,
        "one": 1,
        "axis_1": [1],
        "last": [-1],
        "end": [np.iinfo(np.int64).max],
        "halves": [width // 2, width // 2],
        "column": [1, -1, 1, 1],
        "rows": [1, -1, heads * width],
        "rows_of_heads": [1, -1, heads, width],
        "rows_of_kv_heads": [1, -1, kv, width],
        "kv_rows": [-1, kv * width],
        "heads": [1, heads, -1, width],
        "scores_of_heads": [1, heads, -1, 0],
        "groups": [1, kv, -1, width],
        "scores_of_groups": [1, kv, -1, 0],
    }
    for name, value in integers.items():
        n.constant(name, value)
    n.constant("exponent", 2.0, np.float32)
    n.constant("eps", language.eps, np.float32)
    n.number("scale", width**-0.5)
    n.number("nothing", 0.0)
    n.number("masked", MASKED[n.kind])
    steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.float32(language.rope_theta) ** steps
    n.constant("frequencies", frequencies.reshape(1, 1, 1, -1), np.float32)

    t = n.add("Gather", [n.add("Shape", ["embeddings"], "shape"), "one"], "t")
    p = n.add("Gather", [n.add("Shape", ["past_k.0"], "past_shape"), "zero"], "p")
    chunk = n.add("Range", ["zero", t, "one"], "chunk")
    n.add("Cast", [n.add("Add", [chunk, "start"], "positions")], "positions_float", to=TensorProto.FLOAT)
    n.add(
        "Mul", [n.add("Reshape", ["positions_float", "column"], "position_column"), "frequencies"], "angles"
    )
    for name in ("Cos", "Sin"):
        value = n.add(name, ["angles"], f"{name.lower()}_float")
        short = n.cast(value, f"{name.lower()}_short", n.kind, TensorProto.FLOAT)
        n.add("Identity", [short], name.lower())
        n.add("Slice", [name.lower(), "last", "end", "axis_1"], f"last_{name.lower()}")

    everything = n.add("Range", ["zero", n.add("Add", [p, t], "all"), "one"], "columns")
    rows = n.add("Unsqueeze", [n.add("Add", [chunk, p], "own"), "axis_1"], "own_rows")
    seen = n.add("LessOrEqual", [everything, rows], "seen")
    n.add("Where", [seen, "nothing", "masked"], "mask")


def _layer(nodes: Nodes, language: Language, index: int, x: str, kv_kind: int, linear: Linear) -> str:
    n, name = nodes, f"layers.{index}"
    last = index == language.layers - 1
    h = _norm(n, f"{name}.norm1", x)
    k, v = (_projected(n, name, part, h, linear) for part in "kv")
    k = _rotated(n, f"{name}.k", n.add("Reshape", [k, "rows_of_kv_heads"], f"{name}.k_split"), "")
    keys, values = (_kept(n, index, part, value, kv_kind) for part, value in (("k", k), ("v", v)))
    if last:
        h = n.add("Slice", [h, "last", "end", "axis_1"], f"{name}.last_norm1")
        x = n.add("Slice", [x, "last", "end", "axis_1"], f"{name}.last_x")
    mixed = _attention(n, name, _projected(n, name, "q", h, linear), keys, values, last)
    x = n.add("Add", [x, linear(n, f"{name}.o_proj", mixed, f"{name}.attended")], f"{name}.middle")
    h = _norm(n, f"{name}.norm2", x)
    gate = linear(n, f"{name}.gate_proj", h, f"{name}.gate")
    gate = n.add("Mul", [gate, n.add("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    wide = n.add("Mul", [gate, linear(n, f"{name}.up_proj", h, f"{name}.up")], f"{name}.wide")
    return n.add("Add", [x, linear(n, f"{name}.down_proj", wide, f"{name}.down")], f"{name}.out")


def _norm(n: Nodes, name: str, x: str) -> str:
    """RMSNorm, in float32 whatever the rest is in: squares of large activations leave f16's range."""
    wide = n.cast(x, f"{name}.x", TensorProto.FLOAT, n.kind)
    mean = n.add(
        "ReduceMean", [n.add("Pow", [wide, "exponent"], f"{name}.square")], f"{name}.mean", axes=[-1]
    )
    root = n.add("Sqrt", [n.add("Add", [mean, "eps"], f"{name}.variance")], f"{name}.root")
    unit = n.add("Div", [wide, root], f"{name}.unit")
    unit = n.cast(unit, f"{name}.unit_short", n.kind, TensorProto.FLOAT)
    return n.add("Mul", [unit, f"{name}.weight"], name)


def _projected(n: Nodes, layer: str, part: str, h: str, linear: Linear) -> str:
    product = linear(n, f"{layer}.{part}_proj", h, f"{layer}.{part}_product")
    return n.add("Add", [product, f"{layer}.{part}_proj.bias"], f"{layer}.{part}_rows")


def _rotated(n: Nodes, name: str, x: str, when: str) -> str:
    """RoPE of `[1, t, heads, width]`; `when`: `last_` for the last position alone."""
    low, high = f"{name}_low", f"{name}_high"
    n.nodes.append(helper.make_node("Split", [x, "halves"], [low, high], f"/{name}_halves", axis=-1))
    parts = []
    for own, other, sign in ((low, high, "Sub"), (high, low, "Add")):
        a = n.add("Mul", [own, f"{when}cos"], f"{own}_cos")
        b = n.add("Mul", [other, f"{when}sin"], f"{other}_sin")
        parts.append(n.add(sign, [a, b], f"{own}_rotated"))
    return n.add("Concat", parts, f"{name}_rotated", axis=-1)


def _kept(n: Nodes, index: int, part: str, value: str, kv_kind: int) -> str:
    """Give this chunk's rows out; past and chunk together as `[1, all, kv heads, width]`."""
    name = f"layers.{index}.{part}"
    rows = n.add("Reshape", [value, "kv_rows"], f"{name}_own")
    if kv_kind == n.kind:
        n.add("Identity", [rows], f"{part}.{index}")
    else:
        n.add("Cast", [rows], f"{part}.{index}", to=kv_kind)
    past = n.cast(f"past_{part}.{index}", f"{name}_past", n.kind, kv_kind)
    together = n.add("Concat", [past, rows], f"{name}_all", axis=0)
    return n.add("Reshape", [together, "rows_of_kv_heads"], f"{name}_heads")


def _attention(n: Nodes, name: str, q: str, keys: str, values: str, last: bool) -> str:
    """Rows `[1, t, d]` mixed from all values; heads of a group share their keys without copying them."""
    q = _rotated(
        n, f"{name}.q", n.add("Reshape", [q, "rows_of_heads"], f"{name}.q_split"), "last_" if last else ""
    )
    q = n.add("Mul", [q, "scale"], f"{name}.q_scaled")
    q = n.add("Transpose", [q], f"{name}.q_heads", perm=[0, 2, 1, 3])
    q = n.add("Reshape", [q, "groups"], f"{name}.q_groups")
    k = n.add("Transpose", [keys], f"{name}.k_turned", perm=[0, 2, 3, 1])
    v = n.add("Transpose", [values], f"{name}.v_turned", perm=[0, 2, 1, 3])
    scores = n.add("MatMul", [q, k], f"{name}.scores")
    if not last:
        scores = n.add("Reshape", [scores, "scores_of_heads"], f"{name}.scores_of_heads")
        scores = n.add("Add", [scores, "mask"], f"{name}.scores_masked")
    weights = n.add("Softmax", [scores], f"{name}.weights", axis=-1)
    if not last:
        weights = n.add("Reshape", [weights, "scores_of_groups"], f"{name}.weights_of_groups")
    mixed = n.add("MatMul", [weights, v], f"{name}.mixed")
    mixed = n.add("Reshape", [mixed, "heads"], f"{name}.mixed_heads")
    mixed = n.add("Transpose", [mixed], f"{name}.mixed_turned", perm=[0, 2, 1, 3])
    return n.add("Reshape", [mixed, "rows"], f"{name}.mixed_rows")
