"""`radvlm-edge evaluate`: how good a model's answers are, as the paper measures it or corrected."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radvlm_edge.cli.options import NOTICE

if TYPE_CHECKING:
    from radvlm_edge.benchmarks.evaluate import Evaluation, Settings
    from radvlm_edge.benchmarks.evaluate_items import Item
    from radvlm_edge.benchmarks.evaluate_models import Model
    from radvlm_edge.runtime.reader import Options

TASKS = ("report", "classify", "region", "abnormality", "phrase", "detect", "conversation")
KINDS = ("llava-onevision", "llava-med", "radialog", "chexagent", "chexagent-2", "maira-2", "medgemma")
"""Both named here so that help needs no other module (a test compares)."""
SCORES = ("bertscore", "radgraph", "chexbert", "green", "ratescore")


def _weights(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Path]:
    """NAME=DIR of each."""
    found = {}
    for one in given:
        name, _, folder = one.partition("=")
        if name not in SCORES or not folder:
            raise click.BadParameter(f"{one!r}; write NAME=DIR, NAME one of {', '.join(SCORES)}")
        found[name] = Path(folder)
    return found


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--task", type=click.Choice(TASKS), required=True, help="What is asked.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Folder `dataset build` wrote, or a .jsonl file (docs/evaluation.md).",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder the films' paths are relative to.  [default: the data's]",
)
@click.option("--split", type=click.Choice(["train", "validate", "test"]), help="Only items of this split.")
@click.option(
    "--take", type=click.IntRange(1), metavar="N", help="Only N items, drawn by a hash of their ids."
)
@click.option(
    "--metrics",
    type=click.Choice(["paper", "strict"]),
    default="paper",
    show_default=True,
    help="The authors' scoring with its quirks, or corrected.",
)
@click.option("--model-kind", type=click.Choice(KINDS), help="MODEL is this baseline; else write NAME=DIR.")
@click.option(
    "--trust-code", is_flag=True, help="Run the Python code a baseline's folder brings (MAIRA-2 and others)."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="CKPT",
    help="The bundle's checkpoint: ask it as well, and exit 1 if answers differ by more than the bundle's "
    "fidelity report claims.",
)
@click.option(
    "--weights",
    multiple=True,
    callback=_weights,
    metavar="NAME=DIR",
    help=f"Report scores with weights of their own: {', '.join(SCORES)}. Without, they are listed as not "
    "computed.",
)
@click.option(
    "--judge",
    type=click.Choice(["rules", "gguf", "openai"]),
    default="rules",
    show_default=True,
    help="Who scores conversations. Only `openai` sends anything anywhere: texts, to --judge-url.",
)
@click.option("--judge-model", metavar="X", help="Judge gguf: a file; judge openai: the model's name.")
@click.option(
    "--judge-url", metavar="URL", help="Judge openai: the service; its key from RADVLM_EDGE_WRITER_KEY."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="Folder answers are kept in: patient data. A killed evaluation goes on from them.",
)
@click.option(
    "--force", is_flag=True, help="Begin anew where OUT holds other answers; use artefacts beyond limits."
)
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Bootstrap samples.")
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: 512, boxes and labels 256]"
)
@click.option("--render", type=click.Choice(["voi", "minmax", "mimic"]), help="How films become grey.")
@click.option("--vision", metavar="X", help="A bundle's vision artefact, e.g. fp16.")
@click.option("--language", metavar="X", help="A bundle's language artefact, e.g. Q8_0.")
@click.option("--detail", metavar="exact|PIXELS", help="Show a bundle at most so much of a film.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of all engines.")
@click.option(
    "--device", default="auto", show_default=True, help="Of checkpoints and baselines: cpu, cuda, auto."
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to read.")
@click.option(
    "--pictures",
    is_flag=True,
    help="With --html: the worst cases with film and text. The page is patient data then.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def evaluate(model: str, task: str, data: Path, html: Path | None, as_json: bool, **given: Any) -> None:
    """Ask MODEL every question of a task and compare its answers with the right ones.

    MODEL is a bundle, a checkpoint folder (extra `export`), or a baseline NAME=DIR from a local folder. A
    task a baseline is not published for is marked, not asked. Figures come with bootstrap intervals over
    patients; beside them wrong sides, turned negations, impossible boxes, calibration.
    """
    if given["pictures"] and html is None:
        raise click.UsageError("--pictures goes into a page; pass --html FILE")
    from radvlm_edge.benchmarks.evaluate_items import drawn, read_items

    items = list(read_items(data, task, root=given["root"], split=given["split"]))
    chosen = drawn(items, given["take"])
    settings = _settings(given)
    found = _evaluated(model, chosen, task, settings, given)
    if html is not None:
        from radvlm_edge.benchmarks.evaluate_page import render_page

        page = render_page(found, pictures=given["pictures"], render=given["render"] or "voi")
        html.write_text(page, encoding="utf-8")
    click.echo(NOTICE, err=True)
    click.echo(json.dumps(found.result) if as_json else "\n".join(_lines(found.result)))
    if not found.result.get("against", {"holds": True})["holds"]:
        sys.exit(1)


def _settings(given: dict[str, Any]) -> Settings:
    from radvlm_edge.benchmarks.evaluate import Settings
    from radvlm_edge.benchmarks.evaluate_judge import open_judge

    judge = open_judge(given["judge"], given["judge_model"], given["judge_url"], given["out"] / "judge.jsonl")
    return Settings(given["metrics"], given["max_tokens"], given["draws"], given["weights"], judge)


def _options(given: dict[str, Any]) -> Options:
    from radvlm_edge.runtime.reader import Options

    names = ("vision", "language", "detail", "render", "threads", "force")
    return Options(**{name: given[name] for name in names})


def _evaluated(
    model: str, items: list[Item], task: str, settings: Settings, given: dict[str, Any]
) -> Evaluation:
    from radvlm_edge.benchmarks.baselines import BASELINES
    from radvlm_edge.benchmarks.evaluate import evaluate as run
    from radvlm_edge.benchmarks.evaluate import marked
    from radvlm_edge.benchmarks.evaluate_models import BundleModel, named_baseline, open_model

    kind, folder = named_baseline(model, given["model_kind"])
    form = BASELINES.get(kind or "")
    reason = form.unsupported(task) if form else None
    if reason is not None:  # known before gigabytes are loaded
        about = {"kind": kind, "name": Path(folder).name, "sha256": "not read"}
        return marked(about, task, settings.mode, reason)

    how: dict[str, Any] = {
        "options": _options(given),
        "device": given["device"],
        "trust_code": given["trust_code"],
    }
    opened = open_model(model, kind=given["model_kind"], **how)
    if given["against"] is not None and not isinstance(opened, BundleModel):
        raise click.UsageError("--against compares a bundle with its checkpoint; MODEL is no bundle")

    def asked(one: Model) -> Evaluation:
        kept = given["out"] / f"{_name(one)}-{task}.jsonl"
        return run(one, items, task, kept, settings, force=given["force"], progress=_Progress())

    try:
        found = asked(opened)
    finally:
        opened.close()
    if given["against"] is None or not isinstance(opened, BundleModel):
        return found
    from radvlm_edge.benchmarks.evaluate_compare import compare
    from radvlm_edge.runtime.limits import combination

    reader = opened.reader
    checkpoint = open_model(str(given["against"]), **how)
    try:
        reference = asked(checkpoint)
    finally:
        checkpoint.close()
    used = combination(reader.vision_artefact.precision, reader.language_artefact.precision)
    against = compare(found, reference, reader.bundle, used, draws=given["draws"])
    return replace(found, result={**found.result, "against": against})


def _name(model: Model) -> str:
    """Of the file of answers: what kind, which weights."""
    about = model.describe()
    precisions = "-".join(str(about[key]) for key in ("vision", "language") if key in about)
    return "-".join(part for part in (about["kind"], about["name"], precisions, about["sha256"][:8]) if part)


def _lines(result: dict[str, Any]) -> list[str]:
    if "unsupported" in result:
        return [f"{result['task']}: not asked: {result['unsupported']}"]
    asked = result["asked"]
    lines = [
        f"{asked['answered']} of {asked['items']} items answered, {asked['groups']} patients or films; "
        f"metrics {result['metrics']}"
    ]
    lines += [f"not answered: {count} {name}" for name, count in asked["failed"].items()]
    for part in ("figures", "beside"):
        lines += [
            f"{name:<36}{_figure(one)}" for name, one in result[part].items() if one["value"] is not None
        ]
    if "judge" in result:
        lines.append(f"judge: {result['judge']['name']}, {result['judge']['without_score']} without a score")
    lines += [f"{name}: not computed: {why}" for name, why in result["not_computed"].items()]
    for name, one in result.get("against", {"changes": {}})["changes"].items():
        claimed = (
            "nothing claimed" if one["claimed"] is None else f"claimed {one['claimed']:.3f} ({one['source']})"
        )
        found = "none" if one["value"] is None else f"{one['value']:.3f}"
        word = "beyond: " if one["beyond"] else ""
        lines.append(f"against the checkpoint, {name}: {found} of {one['of']}, {word}{claimed}")
    return lines


def _figure(one: dict[str, float | None]) -> str:
    spread = "" if one["low"] is None else f"  ({one['low']:.3f} to {one['high']:.3f})"
    return f"{one['value']:>8.3f}{spread}"


class _Progress:
    """One line on stderr, at most every two seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said > 2 or done == total:
            self._said = now
            click.echo(f"{done}/{total} items", err=True)
