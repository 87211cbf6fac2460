"""`radvlm-edge export`: checkpoint folder in, sealed bundle out."""

from __future__ import annotations

from pathlib import Path

import click

from radvlm_edge.cli.options import need


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder.  [default: CKPT.bundle]")
@click.option("--vision", default="fp32,fp16", show_default=True, help="Vision artefacts to write.")
@click.option("--language", default="F16,Q8_0,Q4_K_M", show_default=True, help="Language artefacts to write.")
@click.option(
    "--parity",
    type=click.Choice(["quick", "full", "none"]),
    default="quick",
    show_default=True,
    help="How thoroughly to compare the bundle with the checkpoint.",
)
@click.option(
    "--render",
    type=click.Choice(["voi", "minmax", "mimic"]),
    help="How the bundle renders films by default.  [default: as the checkpoint says, else mimic]",
)
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Merge the LoRA adapter in DIR (peft).",
)
@click.option("--trim-vocab", is_flag=True, help="Leave out embedding rows behind the last token.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--resume", is_flag=True, help="Go on with what a killed export of this checkpoint finished.")
def export(
    checkpoint: Path,
    out: Path | None,
    vision: str,
    language: str,
    parity: str,
    render: str | None,
    lora: Path | None,
    trim_vocab: bool,
    force: bool,
    resume: bool,
) -> None:
    """Turn a RadVLM checkpoint folder into a sealed bundle.

    The bundle is compared with its checkpoint before it is sealed; one that does not agree is not
    written. Needs the extra `export`.
    """
    need("export", "torch", "transformers", "optimum", "onnx", "gguf")
    from radvlm_edge.export.exporter import export_checkpoint

    out = out or checkpoint.with_name(checkpoint.resolve().name + ".bundle")
    bundle = export_checkpoint(
        checkpoint,
        out,
        vision=_names(vision),
        language=_names(language),
        parity=parity,
        render=render,
        lora=lora,
        trim_vocab=trim_vocab,
        force=force,
        resume=resume,
        progress=lambda line: click.echo(line, err=True),
    )
    click.echo(bundle.folder)
