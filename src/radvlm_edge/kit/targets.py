"""What a kit is packed for: a machine's architecture, Python and C library, as pip's tags name them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.tags import Tag, compatible_tags, cpython_tags

from radvlm_edge.errors import KitError


@dataclass(frozen=True)
class Target:
    """A kind of machine."""

    name: str
    arch: str
    """As `uname -m` says it."""
    glibc: int
    """Wheels that need at most glibc 2.N are packed."""
    pythons: tuple[str, ...] = ()
    """Python versions packed for unless the caller names others; empty: this process's own."""
    requirements: tuple[str, ...] = ()
    """Packages beside radvlm-edge's own."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Packages that are compiled on the target → what their build asks for, cmake and ninja included:
    no metadata says so before the build runs."""
    jetson: bool = False
    """The system's Python holds TensorRT; llama.cpp is compiled with its CUDA; devices are not hidden."""


_LLAMA = {"llama-cpp-python": ("scikit-build-core[pyproject]>=0.9.2", "cmake>=3.21", "ninja>=1.5")}

TARGETS = {
    target.name: target
    for target in (
        Target("x86_64", "x86_64", glibc=28),
        Target(
            "aarch64-jp6",
            "aarch64",
            glibc=35,  # Ubuntu 22.04
            pythons=("3.10",),
            requirements=("cuda-bindings==12.*",),
            sources=_LLAMA,
            jetson=True,
        ),
        Target(
            "aarch64-jp7",
            "aarch64",
            glibc=39,  # Ubuntu 24.04
            pythons=("3.12",),
            requirements=("cuda-bindings==13.*",),
            sources=_LLAMA,
            jetson=True,
        ),
    )
}
"""Name → target. onnxruntime's newest x86 wheels are manylinux_2_28: RHEL 8, Debian 11, Ubuntu 20.04."""

MINORS = range(10, 14)
"""Minor versions of Python 3 the runtime supports."""


def pythons_for(target: Target, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Python versions of a kit, `3.10` to `3.13`, sorted.

    Raises KitError for one that the runtime does not support.
    """
    pythons = wanted or target.pythons or (f"{sys.version_info.major}.{sys.version_info.minor}",)
    supported = [f"3.{minor}" for minor in MINORS]
    for python in pythons:
        if python not in supported:
            raise KitError(
                f"Python {python}: the runtime does not support it; pass --python {' or '.join(supported)}"
            )
    return tuple(sorted(set(pythons), key=supported.index))


def platforms(target: Target) -> list[str]:
    """Platform tags the target takes, the best first: `linux_…` is what was compiled here."""
    found = [f"manylinux_2_{minor}_{target.arch}" for minor in range(target.glibc, 4, -1)]
    found.insert(found.index(f"manylinux_2_17_{target.arch}") + 1, f"manylinux2014_{target.arch}")
    if target.arch == "x86_64":
        found.insert(found.index("manylinux_2_12_x86_64") + 1, "manylinux2010_x86_64")
        found.append("manylinux1_x86_64")
    return [f"linux_{target.arch}", *found]


def tags(target: Target, python: str) -> dict[Tag, int]:
    """Wheel tags a Python of the target takes → rank, 0 the best."""
    version = (3, int(python.partition(".")[2]))
    names = platforms(target)
    accepted = [
        *cpython_tags(python_version=version, platforms=names),
        *compatible_tags(python_version=version, interpreter=f"cp3{version[1]}", platforms=names),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(accepted)))}


def environment(target: Target, python: str) -> dict[str, str]:
    """PEP 508 markers as the target would evaluate them."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": target.arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
