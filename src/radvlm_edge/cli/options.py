"""Options several commands share, and how they open a reader."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from radvlm_edge.errors import BackendError

if TYPE_CHECKING:
    from radvlm_edge.bundle import Manifest
    from radvlm_edge.runtime.reader import Reader

F = TypeVar("F", bound=Callable[..., Any])

NOTICE = "AI output for research, not for diagnosis."
DEMONSTRATION = "The demonstration model was trained mostly on synthetic films."


def reader_options(function: F) -> F:
    """Options of every command that loads a bundle."""
    for option in (
        click.option(
            "--force",
            is_flag=True,
            help="Use artefacts whose answers were measured beyond the bundle's limits.",
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of both engines."),
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


def film_options(function: F) -> F:
    """Options of every command that reads films."""
    for option in (
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


def open_reader(bundle: Path | None, **options: Any) -> Reader:
    from radvlm_edge.runtime.reader import Options, Reader

    reader = Reader.open(bundle, Options(**options))
    if "by force" in reader.fidelity:
        click.echo(f"radvlm-edge: {reader.fidelity}", err=True)
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
