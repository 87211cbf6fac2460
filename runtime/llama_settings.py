"""Where llama.cpp runs layers, whether it fuses attention, and how it keeps K and V"""

from __future__ import annotations

from dataclasses import dataclass

from radvlm_edge.errors import BackendError

FLASH = {"auto": -1, "on": 1, "off": 0}
"""As LLAMA_FLASH_ATTN_TYPE_AUTO, ENABLED and DISABLED of llama.h."""
KV_TYPES = {"f16": 1, "q8_0": 8}
"""As GGML_TYPE_F16 and Q8_0 of ggml.h."""
ALL_LAYERS = -1
"""What llama.cpp takes for all of them."""


@dataclass(frozen=True)
class Settings:
    """llama.cpp's values."""

    gpu_layers: int
    flash: int
    kv_type: int


def settings_for(
    gpu_layers: int | None, flash_attention: str | None, kv_type: str | None, *, offload: bool
) -> Settings:
    """Settings from what the caller wants; `None`: all layers on a GPU if there is one, `auto`, `f16`.

    `offload` is whether this build sees a GPU it can use. Raises BackendError for what cannot be.
    """
    for name, value, known in (
        ("--flash-attention", flash_attention, FLASH),
        ("--kv-type", kv_type, KV_TYPES),
    ):
        if value is not None and value not in known:
            raise BackendError(f"{name} {value}: choose one of {', '.join(known)}")
    if gpu_layers and not offload:
        shown = "all" if gpu_layers < 0 else gpu_layers
        raise BackendError(
            f"--gpu-layers {shown}: the installed llama.cpp sees no GPU it can use; `radvlm-edge doctor` "
            "says why and how to rebuild it, --gpu-layers 0 runs on the CPU"
        )
    quantised = kv_type == "q8_0"
    if quantised and flash_attention == "off":
        raise BackendError(
            "--kv-type q8_0 needs flash attention: llama.cpp cannot read a quantised V without it; "
            "leave out --flash-attention off, or keep f16"
        )
    flash = FLASH[flash_attention or "auto"]
    if flash == FLASH["auto"] and (quantised or not offload or gpu_layers == 0):
        # On CPUs llama.cpp's flash attention sums in f16: logits move by 1 to 2 % of their deviation.
        flash = FLASH["on" if quantised else "off"]
    return Settings(ALL_LAYERS if gpu_layers is None else gpu_layers, flash, KV_TYPES[kv_type or "f16"])
