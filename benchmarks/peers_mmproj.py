"""A checkpoint's tower and projector as llama.cpp's own multimodal path reads them. Needs the torch world.

Layout: llama.cpp's tools/mtmd/clip.cpp, projector type `mlp`. That path cuts a film by the same pinpoints,
but pads in another colour, keeps the padding's tokens and has no newline after a row: other tokens, so other
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from radvlm_edge.export.checkpoint import Checkpoint

TOWER = "vision_tower.vision_model."
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
"""SigLIP's names in transformers → in llama.cpp (clip-impl.h)."""
OUTER = {
    f"{TOWER}embeddings.patch_embedding.weight": "v.patch_embd.weight",
    f"{TOWER}embeddings.patch_embedding.bias": "v.patch_embd.bias",
    f"{TOWER}embeddings.position_embedding.weight": "v.position_embd.weight",
    **{
        f"multi_modal_projector.linear_{theirs}.{kind}": f"mm.{ours}.{kind}"
        for theirs, ours in ((1, 0), (2, 2))
        for kind in ("weight", "bias")
    },
}


def mmproj_name(name: str) -> str | None:
    """Canonical tensor name → llama.cpp's; `None`: not part of tower or projector."""
    if name in OUTER:
        return OUTER[name]
    start = f"{TOWER}encoder.layers."
    if not name.startswith(start):
        return None
    index, rest = name.removeprefix(start).split(".", 1)
    stem, kind = rest.rsplit(".", 1)
    return f"v.blk.{index}.{LAYER[stem]}.{kind}"


def write_mmproj(checkpoint: Checkpoint, path: Path, pinpoints: Sequence[tuple[int, int]]) -> None:
    """Write the file, matrices f16, for films fitted into `pinpoints` (height, width)."""
    tower, geometry = checkpoint.config.tower, checkpoint.config.geometry
    writer: Any = gguf.GGUFWriter(path, "clip")
    try:
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_string("clip.projector_type", "mlp")
        writer.add_bool("clip.use_gelu", True)
        for key, value in (
            ("image_size", geometry.crop_px),
            ("patch_size", geometry.patch_px),
            ("embedding_length", tower.width),
            ("feed_forward_length", tower.mlp),
            ("block_count", tower.used_layers),
            ("attention.head_count", tower.heads),
            ("projection_dim", geometry.embed_dim),
        ):
            writer.add_uint32(f"clip.vision.{key}", value)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", tower.eps)
        writer.add_array("clip.vision.image_mean", list(map(float, checkpoint.preprocessing["mean"])))
        writer.add_array("clip.vision.image_std", list(map(float, checkpoint.preprocessing["std"])))
        writer.add_array("clip.vision.feature_layer", [tower.used_layers])
        writer.add_array("clip.vision.image_grid_pinpoints", [side for pair in pinpoints for side in pair])
        writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
        for name in checkpoint.config.tensor_shapes(tied=checkpoint.tied):
            if (called := mmproj_name(name)) is not None:
                values = checkpoint.tensor(name).float().numpy()
                kept = values.ndim == 1 or "position" in name
                writer.add_tensor(called, values if kept else values.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
