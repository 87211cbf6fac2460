"""What a caller may choose when a bundle is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.runtime.detail import Detail
from radvlm_edge.runtime.prefill_choice import AUTO

DEFAULT_MAX_TOKENS = 512
TEXT_ROOM = 2048
"""Tokens of context kept free behind the largest film: question, answer, further turns."""


@dataclass(frozen=True)
class Options:
    """What the caller wants; `None` means as the bundle says."""

    vision: str | None = None
    """Precision of the vision artefact."""
    vision_backend: str | None = None
    """Engine that runs it, a name of `vision.ENGINES`; `auto` or `None`: on a GPU the first of TensorRT and
    ONNX Runtime on CUDA that works; else as `doctor` measured, else `onnx`."""
    language: str | None = None
    """Precision of the language artefact."""
    render: str | None = None
    """`voi`, `minmax` or `mimic`."""
    detail: Detail = None
    """Most pixels a film's long side is shown in, e.g. 1152, 768 or 384 (detail.py); `None`, `exact`: all.
    The context is sized for it."""
    gpu_layers: int | None = None
    """Layers of the language model on a GPU, -1: all; `None`: all where llama.cpp sees one it can use."""
    flash_attention: str | None = None
    """`on`, `off`; `auto` or `None`: llama.cpp's choice on a GPU, off on the CPU, where it is less exact."""
    kv_type: str | None = None
    """How K and V are kept: `f16` (also `None`) or `q8_0`, half of it."""
    threads: int | None = None
    """CPU threads of both engines; `None`: as many as this process may use."""
    context: int | None = None
    """Tokens the context holds; `None`: the largest film and `TEXT_ROOM`."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Longest answer in tokens."""
    any_modality: bool = False
    """Read CT, MR and the like too."""
    frame: int | None = None
    """Frame of a multi-frame file, from 0."""
    drafts: bool = False
    """Guess what an answer says next and let the model check several tokens in one pass (drafting.py)."""
    phrases: Path | None = None
    """Text file of answers, one a line, to guess from, beside the bundle's own. It stays on this machine."""
    prefill_backend: str = AUTO
    """Who computes an image's K and V: `llama`, `onnx`, `openvino` (the last two need a prefill artefact), or
    `auto`: what was faster when it was measured on this machine."""
    prefill: str | None = None
    """Precision of the prefill artefact."""
    overlap: bool | None = None
    """Encode crops while image tokens that are complete are prefilled, and read a film while weights are
    opened (overlap.py): the same numbers. `None`: the first where tower and language model run on different
    processors, the second where this process may use more than one CPU."""
    force: bool = False
    """Use a combination of artefacts even where it was measured beyond the bundle's declared limits."""
    study_memory: int = 2 << 30
    """Bytes of K/V kept in memory for studies that lost the context to another; the least recently used
    beyond it are prefilled again when asked."""
    study_cache: Path | None = None
    """Folder where K/V of films outlive the process; `None`: nowhere. It is patient data."""
    study_cache_limit: int = 8 << 30
    """Bytes that folder may hold."""
    study_cache_days: float = 7.0
    """A film kept there longer ago is looked at again."""
    study_cache_key: Path | None = None
    """File with its AES-256-GCM key; `None`: the key in `RADVLM_EDGE_STUDY_KEY`, else it is in the clear."""
