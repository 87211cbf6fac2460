"""Conversations from templates: deterministic, offline, and never saying more than is known."""

from __future__ import annotations

import numpy as np

from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_facts import ConversationError, Facts
from radvlm_edge.training.dataset_tasks import lower_sentence
from radvlm_edge.training.instructions import Labels, boxes_text, classify, pick, yes_no
from radvlm_edge.training.report_filter import compares, sentences
from radvlm_edge.training.reports import joined

_OPEN = (
    "What do you see on this film?",
    "Can you describe the main findings?",
    "What does this X-ray show?",
    "Please describe this chest X-ray.",
)
_SHORT = (
    "What is the most important observation?",
    "What stands out first?",
    "Can you name one observation?",
)
_VIEW = ("Which view is this?", "Is this an AP or a PA film?", "How was this film taken?")
_WHERE = (
    "Where is {} located on the image?",
    "Can you show me where {} is located on the image?",
    "Where on the image do you see {}?",
)
_THERE = ("It is located at {}.", "It can be seen at {}.", "At {}.")
_OBSERVE = ("Which observations can be pointed out on this film?", "What can you localise on this image?")
_FOLLOW = ("And where exactly is it?", "Where is it located on the image?")
_VIEWS = {"PA": "posteroanterior (PA)", "AP": "anteroposterior (AP)"}


class TemplateWriter:
    """Two to six rounds about the report and labels; grounded ones ask where each sentence is to be seen."""

    name = "template 1"

    def write(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        """Raises ConversationError where too little is known for two rounds."""
        turns = self._grounded(facts, rng) if facts.phrases else self._standard(facts, rng)
        if len(turns) < 2:
            raise ConversationError("too little is known of the film")
        return turns[:6]

    def _standard(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        said = sentences(facts.report)
        turns = [Turn(pick(rng, _OPEN), facts.report)] if rng.random() < 0.5 or len(said) < 3 else []
        if not turns:
            turns = [Turn(pick(rng, _SHORT), said[0]), Turn("And what else?", " ".join(said[1:]))]
        more = self._labelled(facts, rng)
        if facts.view in _VIEWS:
            more.append(Turn(pick(rng, _VIEW), f"This is a frontal film, {_VIEWS[facts.view]} view."))
        return turns + [more[int(index)] for index in rng.permutation(len(more))]

    def _labelled(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        """A list of all findings, and one or two questions about single ones."""
        if facts.labels is None:
            return []
        known = Labels(facts.labels.present)
        asked = [classify(rng, known)]
        # Only what is labelled absent is denied: silence of a label is not absence.
        groups = [sorted(names) for names in (facts.labels.present, facts.labels.absent) if names]
        asked += [yes_no(rng, known, names[int(rng.integers(len(names)))]) for names in groups]
        return [Turn(one.question, one.answer) for one in asked]

    def _grounded(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        usable = [one for one in facts.phrases if not compares(one.text)]
        if not usable:
            raise ConversationError("every sentence compares with another film")
        order = [usable[int(index)] for index in rng.permutation(len(usable))][:4]
        named = [lower_sentence(one.text.rstrip(". ")) for one in order]
        first = (
            f"I can point out the following: {joined(named, '; and ')}." if len(named) > 1 else order[0].text
        )
        turns = [Turn(pick(rng, _OBSERVE), first.rstrip(". ") + ".")]
        for one, name in zip(order, named, strict=True):
            alone = len(order) == 1 and rng.random() < 0.5
            question = pick(rng, _FOLLOW) if alone else pick(rng, _WHERE).format(name)
            turns.append(Turn(question, pick(rng, _THERE).format(boxes_text(one.boxes))))
        return turns
