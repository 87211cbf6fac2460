"""What machines can do, as published: memory, bandwidth, and the arithmetic they sustained.

Peak bandwidths are the makers'. Sustained rates are derived from published runs of comparable models
(a so400m-class tower, a 7 to 8B language model), because peaks say little about batch 1; each entry
names its source. Nothing here was measured by this project unless it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = ("any", "cpu", "small", "large")
"""Kinds of machine the choice of quantisation depends on."""


@dataclass(frozen=True)
class Device:
    """One machine."""

    title: str
    kind: str
    """One of `CLASSES`."""
    memory_gib: float
    """Of the GPU, or shared by CPU and GPU."""
    reserved_gib: float
    """Taken by system, desktop and driver (assumed)."""
    bandwidth_gb_s: float
    """Peak, 10^9 bytes a second."""
    bandwidth_reached: float
    """Fraction of it that decoding reached in published runs."""
    vision_tflops: float
    """Sustained by a so400m-class tower in fp16."""
    prefill_tflops: float
    """Sustained by a 4-bit language model's prefill."""
    source: str


EDGE_LLM = "TensorRT Edge-LLM 0.9.0 performance-benchmarks"
LLAMA = (
    "llama.cpp on AGX Orin decoded 7 to 8B at 22.5 to 25 tok/s (holohub 170, MiniCPM 331) and prefilled at a "
    "quarter of vLLM's rate (thehighnotes/vllm-jetson-orin); the same fractions are assumed here"
)
DEVICES = {
    "orin-nano-8": Device(
        "Jetson Orin Nano Super 8 GB", "small", 8, 1.5, 102, 0.5, 6.8, 1.3,
        f"{EDGE_LLM} (Qwen3-VL-2B INT4: tower 151 ms, prefill 1,532 tok/s); {LLAMA}",
    ),
    "orin-nx-16": Device(
        "Jetson Orin NX 16 GB", "small", 16, 1.5, 102, 0.5, 8.5, 2.1,
        f"{EDGE_LLM} (Qwen3-VL-8B INT4: tower 120 ms, prefill 633 tok/s); {LLAMA}",
    ),
    "agx-orin-64": Device(
        "Jetson AGX Orin 64 GB", "large", 64, 2.0, 204.8, 0.5, 18, 4.4,
        f"{EDGE_LLM} (Qwen3-VL-8B INT4: tower 57 ms, prefill 1,299 tok/s); {LLAMA}",
    ),
    "thor": Device(
        "Jetson AGX Thor", "large", 128, 3.0, 273, 0.5, 65, 6.0,
        f"{EDGE_LLM} (Qwen3-VL-8B INT4: tower 15.8 ms, prefill 1,869 tok/s); {LLAMA}",
    ),
    "rtx-4090": Device(
        "GeForce RTX 4090 24 GB", "large", 24, 1.0, 1008, 0.58, 130, 110,
        "XiongjieDai/GPU-Benchmarks (llama.cpp, 8B Q4_K_M: prefill 6,899, decode 127.7 tok/s); tower assumed",
    ),
    "cpu": Device(
        "desktop CPU, dual-channel DDR5-5600, 16 GB", "cpu", 16, 2.0, 89.6, 0.6, 0.67, 0.5,
        "arithmetic assumed (8 cores with AVX512-VNNI); 2 such virtual CPUs were measured at 0.2 in prefill",
    ),
}  # fmt: skip
"""Name on the command line → machine."""
