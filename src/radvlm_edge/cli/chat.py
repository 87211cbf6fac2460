"""`radvlm-edge chat`: a conversation about one film."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.noting import Noting
from radvlm_edge.cli.options import (
    audit_option,
    film_options,
    notice,
    open_reader,
    reader_options,
    say_notes,
    study_options,
)
from radvlm_edge.errors import FilmError, QuestionError, RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.reader import Study


@click.command()
@click.argument("film")
@reader_options
@film_options
@study_options
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@audit_option
def chat(film: str, bundle: Path | None, audit: Path | None, **options: Any) -> None:
    """Talk about a film; earlier turns are remembered. One question a line, end with Ctrl-D."""
    if film == "-":
        raise FilmError(
            "chat reads its questions from stdin, so the film cannot come from there; name a file"
        )
    log = Noting(audit, "chat")
    with open_reader(bundle, ahead=film, **options) as reader:
        try:
            study = reader.look(film)
        except RadvlmError as error:
            log.refused(error)
            raise
        say_notes(film, study)
        click.echo(notice(reader.bundle.manifest), err=True)
        while question := _next_question():
            try:
                _answer(study, question, log)
            except QuestionError as error:
                log.refused(error)
                click.echo(f"radvlm-edge: {error}", err=True)


def _answer(study: Study, question: str, log: Noting) -> None:
    """Show an answer while it is written; the log knows of it before the first piece."""
    from radvlm_edge.cli.infer import stream

    answer = study.say(question)
    log.asked(study, question)
    shown: list[str] = []
    try:
        stream(answer, shown)
    except BaseException:  # Ctrl-C, or a terminal that went away
        log.left(study, question, "".join(shown))
        raise
    log.answered(study, question, answer.text)


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
