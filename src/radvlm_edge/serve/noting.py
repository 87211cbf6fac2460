"""Answers are in the audit log before anybody has them."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from radvlm_edge.audit import ANSWERED, ASKED, LEFT, AuditLog
from radvlm_edge.errors import AuditError
from radvlm_edge.serve.questions import Chat

if TYPE_CHECKING:
    from radvlm_edge.runtime.reader import Study
    from radvlm_edge.serve.work import Result


log = logging.getLogger("radvlm_edge.serve")


def noted(
    audit: AuditLog | None,
    study: Study,
    asked: Chat,
    who: Mapping[str, Any] | None,
    answering: Generator[Any, None, Result],
) -> Generator[Any, None, Result]:
    """Pass on an answer's pieces. Noted are: a question whose answer streams, before its first piece; every
    answer, before its last event; one whose client left, as far as it was written.

    Pieces of an answer that does not stream reach nobody before `Result` does. Raises AuditError, and the
    answer ends there, if the log cannot be written.
    """
    if audit is None:
        return (yield from answering)
    told: dict[str, Any] = {
        "via": "serve",
        "who": dict(who or {}),
        "turns": len(asked.turns),
        "shape": asked.shape is not None,
    }
    if asked.stream:
        audit.answered(study, asked.question, "", event=ASKED, **told)
    said: list[str] = []
    try:
        while True:
            piece = next(answering)
            if isinstance(piece, str):
                said.append(piece)
            yield piece
    except StopIteration as stopped:
        result: Result = stopped.value
    except GeneratorExit:
        answering.close()
        try:
            audit.answered(study, asked.question, "".join(said).strip(), event=LEFT, **told)
        except AuditError as error:  # nobody waits for it; whoever asks next is refused
            log.error("%s", error)
        raise
    audit.answered(study, asked.question, result.text, event=ANSWERED, **told)
    return result
