"""`radvlm-edge fidelity`: does a bundle answer as its checkpoint does?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import need


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    required=True,
    metavar="CKPT",
    help="Checkpoint folder the bundle was exported from.",
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
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the bundle's engines.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to read.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def fidelity(
    bundle: Path,
    against: Path,
    lora: Path | None,
    trim_vocab: bool,
    films: Path | None,
    phantoms: int | None,
    max_flips: float | None,
    max_box_loss: float | None,
    threads: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare every combination of a bundle's artefacts with the checkpoint, on the same prompts.

    Figures and verdict go into the bundle (fidelity.json, bundle.json); a combination beyond the declared
    limits is refused from then on unless forced. Aggregates only: nothing of a film is kept. Needs the
    extra `export`.
    """
    need("export", "torch", "transformers", "gguf")
    if films is not None and phantoms is not None:
        raise click.UsageError("--films and --phantoms exclude each other")
    from radvlm_edge.bundle import Bundle
    from radvlm_edge.export import fidelity as stage
    from radvlm_edge.export import probe_films
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.fidelity_page import render_page
    from radvlm_edge.export.fidelity_prompts import FILMS, FIRST_SEED

    opened = Bundle.open(bundle)
    opened.verify()
    checkpoint = open_checkpoint(against, lora=lora, trim_vocab=trim_vocab)
    looked_at = (
        probe_films.user_films(films, opened.manifest.render, _say)
        if films is not None
        else probe_films.phantoms(phantoms or FILMS, FIRST_SEED, checkpoint.config.geometry)
    )
    figures = stage.measure(opened, checkpoint, looked_at, threads=threads, progress=_say)
    limits = dict(opened.manifest.limits)
    limits |= {k: v for k, v in (("flip_rate", max_flips), ("box_iou_loss", max_box_loss)) if v is not None}
    sealed = stage.write(opened, figures, limits)
    if opened.signed:
        _say(f"{bundle}: its signature is gone, since its content changed; sign it again with verify --sign")
    stored: dict[str, Any] = json.loads((bundle / "fidelity.json").read_text(encoding="utf-8"))
    if html is not None:
        page = render_page(sealed.manifest.name, sealed.sha256, stored, stored["beyond"])
        html.write_text(page, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(stored))
        return
    for name, one in stored["combinations"].items():
        click.echo(f"{name:<16}{_line(one)}  {_verdict(stored['beyond'].get(name))}")


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
