"""`radvlm-edge bench`: where the time goes on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import film_options, open_reader, reader_options


@click.command()
@click.argument("film")
@click.option("--ask", default="any effusion?", show_default=True, help="Question asked in every repeat.")
@reader_options
@film_options
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def bench(film: str, ask: str, bundle: Path | None, repeats: int, as_json: bool, **options: Any) -> None:
    """Time one question about one film, part by part: minimum, median and maximum."""
    from radvlm_edge.benchmarks.latency import measure

    with open_reader(bundle, **options) as reader:
        result = measure(reader, film, ask, repeats=repeats)
    if as_json:
        click.echo(json.dumps(result))
        return
    host = result["machine"]
    click.echo(
        f"{host['cpu']}, {host['cpus']} CPUs; vision {result['vision']}; language {result['language']}"
    )
    click.echo(f"{film}: {result['image_tokens']} image tokens; loaded in {result['load_ms']:.0f} ms")
    click.echo(f"{'ms':<14}{'min':>10}{'median':>10}{'max':>10}")
    rows = {**result["parts_ms"], "asked again": result["again_ms"]}
    for part, row in rows.items():
        click.echo(f"{part:<14}{row['min']:>10.1f}{row['median']:>10.1f}{row['max']:>10.1f}")
