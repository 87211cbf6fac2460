"""`radvlm-edge bench`: where the time goes on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import film_options, need, overlap_option

COMMA = "  Several, separated by commas, are compared."


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="CKPT",
    help="Also time this checkpoint in transformers (extra `export`).",
)
@click.option(
    "--film", type=click.Path(path_type=Path), help="Film to time.  [default: a drawn one, 2544x3056]"
)
@click.option("--vision", metavar="X", help=f"Vision artefact.{COMMA}")
@click.option("--language", metavar="X", help=f"Language artefact.{COMMA}")
@film_options
@overlap_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads of all engines.")
@click.option("--force", is_flag=True, help="Also use artefacts measured beyond the bundle's limits.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Times each is done.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option(
    "--json",
    "json_out",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write all figures here (`-`: stdout).",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the medians as PNG.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT",
    help="Also write a Chrome trace of one start and cold study here, and its picture beside it as .png.",
)
def bench(
    bundle: Path | None,
    against: Path | None,
    film: Path | None,
    vision: str | None,
    language: str | None,
    detail: str | None,
    repeat: int,
    json_out: Path | None,
    plot: Path | None,
    trace: Path | None,
    **options: Any,
) -> None:
    """Time a bundle: a film's first answer, a second question, a second process, a checklist, a report.

    Without BUNDLE the demonstration model is timed. Variants (--vision, --language and --detail take lists)
    and the checkpoint take turns in one process; all are open at once. Peak memory, bytes on disk, energy
    where the machine counts it, and the fraction of the machine's own ceilings follow (docs/benchmarks.md).
    """
    if against is not None:
        need("export", "torch", "transformers", "tokenizers")
    from radvlm_edge.benchmarks import bench as stage
    from radvlm_edge.benchmarks import bench_film, bench_text
    from radvlm_edge.runtime.film import content_of
    from radvlm_edge.runtime.reader import Options

    content = bench_film.drawn_film() if film is None else content_of(film)[0]
    plan = stage.Plan(
        bundle=bundle or stage.default_bundle(),
        film=content,
        film_name=bench_film.NAME if film is None else str(film),
        options=Options(**options),
        visions=_several(vision),
        languages=_several(language),
        details=_several(detail),
        against=against,
        repeats=repeat,
    )
    result = stage.measure(plan, lambda line: click.echo(line, err=True))
    if trace is not None:
        _trace(plan, trace)
    if plot is not None:
        bench_text.draw(result, plot)
    text = json.dumps(result, indent=1) + "\n"
    if json_out is not None and str(json_out) == "-":
        click.echo(text, nl=False)
        return
    if json_out is not None:
        json_out.write_text(text, encoding="utf-8")
    click.echo("\n".join(bench_text.lines(result)))


def _several(value: str | None) -> tuple[str | None, ...]:
    return (None,) if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def _trace(plan: Any, path: Path) -> None:
    import tempfile

    from radvlm_edge.benchmarks.bench_trace import record_start, write_trace

    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film"
        film.write_bytes(plan.film)
        drawn = write_trace(record_start(plan.bundle, next(iter(plan.variants().values())), film), path)
    click.echo(f"{path} and {drawn}: written", err=True)
