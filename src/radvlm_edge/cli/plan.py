"""`radvlm-edge plan`: what a film will cost, before paying."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from radvlm_edge.cli.options import detail_option
from radvlm_edge.geometry import GEOMETRIES, Geometry
from radvlm_edge.runtime.devices import DEVICES

FULL_FILM = "2544x3056"
"""A full-resolution film as MIMIC-CXR has them."""


@click.command()
@click.argument("film", metavar="FILM|WxH", required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="Take the geometry from this bundle.")
@click.option("--geometry", type=click.Choice(sorted(GEOMETRIES)), help="Take a published model's geometry.")
@click.option(
    "--device",
    "devices",
    type=click.Choice(sorted(DEVICES)),
    multiple=True,
    help="Also derive whether it fits this machine and how long it takes; may be repeated.",
)
@click.option(
    "--vision", metavar="X", help="With --device: vision artefact.  [default: the bundle's, else fp16]"
)
@click.option(
    "--language",
    metavar="X",
    help="With --device: language artefact.  [default: the bundle's, else the best for the device]",
)
@detail_option
@click.option("--any-modality", is_flag=True, help="Also read CT, MR and other non-radiographs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(
    film: str | None,
    bundle: Path | None,
    geometry: str | None,
    devices: tuple[str, ...],
    vision: str | None,
    language: str | None,
    detail: str | None,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Say what a film (a file, or its size in pixels as WIDTHxHEIGHT) will cost.

    Without --bundle or --geometry the demonstration bundle's geometry is used. With --device the film
    may be left out; a full-resolution one of 2544x3056 is taken then.
    """
    if bundle is not None and geometry is not None:
        raise click.UsageError("--bundle and --geometry exclude each other")
    if film is None and not devices:
        raise click.UsageError("Missing argument 'FILM|WxH' (only --device can do without)")
    shapes = GEOMETRIES[geometry] if geometry else _bundle_geometry(bundle)
    height, width = _size(film or FULL_FILM, any_modality)
    from radvlm_edge.runtime import crops
    from radvlm_edge.runtime.detail import capped, named, resolve

    cap_px = resolve(detail)
    layout = crops.plan(height, width, capped(shapes, cap_px))
    cost: dict[str, Any] = {
        "height": height,
        "width": width,
        "detail": named(cap_px),
        "grid": list(layout.grid),
        "crops": layout.crops,
        "image_tokens": layout.image_tokens,
        "kv_bytes": layout.image_tokens * shapes.kv_bytes_per_token,
    }
    if devices:
        from radvlm_edge.cli.plan_device import estimates

        cost["devices"] = estimates(devices, bundle, geometry, layout, vision, language)
    if as_json:
        click.echo(json.dumps(cost))
        return
    rows, columns = layout.grid
    click.echo(f"film          {width} x {height} px (width x height)")
    click.echo(f"detail        {named(cap_px)}" + (" px of the long side at most" if cap_px else ""))
    click.echo(f"crops         {layout.crops} of {shapes.crop_px} px: base view and {rows} x {columns} tiles")
    click.echo(f"image tokens  {layout.image_tokens}")
    click.echo(f"K/V state     {cost['kv_bytes'] / 2**20:.1f} MiB in f16")
    if devices:
        from radvlm_edge.cli.plan_device import table

        click.echo(table(cost["devices"]))


def _bundle_geometry(bundle: Path | None) -> Geometry:
    from radvlm_edge.bundle import Bundle, demo_bundle

    return Bundle.open(bundle or demo_bundle()).manifest.geometry


def _size(film: str, any_modality: bool) -> tuple[int, int]:
    """(height, width) in pixels of a film given as a file or as WIDTHxHEIGHT."""
    given = re.fullmatch(r"(\d+)[xX](\d+)", film)
    if given and not Path(film).exists():
        return int(given[2]), int(given[1])
    from radvlm_edge.runtime.film import load_film

    height, width = load_film(film, any_modality=any_modality).pixels.shape
    return height, width
