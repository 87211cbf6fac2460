"""Does it fit, and how long will it take? Derived from sizes and published rates, not measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BundleError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.devices import Device

GIB = 2**30
BITS = {
    "F16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.57,
    "Q5_K_M": 5.71,
    "Q4_K_M": 4.91,
    "Q4_0": 4.66,
    "IQ4_NL": 4.66,
    "IQ4_XS": 4.46,
    "fp32": 32.0,
    "fp16": 16.0,
}
"""Bits a weight takes in a file, scales and the larger types of some matrices included, whole rows."""
BATCH = 512
"""Tokens llama.cpp runs at once; its logits buffer holds as many rows."""
CROPS_AT_ONCE = 4
PROGRAM_BYTES = 400 * 2**20
"""Interpreter, engines, GPU context (assumed)."""


@dataclass(frozen=True)
class Network:
    """Sizes of a model that its `Geometry` does not hold."""

    language_weights: int
    embedding_weights: int
    """Of them, in the table of which one row is read a token (0 where it is the output matrix too)."""
    vision_weights: int
    tower_width: int
    """0 if unknown: attention inside the tower, about a tenth of its work, is left out then."""
    tower_layers: int


PUBLISHED = {
    "radvlm-7b": Network(7_616_000_000, 152_128 * 3584, 397_750_000 + 16_980_000, 1152, 26),
    "radvlm-0.5b": Network(494_100_000, 0, 397_750_000 + 1_840_000, 1152, 26),
}


@dataclass(frozen=True)
class Estimate:
    """One device, one film, one answer; seconds and bytes, all derived."""

    device: str
    vision_bytes: int
    language_bytes: int
    kv_bytes: int
    workspace_bytes: int
    available_bytes: int
    fits: bool
    vision_s: float
    prefill_s: float
    decode_s: float
    first_answer_s: float
    next_answer_s: float
    """A further question about the same film: its own 30 tokens and the answer."""
    tokens_per_s: float
    tokens_per_s_bound: float
    """At the device's whole bandwidth."""
    source: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": "derived"}


def network_of(bundle: Bundle) -> Network:
    """Sizes estimated from the bytes of a bundle's artefacts (known bits a weight)."""
    counts = {}
    for role in ("vision", "language"):
        held = [a for a in bundle.manifest.artefacts if a.role == role and a.precision in BITS]
        if not held:
            raise BundleError(f"{bundle.folder}: no {role} artefact of a known precision; pass --geometry")
        widest = max(held, key=lambda a: BITS[a.precision])
        counts[role] = round(widest.bytes * 8 / BITS[widest.precision])
    return Network(counts["language"], 0, counts["vision"], 0, 0)


def estimate(
    device: Device,
    geometry: Geometry,
    network: Network,
    *,
    image_tokens: int,
    crops: int,
    vision_bytes: int,
    language_bytes: int,
    answer_tokens: int = 30,
    question_tokens: int = 30,
) -> Estimate:
    """Memory and time of one film's first answer, and of the next.

    vision, prefill: floating-point operations over sustained rate; weights count twice a token, causal
    attention 2·layers·tokens²·width. decode: bytes of weights and K/V read a token over the bandwidth.
    """
    tokens = image_tokens + question_tokens
    kv = (tokens + answer_tokens) * geometry.kv_bytes_per_token
    read = language_bytes * (1 - network.embedding_weights / network.language_weights) + kv
    bound = device.bandwidth_gb_s * 1e9 / read
    rate = bound * device.bandwidth_reached
    vision_s = crops * crop_operations(geometry, network) / (device.vision_tflops * 1e12)
    prefill_s = prefill_operations(tokens, geometry, network) / (device.prefill_tflops * 1e12)
    question_s = question_tokens * 2 * network.language_weights / (device.prefill_tflops * 1e12)
    decode_s = answer_tokens / rate
    workspace = _workspace(geometry, network)
    available = round((device.memory_gib - device.reserved_gib) * GIB)
    return Estimate(
        device=device.title,
        vision_bytes=vision_bytes,
        language_bytes=language_bytes,
        kv_bytes=kv,
        workspace_bytes=workspace,
        available_bytes=available,
        fits=vision_bytes + language_bytes + kv + workspace <= available,
        vision_s=vision_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        first_answer_s=vision_s + prefill_s + decode_s,
        next_answer_s=question_s + decode_s,
        tokens_per_s=rate,
        tokens_per_s_bound=bound,
        source=device.source,
    )


def crop_operations(geometry: Geometry, network: Network) -> float:
    """Floating-point operations of the tower on one crop; attention only where its width is known."""
    tokens = geometry.tokens_per_crop
    attention = 4 * tokens**2 * network.tower_width * network.tower_layers
    return 2 * network.vision_weights * tokens + attention


def prefill_operations(tokens: int, geometry: Geometry, network: Network) -> float:
    """Floating-point operations of a prefill from nothing.

    Embedding and output matrices are left out: only the last token needs logits.
    """
    inner = network.language_weights - geometry.vocab * geometry.embed_dim
    inner -= network.embedding_weights
    return 2 * inner * tokens + 2 * geometry.layers * tokens**2 * geometry.embed_dim


def _workspace(geometry: Geometry, network: Network) -> int:
    """llama.cpp's logits and activations of one batch, the tower's of one batch of crops, the program."""
    logits = BATCH * geometry.vocab * 4
    language = BATCH * geometry.embed_dim * 4 * 16
    width = network.tower_width or geometry.embed_dim
    heads = max(width // 72, 1)  # so400m's head width
    tokens = geometry.tokens_per_crop
    tower = CROPS_AT_ONCE * 4 * (tokens * width * 8 + heads * tokens**2)
    return logits + language + tower + PROGRAM_BYTES
