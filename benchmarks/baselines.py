"""What other chest film models are asked and how they answer, as published: prompts, box forms, coordinates.

Plain text in, plain text out, so that every form can be checked without weights. What a model is not
published to do is `unsupported`, with the reason: such a task is marked in a result and never asked. The
tasks follow the table in RadVLM's README where it names a model. Sources stand at each form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from radvlm_edge.benchmarks.evaluate_models import Said
from radvlm_edge.errors import QuestionError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.instructions import boxes_text
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
CHEXAGENT_OPTIONS = ", ".join(LABELS)


@dataclass(frozen=True)
class Baseline:
    """One model family."""

    name: str
    tasks: Mapping[str, str]
    """Task → its question, `{}` standing for what is asked for; `""`: the item's own question."""
    loader: str
    """How baseline_models.py runs it."""
    why_not: Mapping[str, str] = field(default_factory=dict)
    """Task → why it cannot be asked; any other missing task is not in the model's published abilities."""
    places: Callable[[str, Size], list[Placed]] | None = None
    """Boxes of an answer; None: the family has no box form."""
    clean: Callable[[str], str] = str.strip
    """An answer's words without its markup."""
    needs_code: bool = False
    """True where the folder's own Python code has to be run."""

    def unsupported(self, task: str) -> str | None:
        """Why a task cannot be asked, or None."""
        if task in self.tasks:
            return None
        return self.why_not.get(task, f"{self.name} is not published for it")

    def question(self, task: str, asked: str, about: str) -> str:
        """The model's own wording of an item. Raises QuestionError where what is asked for is unknown."""
        wording = self.tasks[task]
        if "{}" in wording and not about:
            raise QuestionError(f"{self.name}: {task} needs `about`, what is asked for; it is not known here")
        return wording.replace("{}", about) if wording else asked

    def read(self, raw: str, task: str, size: Size) -> Said:
        """An answer in our form: its words, and boxes as fractions of the film, two digits in the text.

        Boxes that are empty, or wholly outside the film, are left out as the runtime leaves them out.
        """
        words = self.clean(raw)
        found = [one for one in (self.places(raw, size) if self.places else []) if _on_film(one[1])]
        boxes = tuple(_clamped(box) for _, box in found)
        names = tuple(name.lower() for name, _ in found)
        text = f"{words} {boxes_text(boxes)}".strip() if boxes else words
        return Said(text, boxes, names, raw=raw)


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


def _on_film(box: Box) -> bool:
    left, top, right, bottom = _clamped(box)
    return left < right and top < bottom


def _clamped(box: Box) -> Box:
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
    return left, top, right, bottom


_NO_BOXES = dict.fromkeys(("region", "abnormality", "phrase", "detect"), "it has no published form for boxes")
_CHEXAGENT_TASKS = {
    "report": "Write an example findings section for the CXR",
    "classify": f"Identify any diseases visible in the given CXR. Options:\n {CHEXAGENT_OPTIONS}",
}
"""As RadVLM's evaluation asks it (evaluate_instructions.py)."""
_RADIALOG_REPORT = "Write a radiology report for this X-Ray."
BASELINES = {
    one.name: one
    for one in (
        Baseline("llava-onevision", {"report": "", "conversation": ""}, "onevision", _NO_BOXES),
        Baseline("llava-med", {"report": "", "conversation": ""}, "llava", _NO_BOXES),
        Baseline(
            "radialog",
            # RadVLM's evaluation reads the findings off RaDialog's report, whatever the task.
            {"report": _RADIALOG_REPORT, "classify": _RADIALOG_REPORT, "conversation": ""},
            "radialog",
            _NO_BOXES,
            needs_code=True,
        ),
        Baseline(
            "chexagent",
            _CHEXAGENT_TASKS,
            "chexagent",
            dict.fromkeys(_NO_BOXES, "the first version's form of boxes is not published; use chexagent-2"),
            needs_code=True,
        ),
        Baseline(
            "chexagent-2",
            {
                **_CHEXAGENT_TASKS,
                "region": "Identify the position of the following region in the CXR: {}",
                "abnormality": "Locate areas in the chest X-ray where {} are present, using bounding box "
                "coordinates",
                "phrase": "Please locate the following phrase: {}",
            },
            "chexagent-2",
            {"detect": "its published interface locates one named disease at a time"},
            chexagent2_places,
            chexagent2_words,
            needs_code=True,
        ),
        Baseline(
            "maira-2",
            {"report": "", "region": "{}", "abnormality": "{}", "phrase": "{}"},
            "maira-2",
            {
                "classify": "it writes reports and grounds phrases, it does not name labels",
                "detect": "its grounded reports give sentences, not classes",
                "conversation": "it takes its own two prompts only",
            },
            maira2_places,
            maira2_words,
            needs_code=True,
        ),
        Baseline(
            "medgemma",
            {
                "report": "Describe this X-ray",
                "conversation": "",
                "region": (
                    'Where is the {} in this chest X-ray? "left" and "right" are the patient\'s. Give its '
                    "bounding box as a JSON list with one object in a ```json block: "
                    '[{"box_2d": [y0, x0, y1, x1], "label": "{}"}], top left corner first, coordinates '
                    "normalized to the range 0 to 1000."
                ),
            },
            "gemma",
            dict.fromkeys(
                ("abnormality", "phrase", "detect"), "its localisation is published for anatomy only"
            )
            | {"classify": "no published prompt names the 13 labels"},
            medgemma_places,
            medgemma_words,
        ),
    )
}
"""The families there are, by name."""
