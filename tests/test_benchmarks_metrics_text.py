"""ROUGE-L, BLEU and the stemmer against the packages whose definitions they follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.benchmarks.metrics_text import corpus_bleu, mean_rouge_l, rouge_l
from radvlm_edge.benchmarks.stemmer import IRREGULAR, stem

SUFFIXES = (
    "", "s", "es", "ies", "ied", "ed", "ing", "eed", "y", "ational", "tional", "enci", "izer", "bli",
    "alli", "entli", "eli", "ousli", "ization", "ation", "ator", "alism", "iveness", "fulness", "aliti",
    "biliti", "fulli", "logi", "icate", "ative", "alize", "ical", "ful", "ness", "ement", "ment", "ent",
    "ion", "sion", "tion", "ism", "ate", "ous", "ive", "ize", "ll", "e", "lly", "able", "ity",
)  # fmt: skip
words = st.tuples(st.text("abeilostyz", min_size=1, max_size=6), st.sampled_from(SUFFIXES)).map("".join)
signs = st.sampled_from([" ", ", ", ". ", "-", " 3.5 ", " (", ") ", "/", ": ", " & ", "\n", " A "])
texts = st.lists(
    st.one_of(words, signs, st.sampled_from(["effusion ", "no ", "small ", "left "])), max_size=14
).map("".join)


@settings(deadline=None, max_examples=1500)
@given(words)
def test_stems_agree_with_nltk(word: str) -> None:
    from nltk.stem.porter import PorterStemmer

    assert stem(word) == PorterStemmer().stem(word)


def test_stems_of_our_own_documents_agree_with_nltk() -> None:
    from nltk.stem.porter import PorterStemmer

    reference = PorterStemmer()
    pages = (Path(__file__).parents[1] / "docs").glob("*.md")
    own = {word for page in pages for word in re.findall("[a-z]+", page.read_text(encoding="utf-8").lower())}
    assert len(own) > 1000
    assert {word: stem(word) for word in own | set(IRREGULAR)} == {
        word: reference.stem(word) for word in own | set(IRREGULAR)
    }


@settings(deadline=None, max_examples=200)
@given(texts, texts, st.booleans())
def test_rouge_l_agrees_with_rouge_score(answer: str, true: str, stemmed: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rougeL"], use_stemmer=stemmed).score(true, answer)["rougeL"].fmeasure
    assert rouge_l(answer, true, stemmed) == pytest.approx(expected)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_bleu_agrees_with_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    import sacrebleu

    answers, true = [one for one, _ in pairs], [one for _, one in pairs]
    expected = sacrebleu.corpus_bleu(answers, [true]).score / 100
    assert corpus_bleu(answers, true) == pytest.approx(expected, abs=1e-9)


def test_a_report_is_as_close_to_itself_as_can_be() -> None:
    report = "There is a small left pleural effusion. No pneumothorax, 3.5 cm."
    assert mean_rouge_l([report], [report]) == 1 and corpus_bleu([report], [report]) == pytest.approx(1)
    with pytest.raises(ValueError, match="zip"):
        mean_rouge_l([report], [])
