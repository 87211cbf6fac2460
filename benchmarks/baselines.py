"""What other chest film models are asked and can do: one table, of published abilities and wordings.

What a model is not published to do is `unsupported`, with the reason: such a task is marked in a result and
never asked. The tasks follow the table in RadVLM's README where it names a model. Forms: baseline_forms.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from radvlm_edge.benchmarks.baseline_forms import (
    Placed,
    Size,
    chexagent2_places,
    chexagent2_words,
    maira2_places,
    maira2_words,
    medgemma_places,
    medgemma_words,
)
from radvlm_edge.benchmarks.evaluate_models import Said
from radvlm_edge.errors import QuestionError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.instructions import boxes_text
from radvlm_edge.training.scores import Box

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
