"""Questions with known answers: from what `dataset build` writes, or a JSON-lines file anybody can write.

A line of the latter: `image` (path, relative to the file), `task`, and what is known: `text` (the right
answer, or report), `labels` (of the 13 findings; `[]`: none), `boxes` (`[left, top, right, bottom]` as
fractions, or `{"label": …, "box": […]}`; `[]`: none). A conversation has `turns`
(`[{"question", "answer"}, …]`). Optional: `question` (else the task's own wording), `about` (the region,
finding or sentence asked for), `patient`, `split`, `id`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.evaluate_shards import Embedded, pairs
from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import LABELS, parse_boxes, parse_labels
from radvlm_edge.runtime.prompts import TASKS as WORDINGS
from radvlm_edge.training.phrasings import LOCATE, PHRASE
from radvlm_edge.training.scores import Box

TASKS = ("report", "classify", "region", "abnormality", "phrase", "detect", "conversation")
BOXED = ("region", "abnormality", "phrase", "detect")
SHARD_TASKS = {task: (task,) for task in TASKS} | {"conversation": ("conversation", "conversation-grounded")}
"""Task → what `dataset build` calls it."""
_WORDING = {"report": "report", "classify": "classify", "detect": "detect", "phrase": "phrase"}
_WORDING |= {"region": "locate", "abnormality": "locate"}
_KNOWN_KEYS = {
    "image",
    "task",
    "text",
    "labels",
    "boxes",
    "turns",
    "question",
    "about",
    "patient",
    "id",
    "split",
}
_UNIT = 10_000
"""Boxes of a text are read as on a film of this many pixels; only the fractions are used."""


@dataclass(frozen=True)
class Item:
    """One film and what is asked about it."""

    key: str
    task: str
    group: str
    """Patient, or film: what goes together when items are resampled."""
    image: Path | Embedded
    questions: tuple[str, ...]
    """One; of a conversation, several, oldest first."""
    texts: tuple[str, ...]
    """The right answer to each; empty where only labels or boxes are known."""
    labels: frozenset[str] | None = None
    boxes: tuple[Box, ...] | None = None
    names: tuple[str, ...] = ()
    """What each box is the box of, where that is known."""
    about: str = ""
    split: str = ""

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def film(self) -> Path | bytes:
        """The film's file, or its content."""
        return self.image if isinstance(self.image, Path) else self.image.read()


