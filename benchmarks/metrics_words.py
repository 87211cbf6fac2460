"""The paper's word scores of reports: BLEU-4, CIDEr-D, ROUGE-1, -2 and -L, from counts that add up.

BLEU and CIDEr-D are those of the COCO captioning tools (Papineni et al. 2002; Vedantam et al. 2015), which
RadVLM runs through ViLMedic. Their quirks: words are what white space parts, so `effusion.` is another word
than `effusion`, and case counts; BLEU is not smoothed, a report set without a common 4-gram scores about 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from radvlm_edge.benchmarks.metrics_counts import Floats, Sums
from radvlm_edge.benchmarks.metrics_text import ORDER, bleu_words, grams, rouge_words

TINY, SMALL = 1e-15, 1e-9
"""Added above and below the line, so that nothing is divided by 0 (pycocoevalcap, bleu_scorer.py)."""
SIGMA = 6.0
"""Width of CIDEr-D's penalty on a difference of lengths, in words (two-word sequences are what it counts)."""
Gram = tuple[str, ...]


def bleu_row(answer: str, true: str, *, spaced: bool) -> dict[str, float]:
    """Counts of one report for BLEU; `spaced`: words by white space, else by mteval-v13a."""
    found, known = (text.split() if spaced else bleu_words(text) for text in (answer, true))
    row: dict[str, float] = {"bleu said": len(found), "bleu there": len(known)}
    for order in range(1, ORDER + 1):
        own = grams(found, order)
        row[f"bleu hit {order}"] = sum((own & grams(known, order)).values())
        row[f"bleu all {order}"] = sum(own.values())
    return row


def paper_bleu(sums: Sums) -> Floats:
    """BLEU-4 of the COCO tools over all reports together."""
    product = np.ones_like(sums["bleu said"])
    for order in range(1, ORDER + 1):
        product = product * (sums[f"bleu hit {order}"] + TINY) / (sums[f"bleu all {order}"] + SMALL)
    length = (sums["bleu said"] + TINY) / (sums["bleu there"] + SMALL)
    out: Floats = product ** (1 / ORDER) * np.exp(np.minimum(0.0, 1 - 1 / length))
    return out


def strict_bleu(sums: Sums) -> Floats:
    """BLEU-4 as sacrebleu computes it by default: orders without a hit are smoothed by halving."""
    hits = np.stack([sums[f"bleu hit {order}"] for order in range(1, ORDER + 1)])
    totals = np.stack([sums[f"bleu all {order}"] for order in range(1, ORDER + 1)])
    counted = (totals.min(axis=0) > 0) & (hits.max(axis=0) > 0)
    halved = np.cumsum(hits == 0, axis=0)
    shares = np.where(hits > 0, hits, 0.5**halved) / np.maximum(totals, 1)
    longer = np.maximum(sums["bleu said"], 1e-9)
    penalty = np.exp(np.minimum(0.0, 1 - sums["bleu there"] / longer))
    out: Floats = np.where(counted, penalty * np.exp(np.log(np.maximum(shares, 1e-300)).mean(axis=0)), 0.0)
    return out


def rouge_n(answer: str, true: str, order: int, stemmed: bool = True) -> float:
    """F1 of word sequences of a length in common, as rouge-score computes it; 0 where a text has none."""
    own, known = (grams(rouge_words(text, stemmed), order) for text in (answer, true))
    common = sum((own & known).values())
    return 2 * common / (sum(own.values()) + sum(known.values())) if common else 0.0


def cider_d(answers: Sequence[str], true: Sequence[str]) -> list[float]:
    """CIDEr-D of each report, 0 to 10, one reference each; rarity is counted over the references given.

    Raises ValueError for unequal numbers.
    """
    references = [_counts(text) for text in true]
    seen: Counter[Gram] = Counter(gram for one in references for gram in one)
    log_reports = math.log(len(references)) if references else 0.0

    def weighed(counts: Counter[Gram]) -> dict[Gram, float]:
        return {
            gram: count * (log_reports - math.log(max(1.0, seen[gram]))) for gram, count in counts.items()
        }

    scores = []
    for answer, reference in zip(answers, references, strict=True):
        counts = _counts(answer)
        apart = sum(count for gram, count in counts.items() if len(gram) == 2)
        apart -= sum(count for gram, count in reference.items() if len(gram) == 2)
        own, known = weighed(counts), weighed(reference)
        similar = sum(_similar(own, known, order) for order in range(1, ORDER + 1)) / ORDER
        scores.append(10 * similar * math.exp(-(apart**2) / (2 * SIGMA**2)))
    return scores


def _counts(text: str) -> Counter[Gram]:
    words = text.split()
    found: Counter[Gram] = Counter()
    for order in range(1, ORDER + 1):
        found += grams(words, order)
    return found


def _similar(own: dict[Gram, float], known: dict[Gram, float], order: int) -> float:
    """Clipped cosine of two reports' word sequences of one length."""
    common = sum(
        min(weight, known.get(gram, 0.0)) * known.get(gram, 0.0)
        for gram, weight in own.items()
        if len(gram) == order
    )
    norms = [
        math.sqrt(sum(weight**2 for gram, weight in one.items() if len(gram) == order))
        for one in (own, known)
    ]
    return common / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
