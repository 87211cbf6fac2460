"""`radvlm-edge fidelity --calibrate-confidence`: what does a confidence of 0.9 mean?"""

from __future__ import annotations

import json
from pathlib import Path

import click


def calibrate(bundle: Path, folder: Path, name: str | None, threads: int | None, as_json: bool) -> None:
    """Ask the labelled questions, fit on half of the films, measure on the rest, seal; figures to stdout."""
    from radvlm_edge.calibration.confidence import calibrate_bundle, line
    from radvlm_edge.calibration.labelled import read_labelled
    from radvlm_edge.runtime.reader import Options, Reader

    films = read_labelled(folder)
    questions = sum(len(film.questions) for film in films)
    name = name or f"{questions} questions about {len(films)} of the user's films"
    with Reader.open(bundle, Options(threads=threads)) as reader:
        signed = reader.bundle.signed
        sealed, figures = calibrate_bundle(reader, films, name, lambda text: click.echo(text, err=True))
    if signed:
        click.echo(
            f"{bundle}: its signature is gone, since its content changed; sign it again with verify --sign",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(f"{sealed.manifest.name}: {line(figures)}")
