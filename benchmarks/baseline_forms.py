"""How other chest film models write boxes and want to be asked, as published; pure functions of text.

Every source stands at its function. Coordinates come out as fractions of the whole film.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.scores import Box

Size = tuple[int, int]
"""Height and width of the film in pixels."""
Placed = tuple[str, Box]
"""A name (may be empty) and its box, fractions of the film."""
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_CHEXAGENT = re.compile(
    r"(?:<\|ref\|>\s*(?P<name>.*?)\s*<\|/ref\|>\s*)?"
    r"<\|box\|>\s*\((\d+)\s*,\s*(\d+)\)\s*,\s*\((\d+)\s*,\s*(\d+)\)\s*<\|/box\|>",
    re.DOTALL,
)
_CHEXAGENT_TAG = re.compile(r"<\|/?(?:ref|box)\|>|</s>|<s>")
_MAIRA_PHRASE = re.compile(r"<obj>(.*?)</obj>", re.DOTALL)
_MAIRA_BOX = re.compile(r"<box>\s*<x(\d+)>\s*<y(\d+)>\s*<x(\d+)>\s*<y(\d+)>\s*</box>")
_MEDGEMMA = re.compile(r"\{[^{}]*\"box_2d\"\s*:\s*\[" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\][^{}]*\}")
_FINAL = "final answer"
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Of vicuna_v1 (FastChat; llava/conversation.py)."""
MEDGEMMA_SYSTEM = "You are an expert radiologist."
"""As in the model card's example."""


def chexagent2_places(raw: str, size: Size) -> list[Placed]:
    """`<|ref|>name<|/ref|><|box|>(x1,y1),(x2,y2)<|/box|>`, percent of the film's width and height.

    Source: Stanford-AIMI/CheXagent, model_chexagent/chexagent.py `plot_image` (coordinates / 100) and
    data_chexinstruct/dataset_processors/ms_cxr.py; RadVLM reads it with a space inside the tags.
    """
    placed: list[Placed] = []
    name = ""
    for found in _CHEXAGENT.finditer(raw):
        name = found["name"] or name
        left, top, right, bottom = (int(value) / 100 for value in found.groups()[1:])
        placed.append((name, (left, top, right, bottom)))
    return placed


def chexagent2_words(raw: str) -> str:
    """The answer without tags and coordinates."""
    without = re.sub(r"<\|box\|>.*?<\|/box\|>", " ", raw, flags=re.DOTALL)
    return " ".join(_CHEXAGENT_TAG.sub(" ", without).split())


def maira2_places(raw: str, size: Size) -> list[Placed]:
    """`<obj>phrase<box><x10><y20><x30><y40></box></obj>`, bins of a hundredth of the film's central square.

    A bin stands for its middle. The model sees a square of the film's shorter side, cut from its middle; a
    coordinate is put back through whole pixels. Source: microsoft/maira-2, processing_maira2.py,
    `convert_output_to_plaintext_or_grounded_sequence` and `adjust_box_for_original_image_size`.
    """
    height, width = size
    side = min(height, width)
    offsets = (width - side) // 2, (height - side) // 2
    placed = []
    for phrase in _MAIRA_PHRASE.findall(raw):
        name = phrase.split("<box>")[0].strip()
        for bins in _MAIRA_BOX.findall(phrase):
            values = [(int(one) + 0.5) / 100 for one in bins]
            left, right = (int(value * side + offsets[0]) / width for value in values[::2])
            top, bottom = (int(value * side + offsets[1]) / height for value in values[1::2])
            placed.append((name, (left, top, right, bottom)))
    return placed


def maira2_words(raw: str) -> str:
    """Findings with or without boxes as one text; plain reports come as they are."""
    return " ".join(re.sub(r"<box>.*?</box>", " ", raw.replace("</obj>", " ").replace("<obj>", " ")).split())


def medgemma_places(raw: str, size: Size) -> list[Placed]:
    """`{"box_2d": [y0, x0, y1, x1], "label": …}`, thousandths of the film in the middle of a square.

    Reasoning may come first and hold boxes too: those behind the last "Final Answer" count, if there is one.
    Source: Google Health's MedGemma 1.5 localisation notebook; an answer of the model is quoted in
    cfcmadlad/cxr-grounding-benchmark, medgemma15_medsam.py (the padding is ours to undo: `padded` makes it).
    """
    height, width = size
    side = max(height, width)
    offsets = (side - width) // 2, (side - height) // 2
    final = raw.lower().rfind(_FINAL)
    placed = []
    for found in _MEDGEMMA.finditer(raw[max(final, 0) :]):
        top, left, bottom, right = (float(value) / 1000 * side for value in found.groups())
        placed.append(
            (
                _label_of(found[0]),
                (
                    (left - offsets[0]) / width,
                    (top - offsets[1]) / height,
                    (right - offsets[0]) / width,
                    (bottom - offsets[1]) / height,
                ),
            )
        )
    return placed


def medgemma_words(raw: str) -> str:
    """The answer without code fences and JSON."""
    without = re.sub(r"```(?:json)?|```", " ", _MEDGEMMA.sub(" ", raw))
    return " ".join(re.sub(r"\[[\s,]*\]", " ", without).split())


def _label_of(entry: str) -> str:
    try:
        return str(json.loads(entry).get("label", ""))
    except ValueError:  # a label that is no JSON string, of an entry whose box can be read
        return ""


def vicuna_prompt(turns: Sequence[Turn]) -> str:
    """RaDialog's prompt: vicuna_v1, the image as `<image>. ` before the first question.

    Source: RaDialog's inference as RadVLM runs it (models_loading_inference.py `inference_radialog`).
    """
    parts = [VICUNA_SYSTEM]
    for at, turn in enumerate(turns):
        asked = f"<image>. {turn.question}" if at == 0 else turn.question
        parts.append(f"USER: {asked} ASSISTANT:" + (f" {turn.answer}</s>" if turn.answer is not None else ""))
    text = parts[0] + " " + parts[1]
    for part in parts[2:]:
        text += part
    return text


def mistral_prompt(turns: Sequence[Turn]) -> str:
    """LLaVA-Med 1.5's prompt. Source: microsoft/LLaVA-Med, llava/conversation.py, `mistral_instruct`."""
    text = ""
    for at, turn in enumerate(turns):
        asked = f"<image>\n{turn.question}" if at == 0 else turn.question
        text += f"[INST] {asked} [/INST]" + (f" {turn.answer} </s>" if turn.answer is not None else "")
    return text


def chexagent1_prompt(question: str) -> str:
    """CheXagent's first version. Source: the model card of StanfordAIMI/CheXagent-8b."""
    return f" USER: <s>{question} ASSISTANT: <s>"
