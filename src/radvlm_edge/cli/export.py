"""`radvlm-edge export`: checkpoint folder in, sealed bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.options import need
from radvlm_edge.runtime.devices import CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from radvlm_edge.export.checkpoint import Checkpoint
    from radvlm_edge.export.imatrix_file import ImportanceMatrix
    from radvlm_edge.export.int8_table import Table


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder.  [default: CKPT.bundle]")
@click.option(
    "--vision",
    default="fp32,fp16",
    show_default=True,
    help="Vision artefacts to write: fp32, fp16, int8 (and int8-trt with it).",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Calibration for --vision int8, from `calibrate`.  [default: made now, on the set that ships]",
)
@click.option("--language", default="F16,Q8_0,Q4_K_M", show_default=True, help="Language artefacts to write.")
@click.option(
    "--prefill",
    default="none",
    show_default=True,
    help="Also write the language model's prefill as a graph for other engines: int8, fp16, fp32. int8 is "
    "calibrated now, on phantoms, and NIH films where RADVLM_EDGE_DATA names them.",
)
@click.option(
    "--parity",
    type=click.Choice(["quick", "full", "none"]),
    default="quick",
    show_default=True,
    help="How thoroughly to compare the bundle with the checkpoint.",
)
@click.option(
    "--render",
    type=click.Choice(["voi", "minmax", "mimic"]),
    help="How the bundle renders films by default.  [default: as the checkpoint says, else mimic]",
)
@click.option(
    "--device",
    type=click.Choice(CLASSES),
    default="any",
    show_default=True,
    help="Kind of machine the bundle's default language artefact is chosen for.",
)
@click.option(
    "--imatrix",
    metavar="auto|FILE",
    help="Importance matrix for quantisation: made from image-bearing prompts, or a llama.cpp GGUF imatrix.",
)
@click.option(
    "--imatrix-films",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Films for --imatrix auto.  [default: phantoms, and NIH films where RADVLM_EDGE_DATA names them]",
)
@click.option("--imatrix-out", type=click.Path(path_type=Path), help="Also write the importance matrix here.")
@click.option(
    "--sign", type=click.Path(path_type=Path), metavar="KEY.pem", help="Sign the bundle (extra `sign`)."
)
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Merge the LoRA adapter in DIR (peft).",
)
@click.option("--trim-vocab", is_flag=True, help="Leave out embedding rows behind the last token.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--resume", is_flag=True, help="Go on with what a killed export of this checkpoint finished.")
def export(
    checkpoint: Path,
    out: Path | None,
    vision: str,
    calibration: Path | None,
    language: str,
    prefill: str,
    parity: str,
    render: str | None,
    device: str,
    imatrix: str | None,
    imatrix_films: Path | None,
    imatrix_out: Path | None,
    sign: Path | None,
    lora: Path | None,
    trim_vocab: bool,
    force: bool,
    resume: bool,
) -> None:
    """Turn a RadVLM checkpoint folder into a sealed bundle.

    The bundle is compared with its checkpoint before it is sealed; one that does not agree is not
    written. Needs the extra `export`.
    """
    need("export", "torch", "transformers", "optimum", "onnx", "gguf")
    from radvlm_edge.export.exporter import export_checkpoint

    key = None
    if sign is not None:
        from radvlm_edge import signing

        key = signing.load_private(sign)
    if calibration is not None and "int8" not in _names(vision):
        raise click.UsageError("--calibration is for --vision int8")
    out = out or checkpoint.with_name(checkpoint.resolve().name + ".bundle")
    bundle = export_checkpoint(
        checkpoint,
        out,
        vision=_names(vision),
        language=_names(language),
        prefill=() if prefill == "none" else _names(prefill),
        parity=parity,
        render=render,
        device=device,
        imatrix=_imatrix(imatrix, imatrix_films, imatrix_out, render) if imatrix else None,
        calibration=_calibration(calibration, out) if "int8" in _names(vision) else None,
        prefill_calibration=_prefill_calibration if "int8" in _names(prefill) else None,
        lora=lora,
        trim_vocab=trim_vocab,
        force=force,
        resume=resume,
        progress=_say,
    )
    if key is not None:
        signing.sign(bundle.folder, key)
    click.echo(bundle.folder)


def _imatrix(wanted: str, films: Path | None, out: Path | None, render: str | None) -> Any:
    """What gives the exporter its importance matrix once the checkpoint is open."""

    def give(checkpoint: Checkpoint) -> ImportanceMatrix:
        from radvlm_edge.calibration.imatrix import AUTO_FILMS, FIRST_SEED, collect
        from radvlm_edge.export import probe_films
        from radvlm_edge.export.imatrix_file import load_imatrix

        if wanted != "auto":
            return load_imatrix(Path(wanted))
        if films is not None:
            looked_at = probe_films.user_films(films, render or str(checkpoint.facts["render"]), _say)
        else:
            looked_at = probe_films.phantoms(AUTO_FILMS, FIRST_SEED, checkpoint.config.geometry)
            if real := probe_films.nih_films(AUTO_FILMS):
                looked_at = probe_films.together([looked_at, real])
        matrix = collect(checkpoint, looked_at, progress=_say)
        if out is not None:
            matrix.save(out)
        return matrix

    return give


def _calibration(file: Path | None, out: Path) -> Any:
    """What gives the exporter its calibration once the checkpoint is open."""

    def give(checkpoint: Checkpoint, source_sha256: str, fp32_graph: Callable[[], Path]) -> Table:
        from radvlm_edge.calibration import vision as stage
        from radvlm_edge.cli.calibrate import films_for
        from radvlm_edge.export.int8_table import load_table
        from radvlm_edge.export.progress import Progress

        if file is not None:
            return load_table(file)
        geometry = checkpoint.config.geometry
        films = films_for(None, str(checkpoint.facts["render"]), geometry, out)
        unfinished = out.with_name(f".{out.name}.calibration")
        graph = fp32_graph()
        return stage.calibrate(
            graph, source_sha256, geometry, films, unfinished=unfinished, progress=Progress(_say)
        )

    return give


def _prefill_calibration(checkpoint: Checkpoint, source_sha256: str) -> Table:
    from radvlm_edge.calibration import prefill as stage
    from radvlm_edge.export import probe_films

    geometry, count = checkpoint.config.geometry, stage.FILMS
    films = probe_films.phantoms(count, stage.FIRST_SEED, geometry)
    held_out = probe_films.phantoms(stage.HELD_OUT, stage.FIRST_SEED + count, geometry)
    if real := probe_films.nih_films(count):
        films = probe_films.together([films, real])
    return stage.calibrate(checkpoint, source_sha256, films, held_out, say=_say)


def _say(line: str) -> None:
    click.echo(line, err=True)
