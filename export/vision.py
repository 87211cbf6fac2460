"""Tower and projector → one ONNX graph: uint8 crops in, projected tokens out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
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

OPSET, IR_VERSION = 17, 10
"""TensorRT 10.3 (JetPack 6) parses opset 19 at most, onnxruntime for Python 3.10 reads IR 10."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
LARGEST_PROTOBUF = 2**31 - 2**20
ROOT = "vision_tower.vision_model."


class Block(nn.Module):
    """One SigLIP encoder layer, attention written out.

    The query alone is scaled, before the first product: graphs that scale q and k by a root each
    came out of TensorRT wrong (TensorRT issues 4328 and 4333).
    """

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        super().__init__()
        tower = checkpoint.config.tower
        self.tokens, self.width = checkpoint.config.geometry.tokens_per_crop, tower.width
        self.heads, self.head_dim = tower.heads, tower.width // tower.heads
        layer = f"{ROOT}encoder.layers.{index}."
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            _linear(checkpoint, f"{layer}self_attn.{name}")
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        self.fc1, self.fc2 = (_linear(checkpoint, f"{layer}mlp.{name}") for name in ("fc1", "fc2"))
        self.norm1, self.norm2 = (
            _norm(checkpoint, f"{layer}layer_norm{n}", tower.width, tower.eps) for n in (1, 2)
        )

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
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        geometry = checkpoint.config.geometry
        values = checkpoint.preprocessing
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(values["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(values["std"]).view(1, 3, 1, 1))
        self.rescale = float(values["rescale"])
        self.patch = nn.Conv2d(3, checkpoint.config.tower.width, geometry.patch_px, geometry.patch_px)
        self.patch.load_state_dict(_parts(checkpoint, f"{ROOT}embeddings.patch_embedding"))
        position = checkpoint.tensor(f"{ROOT}embeddings.position_embedding.weight").float()
        self.position = nn.Parameter(position, requires_grad=False)
        self.blocks = nn.ModuleList(Block(checkpoint, i) for i in range(checkpoint.config.tower.used_layers))
        self.linear_1 = _linear(checkpoint, "multi_modal_projector.linear_1")
        self.linear_2 = _linear(checkpoint, "multi_modal_projector.linear_2")

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        x = (crops.float() * self.rescale - self.mean.float()) / self.std.float()
        x = self.patch(x.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        tokens: torch.Tensor = self.linear_2(F.gelu(self.linear_1(x))).float()
        return tokens


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


def write_vision(checkpoint: Checkpoint, graph: VisionGraph, precision: str, path: Path) -> None:
    """Write the graph in `fp32` or `fp16` (weights and arithmetic; uint8 in, float32 out).

    One file, or two (`….onnx.data`) where the weights pass protobuf's 2 GiB.
    """
    dtype = PRECISIONS[precision]
    module: Any = copy.deepcopy(graph).to(dtype) if dtype != torch.float32 else graph
    module.config = _TraceConfig(checkpoint.config.geometry.crop_px)
    config = VisionOnnxConfig(module.config, task="feature-extraction")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own exporters
        export_pytorch(module, config, OPSET, path, input_shapes={"batch_size": 2})
    _settle(path)


class _TraceConfig:
    """The few attributes optimum's exporter reads of a model's configuration."""

    return_dict = True
    torchscript = False
    output_attentions = output_hidden_states = False

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size


def _settle(path: Path) -> None:
    """Fix the IR version, forget where and when it was traced, keep the weights in as few files as can be."""
    model = onnx.load(str(path))
    for stale in path.parent.glob(f"{path.name}*data"):
        stale.unlink()
    model.ir_version = IR_VERSION
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    if model.opset_import[0].version != OPSET:
        raise ParityError(f"{path.name}: opset {model.opset_import[0].version} instead of {OPSET}")
    if model.ByteSize() < LARGEST_PROTOBUF:
        onnx.save(model, str(path))
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    onnx.checker.check_model(str(path))


def _linear(checkpoint: Checkpoint, name: str) -> nn.Linear:
    parts = _parts(checkpoint, name)
    rows, columns = parts["weight"].shape
    linear = nn.Linear(columns, rows)
    linear.load_state_dict(parts)
    return linear


def _norm(checkpoint: Checkpoint, name: str, width: int, eps: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=eps)
    norm.load_state_dict(_parts(checkpoint, name))
    return norm


def _parts(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    parts = {part: checkpoint.tensor(f"{name}.{part}").float() for part in ("weight", "bias")}
    if not all(math.isfinite(float(p.abs().max())) for p in parts.values()):
        raise CheckpointError(f"{checkpoint.folder}: {name} holds values that are not finite")
    return parts
