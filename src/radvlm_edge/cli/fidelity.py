"""`radvlm-edge fidelity`: does a bundle answer as its checkpoint does?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.options import need

if TYPE_CHECKING:
    from radvlm_edge.bundle import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="CKPT",
    help="Checkpoint folder the bundle was exported from; required unless confidence is calibrated.",
)
@click.option(
    "--lora", type=click.Path(path_type=Path), metavar="DIR", help="The adapter the export merged (peft)."
)
@click.option("--trim-vocab", is_flag=True, help="The bundle was exported so.")
@click.option(
    "--films",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of films to ask about.  [default: seeded phantoms]",
)
@click.option("--phantoms", type=click.IntRange(1), help="Number of phantoms without --films.  [default: 24]")
@click.option(
    "--max-flips", type=click.FloatRange(0, 1), help="Declare another limit.  [default: the bundle's]"
)
@click.option(
    "--max-box-loss", type=click.FloatRange(0, 1), help="Declare another limit.  [default: the bundle's]"
)
@click.option(
    "--detail",
    metavar="all|PIXELS,...",
    help="Also measure the default artefacts with less of every film: `all` steps the model has below "
    "exact, or these caps (docs/detail.md).",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --detail: flips and box overlap over time, as PNG.",
)
@click.option(
    "--calibrate-confidence",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="LABELLED",
    help="Instead: fit the temperature of yes/no confidence on this folder of films with a CSV of "
    "film,question,answer (docs/confidence.md).",
)
@click.option(
    "--calibration-name", metavar="TEXT", help="What its questions are called in answers.  [default: counts]"
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the bundle's engines.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to read.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def fidelity(
    bundle: Path,
    against: Path | None,
    lora: Path | None,
    trim_vocab: bool,
    films: Path | None,
    phantoms: int | None,
    max_flips: float | None,
    max_box_loss: float | None,
    detail: str | None,
    plot: Path | None,
    calibrate_confidence: Path | None,
    calibration_name: str | None,
    threads: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare every combination of a bundle's artefacts with the checkpoint, on the same prompts.

    Figures and verdict go into the bundle (fidelity.json, bundle.json); a combination beyond the declared
    limits is refused from then on unless forced. Aggregates only: nothing of a film is kept. Needs the
    extra `export`.
    """
    if calibrate_confidence is not None:
        from radvlm_edge.cli.fidelity_confidence import calibrate

        calibrate(bundle, calibrate_confidence, calibration_name, threads, as_json)
        return
    if against is None:
        raise click.UsageError("Missing option '--against'")
    if plot is not None and detail is None:
        raise click.UsageError("--plot draws what --detail measures; pass --detail all")
    need("export", "torch", "transformers", "gguf")
    if films is not None and phantoms is not None:
        raise click.UsageError("--films and --phantoms exclude each other")
    from radvlm_edge.bundle import Bundle
    from radvlm_edge.export import fidelity as stage
    from radvlm_edge.export import probe_films
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.fidelity_detail import chosen_levels
    from radvlm_edge.export.fidelity_prompts import FILMS, FIRST_SEED

    opened = Bundle.open(bundle)
    opened.verify()
    details = chosen_levels(detail, opened.manifest.geometry) if detail else ()
    checkpoint = open_checkpoint(against, lora=lora, trim_vocab=trim_vocab)
    looked_at = (
        probe_films.user_films(films, opened.manifest.render, _say)
        if films is not None
        else probe_films.phantoms(phantoms or FILMS, FIRST_SEED, checkpoint.config.geometry)
    )
    figures = stage.measure(opened, checkpoint, looked_at, threads=threads, details=details, progress=_say)
    if details:
        from radvlm_edge.benchmarks.latency import machine

        figures["detail"]["machine"] = machine()
    limits = dict(opened.manifest.limits)
    limits |= {k: v for k, v in (("flip_rate", max_flips), ("box_iou_loss", max_box_loss)) if v is not None}
    sealed = stage.write(opened, figures, limits)
    if opened.signed:
        _say(f"{bundle}: its signature is gone, since its content changed; sign it again with verify --sign")
    stored: dict[str, Any] = json.loads((bundle / "fidelity.json").read_text(encoding="utf-8"))
    _pictures(stored, sealed, html, plot)
    click.echo(json.dumps(stored) if as_json else "\n".join(_lines(stored)))


def _pictures(stored: dict[str, Any], sealed: Bundle, html: Path | None, plot: Path | None) -> None:
    if html is not None:
        from radvlm_edge.export.fidelity_page import render_page

        page = render_page(sealed.manifest.name, sealed.sha256, stored, stored["beyond"])
        html.write_text(page, encoding="utf-8")
    if plot is not None:
        from radvlm_edge.benchmarks.detail_plot import draw_detail

        draw_detail(stored["detail"], plot)


def _lines(stored: dict[str, Any]) -> Iterator[str]:
    for name, one in stored["combinations"].items():
        yield f"{name:<16}{_line(one)}  {_verdict(stored['beyond'].get(name))}"
    levels = stored.get("detail", {"levels": {}})["levels"]
    for name, one in sorted(levels.items(), key=lambda level: -level[1]["image_tokens_mean"]):
        spent = one["vision_ms"] + one["prefill_ms"]
        yield f"detail {name:<9}{_line(one)}  {one['image_tokens_mean']:.0f} tokens, {spent:.0f} ms a film"


def _verdict(found: list[str] | None) -> str:
    if found is None:
        return "not judged: no answer was a yes or no, and none held a box"
    return "; ".join(found) or "within its limits"


def _line(one: dict[str, Any]) -> str:
    yes_no, boxes = one["yes_no"], one["boxes"]
    low, high = yes_no["interval_95"]
    overlap = "none" if boxes["mean_iou"] is None else f"{boxes['mean_iou']:.3f}"
    kld = one["next_token"]["kld_mean"]
    return (
        f"flips {yes_no['flips']}/{yes_no['decided']} ({low:.1%} to {high:.1%})  box IoU {overlap}  "
        f"KLD {'none' if kld is None else format(kld, '.2g')}"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
