"""`radvlm-edge build`: a TensorRT engine of a bundle's tower, on the machine that will run it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from radvlm_edge.bundle import Bundle
    from radvlm_edge.runtime.tensorrt_library import Report


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="Library to build with.",
)
@click.option("--vision", metavar="X", help="Vision artefact: fp32, fp16 or int8-trt.")
@click.option(
    "--workspace", type=click.IntRange(1), metavar="MIB", help="Most GPU memory a step of the engine may use."
)
@click.option("--no-golden", is_flag=True, help="Use the engine without comparing it with golden.npz.")
@click.option("--dry-run", is_flag=True, help="Parse, build, keep nothing; tensorrt-rtx needs no GPU for it.")
@click.option("--force", is_flag=True, help="Build anew what is built already.")
def build(
    bundle: Path,
    backend: str,
    vision: str | None,
    workspace: int | None,
    no_golden: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Build the TensorRT engine of a bundle's vision tower here, and compare it with the checkpoint.

    Engines fit one library version and one GPU: build where you run. They are kept in
    ~/.cache/radvlm-edge/engines, never in the bundle. An engine whose tokens are not the checkpoint's is
    removed, with the figures. `infer` uses it from then on (--vision-backend auto or tensorrt).
    """
    from radvlm_edge.bundle import Bundle
    from radvlm_edge.runtime import tensorrt_engines as engines

    opened = Bundle.open(bundle)
    opened.check()
    artefact = engines.artefact_of(opened, vision)
    graph = opened.path(artefact)
    began = time.perf_counter()
    if dry_run:
        with _progress() as report:
            facts = engines.try_build(
                backend, graph, opened.manifest.geometry, workspace_mib=workspace, report=report
            )
        click.echo(
            f"{graph}: {backend} {facts['version']} takes its {facts['nodes']} nodes and builds "
            f"{facts['engine_bytes'] / 2**20:.1f} MiB; not kept, not run"
        )
        return
    target = engines.target_of(backend, graph, artefact.sha256)
    kept = target.entry.facts()
    if kept is None or force:
        _warn_of_memory(graph)
        with _progress() as report:
            engines.build(target, workspace_mib=workspace, golden=not no_golden, report=report)
        click.echo(f"{graph}: built in {time.perf_counter() - began:.0f} s by {target.name}")
    else:
        click.echo(f"{graph}: built already by {target.name}; --force builds it anew")
    _compare(opened, target)


def _compare(bundle: Bundle, target: Any) -> None:
    """Open the engine, which compares it if nobody has, and say the figures."""
    from radvlm_edge.runtime.tensorrt_engines import SKIPPED
    from radvlm_edge.runtime.vision import open_tower

    open_tower(target.graph, backend=target.entry.key.backend, sha256=target.artefact.sha256)
    golden = (target.entry.facts() or {})["golden"]
    if golden == SKIPPED:
        click.echo(f"{bundle.folder}: not compared with golden.npz, as asked; answers say so")
    else:
        click.echo(
            f"{bundle.folder}: token cosine {golden['cosine']:.6f}, max error {golden['error']:.2g} of "
            f"scale, in runs of {', '.join(map(str, golden['batches']))} crops: the engine may be used"
        )


def _warn_of_memory(graph: Path) -> None:
    """Building takes three to four times the model's size (TensorRT-Edge-LLM issue 30)."""
    size = sum(part.stat().st_size for part in graph.parent.glob(f"{graph.name}*"))
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:") and (free := int(line.split()[1]) << 10) < 4 * size:
            click.echo(
                f"radvlm-edge: building takes about {4 * size / 2**30:.1f} GiB, {free / 2**30:.1f} are free; "
                "add swap if it is killed",
                err=True,
            )


@contextmanager
def _progress() -> Iterator[Report]:
    """The library's phases on a terminal's stderr, one line that is written over; nothing elsewhere."""
    terminal = sys.stderr.isatty()

    def show(phase: str, done: int, total: int) -> None:
        if terminal:
            click.echo(f"\r{phase[:60]:<60}{done:>7}/{total:<7}", nl=False, err=True)

    try:
        yield show
    finally:
        if terminal:
            click.echo("\r" + " " * 76 + "\r", nl=False, err=True)
