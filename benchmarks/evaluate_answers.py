"""Items → answers, kept line by line, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.evaluate_items import Item
from radvlm_edge.benchmarks.evaluate_models import Model, Said
from radvlm_edge.errors import FilmError, OutputError, QuestionError
from radvlm_edge.runtime.prompts import Turn

FORMAT = 1
MOST = {"report": 512, "conversation": 512}
"""Longest answers in tokens; of other tasks `MOST_ELSE`. The paper allows 1,500."""
MOST_ELSE = 256
Progress = Callable[[int, int], None]
"""(items dealt with, items in all)."""


@dataclass(frozen=True)
class Answered:
    """What a model said of one item, or why nothing."""

    key: str
    said: tuple[Said, ...] = ()
    """One, or one for each turn."""
    failed: str = ""
    size: tuple[int, int] = (0, 0)
    """Height and width of the film."""

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.said]


class Kept:
    """The file of answers. Patient data: only its owner may read it."""

    def __init__(self, path: Path, head: dict[str, Any], force: bool) -> None:
        """Raises OutputError where the file holds answers of another model, task, or to other questions."""
        self._path = path
        self.done: dict[str, Answered] = {}
        head = json.loads(json.dumps({"format": FORMAT, **head}))
        lines = self._lines()
        if lines and not force:
            if lines[0] != head:
                different = sorted(k for k in head.keys() | lines[0].keys() if head.get(k) != lines[0].get(k))
                raise OutputError(
                    f"{path}: holds answers under other conditions ({', '.join(different)}); "
                    "choose another --out, or pass --force to begin anew"
                )
            self.done = {line["key"]: _answered(line) for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a kill left of a line is not carried over.
        partial = path.with_name(f".{path.name}.partial")
        with _private(partial) as file:
            file.write(json.dumps(head) + "\n")
            file.writelines(_line(one) for one in self.done.values())
        partial.replace(path)

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        try:
            whole = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            return [json.loads(line) for line in whole if line.endswith("\n")]
        except (ValueError, OSError) as error:
            raise OutputError(f"{self._path}: cannot be read as answers: {error}") from error

    def add(self, one: Answered) -> None:
        """Write an answer, on the disk before the next film is looked at."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(one))
            file.flush()
            os.fsync(file.fileno())
        self.done[one.key] = one


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")


def _line(one: Answered) -> str:
    return json.dumps({**asdict(one), "said": [asdict(said) for said in one.said]}) + "\n"


def _answered(line: dict[str, Any]) -> Answered:
    said = tuple(
        Said(**{**one, "boxes": tuple(map(tuple, one["boxes"])), "names": tuple(one["names"])})
        for one in line["said"]
    )
    return Answered(line["key"], said, line["failed"], (line["size"][0], line["size"][1]))


def answers(
    model: Model,
    items: Sequence[Item],
    kept: Kept,
    most: int | None = None,
    progress: Progress = lambda done, all_: None,
) -> Iterator[tuple[Item, Answered]]:
    """Every item with its answer, in order; what is kept already is not asked again.

    Items about the same film one after another share one look. Films that cannot be read and questions that
    do not fit are `failed`, and counted by the caller.
    """
    looking: Any = None
    shown: Any = None
    for number, item in enumerate(items, 1):
        one = kept.done.get(item.key)
        if one is None:
            try:
                if looking is None or shown != item.image:
                    looking, shown = None, None
                    looking, shown = model.look(item.film()), item.image
                one = _asked(looking, item, most or MOST.get(item.task, MOST_ELSE))
            except (FilmError, QuestionError) as error:
                one = Answered(item.key, failed=f"{type(error).__name__}: {error}")
            kept.add(one)
        progress(number, len(items))
        yield item, one


def _asked(looking: Any, item: Item, most: int) -> Answered:
    """Put one item's questions; in a conversation the model's own answers are what it goes on from."""
    history: list[Turn] = []
    said: list[Said] = []
    for question in item.questions:
        one = looking.answer(item.task, history, question, item.about, most)
        said.append(one)
        history.append(Turn(question, one.raw or one.text))
    return Answered(item.key, tuple(said), size=looking.size)
