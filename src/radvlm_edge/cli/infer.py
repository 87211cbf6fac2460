"""`radvlm-edge infer`: films and questions in, answers on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
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
from radvlm_edge.errors import AuditError, QuestionError, RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.answer import Answer
    from radvlm_edge.runtime.choices import Choice
    from radvlm_edge.runtime.reader import Reader, Study


@click.command()
@click.argument("films", nargs=-1, required=True, metavar="FILM...")
@click.option("--ask", "asks", multiple=True, metavar="TEXT", help="Question; may be given several times.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="report, classify, detect, locate=PHRASE or phrase=SENTENCE, in RadVLM's own wording; "
    "checklist asks for each of its findings.",
)
@click.option(
    "--choose",
    metavar="A|B",
    help="Only decide between these beginnings of an answer, e.g. 'Yes|No'; their probabilities, and whether "
    "they are calibrated, are in the JSON and on stderr.",
)
@reader_options
@film_options
@study_options
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    help="Write the film with the answers' boxes as PNG; a folder when there are several films.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a film, each on one line.")
@click.option("--timing", is_flag=True, help="Say on stderr what each part took; --json always does.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@audit_option
def infer(
    films: tuple[str, ...],
    asks: tuple[str, ...],
    tasks: tuple[str, ...],
    choose: str | None,
    bundle: Path | None,
    overlay: Path | None,
    as_json: bool,
    timing: bool,
    audit: Path | None,
    **options: Any,
) -> None:
    """Ask questions about films (DICOM, PNG, JPEG, TIFF; `-` reads one from stdin).

    The answers alone go to stdout; several questions are answered together, in their order. A film that
    cannot be read does not stop the others; the exit code is then 1.

    \b
      radvlm-edge infer xray.dcm --ask "any effusion?"
      radvlm-edge infer *.dcm --task report --json > reports.jsonl
    """
    from radvlm_edge.runtime import prompts

    if choose is not None and overlay is not None:
        raise click.UsageError("--choose names no boxes; leave out --overlay")
    choices = choose.split("|") if choose is not None else None
    if not asks and not tasks:
        raise QuestionError("nothing to ask; pass --ask TEXT or --task report")
    questions = [*asks, *(question for task in tasks for question in prompts.task_questions(task))]
    log = Noting(audit, "infer")
    with open_reader(bundle, ahead=None if films[0] == "-" else films[0], **options) as reader:
        for question in questions:
            prompts.check_question(question, reader.bundle.manifest.prompting)
        failed = 0
        for index, film in enumerate(_progress(films)):
            load_ms = reader.load_ms if index == 0 else 0.0
            try:
                record = _one_film(
                    reader, film, questions, choices, overlay, len(films), as_json, load_ms, log
                )
            except AuditError:
                raise  # not this film's fault: the next answer could not be noted either
            except RadvlmError as error:
                failed += 1
                log.refused(error)
                click.echo(f"radvlm-edge: {error}", err=True)
                record = {"film": film, "error": str(error)}
            if as_json:
                click.echo(json.dumps(record, ensure_ascii=False))
            if timing and "timing_ms" in record:
                click.echo(f"{film}: {_told(record['timing_ms'])}", err=True)
        click.echo(notice(reader.bundle.manifest), err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _progress(films: tuple[str, ...]) -> Iterator[str]:
    """Films, with a bar on stderr where it cannot mix with answers on the same terminal."""
    if len(films) > 1 and sys.stderr.isatty() and not sys.stdout.isatty():
        with click.progressbar(films, label="films", file=sys.stderr, show_pos=True) as bar:
            yield from bar
    else:
        yield from films


def _one_film(
    reader: Reader,
    film: str,
    questions: list[str],
    choices: list[str] | None,
    overlay: Path | None,
    films: int,
    as_json: bool,
    load_ms: float,
    log: Noting,
) -> dict[str, Any]:
    began = time.perf_counter()
    study = reader.look(sys.stdin.buffer.read() if film == "-" else film)
    say_notes(film, study)
    if choices is not None:
        decided = _decide(film, study, questions, choices, as_json, log)
        return _record(film, study, decided, load_ms, load_ms + (time.perf_counter() - began) * 1e3)
    answers = [study.ask(questions[0])] if len(questions) == 1 else study.ask_many(questions)
    for answer in answers:
        log.answered(study, answer.question, answer.text)  # on the disk before any of it is shown
        if not as_json:
            if films > 1 or len(questions) > 1:
                click.echo(f"{film}: {answer.question}", err=True)
            stream(answer)
        answer.finish()
    wall_ms = (time.perf_counter() - began) * 1e3
    if overlay is not None:
        from radvlm_edge.runtime.overlay import write_overlay

        boxes = [box for answer in answers for box in answer.boxes]
        target = overlay / f"{Path(film).stem}.png" if films > 1 or overlay.is_dir() else overlay
        write_overlay(study.film.pixels, boxes, target)
        if not boxes:
            click.echo(
                f"radvlm-edge: {film}: no boxes in the answers; {target} shows the film alone", err=True
            )
    return _record(film, study, [_answer_record(answer) for answer in answers], load_ms, load_ms + wall_ms)


def _decide(
    film: str,
    study: Study,
    questions: list[str],
    choices: list[str],
    as_json: bool,
    log: Noting,
) -> list[dict[str, Any]]:
    records = []
    for question, choice in zip(questions, study.choose_many(questions, choices), strict=True):
        log.answered(study, choice.question, choice.text)
        if not as_json:
            shares = ", ".join(f"{text} {share:.3f}" for text, share in choice.probabilities.items())
            click.echo(f"{film}: {question}: {shares} ({_sure(choice)})", err=True)
            click.echo(choice.text)
        records.append(_choice_record(choice))
    return records


def _sure(choice: Choice) -> str:
    if choice.calibrated is None:
        return choice.confidence.calibrated_on
    return f"confidence {choice.confidence.value:.3f}, calibrated on {choice.confidence.calibrated_on}"


def stream(answer: Answer, shown: list[str] | None = None) -> None:
    """Write an answer to stdout piece by piece; each is in `shown` before it is seen."""
    started = False
    for piece in answer:
        text = piece if started else piece.lstrip()
        started = started or bool(text)
        if shown is not None:
            shown.append(text)
        click.echo(text, nl=False)
        sys.stdout.flush()
    click.echo()


def _record(
    film: str, study: Study, answers: list[dict[str, Any]], load_ms: float, total_ms: float
) -> dict[str, Any]:
    """The JSON object of one film; docs/cli.md explains each field."""
    manifest = study.reader.bundle.manifest
    looked = study.looked
    return {
        "film": film,
        "bundle": {
            "name": manifest.name,
            "sha256": study.reader.bundle.sha256,
            "demonstration": manifest.demonstration,
        },
        "render": study.film.render,
        "cache": study.cache,
        "vision": {
            "artefact": study.reader.vision_artefact.precision,
            "backend": study.reader.tower.backend,
            **study.reader.vision_plan(),
        },
        "prefill": study.reader.prefilling.told(),
        "answers": answers,
        "image": {
            "height": study.layout.height,
            "width": study.layout.width,
            "crops": study.layout.crops,
            "image_tokens": study.layout.image_tokens,
            "detail": study.detail,
        },
        "timing_ms": {
            "load": round(load_ms, 2),
            "decode_film": round(looked.decode_film_ms, 2),
            "crops": round(looked.crops_ms, 2),
            "vision": round(looked.vision_ms, 2),
            "overlapped": round(looked.overlapped_ms, 2),
            "cache": round(looked.cache_ms, 2),
            "prefill": round(sum(answer["timing_ms"]["prefill"] for answer in answers), 2),
            "prefill_other": round(sum(ms for n, ms in looked.prefill_by_ms.items() if n != "llama.cpp"), 2),
            "decode": round(sum(answer["timing_ms"]["decode"] for answer in answers), 2),
            "total": round(total_ms, 2),
        },
    }


def _told(timing_ms: dict[str, float]) -> str:
    """`load 210 ms, decode_film 31 ms, ...`; parts that took none are left out."""
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in timing_ms.items() if ms)


def _answer_record(answer: Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "text": answer.text,
        "boxes": [
            {
                "label": box.label,
                "xyxy_fraction": list(box.xyxy_fraction),
                "xyxy_pixels": list(box.xyxy_pixels),
            }
            for box in answer.boxes
        ],
        "labels": list(answer.labels),
        "confidence": asdict(answer.confidence),
        "prefill_tokens": answer.prefill_tokens,
        "tokens": answer.tokens,
        "stop": answer.stop,
        "timing_ms": {
            "prefill": round(answer.timing.prefill_ms, 2),
            "first_token": round(answer.timing.first_token_ms, 2),
            "decode": round(answer.timing.decode_ms, 2),
        },
    }


def _choice_record(choice: Choice) -> dict[str, Any]:
    return {
        "question": choice.question,
        "text": choice.text,
        "choice": {
            "text": choice.text,
            "probabilities": choice.probabilities,
            "mass": choice.mass,
            "calibrated": choice.calibrated,
        },
        "confidence": asdict(choice.confidence),
        "prefill_tokens": choice.prefill_tokens,
        "timing_ms": {
            "prefill": round(choice.prefill_ms, 2),
            "first_token": round(choice.prefill_ms, 2),
            "decode": 0.0,
        },
    }
