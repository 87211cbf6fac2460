"""A candidate → the turns that are written, or the reason it gives none."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter

import numpy as np

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import parse_labels
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_check import check, denied_labels
from radvlm_edge.training.conversation_facts import ConversationError, Facts, Writer
from radvlm_edge.training.conversation_models import ModelWriter
from radvlm_edge.training.dataset_pairs import Candidate, filtered_text
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry
from radvlm_edge.training.dataset_tasks import SINGLE, Rejected, usable
from radvlm_edge.training.report_filter import compares
from radvlm_edge.training.source import Boxed, FilmRecord, Folders
from radvlm_edge.training.sources import SOURCES

GROUNDED = "conversation-grounded"


class Renderer:
    """Renders pairs; every pair's random numbers depend on the recipe's seed and the pair's name alone."""

    def __init__(self, recipe: DataRecipe, folders: Folders, writer: Writer) -> None:
        self._recipe, self._folders, self._writer = recipe, folders, writer
        self.notes: Counter[str] = Counter()
        """What happened to pairs that were written all the same."""

    def turns(self, entry: Entry, candidate: Candidate, repeat: int) -> list[Turn]:
        """Questions and answers of one pair. Raises Rejected with the reason for none."""
        source = SOURCES[entry.source]
        if not (source.folder_of(self._folders) / candidate.record.image).is_file():
            raise Rejected("the film's file is missing")
        try:
            record = source.complete(self._folders, candidate.record)
        except RecipeError:
            raise Rejected("what lies beside the film cannot be read") from None
        if record.report and entry.task in ("report", "conversation", GROUNDED):
            record = dataclasses.replace(record, report=self.filtered(record.report))
        whole = dataclasses.replace(candidate, record=record)
        rng = generator(self._recipe.seed, pair_name(entry, candidate, repeat))
        if entry.task in SINGLE:
            return [SINGLE[entry.task](rng, whole, self._recipe)]
        return self._conversation(rng, record, entry.task == GROUNDED)

    def _conversation(self, rng: np.random.Generator, record: FilmRecord, grounded: bool) -> list[Turn]:
        labels = record.labels.resolved(self._recipe.uncertain) if record.labels else None
        phrases = tuple(_usable(one) for one in record.phrases) if grounded else ()
        facts = Facts(record.report or "", labels, phrases, record.view, record.sex)
        try:
            turns = self._writer.write(facts, rng)
            check(turns, facts)
        except ConversationError as error:
            raise Rejected(f"conversation: {error}") from error
        return turns

    def filtered(self, report: str) -> str:
        """The recipe's filter; a model's text that adds or compares gives way to the rules', counted."""
        if self._recipe.filter != "model":
            return filtered_text(report, self._recipe.filter)
        assert isinstance(self._writer, ModelWriter)  # the recipe was checked
        text, ruled = self._writer.rewrite(report), filtered_text(report, "rules")
        told = set(parse_labels(report)), denied_labels(report)
        if (
            text
            and not compares(text)
            and set(parse_labels(text)) <= told[0]
            and denied_labels(text) <= told[1]
        ):
            return text
        self.notes["a model's report was refused and filtered by rules"] += 1
        return ruled


def _usable(one: Boxed) -> Boxed:
    usable(one.boxes)
    return one


def pair_name(entry: Entry, candidate: Candidate, repeat: int) -> str:
    """A pair's id, the same in every build."""
    return f"{entry.source}/{entry.task}/{candidate.key}/{repeat}"


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one pair: independent of the order in which pairs are made."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}\x00{name}".encode()).digest()))
