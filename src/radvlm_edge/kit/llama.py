"""llama-cpp-python for any CPU of an architecture: several builds of its kernels, the best chosen at load."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.version import Version

from radvlm_edge.errors import KitError
from radvlm_edge.kit.distributions import Distribution, in_folders
from radvlm_edge.kit.pip import pip
from radvlm_edge.kit.targets import Target

NAME = "llama-cpp-python"
LIB = "llama_cpp/lib"
FLAGS = (
    "-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_OPENMP=OFF "
    "-DLLAVA_BUILD=OFF "
    f"-DCMAKE_INSTALL_BINDIR={LIB} -DCMAKE_INSTALL_LIBDIR={LIB} -DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include"
)
"""CMAKE_ARGS. Kernels as modules, one for each generation of CPUs, put where the package looks for its
libraries; without OpenMP, whose library (libgomp) a minimal server does not have, and without llama.cpp's own
image part (mtmd), which the runtime never calls."""
_VARIANT = re.compile(rf"{LIB}/libggml-cpu-([a-z0-9]+)\.so$")


def version() -> Version:
    """The version this process runs, which the kit's answers were tested with."""
    return Version(importlib.metadata.version(NAME))


def variants(wheel: Path) -> list[str]:
    """CPU generations a wheel has kernels for, e.g. `haswell`; empty for one compiled for a single CPU."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(found[1] for name in archive.namelist() if (found := _VARIANT.search(name)))


def generic_wheel(target: Target, given: Iterable[Distribution], say: Callable[[str], None]) -> Distribution:
    """A wheel for any CPU: one given, one kept from before, or one compiled now (10 minutes to an hour).

    Raises KitError for a given one that runs on a single CPU only, and where none can be compiled here.
    """
    for one in given:
        if one.name == NAME and one.wheel:
            if len(variants(one.path)) < 2:
                raise KitError(
                    f"{one.path}: compiled for one CPU; take it out of the folder, or build it with "
                    f"CMAKE_ARGS='{FLAGS}'"
                )
            return one
    kept = cache_folder(target.arch)
    if not list(kept.glob("*.whl")):
        if platform.machine() != target.arch:
            raise KitError(
                f"no {NAME} wheel for {target.arch}, and this machine is {platform.machine()}; "
                f"compile it on one that is, with CMAKE_ARGS='{FLAGS}', and pass --wheels"
            )
        say(f"compiling llama.cpp for every {target.arch} CPU; once, ten minutes to an hour")
        _compile(kept)
    return in_folders([kept])[0]


def cache_folder(arch: str) -> Path:
    """Where the wheel is kept; the CPU it was compiled on does not matter."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(FLAGS.encode()).hexdigest()[:12]
    return root / "radvlm-edge" / "wheels" / f"{version()}-generic-{arch}-{key}"


def _compile(folder: Path) -> None:
    if shutil.which("g++") is None:
        raise KitError(
            "compiling llama.cpp needs g++; e.g. apt-get install build-essential, or pass --wheels"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wanted = f"{NAME}=={version()}"
        arguments = ("--no-deps", "--no-binary", NAME, "--no-cache-dir", "--wheel-dir", Path(work), wanted)
        pip("wheel", *arguments, env={"CMAKE_ARGS": FLAGS})
        folder.mkdir(exist_ok=True)
        for wheel in Path(work).glob("*.whl"):
            wheel.replace(folder / wheel.name)
