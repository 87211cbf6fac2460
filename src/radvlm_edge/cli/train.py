"""`radvlm-edge train`: recipe in, checkpoint out."""

from __future__ import annotations

from pathlib import Path

import click

from radvlm_edge.cli.options import need


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/RECIPE's name]"
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on where a run stopped.")
def train(recipe: Path, out: Path | None, resume: bool) -> None:
    """Train a checkpoint as a recipe says, e.g. recipes/nano.yaml. Needs the extra `train`."""
    need("train", "torch", "transformers", "accelerate", "yaml")
    from radvlm_edge.training.train import run

    click.echo(run(recipe, out or Path("runs") / recipe.stem, resume=resume))