def read_items(
    data: Path, task: str, *, root: Path | None = None, split: str | None = None
) -> Iterator[Item]:
    """Items of a task in the data's order.

    data: folder of shards, or a `.jsonl` file. root: folder that films' paths are relative to (None: the
    data's own folder). split: only these. Raises RecipeError naming file and line, also for two of one key.
    """
    if task not in TASKS:
        raise RecipeError(f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    seen: set[str] = set()
    found = _lines(data, task, root) if data.is_file() else _shards(data, task, root)
    for item in found:
        if split is not None and item.split != split:
            continue
        if item.key in seen:
            raise RecipeError(f"{data}: two items are called {item.key!r}; give each an id of its own")
        seen.add(item.key)
        yield item


def drawn(items: Sequence[Item], take: int | None) -> list[Item]:
    """So many of the items, the same ones however many others there are; in their order."""
    if take is None or take >= len(items):
        return list(items)
    ranked = sorted(items, key=lambda item: hashlib.sha256(item.key.encode()).digest())
    kept = {item.key for item in ranked[:take]}
    return [item for item in items if item.key in kept]


def digest_of(items: Sequence[Item]) -> str:
    """SHA-256 over what is asked and known, films by name or content."""
    sha = hashlib.sha256()
    for item in items:
        # The name alone: the same data in another folder are the same data.
        image = item.image.name if isinstance(item.image, Path) else item.image.sha256
        facts = [item.key, item.task, item.questions, item.texts, item.names, item.about, item.boxes]
        line = json.dumps([*facts, sorted(item.labels or ()), image])
        sha.update(f"{line}\n".encode())
    return sha.hexdigest()


def _lines(path: Path, task: str, root: Path | None) -> Iterator[Item]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{where}: no JSON ({error}); write one object a line") from error
        if not isinstance(given, dict) or not {"image", "task"} <= given.keys():
            raise RecipeError(f"{where}: an object with `image` and `task` is needed")
        unknown = sorted(given.keys() - _KNOWN_KEYS)
        if unknown:
            raise RecipeError(
                f"{where}: {', '.join(unknown)} unknown; keys are {', '.join(sorted(_KNOWN_KEYS))}"
            )
        if given["task"] not in TASKS:
            raise RecipeError(f"{where}: task {given['task']!r} is unknown; choose one of {', '.join(TASKS)}")
        if given["task"] == task:
            yield _item_of(given, where, str(number), root or path.parent)


def _item_of(given: dict[str, Any], where: str, number: str, root: Path) -> Item:
    task, about = given["task"], str(given.get("about", ""))
    boxes, names = _given_boxes(given.get("boxes"), where)
    labels = _given_labels(given.get("labels"), where)
    if task == "conversation":
        turns = given.get("turns")
        if not isinstance(turns, list) or not turns:
            raise RecipeError(f"{where}: a conversation needs `turns`, a list of question and answer")
        try:
            questions = tuple(str(turn["question"]) for turn in turns)
            texts = tuple(str(turn["answer"]) for turn in turns)
        except (KeyError, TypeError):
            raise RecipeError(f"{where}: every turn needs a question and an answer") from None
    else:
        questions = (str(given.get("question") or _question(task, about, where)),)
        texts = (str(given.get("text", "")),)
    needed = {"report": texts[0], "classify": labels is not None or texts[0]}
    needed |= dict.fromkeys(BOXED, boxes is not None or texts[0])
    if task in needed and not needed[task]:
        what = {"report": "text", "classify": "labels or text"}.get(task, "boxes or text")
        raise RecipeError(f"{where}: {task} needs {what}, the right answer")
    image = root / str(given["image"])
    key = str(given.get("id") or f"{given['image']}#{task}#{number}")
    group = str(given.get("patient") or given["image"])
    item = Item(
        key, task, group, image, questions, texts, labels, boxes, names, about, str(given.get("split", ""))
    )
    return completed(item)


def completed(item: Item) -> Item:
    """An item whose labels, boxes and `about` are read from its right answer where they were not given."""
    labels, boxes, names = item.labels, item.boxes, item.names
    if labels is None and item.task == "classify":
        labels = frozenset(parse_labels(item.text))
    if boxes is None and item.task in BOXED:
        found = parse_boxes(item.text, _UNIT, _UNIT)
        boxes = tuple(box.xyxy_fraction for box in found)
        names = tuple(box.label or "" for box in found)
    about = item.about or _about(item.questions[0], item.task)
    return Item(
        item.key, item.task, item.group, item.image, item.questions, item.texts, labels, boxes, names, about,
        item.split,
    )  # fmt: skip


def _question(task: str, about: str, where: str) -> str:
    wording = WORDINGS[_WORDING[task]]
    if "{}" in wording and not about:
        raise RecipeError(f"{where}: {task} needs `about`, what is asked for, or a `question`")
    return wording.format(about)


def _about(question: str, task: str) -> str:
    """What a question in one of our wordings asks for."""
    wordings = {"region": LOCATE, "abnormality": LOCATE, "phrase": PHRASE}.get(task, ())
    for wording in wordings:
        found = re.fullmatch(re.escape(wording).replace(r"\{\}", "(.+)"), question)
        if found:
            return found[1]
    return ""


def _given_labels(given: Any, where: str) -> frozenset[str] | None:
    if given is None:
        return None
    if not isinstance(given, list):
        raise RecipeError(f"{where}: labels must be a list")
    names = [str(name).lower() for name in given]
    unknown = sorted(set(names) - set(LABELS))
    if unknown:
        raise RecipeError(f"{where}: label {unknown[0]!r} is unknown; labels are {', '.join(LABELS)}")
    return frozenset(names)


def _given_boxes(given: Any, where: str) -> tuple[tuple[Box, ...] | None, tuple[str, ...]]:
    if given is None:
        return None, ()
    boxes: list[Box] = []
    names = []
    for one in given if isinstance(given, list) else [None]:
        name, numbers = (one.get("label", ""), one.get("box")) if isinstance(one, dict) else ("", one)
        try:
            left, top, right, bottom = (float(value) for value in numbers)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise RecipeError(f"{where}: boxes must be lists of four numbers") from None
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise RecipeError(
                f"{where}: box {[left, top, right, bottom]} is not left, top, right, bottom, fractions 0 to 1"
            )
        boxes.append((left, top, right, bottom))
        names.append(str(name).lower())
    return tuple(boxes), tuple(names)


def _shards(folder: Path, task: str, root: Path | None) -> Iterator[Item]:
    for pair in pairs(folder):
        if pair["task"] not in SHARD_TASKS[task]:
            continue
        said = [str(turn["value"]) for turn in pair["conversations"]]
        questions = tuple(text.removeprefix("<image>\n") for text in said[::2])
        image = pair["embedded"] or (root or folder) / pair["image"]
        group = f"{pair['source']}/{pair['patient'] or pair['film']}"
        item = Item(pair["id"], task, group, image, questions, tuple(said[1::2]), split=pair["split"] or "")
        yield completed(item)
