"""Print the path of a llama-cpp-python wheel for this machine, compiling it the first time.

llama-cpp-python is published as source only. The wheel is kept in ~/.cache/radvlm-edge/wheels under
a key of version, build flags and CPU, so one machine compiles it once. Standard library only.

    python tools/llama_wheel.py [--gpu orin|thor|turing|a100|ampere|ada|hopper|blackwell]

CMAKE_ARGS, if set, are taken instead of either. With CUDA the toolkit's version is part of the key.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSION = "0.3.36"
DEFAULT_FLAGS = "-DGGML_NATIVE=ON"
CUDA_ARCHITECTURES = {
    "turing": "75",
    "a100": "80",
    "ampere": "86",
    "orin": "87",
    "ada": "89",
    "hopper": "90",
    "thor": "110",
    "blackwell": "120",
}
"""As runtime/gpus.py has them; CUDA 12 calls Thor 101."""


def say(text: str) -> None:
    print(f"radvlm-edge: {text}", file=sys.stderr, flush=True)  # noqa: T201 - runs before click is installed


def cpu() -> str:
    """Model and instruction sets: a native build runs only where these are the same."""
    wanted = ("model name", "flags", "features", "cpu part", "cpu implementer")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return "\n".join(sorted({line for line in lines if line.lower().startswith(wanted)}))


def flags_for(arguments: list[str]) -> str:
    """CMake flags from the command line and the environment."""
    if given := os.environ.get("CMAKE_ARGS"):
        return given
    if not arguments:
        return DEFAULT_FLAGS
    if len(arguments) != 2 or arguments[0] != "--gpu" or arguments[1] not in CUDA_ARCHITECTURES:
        sys.exit(
            f"radvlm-edge: {' '.join(arguments)}: write --gpu and one of {', '.join(CUDA_ARCHITECTURES)}"
        )
    architecture = CUDA_ARCHITECTURES[arguments[1]]
    if arguments[1] == "thor" and " release 12." in toolkit():
        architecture = "101"
    return f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={architecture} -DGGML_CUDA_NCCL=OFF"


def toolkit() -> str:
    """What nvcc says of its version; empty without one."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def cache_folder(flags: str) -> Path:
    cuda = toolkit() if "GGML_CUDA=on" in flags else ""
    text = f"{platform.machine()}\n{flags}\n{cpu()}" + (f"\n{cuda}" if cuda else "")
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "radvlm-edge" / "wheels" / f"{VERSION}-{key}"


def compile_wheel(folder: Path, flags: str) -> None:
    """Compile into a temporary folder and move the wheel in place when it is whole."""
    if shutil.which("g++") is None:
        sys.exit("radvlm-edge: compiling llama.cpp needs g++; e.g. apt-get install build-essential")
    if "GGML_CUDA=on" in flags and not toolkit():
        sys.exit("radvlm-edge: compiling for a GPU needs nvcc; install the CUDA toolkit, put its bin on PATH")
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"compiling llama.cpp {VERSION} ({flags}); once per machine, 4 to 15 minutes on two cores")
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        log = Path(work) / "build.log"
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-binary", "llama-cpp-python"]
        command += ["--wheel-dir", work, f"llama-cpp-python=={VERSION}"]
        began = time.monotonic()
        with log.open("w") as out:
            build = subprocess.Popen(
                command, env={**os.environ, "CMAKE_ARGS": flags}, stdout=out, stderr=subprocess.STDOUT
            )
            while build.poll() is None:
                try:
                    build.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    say(f"still compiling llama.cpp, {time.monotonic() - began:.0f} s")
        if build.returncode:
            sys.stderr.write("\n".join(log.read_text(errors="replace").splitlines()[-30:]) + "\n")
            sys.exit("radvlm-edge: llama.cpp did not compile; the end of its log is above")
        folder.mkdir(exist_ok=True)
        for wheel in Path(work).glob("*.whl"):
            wheel.replace(folder / wheel.name)
    say(f"compiled in {time.monotonic() - began:.0f} s; kept in {folder}")


def main() -> None:
    flags = flags_for(sys.argv[1:])
    folder = cache_folder(flags)
    if not list(folder.glob("*.whl")):
        compile_wheel(folder, flags)
    print(next(folder.glob("*.whl")))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
