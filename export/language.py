"""Language model and tokenizer → GGUF, and its quantised versions."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import llama_cpp
import numpy as np
import torch

from radvlm_edge.errors import BackendError, CheckpointError
from radvlm_edge.export.checkpoint import Checkpoint, token_ids
from radvlm_edge.export.numbers import row_blocks
from radvlm_edge.runtime.llama import quiet

QUANTISED = {
    name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    for name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ4_XS")
}
PRECISIONS = ("F16", *QUANTISED)

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Qwen2's names in transformers → in llama.cpp (gguf's tensor_mapping)."""


def gguf_name(name: str) -> str:
    """Canonical tensor name → GGUF's."""
    name = name.removeprefix("language_model.").removeprefix("model.")
    if name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        stem, kind = rest.rsplit(".", 1)
        return f"blk.{index}.{LAYER[stem]}.{kind}"
    outer = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    return f"{outer[stem]}.{kind}"


MASK_NAME, MASKED = "output.bias", -1e30
"""Added by llama.cpp's qwen2 graph to the logits: rows that stand for no token can never win."""
QUANTISE_BUFFER = 256 << 20
"""Bytes llama.cpp may hold of a tensor at once; the result does not depend on it."""


class _Values:
    """A tensor as GGUFWriter takes one (`nbytes`, `tofile`), converted block by block on its way out."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, dtype: torch.dtype, advance: Callable[[int], None]
    ) -> None:
        self.checkpoint, self.name, self.dtype, self.advance = checkpoint, name, dtype, advance
        self.shape = checkpoint.shape(name)
        self.nbytes = math.prod(self.shape) * dtype.itemsize

    def tofile(self, file: BinaryIO) -> None:
        for block in row_blocks(self.checkpoint.tensor(self.name)):
            values = self._convert(block)
            flat: Any = values.numpy().reshape(-1)
            file.write(memoryview(flat).cast("B"))
            self.advance(values.nbytes)

    def _convert(self, block: torch.Tensor) -> torch.Tensor:
        values = block.to(self.dtype).contiguous()
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(
                f"{self.checkpoint.folder}: {self.name} holds values f16 cannot (infinite, NaN or > 65504)"
            )
        return values


def f16_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the language model's weights in f16, for telling progress."""
    shapes = checkpoint.config.tensor_shapes(tied=checkpoint.tied)
    return sum(2 * math.prod(shape) for name, shape in shapes.items() if name.startswith("language_model."))


def write_f16(
    checkpoint: Checkpoint, path: Path, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Write the language model as GGUF: matrices f16, norms and biases f32, tensors one at a time.

    Source of the layout: llama.cpp's qwen2 architecture; q and k rows need no permutation. `advance` is
    told the bytes of weights written.
    """
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        _add_sizes(writer, checkpoint)
        _add_tokenizer(writer, checkpoint)
        names = [
            n for n in checkpoint.config.tensor_shapes(tied=checkpoint.tied) if n.startswith("language_")
        ]
        tensors = []
        for name in names:
            dtype = torch.float16 if len(checkpoint.shape(name)) == 2 else torch.float32
            tensors.append((gguf_name(name), _Values(checkpoint, name, dtype, advance)))
        for name, values in tensors:
            kind = np.dtype(np.float16 if values.dtype == torch.float16 else np.float32)
            writer.add_tensor_info(name, values.shape, kind, values.nbytes)
        mask = np.where(checkpoint.unused, np.float32(MASKED), np.float32(0))
        if checkpoint.unused.any():
            writer.add_tensor_info(MASK_NAME, mask.shape, mask.dtype, mask.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in tensors:
            writer.write_tensor_data(values)
        if checkpoint.unused.any():
            writer.write_tensor_data(mask)
    finally:
        writer.close()


def _add_sizes(writer: Any, checkpoint: Checkpoint) -> None:
    language = checkpoint.config.language
    writer.add_name(str(checkpoint.facts["name"]))
    writer.add_context_length(language.context)
    writer.add_embedding_length(language.hidden)
    writer.add_block_count(language.layers)
    writer.add_feed_forward_length(language.mlp)
    writer.add_head_count(language.heads)
    writer.add_head_count_kv(language.kv_heads)
    writer.add_layer_norm_rms_eps(language.eps)
    writer.add_rope_freq_base(language.rope_theta)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """tokenizer.json as llama.cpp reads it; rows that are no token are named so."""
    data = checkpoint.tokenizer
    model, ids = data["model"], token_ids(data)
    added = {int(token["id"]): token for token in data.get("added_tokens", [])}
    rows = checkpoint.config.language.vocab
    kinds = []
    for i in range(rows):
        if i not in ids:
            kinds.append(gguf.TokenType.UNUSED)
        elif i in added:
            kinds.append(gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([ids.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(checkpoint.prompting.stop_ids[0])
    writer.add_add_bos_token(False)
    writer.add_chat_template(checkpoint.prompting.chat_template)


def quantise(
    source: Path,
    target: Path,
    precision: str,
    *,
    imatrix: Any = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Quantise an F16 GGUF with llama.cpp to one of `QUANTISED`.

    `imatrix`: an array of `llama_model_imatrix_data` ended by a NULL name (`imatrix_file.as_llama`).
    `advance` is told the bytes of the source that were read. Raises BackendError with llama.cpp's complaint.
    """
    quiet()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.max_buf_size = QUANTISED[precision], QUANTISE_BUFFER
    if imatrix is not None:
        options.imatrix = ctypes.cast(imatrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    complaints: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        line = text.decode(errors="replace")
        done = re.search(r"size = *([0-9.]+) MiB", line)
        if done:
            advance(int(float(done[1]) * (1 << 20)))
        if "failed" in line or "error" in line:
            complaints.append(line.strip())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        status = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(options)
        )
    finally:
        quiet()
    if status != 0:
        why = complaints[-1] if complaints else f"status {status}"
        raise BackendError(f"llama.cpp could not quantise {source.name} to {precision} ({why})")
