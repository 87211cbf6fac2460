"""Tower and projector → one ONNX graph: uint8 crops in, projected tokens out.

The graph is traced without its weights, which then flow from the checkpoint into the file one at a
time: the tower is never in memory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from optimum.exporters.onnx import OnnxConfig
from optimum.exporters.onnx.convert import export_pytorch
from optimum.utils import DEFAULT_DUMMY_SHAPES, DummyInputGenerator, NormalizedConfig
from torch import nn

from radvlm_edge.errors import CheckpointError, ParityError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.graph_file import Initializer, write_graph
from radvlm_edge.export.numbers import row_blocks

OPSET, IR_VERSION = 17, 10
"""TensorRT 10.3 (JetPack 6) parses opset 19 at most, onnxruntime for Python 3.10 reads IR 10."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
ROOT = "vision_tower.vision_model."


class Block(nn.Module):
    """One SigLIP encoder layer, attention written out.

    The query alone is scaled, before the first product: graphs that scale q and k by a root each
    came out of TensorRT wrong (TensorRT issues 4328 and 4333).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        tower = checkpoint.config.tower
        self.tokens, self.width = checkpoint.config.geometry.tokens_per_crop, tower.width
        self.heads, self.head_dim = tower.heads, tower.width // tower.heads
        self.q_proj: nn.Module = nn.Linear(tower.width, tower.width)
        self.k_proj: nn.Module = nn.Linear(tower.width, tower.width)
        self.v_proj: nn.Module = nn.Linear(tower.width, tower.width)
        self.out_proj: nn.Module = nn.Linear(tower.width, tower.width)
        self.fc1: nn.Module = nn.Linear(tower.width, tower.mlp)
        self.fc2: nn.Module = nn.Linear(tower.mlp, tower.width)
        self.norm1: nn.Module = nn.LayerNorm(tower.width, eps=tower.eps)
        self.norm2: nn.Module = nn.LayerNorm(tower.width, eps=tower.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, tokens, width]` → the same."""
        y = self.norm1(x)
        q, k, v = (self._split(proj(y)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax((q * self.head_dim**-0.5) @ k.transpose(-1, -2), dim=-1)
        x = x + self.out_proj((weights @ v).transpose(1, 2).reshape(-1, self.tokens, self.width))
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, self.tokens, self.heads, self.head_dim).transpose(1, 2)


class VisionGraph(nn.Module):
    """Crops `[n, 3, S, S]` uint8 → projected tokens `[n, tokens, d]` float32.

    Stops at the encoder output `vision_feature_layer` names, before post_layernorm, as LLaVA does.
    Its parameters have shapes and no values; `source` names where the values are.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config, values = checkpoint.config, checkpoint.preprocessing
        self.mean = torch.tensor(values["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(values["std"]).view(1, 3, 1, 1)
        self.rescale = float(values["rescale"])
        with torch.device("meta"):
            self.patch = nn.Conv2d(3, config.tower.width, config.geometry.patch_px, config.geometry.patch_px)
            self.position = nn.Parameter(torch.empty(config.geometry.tokens_per_crop, config.tower.width))
            self.blocks = nn.ModuleList(Block(checkpoint) for _ in range(config.tower.used_layers))
            self.linear_1 = nn.Linear(config.tower.width, config.language.hidden)
            self.linear_2 = nn.Linear(config.language.hidden, config.language.hidden)
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                nothing = torch.zeros(()).expand(parameter.shape)  # one number, any shape
                setattr(module, name, nn.Parameter(nothing, requires_grad=False))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        x = (crops.float() * self.rescale - self.mean) / self.std
        x = self.patch(x.to(torch.float32)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        tokens: torch.Tensor = self.linear_2(F.gelu(self.linear_1(x))).float()
        return tokens


def source(parameter: str) -> str:
    """A parameter of VisionGraph → the checkpoint's canonical tensor name."""
    if parameter.startswith("linear_"):
        return f"multi_modal_projector.{parameter}"
    if parameter == "position":
        return f"{ROOT}embeddings.position_embedding.weight"
    if parameter.startswith("patch."):
        return f"{ROOT}embeddings.patch_embedding.{parameter.removeprefix('patch.')}"
    _, index, name, kind = parameter.split(".")
    if name.startswith("norm"):
        name = f"layer_{name}"
    else:
        name = f"mlp.{name}" if name.startswith("fc") else f"self_attn.{name}"
    return f"{ROOT}encoder.layers.{index}.{name}.{kind}"


class _Crops(DummyInputGenerator):  # type: ignore[misc]
    """Example crops for tracing."""

    SUPPORTED_INPUT_NAMES = ("crops",)

    def __init__(
        self, task: str, config: Any, batch_size: int = DEFAULT_DUMMY_SHAPES["batch_size"], **_: Any
    ):
        self.batch, self.size = batch_size, config.image_size

    def generate(self, input_name: str, **_: Any) -> torch.Tensor:
        shape = (self.batch, 3, self.size, self.size)
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class VisionOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """The graph's contract as optimum states one: inputs, outputs, what is dynamic, how close."""

    DEFAULT_ONNX_OPSET = OPSET
    ATOL_FOR_VALIDATION = 1e-4
    NORMALIZED_CONFIG_CLASS = NormalizedConfig.with_args(image_size="image_size", allow_new=True)
    DUMMY_INPUT_GENERATOR_CLASSES = (_Crops,)

    @property
    def inputs(self) -> Mapping[str, Mapping[int, str]]:
        return {"crops": {0: "n"}}

    @property
    def outputs(self) -> Mapping[str, Mapping[int, str]]:
        return {"tokens": {0: "n"}}


class _TraceConfig:
    """The few attributes optimum's exporter reads of a model's configuration."""

    return_dict = True
    torchscript = False
    output_attentions = output_hidden_states = False

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size


def write_vision(
    checkpoint: Checkpoint, precision: str, path: Path, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Write the graph in `fp32` or `fp16` (weights and arithmetic; uint8 in, float32 out).

    One file, or two (`….onnx.data`) where the weights are large. `advance` is told the bytes of weights
    written. Raises CheckpointError for a tensor whose values the precision cannot hold.
    """
    dtype = PRECISIONS[precision]
    outline = outline_of(checkpoint)
    if dtype == torch.float16:
        halve(outline.model)
    initializers = [outline.initializer(checkpoint, name, dtype) for name in outline.shapes]
    write_graph(outline.model, initializers, path, advance)


@dataclass(frozen=True)
class Outline:
    """The graph in fp32 without its weights, and what they will look like."""

    model: onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]
    """Of every parameter as the file holds it: weights of linear layers `[in, out]`."""
    transposed: frozenset[str]
    """Parameters the checkpoint holds the other way round."""

    def initializer(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Initializer:
        """A parameter, to be written in `dtype`."""
        blocks = parameter_blocks(checkpoint, name, dtype, name in self.transposed)
        return Initializer(name, self.shapes[name], TYPES[dtype], blocks)


def outline_of(checkpoint: Checkpoint) -> Outline:
    """Trace a checkpoint's graph."""
    model = trace(VisionGraph(checkpoint).eval(), checkpoint.config.geometry.crop_px)
    transposed = _fold_transposes(model)
    shapes = {value.name: _dims(value) for value in model.graph.input if value.name != "crops"}
    shapes = {name: shape[::-1] if name in transposed else shape for name, shape in shapes.items()}
    inputs = [value for value in model.graph.input if value.name == "crops"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return Outline(model, shapes, frozenset(transposed))


def weight_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of weights `write_vision` writes, for telling progress."""
    count = sum(parameter.numel() for parameter in VisionGraph(checkpoint).parameters())
    return count * PRECISIONS[precision].itemsize


TYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}


def trace(graph: nn.Module, image_size: int) -> onnx.ModelProto:
    """The graph as ONNX with its parameters as inputs, without where and when it was traced."""
    module: Any = graph
    module.config = _TraceConfig(image_size)
    config = VisionOnnxConfig(module.config, task="feature-extraction")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own exporters
        path = Path(folder) / "traced.onnx"
        with _without_parameters():
            export_pytorch(
                module, config, OPSET, path, input_shapes={"batch_size": 2}, do_constant_folding=False
            )
        model = onnx.load(str(path))
    model.ir_version = IR_VERSION
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    if model.opset_import[0].version != OPSET:
        raise ParityError(f"the traced graph has opset {model.opset_import[0].version} instead of {OPSET}")
    return model


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Let optimum's call of torch.onnx.export leave the weights out: it has no such option."""
    export = torch.onnx.export

    def weightless(*arguments: Any, **options: Any) -> Any:
        return export(*arguments, **options, export_params=False, keep_initializers_as_inputs=True)

    torch.onnx.export = weightless
    try:
        yield
    finally:
        torch.onnx.export = export


def halve(model: onnx.ModelProto) -> None:
    """Turn the arithmetic behind the first layer's cast into f16, in place.

    Tracing in f16 would run the tower in f16, which a CPU does hundreds of times slower.
    """
    nodes = list(model.graph.node)
    (patch,) = (node for node in nodes if node.op_type == "Conv")
    start = next(i for i, node in enumerate(nodes) if patch.input[0] in node.output)
    if nodes[start].op_type != "Cast" or nodes[-1].op_type != "Cast":
        raise ParityError("the traced graph has no casts around its tower")
    nodes[start].attribute[0].i = onnx.TensorProto.FLOAT16
    for node in nodes[start + 1 : -1]:
        if node.op_type == "Constant" and node.attribute[0].t.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(node.attribute[0].t).astype("float16")
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(values))
        elif node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT:
            node.attribute[0].i = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]


def _fold_transposes(model: onnx.ModelProto) -> set[str]:
    """Take out every Transpose of a parameter; returns the parameters to be stored transposed."""
    parameters = {value.name for value in model.graph.input} - {"crops"}
    renamed, kept = {}, []
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in parameters:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            if name in renamed.values():
                raise ParityError(f"the traced graph uses {name} both ways round")
            node.input[index] = renamed.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return set(renamed.values())


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def parameter_blocks(
    checkpoint: Checkpoint, parameter: str, dtype: torch.dtype, transposed: bool
) -> Callable[[], Iterator[torch.Tensor]]:
    """The values of a parameter as the file wants them, a block of rows at a time."""
    return tensor_blocks(checkpoint, source(parameter), dtype, transposed)


def tensor_blocks(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, transposed: bool
) -> Callable[[], Iterator[torch.Tensor]]:
    """The same for a tensor by its canonical name."""

    def blocks() -> Iterator[torch.Tensor]:
        tensor = checkpoint.tensor(name)
        for block in row_blocks(tensor.T if transposed else tensor):
            values = block.to(dtype).contiguous()
            if not bool(torch.isfinite(values).all()):
                raise CheckpointError(
                    f"{checkpoint.folder}: {name} holds values {dtype} cannot (infinite, NaN or too large)"
                )
            yield values

    return blocks
