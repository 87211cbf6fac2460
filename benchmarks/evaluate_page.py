"""An evaluation → one self-contained page: no script, no request, readable on paper.

Aggregates only, unless films and answers are asked for: those are patient data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from radvlm_edge.benchmarks.evaluate import Evaluation
from radvlm_edge.benchmarks.evaluate_figures import Case
from radvlm_edge.benchmarks.evaluate_items import BOXED
from radvlm_edge.benchmarks.evaluate_pictures import intervals, overlay, reliability
from radvlm_edge.errors import FilmError
from radvlm_edge.export.fidelity_page import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MORE_STYLE = """
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:1.2rem}
.case{border:1px solid #d0d7de;padding:.8rem;overflow-wrap:anywhere}.case svg{width:100%;height:auto}
.case p{margin:.3rem 0}code{overflow-wrap:anywhere}
"""
MODES = {
    "paper": "The authors' own scoring, quirks included: their box matching and parser, labels by bare "
    "substrings, words parted by white space (docs/evaluation.md).",
    "strict": "Corrected scoring: boxes matched one to one, negations understood, words as sacrebleu parts "
    "them (docs/evaluation.md).",
}


def render_page(found: Evaluation, *, pictures: bool = False, render: str = "voi") -> str:
    """The page; `pictures`: the worst cases with film, question and answers."""
    result = found.result
    name = f"{result['model']['name']}: {result['task']}"
    parts = [f"<h1>{escape(name)}</h1>", _about(result)]
    if "unsupported" in result:
        parts.append(f'<p class="out">Not asked: {escape(result["unsupported"])}.</p>')
    else:
        parts += [_asked(result), _figures(result), _beside(result), _calibration(result)]
        if "against" in result:
            parts.append(_against(result["against"]))
        parts += [_missing(result["not_computed"]), _worst(found.worst, pictures, render)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>Evaluation of {escape(name)}</title><style>{STYLE}{MORE_STYLE}</style></head>"
        f"<body>\n{body}\n</body></html>\n"
    )


def _about(result: Mapping[str, Any]) -> str:
    model = result["model"]
    facts = ", ".join(
        f"{escape(key)} {escape(str(value))}" for key, value in model.items() if key not in ("name", "sha256")
    )
    return (
        f"<p>{facts}<br>SHA-256 <code>{escape(str(model['sha256']))}</code></p>"
        '<p class="notice">For research, not for diagnosis. Scores say how close answers are to references, '
        "not whether a patient is served by them.</p>"
    )


def _asked(result: Mapping[str, Any]) -> str:
    asked = result["asked"]
    failed = ", ".join(f"{count} {escape(name)}" for name, count in asked["failed"].items())
    splits = ", ".join(f"{escape(name)} {count}" for name, count in asked["splits"].items())
    said = (
        f"{asked['items']} items (split: {splits}), {asked['answered']} answered, {asked['groups']} patients "
        "or films." + (f" Not answered, and not counted: {failed}." if failed else "")
    )
    return (
        f"<h2>What was asked</h2><p>{said}<br>questions and references "
        f"<code>{asked['data']}</code></p><p>Metrics <b>{result['metrics']}</b>. "
        f"{MODES[result['metrics']]}</p>"
    )


def _figures(result: Mapping[str, Any]) -> str:
    tens = {name: one for name, one in result["figures"].items() if name in ("CIDEr-D", "score")}
    ones = {name: one for name, one in result["figures"].items() if name not in tens}
    interval = result["interval"]
    caption = (
        f"{interval['level']:.0%} intervals: {interval['draws']} bootstrap samples of {interval['over']}."
    )
    judge = result.get("judge")
    note = ""
    if judge:
        note = (
            f"<p>Judge: {escape(judge['name'])}; {judge['without_score']} conversations without a score. "
            "Scores of different judges are not comparable.</p>"
        )
    return (
        f"<h2>Figures</h2>{note}{_table(result['figures'], caption)}{intervals(ones)}{intervals(tens, 10.0)}"
    )


def _beside(result: Mapping[str, Any]) -> str:
    return (
        "<h2>Beside them</h2><p>What text and overlap scores do not see. Shares are of what could be judged; "
        f"its number is given.</p>{_table(result['beside'], '')}"
    )


def _calibration(result: Mapping[str, Any]) -> str:
    drawn = reliability(result["calibration"]["bins"])
    if not drawn:
        return ""
    names = ", ".join(map(escape, result["calibration"]["calibrated_on"]))
    return (
        f"<h2>Confidence</h2><p>What it was calibrated on: {names}. The larger a dot, the more answers.</p>"
        f"{drawn}"
    )


def _against(against: Mapping[str, Any]) -> str:
    verdict = (
        '<span class="in">no claim is contradicted</span>'
        if against["holds"]
        else '<span class="out">beyond what the bundle claims</span>'
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{one['of']}</td><td>{_number(one['value'])}</td>"
        f"<td>{_number(one['interval_95'][0])} to {_number(one['interval_95'][1])}</td>"
        f"<td>{_number(one['claimed'])}</td><td>{escape(one['source'] or 'nothing claimed')}</td>"
        f"<td>{'beyond' if one['beyond'] else 'holds' if one['source'] else ''}</td></tr>"
        for name, one in against["changes"].items()
    )
    return (
        f"<h2>Against the checkpoint</h2><p>{against['items']} items, artefacts "
        f"{escape(against['combination'])}: {verdict}.</p>"
        '<div class="wide"><table><caption>Share of answers that differ; boxes: loss of overlap. A claim is '
        "contradicted where the lower end of the interval is over it.</caption><thead><tr><th>what</th><th>of"
        f"</th><th>found</th><th>95 %</th><th>claimed</th><th>by</th><th></th></tr></thead><tbody>{rows}"
        f"</tbody></table></div>{_table(against['figures'], 'Figures: bundle less checkpoint.')}"
    )


def _missing(missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(why)}</dd>" for name, why in missing.items())
    return f"<h2>Not computed</h2><dl>{terms}</dl>"


def _worst(cases: Sequence[Case], pictures: bool, render: str) -> str:
    if not pictures:
        return (
            "<h2>Worst cases</h2><p>Left out: films, questions and answers are patient data. "
            "<code>--pictures</code> puts them into a page that stays with you.</p>"
        )
    shown = "".join(_case(case, render) for case in cases)
    return (
        '<h2>Worst cases</h2><p class="out">This page holds patient data.</p><p>Right boxes: whole green '
        f'lines; the model\'s: broken red ones.</p><div class="cases">{shown}</div>'
    )


def _case(case: Case, render: str) -> str:
    said = [box for one in case.answered.said for box in one.boxes] if case.item.task in BOXED else []
    try:
        drawn = overlay(case.item.film(), render, case.item.boxes or (), said)
    except FilmError as error:
        drawn = f"<p>{escape(str(error))}</p>"
    scores = ", ".join(f"{escape(name)} {value:.3g}" for name, value in case.extra.items())
    turns = "".join(
        f"<p><b>{escape(question)}</b></p><p>said: {escape(one.text)}</p>"
        + (f"<p>right: {escape(true)}</p>" if true else "")
        for question, one, true in zip(case.item.questions, case.answered.said, case.item.texts, strict=True)
    )
    known = ""
    if case.item.labels is not None:
        known = f"<p>right labels: {escape(', '.join(sorted(case.item.labels)) or 'none')}</p>"
    return (
        f'<div class="case">{drawn}<p><code>{escape(case.item.key)}</code> {scores}</p>{turns}{known}</div>'
    )


def _table(figures: Mapping[str, Mapping[str, float | None]], caption: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(one['value'])}</td><td>{_spread(one)}</td></tr>"
        for name, one in figures.items()
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{said}<thead><tr><th>figure</th><th>value</th><th>95 %</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _spread(one: Mapping[str, float | None]) -> str:
    return "" if one["low"] is None else f"{_number(one['low'])} to {_number(one['high'])}"


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3f}"
