"""The standard questions: what every film is asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.bundle import Prompting
from radvlm_edge.errors import NodeError, QuestionError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.runtime.prompts import CHECKLIST, check_question, task_question, task_questions

STANDARD = ("@checklist", "@detect")
"""What is asked without a file: every finding, then where abnormalities are."""
MOST = 64


@dataclass(frozen=True)
class Questions:
    """What is asked of every film."""

    lines: tuple[str, ...] = STANDARD
    """As written: `@TASK`, `@TASK=PHRASE`, or a question."""

    @classmethod
    def load(cls, path: Path | None) -> Questions:
        """Questions of a text file, one a line (`#`: a comment); `None`: the standard ones.

        Raises NodeError for a file that cannot be read, or holds none, too many or an unknown task.
        """
        if path is None:
            return cls()
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NodeError(f"{path}: the questions cannot be read: {error}") from error
        lines = [line.strip() for line in text.splitlines()]
        questions = cls(tuple(line for line in lines if line and not line.startswith("#")))
        try:
            count = len(questions.checklist) + len(questions.others)
        except QuestionError as error:
            raise NodeError(f"{path}: {error}") from error
        if not 0 < count <= MOST:
            raise NodeError(f"{path}: {count} questions; write 1 to {MOST}, one a line")
        return questions

    @property
    def checklist(self) -> dict[str, str]:
        """Finding → its question, if the checklist is asked."""
        asked = f"@{CHECKLIST}" in self.lines
        return dict(zip(LABELS, task_questions(CHECKLIST), strict=True)) if asked else {}

    @property
    def others(self) -> tuple[str, ...]:
        """All other questions in their order. Raises QuestionError for an unknown task."""
        lines = [line for line in self.lines if line != f"@{CHECKLIST}"]
        return tuple(task_question(line[1:]) if line.startswith("@") else line for line in lines)

    @property
    def digest(self) -> str:
        """SHA-256 of the questions as the model gets them."""
        asked = [*self.checklist.values(), *self.others]
        return hashlib.sha256("\n".join(asked).encode()).hexdigest()

    def check(self, prompting: Prompting) -> None:
        """Raise NodeError for a question a bundle cannot be asked."""
        for question in (*self.checklist.values(), *self.others):
            try:
                check_question(question, prompting)
            except QuestionError as error:
                raise NodeError(f"question {question[:80]!r}: {error}") from error
