"""Which NVIDIA GPU this machine has, asked of the system alone: no CUDA package is needed to say it.

A Jetson says so in /etc/nv_tegra_release and the device tree; elsewhere nvidia-smi answers; a driver
whose nvidia-smi does not is still seen in /proc.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
SMI_S = 20
"""nvidia-smi wakes the driver, which takes seconds on a machine without its daemon."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as far as the system names it."""

    name: str
    compute: str | None
    """Compute capability, e.g. `8.7`; `None`: not said."""
    driver: str
    """Driver version; on a Jetson the L4T release, which fixes it."""
    jetson: bool = False


@dataclass(frozen=True)
class DeviceClass:
    """GPUs one llama.cpp build serves."""

    title: str
    compute: str
    architecture: str
    """For CMAKE_CUDA_ARCHITECTURES."""


CLASSES = {
    "turing": DeviceClass("Turing (RTX 20, T4)", "7.5", "75"),
    "a100": DeviceClass("Ampere, data centre (A100)", "8.0", "80"),
    "ampere": DeviceClass("Ampere (RTX 30, A10)", "8.6", "86"),
    "orin": DeviceClass("Jetson Orin", "8.7", "87"),
    "ada": DeviceClass("Ada (RTX 40, L4)", "8.9", "89"),
    "hopper": DeviceClass("Hopper (H100, H200)", "9.0", "90"),
    "thor": DeviceClass("Jetson Thor (CUDA 12 calls it 101)", "11.0", "110"),
    "blackwell": DeviceClass("Blackwell (RTX 50)", "12.0", "120"),
}
"""Name → class; tools/llama_wheel.py has the same architectures, and a test compares them."""
TEGRA = {"tegra234": ("Jetson Orin", "8.7"), "tegra264": ("Jetson Thor", "11.0")}
"""System on a chip, as the device tree spells it → name and compute capability."""


def build_flags(architecture: str) -> str:
    """CMAKE_ARGS of a llama.cpp build for a CUDA architecture."""
    return f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={architecture} -DGGML_CUDA_NCCL=OFF"


def class_of(gpu: Gpu) -> tuple[str, DeviceClass] | None:
    """Name and class of a GPU; `None` for one that is not in the table."""
    return next(((name, one) for name, one in CLASSES.items() if one.compute == gpu.compute), None)


def rebuild_line(gpu: Gpu) -> str:
    """What to run so that llama.cpp uses this GPU."""
    found = class_of(gpu)
    architecture = found[1].architecture if found else (gpu.compute or "native").replace(".", "")
    return (
        f'CMAKE_ARGS="{build_flags(architecture)}" '
        "pip install --no-binary llama-cpp-python --force-reinstall --no-deps llama-cpp-python"
    )


def language_verdict(found: list[Gpu], *, offload: bool, cuda_build: bool) -> str:
    """Whether llama.cpp will use the GPU seen, why not, and what to run; one line.

    `offload`: llama.cpp says it sees a GPU it can use; `cuda_build`: the build holds CUDA kernels.
    """
    names = ", ".join(gpu.name for gpu in found)
    if offload:
        return f"llama.cpp, layers offloaded to the GPU ({names or 'not an NVIDIA one'})"
    if not found:
        return "llama.cpp on CPU: no NVIDIA GPU is seen here"
    if cuda_build:
        wanted = found[0].compute or "unknown"
        return (
            f"llama.cpp on CPU: it is built for CUDA but cannot use the {names} (driver {found[0].driver}, "
            f"compute capability {wanted}); run `nvidia-smi`, update the driver, or {rebuild_line(found[0])}"
        )
    return f"llama.cpp on CPU: this build has no CUDA and the {names} is idle; {rebuild_line(found[0])}"


def ask_smi() -> str | None:
    """What nvidia-smi says of name, compute capability and driver; `None` where it does not answer."""
    try:
        result = subprocess.run(QUERY, capture_output=True, text=True, check=False, timeout=SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def seen(root: Path = Path("/"), smi: Callable[[], str | None] = ask_smi) -> list[Gpu]:
    """GPUs of this machine, in the driver's order; empty without one."""
    if (release := _text(root / "etc" / "nv_tegra_release")) is not None:
        return [_jetson(root, release)]
    driver = _text(root / "proc" / "driver" / "nvidia" / "version")
    if driver is None and not (root / "dev" / "nvidiactl").exists():
        return []
    found = [gpu for line in (smi() or "").splitlines() if (gpu := _smi_line(line))]
    return found or _from_proc(root, driver or "")


def driver_version(root: Path = Path("/")) -> str | None:
    """Driver of the GPU without asking it (a Jetson's L4T release); `None` where the system does not say."""
    if (release := _text(root / "etc" / "nv_tegra_release")) is not None:
        return _jetson(root, release).driver
    driver = _text(root / "proc" / "driver" / "nvidia" / "version")
    return None if driver is None else _version(driver)


def _version(text: str) -> str:
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else "unknown"


def _jetson(root: Path, release: str) -> Gpu:
    """`# R36 (release), REVISION: 4.3, …` is L4T 36.4.3, which is JetPack 6.2."""
    compatible = (_text(root / "proc" / "device-tree" / "compatible") or "").replace("\0", " ")
    model = (_text(root / "proc" / "device-tree" / "model") or "").strip("\0 \n")
    chip = next((known for name, known in TEGRA.items() if name in compatible), ("Jetson", None))
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    return Gpu(model or chip[0], chip[1], f"L4T {match[1]}.{match[2]}" if match else "L4T", jetson=True)


def _smi_line(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 3 or not parts[0]:
        return None
    compute = parts[1] if re.fullmatch(r"\d+\.\d+", parts[1]) else None
    return Gpu(parts[0], compute, parts[2])


def _from_proc(root: Path, driver: str) -> list[Gpu]:
    found = []
    for path in sorted((root / "proc" / "driver" / "nvidia" / "gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", _text(path) or "", re.MULTILINE)
        name = model[1].strip() if model else "NVIDIA GPU"
        found.append(Gpu(name, None, _version(driver)))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
