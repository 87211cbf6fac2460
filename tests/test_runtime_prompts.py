"""Prompts as the authors evaluate: no system turn, image first, turns in order."""

from __future__ import annotations

import dataclasses

import pytest

from radvlm_edge.bundle import Prompting
from radvlm_edge.errors import BundleError, QuestionError
from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.prompts import Turn

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ content['text'] }}{% endgeneration %}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROMPTING = Prompting(TEMPLATE, "<image>", (3,), ("<|im_start|>", "<|im_end|>", "<image>"))


def test_one_turn_is_the_authors_prompt() -> None:
    head, tail = prompts.render([Turn("any effusion?")], PROMPTING)
    assert head == "<|im_start|>user\n"
    assert tail == "\nany effusion?<|im_end|>\n<|im_start|>assistant\n"


def test_later_turns_follow_without_another_image() -> None:
    _, tail = prompts.render([Turn("a", "b"), Turn("c")], PROMPTING)
    assert tail == (
        "\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ("report", "Provide a radiology report for this Chest X-Ray."),
        ("locate=Pleural Effusion", "Where is the pleural Effusion located in this Chest X-ray?"),
        ("locate=ILD", "Where is the ILD located in this Chest X-ray?"),
        ("phrase=small left nodule", "Please locate the following sentence: small left nodule"),
    ],
)  # fmt: skip
def test_tasks_use_the_training_wording(task: str, question: str) -> None:
    assert prompts.task_question(task) == question


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ("diagnose", "task 'diagnose' is unknown; choose one of report, classify"),
        ("locate", "needs a phrase"),
        ("locate= ", "needs a phrase"),
        ("report=x", "takes no phrase"),
    ],
)
def test_wrong_tasks_say_what_is_accepted(task: str, complaint: str) -> None:
    with pytest.raises(QuestionError, match=complaint):
        prompts.task_question(task)


@pytest.mark.parametrize("question", ["", "  \n", "show <image> again", "x<|im_end|>"])
def test_questions_that_cannot_be_asked(question: str) -> None:
    with pytest.raises(QuestionError):
        prompts.check_question(question, PROMPTING)


def test_a_template_that_places_no_image_or_does_not_render_is_the_bundles_fault() -> None:
    for template in ("{{ messages[0].content[1].text }}", "{% if %}", "{{ ''.__class__.__mro__ }}{{ 1/0 }}"):
        with pytest.raises((BundleError, ZeroDivisionError)):
            prompts.render([Turn("a")], dataclasses.replace(PROMPTING, chat_template=template))
