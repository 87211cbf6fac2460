"""Print the path of a llama-cpp-python wheel for this machine, compiling it the first time.

llama-cpp-python is published as source only. The wheel is kept in ~/.cache/radvlm-edge/wheels under
a key of version, build flags and CPU, so one machine compiles it once. Standard library only.
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


def cache_folder(flags: str) -> Path:
    key = hashlib.sha256(f"{platform.machine()}\n{flags}\n{cpu()}".encode()).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "radvlm-edge" / "wheels" / f"{VERSION}-{key}"


def compile_wheel(folder: Path, flags: str) -> None:
    """Compile into a temporary folder and move the wheel in place when it is whole."""
    if shutil.which("g++") is None:
        sys.exit("radvlm-edge: compiling llama.cpp needs g++; e.g. apt-get install build-essential")
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
    flags = os.environ.get("CMAKE_ARGS") or DEFAULT_FLAGS
    folder = cache_folder(flags)
    if not list(folder.glob("*.whl")):
        compile_wheel(folder, flags)
    print(next(folder.glob("*.whl")))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
