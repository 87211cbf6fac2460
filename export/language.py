"""Language model and tokenizer → GGUF, and its quantised versions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from radvlm_edge.errors import BackendError, CheckpointError
from radvlm_edge.export.checkpoint import Checkpoint, read_json
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


def write_f16(checkpoint: Checkpoint, path: Path) -> None:
    """Write the language model as GGUF: matrices f16, norms and biases f32, tensors one at a time.

    Source of the layout: llama.cpp's qwen2 architecture; q and k rows need no permutation.
    """
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        _add_sizes(writer, checkpoint)
        _add_tokenizer(writer, checkpoint)
        names = [name for name in checkpoint.where if name.startswith("language_model.")]
        kinds = {n: np.float16 if len(_shape(checkpoint, n)) == 2 else np.float32 for n in names}
        for name in names:
            kind = np.dtype(kinds[name])
            size = int(np.prod(_shape(checkpoint, name))) * kind.itemsize
            writer.add_tensor_info(gguf_name(name), _shape(checkpoint, name), kind, size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(_values(checkpoint, name, kinds[name]))
    finally:
        writer.close()


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    return checkpoint.config.tensor_shapes(tied=checkpoint.tied)[name]


def _values(checkpoint: Checkpoint, name: str, kind: Any) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        values = checkpoint.tensor(name).float().numpy().astype(kind)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{checkpoint.folder}: {name} holds values f16 cannot (infinite, NaN or > 65504)"
        )
    return values


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
    """tokenizer.json as llama.cpp reads it; rows beyond its ids are named so and never produced."""
    path = checkpoint.folder / "tokenizer.json"
    data = read_json(path)
    model = data.get("model", {})
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{path}: a {model.get('type')} tokenizer; only Qwen2's byte-level BPE is exported"
        )
    ids = {int(i): text for text, i in model["vocab"].items()}
    added = {int(token["id"]): token for token in data.get("added_tokens", [])}
    ids |= {i: token["content"] for i, token in added.items()}
    rows = checkpoint.config.language.vocab
    if max(ids) >= rows:
        raise CheckpointError(f"{path}: id {max(ids)} has no row in an embedding of {rows}")
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


def quantise(source: Path, target: Path, precision: str, imatrix: Any = None) -> None:
    """Quantise an F16 GGUF with llama.cpp to one of `QUANTISED`.

    `imatrix`: an array of `llama_model_imatrix_data` ended by a NULL name (`imatrix_file.as_llama`).
    """
    quiet()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = QUANTISED[precision]
    if imatrix is not None:
        options.imatrix = ctypes.cast(imatrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status != 0:
        raise BackendError(f"llama.cpp could not quantise {source.name} to {precision} (status {status})")
