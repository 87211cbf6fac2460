"""Report → what this film alone shows: nothing about earlier films, views, technique or phone calls.

RadVLM had GPT-4o do this. Here rules do: a comparison is cut out where the rest still says something,
otherwise its sentence is dropped, with the reason. No sentence that `compares` is ever kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from radvlm_edge.runtime.answers import LABELS, parse_labels
from radvlm_edge.training.report_sections import squeeze

_I = re.IGNORECASE
_STUDY = r"(?:studies|study|examinations?|exams?|radiographs?|films?|images?|ct|priors?|x-?rays?)"
_COMPARES = re.compile(
    r"\b(?:un-?changed|stable|stably|interval(?:ly)?|again|re-?demonstrat\w+|re-?identified|persist\w*|new(?:ly)?|"
    r"previous(?:ly)?|priors?|compar(?:ed|ison|ing|able)|earlier|former(?:ly)?|since|baseline|"
    r"chang(?:e|es|ed)|improv\w+|worsen\w*|worse|progress\w*|regress\w*|resol(?:ved|ving|ution)|"
    r"cleared|clearing|remov(?:ed|al)|replaced|repositioned|advanced|withdrawn|"
    r"increas(?:ing|ingly)|decreas(?:ed|ing)|diminish\w*|"
    r"(?:has|have|had)\s+(?:\w+ly\s+)?(?:increased|developed|occurred|appeared|enlarged|become|been)|"
    r"increased\s+(?:since|from|in\s+size)|(?:larger|smaller|more|less)\s+(?:\w+\s+)?than|"
    r"(?:remains?|remained|still|no\s+longer|continue[sd]?|continu(?:ing|ed))|follow-?\s?up|"
    r"following\s+(?:intubation|extubation|removal|placement|surgery|thoracentesis|treatment|diuresis))\b",
    _I,
)
_CUT = (
    re.compile(rf",?\s*(?:as\s+|when\s+)?compared\s+(?:to|with)\s+[^,.;]*?{_STUDY}\b[^,.;]*", _I),
    re.compile(rf"^(?:in\s+comparison|(?:as\s+)?compared)\s+(?:to|with)\s+[^,.;]*?{_STUDY}\b[^,.;]*,\s*", _I),
    re.compile(rf",?\s*(?:in\s+comparison\s+(?:to|with)|since|from)\s+(?:the\s+)?(?:\w+\s+)?(?:prior|previous)\s*"
               rf"{_STUDY}?\b[^,.;]*", _I),
    re.compile(r"\bagain\s+(?=(?:seen|noted|demonstrated|identified|visualized|is|are)\b)", _I),
    re.compile(r"(?<=\bis)\s+again\b|(?<=\bare)\s+again\b", _I),
    re.compile(r"^(?:unchanged|stable|persistent|redemonstrated|new|improv(?:ed|ing)|worsen(?:ed|ing))\s+"
               r"(?=\w)", _I),
    re.compile(r"(?<!\bno)(?<!\bnot)(?<!\bwithout)(?<!\bor)(?<!\band)\s+(?:unchanged|stable|persistent)\s+"
               r"(?=\w)", _I),
)  # fmt: skip
_STILL = re.compile(
    r"^(?P<what>.+?)\s+(?:is|are|remains?|appears?)\s+(?:\w+ly\s+)?(?:unchanged|stable|similar)\b[^,;]*$", _I
)
_VIEW = re.compile(
    r"^(?:(?:single|two|portable|frontal|lateral|upright|supine|semi-?\s?(?:erect|upright)|bedside|ap|pa|and|a|the|"
    r"of|chest|were|was|is|are|this|as)\s+)*(?:views?|radiographs?|films?|images?|projections?|portable)\b"
    r"(?:[^.]*\b(?:obtained|provided|submitted|performed|presented|acquired|reviewed|chest|view)\b[^.]*)?\.?$",
    _I,
)
_TECHNIQUE = re.compile(
    r"\b(?:views?|images?|radiographs?|films?|study|examination)\b.*\b(?:obtained|provided|submitted|acquired|"
    r"limited|technique|technically|reviewed)\b|\b(?:rotat(?:ed|ion)|lateral\s+view|frontal\s+view|ap\s+view|"
    r"pa\s+view|ap\s+and\s+lateral|pa\s+and\s+lateral|technique|lordotic)\b",
    _I,
)
_CALLS = re.compile(
    r"\b(?:discussed|communicated|notified|telephone|phone|paged|dr\.|e-?mail|wet\s+read|entered\s+by|reported\s+to)"
    r"|\bfindings\s+were\b",
    _I,
)
_BLANK = re.compile(r"___+|\bX{3,}\b|\[\*\*")
_SENTENCE = re.compile(r"(?<!\bDr\.)(?<!\bDrs\.)(?<!\bvs\.)(?<=[.!?])\s+(?=[A-Z0-9_\[])")
_NUMBERED = re.compile(r"^\(?\d{1,2}[.)]\s*")


@dataclass(frozen=True)
class Filtered:
    """What is left of a report."""

    text: str
    """`""` where nothing is."""
    dropped: tuple[tuple[str, str], ...]
    """(sentence, why) in order: `comparison`, `view`, `communication`, `blank`."""


def compares(text: str) -> bool:
    """Whether a text speaks of another film than this one."""
    return bool(_COMPARES.search(text))


def sentences(text: str) -> list[str]:
    """Sentences of a report without the numbers of a list; decimals and `Dr.` do not end one."""
    joined = re.sub(r"(?<=[.;:!?])\s+\(?\d{1,2}[.)]\s+(?=[A-Z])", " ", squeeze(text))
    parts = [_NUMBERED.sub("", part).strip() for part in _SENTENCE.split(joined)]
    return [part for part in parts if re.search(r"[A-Za-z]", part)]


def filter_report(text: str) -> Filtered:
    """Keep what this film alone shows. Filtering a filtered report changes nothing."""
    kept, dropped = [], []
    for sentence in sentences(text):
        said, why = _filter(sentence)
        if said:
            kept.append(said)
        else:
            dropped.append((sentence, why))
    return Filtered(" ".join(kept), tuple(dropped))


def _filter(sentence: str) -> tuple[str, str]:
    """What is kept of a sentence, and why not, where nothing is."""
    if _BLANK.search(sentence):
        return "", "blank"
    if _CALLS.search(sentence):
        return "", "communication"
    if _VIEW.match(sentence) or _TECHNIQUE.search(sentence):
        return "", "view"
    if not compares(sentence):
        return sentence, ""
    rest = sentence
    for pattern in _CUT:
        rest = pattern.sub("" if pattern.pattern.startswith("^") else " ", rest)
    rest = squeeze(rest).strip(" ,;")
    still = _STILL.match(rest.rstrip("."))
    if still:
        # "Cardiomegaly is unchanged" still names a finding; "the heart size is unchanged" says nothing.
        rest = still["what"] if parse_labels(still["what"]) else ""
    if len(rest.split()) < 2 and rest.lower().rstrip(".") not in LABELS:
        return "", "comparison"
    if compares(rest) or set(parse_labels(rest)) != set(parse_labels(sentence)):
        return "", "comparison"
    rest = re.sub(r"\s+([.,;])", r"\1", rest)
    rest = rest[0].upper() + rest[1:].rstrip(".") + "."
    # What is left may itself be about the view ("Stable film." → "Film.").
    return (rest, "") if _filter(rest)[0] == rest else ("", "comparison")
