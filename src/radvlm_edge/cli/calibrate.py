"""`radvlm-edge calibrate`: films in, the calibration of the INT8 vision graphs out."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.options import need

if TYPE_CHECKING:
    from radvlm_edge.calibration.vision import Films
    from radvlm_edge.geometry import Geometry


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="BUNDLE|CKPT")
@click.argument(
    "films", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False, metavar="[FILMS]"
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("calibration.json"),
    show_default=True,
    help="Calibration file.",
)
@click.option("--crops", type=click.IntRange(1), help="Crops to calibrate on.  [default: 500]")
@click.option("--held-out", type=click.IntRange(1), help="Crops to judge INT8 by.  [default: 16]")
@click.option(
    "--gate",
    type=click.FloatRange(0, 1),
    help="Token cosine 99 of 100 tokens must keep; layers return to float until they do.  [default: 0.995]",
)
@click.option("--render", type=click.Choice(["voi", "minmax", "mimic"]), help="[default: as the model says]")
@click.option(
    "--lora", type=click.Path(path_type=Path), metavar="DIR", help="The adapter an export would merge (peft)."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--force", is_flag=True, help="Replace an existing calibration file.")
def calibrate(
    model: Path,
    films: Path | None,
    out: Path,
    crops: int | None,
    held_out: int | None,
    gate: float | None,
    render: str | None,
    lora: Path | None,
    threads: int | None,
    force: bool,
) -> None:
    """Find the scales of the INT8 vision artefacts on a folder of films (DICOM, PNG, JPEG, TIFF).

    Without FILMS on the set that ships: phantoms, and NIH films where RADVLM_EDGE_DATA names them. The file
    holds scales, counts and salted hashes; no pixels, no names. The salt is written beside it: keep it.
    A killed run goes on when it is started again. Needs the extra `export`.
    """
    need("export", "torch", "onnx", "yaml")
    from radvlm_edge.calibration import vision as stage
    from radvlm_edge.errors import OutputError
    from radvlm_edge.export.int8_table import GATE
    from radvlm_edge.export.progress import Progress

    if out.exists() and not force:
        raise OutputError(f"{out} exists already; choose another -o or pass --force to replace it")
    progress = Progress(_say)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".calibrate-") as folder:
        graph, source, geometry, stated = _open(model, lora, Path(folder), progress)
        table = stage.calibrate(
            graph,
            source,
            geometry,
            films_for(films, render or stated, geometry, out.with_name(f"{out.name}.salt")),
            unfinished=out.with_name(f".{out.name}.unfinished"),
            crops=crops or stage.CROPS,
            held_out=held_out or stage.HELD_OUT,
            gate=GATE if gate is None else gate,
            threads=threads,
            progress=progress,
        )
    table.save(out)
    _say(_summary(table.curve, len(table.groups)))
    click.echo(out)


def films_for(folder: Path | None, render: str, geometry: Geometry, salt: Path) -> Films:
    """The user's films, or those of the set that ships; `salt` is read or made."""
    from radvlm_edge.calibration import film_sets
    from radvlm_edge.calibration.vision import Films

    if folder is None:
        seen = film_sets.of_definition(film_sets.OPEN_SET, geometry, _say)
        return Films(seen, "open set", "open")
    return Films(film_sets.of_folder(folder, render, geometry, _say), "films of a folder", _salt(salt))


def _salt(path: Path) -> str:
    """A random salt, kept beside the calibration for its owner alone."""
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    salt = secrets.token_hex(16)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{salt}\n")
    return salt


def _open(model: Path, lora: Path | None, folder: Path, progress: Any) -> tuple[Path, str, Geometry, str]:
    """Float vision graph, checkpoint digest, geometry and rendering of a bundle or a checkpoint."""
    from radvlm_edge.bundle import MANIFEST, Bundle
    from radvlm_edge.errors import BundleError
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.vision import weight_bytes, write_vision

    if (model / MANIFEST).exists():
        if lora is not None:
            raise click.UsageError("--lora is for checkpoints; a bundle has its adapter merged")
        bundle = Bundle.open(model)
        bundle.check()
        manifest = bundle.manifest
        held = {a.precision: a for a in manifest.artefacts if a.role == "vision"}
        found = held.get("fp32") or held.get("fp16")
        if found is None:
            raise BundleError(
                f"{model}: has no fp32 or fp16 vision artefact; give the checkpoint it was made from"
            )
        return bundle.path(found), str(manifest.source["sha256"]), manifest.geometry, manifest.render
    checkpoint = open_checkpoint(model, lora=lora)
    graph = folder / "fp32.onnx"
    progress.stage("vision fp32", weight_bytes(checkpoint, "fp32"))
    write_vision(checkpoint, "fp32", graph, progress.advance)
    render = str(checkpoint.facts["render"])
    return graph, checkpoint.sha256(), checkpoint.config.geometry, render


def _summary(curve: Any, groups: int) -> str:
    last = curve[-1]
    return (
        f"{groups - last['float_groups']} of {groups} groups of layers in INT8, "
        f"token cosine p1 {last['p1']:.5f}, min {last['min']:.5f} on held-out crops"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
