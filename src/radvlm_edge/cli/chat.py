"""`radvlm-edge chat`: a conversation about one film."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import (
    film_options,
    notice,
    open_reader,
    reader_options,
    say_notes,
    study_options,
)
from radvlm_edge.errors import FilmError, QuestionError


@click.command()
@click.argument("film")
@reader_options
@film_options
@study_options
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
def chat(film: str, bundle: Path | None, **options: Any) -> None:
    """Talk about a film; earlier turns are remembered. One question a line, end with Ctrl-D."""
    from radvlm_edge.cli.infer import _stream

    if film == "-":
        raise FilmError(
            "chat reads its questions from stdin, so the film cannot come from there; name a file"
        )
    with open_reader(bundle, ahead=film, **options) as reader:
        study = reader.look(film)
        say_notes(film, study)
        click.echo(notice(reader.bundle.manifest), err=True)
        while question := _next_question():
            try:
                _stream(study.say(question))
            except QuestionError as error:
                click.echo(f"radvlm-edge: {error}", err=True)


def _next_question() -> str | None:
    """Next line that is not blank; `None` at the end of input."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            return line.strip()
