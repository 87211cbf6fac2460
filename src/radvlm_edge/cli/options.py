"""Options several commands share, and how they open a reader."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from radvlm_edge.errors import BackendError

if TYPE_CHECKING:
    from radvlm_edge.bundle import Manifest
    from radvlm_edge.runtime.reader import Reader, Study

F = TypeVar("F", bound=Callable[..., Any])

NOTICE = "AI output for research, not for diagnosis."
DEMONSTRATION = "The demonstration model was trained mostly on synthetic films."


def parse_layers(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Layers on a GPU; llama.cpp's -1 for `all`."""
    if value is None or value == "all":
        return None if value is None else -1
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is no number of layers; write 0, 1, 2, … or all")
    return int(value)


def overlap_option(function: F) -> F:
    """Whether parts of a first answer run at once (runtime/overlap.py)."""
    return click.option(
        "--overlap/--no-overlap",
        default=None,
        help="Encode crops while complete image tokens are prefilled, and read the film while weights load: "
        "the same answers.  [default: where it pays (docs/benchmarks.md)]",
    )(function)


def reader_options(function: F) -> F:
    """Options of every command that loads a bundle."""
    for option in (
        overlap_option,
        click.option(
            "--force",
            is_flag=True,
            help="Use artefacts whose answers were measured beyond the bundle's limits.",
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of all engines."),
        click.option(
            "--phrases",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="For --drafts: answers, one a line, to guess from. The file stays where it is.",
        ),
        click.option(
            "--drafts/--no-drafts",
            default=False,
            help="Guess long answers ahead: the same answer in fewer passes; not faster with the "
            "demonstration model.  [default: no-drafts]",
        ),
        click.option(
            "--kv-type",
            type=click.Choice(["f16", "q8_0"]),
            help="How K and V are kept; q8_0 takes half the memory, with flash attention.  [default: f16]",
        ),
        click.option(
            "--flash-attention",
            type=click.Choice(["auto", "on", "off"]),
            help="Fused attention of the language model; auto: llama.cpp's choice on a GPU, off on the CPU, "
            "where it is less exact.  [default: auto]",
        ),
        click.option(
            "--gpu-layers",
            callback=parse_layers,
            metavar="N|all",
            help="Layers of the language model on a GPU; an error where llama.cpp sees none it can use.  "
            "[default: all where it does]",
        ),
        click.option(
            "--vision-backend",
            metavar="ENGINE",
            help="Engine of the tower: onnx, openvino, cuda, tensorrt or tensorrt-rtx; auto takes the first "
            "GPU engine that works, else the one `doctor` measured best, else onnx.  [default: auto]",
        ),
        click.option(
            "--prefill-backend",
            type=click.Choice(["llama", "onnx", "openvino", "auto"]),
            default="auto",
            show_default=True,
            help="Who prefills images, if the bundle holds a prefill graph; auto measures once, for about a "
            "second. Others than llama hold a second copy of the language model's weights.",
        ),
        click.option("--prefill", metavar="X", help="Prefill artefact, e.g. int8 (see bundle.json)."),
        click.option("--language", metavar="X", help="Language artefact, e.g. Q8_0 (see bundle.json)."),
        click.option("--vision", metavar="X", help="Vision artefact, e.g. fp16 (see bundle.json)."),
        click.option(
            "--bundle",
            type=click.Path(path_type=Path),
            help="Bundle folder; without it the demonstration model answers.",
        ),
    ):
        function = option(function)
    return function


def detail_option(function: F) -> F:
    """How much of a film is shown (runtime/detail.py)."""
    return click.option(
        "--detail",
        metavar="exact|PIXELS",
        help="Show at most so many pixels of a film's long side; with RadVLM's crops 1152, 768 and 384 are "
        "the steps (docs/detail.md).  [default: exact]",
    )(function)


def film_options(function: F) -> F:
    """Options of every command that reads films."""
    for option in (
        detail_option,
        click.option("--frame", type=click.IntRange(0), help="Frame of a multi-frame file, from 0."),
        click.option("--any-modality", is_flag=True, help="Also read CT, MR and other non-radiographs."),
        click.option(
            "--render",
            type=click.Choice(["voi", "minmax", "mimic"]),
            help="How pixels become 8-bit grey: the file's own window, min-max, or histogram-equalised "
            "as MIMIC-CXR-JPG.  [default: as the bundle says]",
        ),
    ):
        function = option(function)
    return function


UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Bytes of `8589934592`, `512MB` or `8GiB`."""
    given = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)?", value.strip().lower())
    if given is None:
        raise click.BadParameter(
            f"{value!r} is no size; write bytes, or a number and KB, MB, GB, KiB, MiB or GiB"
        )
    return int(float(given[1]) * UNITS[given[2] or ""])


def study_options(function: F) -> F:
    """Options of every command that may keep what it has looked at."""
    for option in (
        click.option(
            "--study-cache-key",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Encrypt the cache with this key (32 raw bytes or 64 hex digits); without it "
            "RADVLM_EDGE_STUDY_KEY is used, if set (extra `studies`).",
        ),
        click.option(
            "--study-cache-days",
            type=click.FloatRange(0, min_open=True),
            default=7.0,
            show_default=True,
            help="Look again at films kept there longer ago.",
        ),
        click.option(
            "--study-cache-limit",
            callback=parse_size,
            metavar="SIZE",
            default="8GiB",
            show_default=True,
            help="Most the cache may hold; the least recently used go first.",
        ),
        click.option(
            "--study-cache",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Keep looked-at films here, so that asking again costs no second look. Patient data: the "
            "folder must be yours alone.",
        ),
    ):
        function = option(function)
    return function


def audit_option(function: F) -> F:
    """Where answers are noted (audit.py)."""
    return click.option(
        "--audit",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="LOG",
        help="Note every answer in this append-only log before it is given (docs/audit.md); where that is "
        "impossible, none is.",
    )(function)


def say_notes(film: str, study: Study) -> None:
    """What was odd about a film, or about its place in the study cache, on stderr."""
    for warning in study.film.warnings:
        click.echo(f"radvlm-edge: {film}: {warning}", err=True)
    for note in study.notes:
        click.echo(f"radvlm-edge: {note}", err=True)


def open_reader(bundle: Path | None, *, ahead: str | None = None, **options: Any) -> Reader:
    """Open a bundle and say what is odd about it; `ahead`: the film that is read meanwhile."""
    from radvlm_edge.runtime.reader import Options, Reader

    reader = Reader.open(bundle, Options(**options), ahead=ahead)
    lines = (
        reader.engine_note,
        reader.fidelity if "by force" in reader.fidelity else None,
        reader.chosen.trouble if reader.chosen else None,
    )
    for line in lines:
        if line:
            click.echo(f"radvlm-edge: {line}", err=True)
    for note in reader.prefilling.notes:
        click.echo(f"radvlm-edge: {note}", err=True)
    if reader.prefilling.memory_bytes is not None:
        cost = f"{reader.prefilling.memory_bytes / 2**20:.0f} MiB more memory"
        click.echo(f"radvlm-edge: {reader.prefilling.backend} prefills images, for {cost}", err=True)
    return reader


def notice(manifest: Manifest) -> str:
    """The one line every answer comes with."""
    return f"{NOTICE} {DEMONSTRATION}" if manifest.demonstration else NOTICE


def need(extra: str, *modules: str) -> None:
    """Raise BackendError naming the extra to install if a module is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"this command needs {', '.join(missing)}, not installed here; "
            f"run `pip install 'radvlm-edge[{extra}]'`"
        )
