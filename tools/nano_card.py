"""Measured figures (docs/nano/*.json) → the tables of docs/nano-model-card.md, or a check that they match.

python tools/nano_card.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
CARD, MEASURED = DOCS / "nano-model-card.md", DOCS / "nano"
BEGIN, END = "<!-- figures: tools/nano_card.py -->\n", "<!-- end of figures -->"


def _load(name: str) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text())
    return measured


def _reached(value: float, least: float) -> str:
    return f"{value:.2f} (wanted {least:.2f}: {'reached' if value >= least else 'missed'})"


def _findings(full: dict[str, Any], base: dict[str, Any], probe: dict[str, Any]) -> list[str]:
    lines = [
        "| finding | yes/no | base view only | thumbnail probe | boxes: mAP@0.5 | report F1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, value in full["yes_no"]["balanced_accuracy"].items():
        lines.append(
            f"| {name} | {value:.2f} | {base['yes_no']['balanced_accuracy'][name]:.2f} "
            f"| {probe['linear_probe_balanced_accuracy'][name]:.2f} "
            f"| {full['abnormality']['each'][name]['map50']:.2f} | {full['reports']['f1'][name]:.2f} |"
        )
    lines.append(
        f"| **mean** | **{full['yes_no']['mean_balanced_accuracy']:.2f}** "
        f"| {base['yes_no']['mean_balanced_accuracy']:.2f} | {probe['mean']:.2f} "
        f"| **{full['abnormality']['map50']:.2f}** | **{full['reports']['macro_f1']:.2f}** |"
    )
    return lines


def _targets(full: dict[str, Any], base: dict[str, Any], probe: dict[str, Any]) -> list[str]:
    own, without = (one["yes_no"]["balanced_accuracy"] for one in (full, base))
    lost = [name for name in own if own[name] - without[name] >= 0.10]
    doubtful = full["yes_no"]["doubtful"]
    return [
        "- Balanced accuracy of yes/no, mean over findings: "
        + _reached(full["yes_no"]["mean_balanced_accuracy"], 0.90),
        f"- Boxes of anatomical regions, mAP@0.5: {_reached(full['anatomy']['map50'], 0.80)}; mean IoU "
        f"{full['anatomy']['mean_iou']:.2f}",
        f"- Boxes of findings, mAP@0.5: {_reached(full['abnormality']['map50'], 0.45)}",
        f"- Labels of reports, macro F1: {_reached(full['reports']['macro_f1'], 0.80)}; exactly the right "
        f"set in {full['reports']['exact']:.0%} of reports",
        f"- Findings that lose 10 points when only the base view is given: {len(lost)} (wanted 3: "
        f"{'reached' if len(lost) >= 3 else 'missed'}){': ' if lost else ''}{', '.join(lost)}",
        f"- Answers with a probability between 0.2 and 0.8: {doubtful:.0%} (wanted 10 %: "
        f"{'reached' if doubtful >= 0.10 else 'missed'})",
        f"- Linear probe on 32x32 thumbnails: {probe['mean']:.2f} (at most 0.70: "
        f"{'kept' if probe['mean'] <= 0.70 else 'missed'})",
    ]


def _auroc(row: dict[str, Any]) -> str:
    if row["auroc"] is None:
        return "too few"
    low, high = row["interval95"]
    return f"{row['auroc']:.2f} ({low:.2f} to {high:.2f})"


def _real(full: dict[str, Any], heads: dict[str, Any]) -> list[str]:
    val, boxes = full["real"]["nih_val"], full["real"]["nih_boxes"]
    lines = [
        f"| label | all {heads['films']} films, heads fold by fold: positives | AUROC (95 %) "
        f"| answers on {val['films']} val films: positives | AUROC (95 %) |",
        "|---|---|---|---|---|",
    ]
    for name, row in heads["auroc"].items():
        own = val["auroc"][name]
        lines.append(
            f"| {name} | {row['positives']} of {row['films']} | {_auroc(row)} "
            f"| {own['positives']} of {own['films']} | {_auroc(own)} |"
        )
    lungs = full["real"]["covid_cxr_lungs"]
    return [
        *lines,
        "",
        f"Boxes radiologists drew on NIH films: mean IoU {boxes['val']['mean_iou']} on "
        f"{boxes['val']['questions']} questions about val films (train films: {boxes['train']['mean_iou']} "
        f"on {boxes['train']['questions']}). Lungs of covid_cxr: mean IoU {lungs['mean_iou']} on "
        f"{lungs['questions']} questions.",
    ]


def figures() -> str:
    """What stands between the marks."""
    full, base, probe, heads = (_load(name) for name in ("full", "base-only", "hardness", "heads"))
    parts = [
        _targets(full, base, probe),
        ["", *_findings(full, base, probe)],
        ["", "### Real films", "", *_real(full, heads)],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of the model card from measured figures.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the card differs")
    options = parser.parse_args()
    text = CARD.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    wanted = before + BEGIN + figures() + END + rest.split(END, 1)[1]
    if options.check:
        sys.exit(0 if wanted == text else f"{CARD.name} is not what docs/nano says; run tools/nano_card.py")
    CARD.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
