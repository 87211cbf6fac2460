"""`radvlm-edge doctor`: what this machine has, which engines will be used, which runs the tower fastest."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.errors import RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.vision_choice import Measured

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
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "torch",
    "transformers",
)


@click.command()
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle whose tower is measured; without it the demonstration model's.",
)
@click.option("--vision", metavar="X", help="Vision artefact, e.g. fp16 (see bundle.json).")
@click.option("--threads", type=click.IntRange(1), help="Measure for this --threads alone.")
@click.option("--again", is_flag=True, help="Measure, even where a measurement is kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(bundle: Path | None, vision: str | None, threads: int | None, again: bool, as_json: bool) -> None:
    """Say what this machine has and which engines answers will use; measure the vision engines.

    Each engine runs the bundle's vision artefact for about a second (a large tower on a slow CPU: minutes),
    with several numbers of crops per batch and threads. What was fastest is kept in ~/.cache/radvlm-edge and
    used from then on; infer, chat and bench take another with --vision-backend.
    """
    report = examine()
    try:
        report["vision engines"] = weigh(bundle, vision, threads, again)
    except RadvlmError as error:
        if bundle is not None:
            raise
        report["vision engines"] = {"not measured": str(error)}
    if as_json:
        click.echo(json.dumps(report))
        return
    for section, rows in report.items():
        click.echo(section)
        for name, value in rows.items():
            lines = value if isinstance(value, list) else [value]
            for line in lines:
                click.echo(f"  {name:<20}{line}")
                name = ""


def examine() -> dict[str, dict[str, Any]]:
    """Machine, packages, engines and demonstration bundle, as plain values."""
    from radvlm_edge.runtime.vision import available_cpus
    from radvlm_edge.runtime.vision_choice import cpu_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {
            "cpu": cpu_name(),
            "cpus": f"{available_cpus()} usable",
            "memory": f"{memory:.1f} GiB",
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **_gpus(),
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "engines": {"vision": _vision(), "language": _language()},
        "demonstration bundle": {"state": _demo()},
    }


def weigh(folder: Path | None, vision: str | None, threads: int | None, again: bool) -> dict[str, Any]:
    """Measure the vision engines on a bundle's artefact, unless that was done and is kept.

    Raises BundleError for a bundle or artefact there is not.
    """
    from radvlm_edge.benchmarks.vision_backends import measure
    from radvlm_edge.bundle import Bundle, demo_bundle
    from radvlm_edge.runtime.vision_choice import keep, recall

    bundle = Bundle.open(folder or demo_bundle())
    artefact = bundle.artefact("vision", vision)
    measured, trouble = recall(artefact.sha256, threads)
    found: dict[str, Any] = {"measured on": f"{bundle.manifest.name}, {artefact.precision}"}
    if trouble:
        click.echo(f"radvlm-edge: {trouble.split(';')[0]}; measured anew", err=True)
    if measured is not None and not again:
        return found | _told(measured) | {"kept": f"since {measured.when}; --again measures anew"}
    measured, report = measure(bundle, vision, threads=threads)
    try:
        kept = str(keep(measured, artefact.sha256, threads))
    except OSError as error:
        kept = f"nowhere: the cache cannot be written ({error.strerror}); onnx will be used"
    return found | {"turns": _table(report["rows"])} | _told(measured) | {"kept": kept}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a variant; medians and least, in milliseconds a crop."""
    head = f"{'':<18}{'engine':<10}{'threads':>8}{'crops a batch':>15}{'median ms a crop':>18}{'min':>9}"
    return [head] + [
        f"{row['stage']:<18}{row['engine']:<10}{row['threads']:>8}{row['crops_per_batch']:>15}"
        f"{row['median_ms']:>18.2f}{row['min_ms']:>9.2f}"
        for row in rows
    ]


def _told(measured: Measured) -> dict[str, Any]:
    from radvlm_edge.runtime.vision import available_cpus

    told: dict[str, Any] = {
        name: f"{one.ms_per_crop:.2f} ms a crop on {one.threads} threads, {one.crops_per_batch} crops a batch"
        for name, one in measured.best.items()
    } | measured.notes
    told["chosen"] = measured.chosen
    if measured.load > available_cpus():
        told["doubt"] = f"the machine was busy (load {measured.load:g}); measure again when it is not"
    return told


def _version(name: str) -> str:
    from radvlm_edge.runtime.versions import version_of

    return version_of(name) or "not installed"


def _vision() -> str:
    from radvlm_edge.bundle import Bundle, demo_bundle
    from radvlm_edge.runtime.gpus import seen
    from radvlm_edge.runtime.vision import ENGINES
    from radvlm_edge.runtime.vision_fallback import open_for

    found = ["onnx on CPU"]
    for name, engine in ENGINES.items():
        if engine.extra:
            found.append(name if engine.installed else f"{name}: not installed (extra `{engine.extra}`)")
    if seen():  # what `auto` opens, by opening it
        bundle = Bundle.open(demo_bundle())
        found.insert(0, str(open_for(bundle, bundle.artefact("vision"), None, None).line))
    return "; ".join(found)


def _gpus() -> dict[str, str]:
    from radvlm_edge.runtime.gpus import class_of, seen

    rows = {}
    for index, gpu in enumerate(seen()):
        known = class_of(gpu)
        kind = f", {known[1].title}" if known else ""
        rows[f"gpu {index}"] = (
            f"{gpu.name}, compute capability {gpu.compute or 'not said'}{kind}, driver {gpu.driver}"
        )
    return rows or {"gpu": "no NVIDIA GPU"}


def _language() -> str:
    import llama_cpp

    from radvlm_edge.runtime.gpus import language_verdict, seen

    libraries = Path(llama_cpp.__file__).parent / "lib"
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    cuda_build = any((Path(folder) if folder else libraries).glob("*ggml-cuda*"))
    return language_verdict(seen(), offload=llama_cpp.llama_supports_gpu_offload(), cuda_build=cuda_build)


def _demo() -> str:
    from radvlm_edge.bundle import Bundle, demo_bundle

    try:
        bundle = Bundle.open(demo_bundle())
        bundle.verify()
    except RadvlmError as error:
        return f"unusable: {error}"
    return f"{bundle.manifest.name}, every file as sealed"
