"""`radvlm-edge doctor`: what this machine has, and which engines will be used."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

import click

PACKAGES = (
    "numpy",
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "onnxruntime",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "openvino",
    "tensorrt",
    "torch",
    "transformers",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, which engines answers will use, and why."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report))
        return
    for section, rows in report.items():
        click.echo(section)
        for name, value in rows.items():
            click.echo(f"  {name:<20}{value}")


def examine() -> dict[str, dict[str, Any]]:
    """Machine, packages, engines and demonstration bundle, as plain values."""
    from radvlm_edge.benchmarks.latency import cpu_name
    from radvlm_edge.runtime.vision import available_cpus

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {
            "cpu": cpu_name(),
            "cpus": f"{available_cpus()} usable",
            "memory": f"{memory:.1f} GiB",
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "engines": {"vision": _vision(), "language": _language()},
        "demonstration bundle": {"state": _demo()},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _vision() -> str:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "ONNX Runtime on CUDA: onnxruntime-gpu is installed (falls back to CPU if no GPU answers)"
    return "ONNX Runtime on CPU: the installed onnxruntime has no CUDA provider (extra `cuda`)"


def _language() -> str:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        return "llama.cpp, layers offloaded to the GPU: this build supports it"
    return "llama.cpp on CPU: this build has no GPU support (rebuild with CMAKE_ARGS=-DGGML_CUDA=on)"


def _demo() -> str:
    from radvlm_edge.bundle import Bundle, demo_bundle
    from radvlm_edge.errors import RadvlmError

    try:
        bundle = Bundle.open(demo_bundle())
        bundle.verify()
    except RadvlmError as error:
        return f"unusable: {error}"
    return f"{bundle.manifest.name}, every file as sealed"
