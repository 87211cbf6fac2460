"""`radvlm-edge dataset`: what folders of films hold, and instruction data built from them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.options import need

if TYPE_CHECKING:
    from radvlm_edge.training.conversation_facts import Writer
    from radvlm_edge.training.dataset_build import Count
    from radvlm_edge.training.dataset_recipe import DataRecipe

NAMES = (
    "mimic-cxr", "chexpert", "chexpert-plus", "chest-imagenome", "vindr-cxr", "ms-cxr", "padchest-gr",
    "nih-cxr14", "open-i",
)  # fmt: skip
"""The sources there are; named here so that help needs no other module (a test compares)."""


@click.group()
def dataset() -> None:
    """Instruction data from chest film collections: check, count, build. Needs the extra `train`."""


@dataset.command()
@click.argument("source", type=click.Choice(NAMES), metavar="SOURCE")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--mimic",
    type=click.Path(path_type=Path),
    help="MIMIC-CXR-JPG's folder, for chest-imagenome and ms-cxr.  [default: MIMIC-CXR-JPG beside DIR]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(source: str, folder: Path, mimic: Path | None, as_json: bool) -> None:
    """Say which of SOURCE's files and columns DIR holds, and which are missing; exits 1 if one is.

    SOURCE is mimic-cxr, chexpert, chexpert-plus, chest-imagenome, vindr-cxr, ms-cxr, padchest-gr,
    nih-cxr14 or open-i. docs/datasets.md says how to get each.
    """
    need("train", "yaml")
    from radvlm_edge.training.source_check import check as look
    from radvlm_edge.training.sources import SOURCES

    chosen = SOURCES[source]
    folders = {source: folder}
    for name in chosen.needs:
        folders[name] = mimic or folder.parent / SOURCES[name].folder
    found = look(chosen, folders)
    good = all(one.state in ("ok", "optional") for one in found)
    if as_json:
        click.echo(json.dumps({"source": source, "ok": good, "found": [vars(one) for one in found]}))
    else:
        for one in found:
            click.echo(
                f"{one.state:<9}{one.what}: {one.about}" + (f"\n{'':9}{one.detail}" if one.detail else "")
            )
        click.echo(f"how to get it: {chosen.access}\nlicence: {chosen.licence}")
    if not good:
        sys.exit(1)


@dataset.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the sources' folders.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="Folder for the shards.")
@click.option("--dry-run", is_flag=True, help="Only count pairs, from the index files; films are not opened.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="JSON: with --dry-run a list of rows task, source, pairs, repeats.",
)
@click.option(
    "--writer-model", metavar="X", help="Writer gguf: a GGUF file; writer openai: the model's name."
)
@click.option(
    "--writer-url",
    metavar="URL",
    help="Writer openai: the service, e.g. http://localhost:8000/v1; its key from RADVLM_EDGE_WRITER_KEY.",
)
@click.option("--force", is_flag=True, help="Begin anew where OUT was built from other inputs.")
def build(
    recipe: Path,
    root: Path,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    **writer: str | None,
) -> None:
    """Build the instruction data a RECIPE describes, e.g. recipes/radvlm.yaml, in shards.

    A killed build goes on where it stopped; the same recipe and folders give the same bytes. Reports and
    labels leave this machine only if the recipe's writer is `openai`, for the URL you name.
    """
    need("train", "yaml", "pyarrow")
    from radvlm_edge.training import dataset_build
    from radvlm_edge.training.dataset_recipe import load_data_recipe

    plan = load_data_recipe(recipe)
    if dry_run:
        _say_counts(dataset_build.count(plan, root), as_json)
        return
    if out is None:
        raise click.UsageError("pass -o OUT, or --dry-run")
    chosen = _writer(plan, out, **writer)
    made = dataset_build.build(plan, root, out, chosen, progress=_Progress(), force=force)
    if as_json:
        click.echo(json.dumps({key: made[key] for key in ("name", "inputs", "pairs", "entries")}))
        return
    for entry in made["entries"]:
        click.echo(f"{entry['task']:<22}{entry['source']:<17}{entry['written']:>9} written")
        for reason, number in entry["rejected"].items():
            click.echo(f"{'':39}{number:>9} rejected: {reason}")
    click.echo(f"{out}: {made['pairs']} pairs in {len(made['shards'])} shards")


def _say_counts(counts: list[Count], as_json: bool) -> None:
    rows = [
        {"task": one.entry.task, "source": one.entry.source, "pairs": one.pairs, "repeats": one.entry.repeats}
        for one in counts
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(f"{'task':<22}{'source':<17}{'pairs':>9}{'repeats':>9}{'paper':>9}")
    for one in counts:
        paper = one.entry.paper if one.entry.paper is not None else "-"
        click.echo(
            f"{one.entry.task:<22}{one.entry.source:<17}{one.pairs:>9}{one.entry.repeats:>9}{paper:>9}"
        )
    total = sum(one.pairs * one.entry.repeats for one in counts)
    paper_total = sum((one.entry.paper or 0) * one.entry.repeats for one in counts)
    click.echo(f"{'in all':<39}{total:>9}{'':9}{paper_total or '-':>9}")


def _writer(recipe: DataRecipe, out: Path, writer_model: str | None, writer_url: str | None) -> Writer:
    """The recipe's writer; a model's replies are kept in OUT."""
    from radvlm_edge.training import conversation_models as models
    from radvlm_edge.training.conversation_template import TemplateWriter
    from radvlm_edge.training.dataset_shards import file_digest
    from radvlm_edge.training.dataset_state import REPLIES

    if recipe.writer == "template":
        return TemplateWriter()
    if writer_model is None or (recipe.writer == "openai" and writer_url is None):
        raise click.UsageError(
            f"the recipe's writer is {recipe.writer}; pass --writer-model"
            + (" and --writer-url" if recipe.writer == "openai" else "")
        )
    if recipe.writer == "gguf":
        complete = models.gguf(Path(writer_model))
        name = f"gguf {file_digest(Path(writer_model))}"
    else:
        complete = models.endpoint(str(writer_url), writer_model)
        name = f"openai {writer_model}"
    return models.ModelWriter(name, models.Replies(out / REPLIES, complete, name))


class _Progress:
    """One line on stderr, at most once a second: pairs, rejected, and when it will be done."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, dealt: int, total: int, rejected: int) -> None:
        now = time.monotonic()
        if now - self._said < 1 and dealt < total:
            return
        self._said = now
        left_s = (now - self._began) * (total - dealt) / max(dealt, 1)
        line = f"{dealt}/{total} pairs, {rejected} rejected, {_clock(left_s)} left"
        click.echo(f"\r{line:<70}" if sys.stderr.isatty() else line, err=True, nl=not sys.stderr.isatty())
        if dealt >= total and sys.stderr.isatty():
            click.echo(err=True)


def _clock(seconds: Any) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
