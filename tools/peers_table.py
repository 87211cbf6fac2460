"""Measured figures (docs/peers-*.json) → the tables of docs/benchmarks.md, or a check that they match.

python tools/peers_table.py [--check] [PAGE]
"""

from __future__ import annotations

import argparse
import sys
from json import loads
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.targets import TARGETS

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: tools/peers_table.py -->\n", "<!-- end of figures -->"
NOT_YET = "not measured yet"
MEASURED = {"radvlm-0.5b": "peers-0.5b.json", "nano": "peers-nano.json"}
"""Geometry → file in docs/."""


def tables(docs: Path = DOCS) -> str:
    """Targets, then every peer of every geometry."""
    found = {
        name: loads((docs / file).read_text("utf-8"))
        for name, file in MEASURED.items()
        if (docs / file).exists()
    }
    lines = [*_targets(found), ""]
    for name, file in MEASURED.items():
        lines += [*_peers(name, found[name]), ""] if name in found else [f"`{file}`: {NOT_YET}.", ""]
    return "\n".join(lines)


def _targets(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| target | wanted | {' | '.join(MEASURED)} |", "|---|---|" + "---|" * len(MEASURED)]
    for index, target in enumerate(TARGETS):
        wanted = f"{'at most' if target.at_most else 'at least'} {_number(target.limit, target.unit)}"
        cells = [_cell(found[name]["targets"][index]) if name in found else NOT_YET for name in MEASURED]
        lines.append(f"| {target.name} | {wanted} | {' | '.join(cells)} |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    if row["measured"] is None:
        return NOT_YET
    return f"{_number(row['measured'], row['unit'])} ({'reached' if row['reached'] else 'missed'})"


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.3g} {unit}"


def _peers(name: str, result: dict[str, Any]) -> list[str]:
    setup, host = result["setup"], result["machine"]
    lines = [
        f"**{name}**, detail {setup['detail']}, {setup['threads']} threads, {result['rounds']} rounds; "
        f"{host['cpu']}. Milliseconds, medians; answers of {setup['answer_tokens']} tokens.",
        "",
        "| peer | image tokens | cold: first token | whole answer | second question: first token "
        "| decoding, tokens/s | peak MiB | yes/no right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer, row in result["peers"].items():
        times = (row[f"{part}_ms"]["median"] for part in ("cold_first", "cold_total", "second_first"))
        asked = row.get("accuracy")
        right = "not asked" if asked is None else f"{asked['right']} of {asked['questions']}"
        lines.append(
            f"| {peer} | {row['about']['image_tokens']:,} | {' | '.join(f'{ms:,.0f}' for ms in times)} "
            f"| {row['decode_tokens_per_s']['median']:.1f} | {row['peak_bytes'] / 2**20:,.0f} "
            f"| {right} |"
        )
    lines += [f"| {peer} | failed: {why} | | | | | | |" for peer, why in result["failed"].items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    text = given.page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{given.page}: no place for the figures between {BEGIN.strip()} and {END}")
    wanted = f"{before}{BEGIN}{tables(given.page.parent)}{END}{behind}"
    if not given.check:
        given.page.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit(f"{given.page} is stale; run `python tools/peers_table.py`")


if __name__ == "__main__":
    main()
