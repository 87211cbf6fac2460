"""`radvlm-edge pack`: a bundle and everything a machine without a network needs to run it, in one file."""

from __future__ import annotations

from pathlib import Path

import click

from radvlm_edge.cli.options import need


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    type=click.Choice(["x86_64", "aarch64-jp6", "aarch64-jp7"]),
    help="Machine it is for: any x86 CPU, or a Jetson with JetPack 6 or 7.",
)
@click.option(
    "-o",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="KIT.tar.zst",
    help="The kit; KIT.tar is not compressed, for a target without zstd.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="3.N",
    help="Python of the target; may be given several times.  [default: this one's; on a Jetson JetPack's]",
)
@click.option(
    "--wheels",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of ready wheels, looked at first; may be given several times.",
)
@click.option("--no-index", is_flag=True, help="Fetch nothing: everything is in --wheels.")
@click.option(
    "--sign", type=click.Path(path_type=Path), metavar="KEY.pem", help="Sign the kit (Ed25519, extra `sign`)."
)
@click.option(
    "--model-card",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Markdown that begins MODEL_CARD.md; what the bundle says of itself follows.",
)
@click.option(
    "--i-hold-the-license",
    "licence_held",
    is_flag=True,
    help="Pack a bundle that may not be passed on; the kit is marked.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def pack(
    bundle: Path,
    target: str,
    out: Path,
    pythons: tuple[str, ...],
    wheels: tuple[Path, ...],
    no_index: bool,
    sign: Path | None,
    model_card: Path | None,
    licence_held: bool,
    force: bool,
) -> None:
    """Pack a bundle with everything a machine without a network needs (docs/offline.md).

    Wheels are fetched for the target, llama.cpp is compiled for any x86 CPU (once, ten minutes to an hour) or
    packed as source for a Jetson. The same wheels and bundle give the same file, byte for byte.

    \b
      radvlm-edge pack radvlm.bundle --target x86_64 --python 3.12 -o radvlm.tar.zst --sign KEY.pem
    """
    need("kit", "zstandard", "packaging")
    from radvlm_edge.bundle import Bundle
    from radvlm_edge.kit import pack as kit
    from radvlm_edge.kit.targets import TARGETS

    wanted = kit.Wanted(
        target=TARGETS[target],
        pythons=pythons,
        wheels=wheels,
        index=not no_index,
        licence_held=licence_held,
        model_card=model_card,
        key=sign,
    )
    packed = kit.pack(
        Bundle.open(bundle),
        wanted,
        out,
        force=force,
        say=lambda line: click.echo(f"radvlm-edge: {line}", err=True),
    )
    signed = f", signed by the key in {sign}" if sign else ""
    click.echo(f"{out}: {packed['folder']}, {packed['bytes'] / 2**20:.1f} MiB{signed}")
    if not packed["redistributable"]:
        click.echo(f"radvlm-edge: {out} must not be passed on to anyone without the licence", err=True)
