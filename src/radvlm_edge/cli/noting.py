"""What `infer` and `chat` write to an audit log (audit.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from radvlm_edge.errors import RadvlmError

if TYPE_CHECKING:
    from radvlm_edge.runtime.reader import Study


class Noting:
    """A command's lines in an audit log; without a log it does nothing."""

    def __init__(self, path: Path | None, via: str) -> None:
        self._log, self._via = None, via
        if path is not None:
            from radvlm_edge.audit import AuditLog, this_user

            self._log, self._who = AuditLog(path), this_user()

    def asked(self, study: Study, question: str) -> None:
        """To be called before the first piece of an answer that is shown while it is written."""
        self._note(study, question, "", "asked")

    def answered(self, study: Study, question: str, text: str) -> None:
        self._note(study, question, text, "answered")

    def left(self, study: Study, question: str, text: str) -> None:
        """The answer was broken off; `text` is what was shown of it."""
        self._note(study, question, text, "left")

    def refused(self, error: RadvlmError) -> None:
        if self._log is not None:
            self._log.note("refused", via=self._via, who=self._who, why=type(error).__name__)

    def _note(self, study: Study, question: str, text: str, event: str) -> None:
        if self._log is not None:
            self._log.answered(study, question, text, via=self._via, who=self._who, event=event)
