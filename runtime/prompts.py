"""Questions → prompts: RadVLM's task wordings and the checkpoint's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radvlm_edge.bundle import Prompting
from radvlm_edge.errors import BundleError, QuestionError
from radvlm_edge.runtime.answers import LABELS

TASKS = {
    "report": "Provide a radiology report for this Chest X-Ray.",
    "classify": "Are there any abnormalities on this Chest X-ray?",
    "detect": "Are abnormalities present on this Chest X-ray? Where exactly can they be found?",
    "locate": "Where is the {} located in this Chest X-ray?",
    "phrase": "Please locate the following sentence: {}",
}
"""The wordings RadVLM was trained on (uzh-dqbm-cmi/RadVLM, radvlm/data/create_instructions.py)."""


CHECKLIST = "checklist"
"""A task of many questions: one plain one for each of `LABELS`, as `radvlm-edge fidelity` asks them."""


@dataclass(frozen=True)
class Turn:
    """A question and, unless it is the one being asked, its answer."""

    question: str
    answer: str | None = None


def task_questions(task: str) -> list[str]:
    """Questions of a task: `checklist`'s, one for each finding, or the one of `task_question`."""
    return [f"Is there {label}?" for label in LABELS] if task == CHECKLIST else [task_question(task)]


def task_question(task: str) -> str:
    """Question for a task given as `report` or `locate=PHRASE`.

    Raises QuestionError for an unknown task, or a phrase that is missing or not wanted.
    """
    if task == CHECKLIST:
        raise QuestionError(f"task {task!r} is {len(LABELS)} questions; ask_many(task_questions({task!r}))")
    name, given, phrase = task.partition("=")
    wording = TASKS.get(name)
    if wording is None:
        known = ", ".join(key + ("=PHRASE" if "{}" in text else "") for key, text in TASKS.items())
        known += f", {CHECKLIST}"
        raise QuestionError(f"task {name!r} is unknown; choose one of {known}")
    if "{}" not in wording:
        if given:
            raise QuestionError(f"task {name!r} takes no phrase, but {phrase!r} was given; use --task {name}")
        return wording
    phrase = phrase.strip()
    if not phrase:
        raise QuestionError(f"task {name!r} needs a phrase, e.g. --task '{name}=pleural effusion'")
    return wording.format(_lower_label(phrase))


def _lower_label(phrase: str) -> str:
    """As in training: a leading capital is lowered unless the whole word is upper case (`ILD`)."""
    return phrase if phrase.isupper() else phrase[0].lower() + phrase[1:]


def check_question(question: str, prompting: Prompting) -> str:
    """Strip a question and refuse one that is empty or spells a special token."""
    question = question.strip()
    if not question:
        raise QuestionError("the question is empty; ask something, e.g. --ask 'any effusion?'")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise QuestionError("the question holds bytes that are no UTF-8 text; type it anew") from None
    for token in prompting.special_tokens:
        if token in question:
            raise QuestionError(f"the question contains the model's control token {token!r}; leave it out")
    return question


def render(turns: Sequence[Turn], prompting: Prompting) -> tuple[str, str]:
    """Prompt text before and after the image, as the checkpoint's chat template writes it.

    No system prompt: the authors evaluate without one. The image goes into the first user turn.
    Raises BundleError if the template does not place exactly one image.
    """
    messages: list[dict[str, object]] = []
    for index, turn in enumerate(turns):
        image = [{"type": "image"}] if index == 0 else []
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    from radvlm_edge.runtime.chat_template import render_messages  # Jinja takes a while to load

    text = render_messages(prompting.chat_template, messages)
    head, *rest = text.split(prompting.image_token)
    if len(rest) != 1:
        raise BundleError(
            f"the bundle's chat template places {len(rest)} images; "
            f"exactly one {prompting.image_token} is needed"
        )
    return head, rest[0]
