"""`radvlm-edge batch`: an archive of films in, one Parquet file out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import audit_option, film_options, need, notice, reader_options
from radvlm_edge.errors import QuestionError


@click.command()
@click.argument("films", nargs=-1, metavar="FILM|FOLDER...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Parquet file."
)
@click.option("--films-from", metavar="FILE", help="Also the films listed here, a path a line; `-`: stdin.")
@click.option("--ask", "asks", multiple=True, metavar="TEXT", help="Question; may be given several times.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="As of `infer`.")
@click.option("--choose", metavar="A|B", help="Only decide between these beginnings of an answer.")
@reader_options
@film_options
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes, each with a model of its own.  [default: one a GPU, else one]",
)
@click.option(
    "--part-films",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Films of a part: what each process loses at most when it is killed.",
)
@click.option("--replace", is_flag=True, help="Replace OUT, and parts begun with other films or settings.")
@click.option(
    "--ray",
    metavar="ADDRESS|local",
    help="Run on this Ray cluster; --processes says on how many workers (extra `ray`).",
)
@audit_option
def batch(
    films: tuple[str, ...],
    out: Path,
    films_from: str | None,
    asks: tuple[str, ...],
    tasks: tuple[str, ...],
    choose: str | None,
    bundle: Path | None,
    processes: int | None,
    part_films: int,
    replace: bool,
    ray: str | None,
    audit: Path | None,
    **options: Any,
) -> None:
    """Ask the same questions about many films; one row an answer goes to a Parquet file (docs/batch.md).

    Stopped or killed, the same command goes on where it was: finished parts lie in OUT.parts until OUT is
    whole. A film that cannot be read gets a row that says why, and the exit code is 1 at the end. The same
    films, questions and settings give the same bytes, in one run or several, one process or many.

    \b
      radvlm-edge batch archive/ -o out.parquet --task checklist --choose "Yes|No"
      find /archive -name "*.dcm" | radvlm-edge batch --films-from - -o out.parquet --task report
    """
    need("batch", "pyarrow")
    if ray is not None:
        need("ray", "ray", "pandas")
        if audit is not None:
            raise click.UsageError("--audit keeps a log on one machine; leave out --ray")
    from radvlm_edge.batch.films import gather
    from radvlm_edge.batch.job import Job, Progress, reproducible
    from radvlm_edge.bundle import Bundle, demo_bundle
    from radvlm_edge.runtime import prompts
    from radvlm_edge.runtime.reader import Options

    if not asks and not tasks:
        raise QuestionError("nothing to ask; pass --ask TEXT or --task checklist")
    questions = [*asks, *(question for task in tasks for question in prompts.task_questions(task))]
    opened = Bundle.open(bundle or demo_bundle())
    for question in questions:
        prompts.check_question(question, opened.manifest.prompting)
    job = Job(
        films=tuple(gather(films, films_from)),
        questions=tuple(questions),
        choices=tuple(choose.split("|")) if choose is not None else None,
        bundle=opened.folder.resolve(),
        options=reproducible(Options(**options)),
        part_films=part_films,
        audit=audit.resolve() if audit is not None else None,
    )
    progress = Progress(job, out, replacing=replace)
    try:
        left = progress.missing()
        if len(left) < job.parts:
            click.echo(
                f"radvlm-edge: {out}: {job.parts - len(left)} of {job.parts} parts are done already", err=True
            )
        with _bar(sum(len(job.films_of(part)) for part in left)) as advance:
            if ray is not None:
                _on_ray(progress, ray, processes, advance)
            else:
                _here(progress, processes, advance)
        failed = progress.finish()
    finally:
        progress.close()
    click.echo(
        f"radvlm-edge: {out}: {len(job.films)} films, {failed} of them could not be answered", err=True
    )
    click.echo(notice(opened.manifest), err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _here(progress: Any, processes: int | None, advance: Callable[[int], None]) -> None:
    from radvlm_edge.batch.processes import devices, run
    from radvlm_edge.runtime.gpus import seen

    run(progress, devices(processes, progress.job.options.threads, len(seen())), lambda: advance(1))


def _on_ray(progress: Any, address: str, processes: int | None, advance: Callable[[int], None]) -> None:
    from radvlm_edge.batch.on_ray import run
    from radvlm_edge.runtime.gpus import seen

    threads = progress.job.options.threads
    run(
        progress, address, workers=processes or 1, threads=threads, gpus=min(len(seen()), 1), answered=advance
    )


@contextmanager
def _bar(films: int) -> Iterator[Callable[[int], None]]:
    """Films begun, on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=films, label="films", file=sys.stderr, show_pos=True) as bar:
        yield bar.update
