"""How close a report's words are to another's: ROUGE-L as rouge-score computes it, BLEU as sacrebleu does.

Words that agree say little about what a report gets right: see metrics_labels and metrics_boxes for that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from radvlm_edge.benchmarks.stemmer import stem

_OTHER = re.compile(r"[^a-z0-9]+")
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPACED = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
"""NIST's mteval-v13a: which signs stand alone."""
ORDER = 4


def rouge_words(text: str, stemmed: bool = True) -> list[str]:
    """Lower-case words; those longer than three letters are stemmed (the authors' `use_stemmer=True`)."""
    words = _OTHER.sub(" ", text.lower()).split()
    return [stem(word) if len(word) > 3 else word for word in words] if stemmed else words


def rouge_l(answer: str, true: str, stemmed: bool = True) -> float:
    """F1 of the longest common subsequence of words; 0 where one of the texts has none."""
    found, known = rouge_words(answer, stemmed), rouge_words(true, stemmed)
    row = [0] * (len(known) + 1)
    for word in found:
        before = 0
        for at, other in enumerate(known, 1):
            above = row[at]
            row[at] = before + 1 if word == other else max(above, row[at - 1])
            before = above
    common = row[-1]
    return 2 * common / (len(found) + len(known)) if common else 0.0


def mean_rouge_l(answers: Sequence[str], true: Sequence[str], stemmed: bool = True) -> float:
    """Mean over reports. Raises ValueError for unequal numbers of them."""
    scores = [rouge_l(answer, known, stemmed) for answer, known in zip(answers, true, strict=True)]
    return sum(scores) / len(scores) if scores else 0.0


def bleu_words(text: str) -> list[str]:
    """Words as mteval-v13a cuts them; case is kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in _ENTITIES:
        text = text.replace(name, sign)
    text = f" {text} "
    for pattern, spaced in _SPACED:
        text = pattern.sub(spaced, text)
    return text.split()


def corpus_bleu(answers: Sequence[str], true: Sequence[str]) -> float:
    """BLEU-4 over all reports together, 0 to 1, one reference each; orders without a hit are smoothed by
    halving (Chen and Cherry 2014, method 3), as sacrebleu does by default."""
    hits, totals = [0] * ORDER, [0] * ORDER
    said = there = 0
    for answer, known in zip(answers, true, strict=True):
        found, reference = bleu_words(answer), bleu_words(known)
        said, there = said + len(found), there + len(reference)
        for order in range(1, ORDER + 1):
            own, other = grams(found, order), grams(reference, order)
            hits[order - 1] += sum((own & other).values())
            totals[order - 1] += sum(own.values())
    if not any(hits) or not all(totals):
        return 0.0
    logs, smooth = 0.0, 1.0
    for hit, total in zip(hits, totals, strict=True):
        if not hit:
            smooth *= 2
        logs += math.log(hit / total if hit else 1 / (smooth * total))
    shorter = min(1.0, math.exp(1 - there / said))
    return shorter * math.exp(logs / ORDER)


def grams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    """Sequences of so many words, and how often each occurs."""
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
