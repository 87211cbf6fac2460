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
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    metavar="CKPT",
    help="Fine-tuning: the checkpoint that is tuned.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Fine-tuning: what `dataset build` wrote."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Fine-tuning: the folder `dataset build` was given, for shards that name films by path.",
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on where a run stopped.")
def train(
    recipe: Path, out: Path | None, start: Path | None, data: Path | None, root: Path | None, resume: bool
) -> None:
    """Train a checkpoint as a RECIPE says. Needs the extra `train`.

    recipes/nano.yaml trains the demonstration model from scratch; recipes of kind `finetune`, e.g.
    recipes/finetune-open.yaml, tune a checkpoint on instruction data. Several GPUs: accelerate launch
    --config_file recipes/accelerate/fsdp.yaml "$(which radvlm-edge)" train RECIPE (docs/training.md).
    """
    need("train", "torch", "transformers", "accelerate", "yaml")
    out = out or Path("runs") / recipe.stem
    from radvlm_edge.training.finetune_recipe import KIND, kind_of

    if kind_of(recipe) == KIND:
        need("train", "pyarrow")
        from radvlm_edge.training.finetune import run_recipe

        click.echo(run_recipe(recipe, out, resume=resume, start=start, data=data, root=root))
        return
    if start or data or root:
        raise click.UsageError(f"--start, --data and --root are for recipes of kind {KIND}")
    from radvlm_edge.training.train import run

    click.echo(run(recipe, out, resume=resume))
