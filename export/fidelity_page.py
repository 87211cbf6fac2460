"""Fidelity figures → one self-contained page: no script, no request, readable on paper."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:70rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;margin:.8rem 0;width:100%}caption{text-align:left;color:#57606a}
th,td{border-bottom:1px solid #d0d7de;padding:.35rem .6rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #57606a}
.wide{overflow-x:auto}.in{color:#116329;font-weight:600}.out{color:#a40e26;font-weight:600}
.notice{border-left:4px solid #57606a;padding:.2rem .8rem;color:#57606a}
dt{font-weight:600}dd{margin:0 0 .5rem}
@media print{body{margin:0}}
"""
MEANING = {
    "flips": "Yes/no questions the checkpoint answers with yes or no, to which the bundle says the "
    "opposite, or neither. In brackets the 95 % interval of the rate (Wilson): few questions leave it wide.",
    "boxes": "Mean overlap (intersection over union) of each box with the checkpoint's own; a box missing "
    "or too many counts 0. The loss is 1 minus it.",
    "answers": "Share of greedy answers that are the checkpoint's to the letter.",
    "labels": "Share of answers that affirm the same findings (13 CheXpert labels, negations understood).",
    "sides, negations": "Number of answers that name other sides (left, right, bilateral), or hold another "
    "number of negations, than the checkpoint's.",
    "KLD": "Kullback-Leibler divergence in nats of the bundle's next-token probabilities from the "
    "checkpoint's, over the checkpoint's answers: mean and 99th percentile. 0 is equal.",
    "top-1": "Share of those tokens at which both would choose the same.",
}


def render_page(name: str, sha256: str, figures: dict[str, Any], verdicts: dict[str, list[str]]) -> str:
    """The page for a bundle of this name and bundle.json digest."""
    asked, limits = figures["asked"], figures["limits"]
    films = asked["films"]
    sentence = (
        f"{films['count']} films ({films['kind']}), each asked {asked['questions_per_film']} questions, "
        f"{asked['yes_no_per_film']} of them to be answered with yes or no. The checkpoint ran in float32; "
        f"the bundle's greedy answers are compared with its own, up to {asked['answer_tokens']} tokens."
    )
    parts = [
        f"<h1>Does {escape(name)} answer as its checkpoint does?</h1>",
        f"<p>bundle.json SHA-256 <code>{escape(sha256)}</code><br>checkpoint "
        f"<code>{escape(figures['source_sha256'])}</code></p>",
        '<p class="notice">For research, not for diagnosis. This page says how close a converted model is to '
        "the model it came from, not whether either is right about a patient.</p>",
        f"<h2>What was compared</h2><p>{escape(sentence)}</p>",
    ]
    if asked["unsettled"]:
        parts.append(
            f"<p>{asked['unsettled']} answers were left out: the checkpoint's own answer was not known "
            f"to its end after {asked['reference_passes']} passes.</p>"
        )
    parts += [_verdict(verdicts, limits), _answers(figures, verdicts), _vision(figures), _meaning()]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Fidelity of {escape(name)}</title><style>{STYLE}</style></head>"
        f"<body>\n{body}\n</body></html>\n"
    )


def _verdict(verdicts: dict[str, list[str]], limits: dict[str, float]) -> str:
    rows = "".join(
        f"<li>{escape(name)}: "
        + (
            f'<span class="out">beyond its limits</span>: {escape("; ".join(found))}'
            if found
            else '<span class="in">within its limits</span>'
        )
        + "</li>"
        for name, found in verdicts.items()
    )
    rows = rows or "<li>none: no answer was a yes or no, and none held a box</li>"
    return (
        f"<h2>Verdict</h2><p>Limits this bundle declares: at most {limits['flip_rate']:.1%} of yes/no "
        f"answers may turn round, and boxes may lose at most {limits['box_iou_loss']:g} of their overlap. A "
        f"combination beyond them is refused unless forced.</p><ul>{rows}</ul>"
    )


def _answers(figures: dict[str, Any], verdicts: dict[str, list[str]]) -> str:
    heads: tuple[str, ...] = (
        "vision + language",
        "flips",
        "boxes IoU",
        "answers",
        "labels",
        "sides",
        "negations",
    )
    heads += ("KLD mean", "KLD p99", "top-1", "verdict")
    rows = []
    for name, one in figures["combinations"].items():
        yes_no, token = one["yes_no"], one["next_token"]
        low, high = yes_no["interval_95"]
        cells = (
            escape(name.replace("+", " + ")),
            f"{yes_no['flips']}/{yes_no['decided']} ({low:.1%} to {high:.1%})",
            _number(one["boxes"]["mean_iou"], ".3f"),
            _number(one["answers"]["identical"], ".1%"),
            _number(one["labels"]["identical"], ".1%"),
            str(one["laterality_changes"]),
            str(one["negation_changes"]),
            _number(token["kld_mean"], ".2g"),
            _number(token["kld_p99"], ".2g"),
            _number(token["top1"], ".2%"),
            _word(verdicts.get(name)),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    return (
        f'<h2>Answers</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _word(found: list[str] | None) -> str:
    if found is None:
        return "not judged"
    return '<span class="out">beyond</span>' if found else '<span class="in">within</span>'


def _vision(figures: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{one['crops']}</td><td>{one['cosine_min']:.6f}</td>"
        f"<td>{one['cosine_p1']:.6f}</td><td>{one['cosine_median']:.6f}</td></tr>"
        for name, one in figures["vision"].items()
    )
    return (
        "<h2>What the vision tower hands over</h2><table><caption>Cosine of each crop's projected tokens "
        "with the checkpoint's; 1 is equal. The worst crop counts, not the mean.</caption>"
        "<thead><tr><th>vision</th>"
        f"<th>crops</th><th>lowest</th><th>1st percentile</th><th>median</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _meaning() -> str:
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in MEANING.items())
    return f"<h2>How to read the columns</h2><dl>{terms}</dl>"


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
