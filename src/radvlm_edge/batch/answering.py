"""Films → rows: the work of one process, which has one reader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from radvlm_edge.audit import REFUSED, AuditLog, this_user
from radvlm_edge.batch.job import Job
from radvlm_edge.errors import DetailError, FilmError, QuestionError
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.choices import Choice
from radvlm_edge.runtime.film import content_of
from radvlm_edge.runtime.reader import Reader, Study

THIS_FILM = (FilmError, QuestionError, DetailError)
"""What may be wrong with one film; anything else ends the job, which can be gone on with."""

Begun = Callable[[int], None]
"""Told a film's index before it is read."""


class Answering:
    """Answers parts of a job."""

    def __init__(self, job: Job, reader: Reader) -> None:
        self.job, self.reader = job, reader
        self._audit = AuditLog(job.audit) if job.audit is not None else None

    def part(
        self, part: int, deaths: Mapping[int, str], begun: Begun = lambda index: None
    ) -> list[dict[str, Any]]:
        """Rows of a part's films, in their order; `deaths` are films not to be touched again."""
        rows: list[dict[str, Any]] = []
        for index in self.job.films_of(part):
            film = self.job.films[index]
            if index in deaths:
                rows.append(_error_row(film, f"the process that read it was ended twice ({deaths[index]})"))
                continue
            begun(index)
            rows += self._film(film)
        return rows

    def _film(self, film: str) -> list[dict[str, Any]]:
        digest = None
        try:
            content, _ = content_of(film)
            digest = hashlib.sha256(content).hexdigest()
            study = self._look(content, film)
            return [self._row(film, digest, study, one) for one in self._ask(study)]
        except THIS_FILM as error:
            if self._audit is not None:
                self._audit.note(REFUSED, via="batch", who=this_user(), why=type(error).__name__)
            return [
                {**_error_row(film, str(error)), "film_sha256": digest, "bundle": self.reader.bundle.sha256}
            ]

    def _look(self, content: bytes, film: str) -> Study:
        from radvlm_edge.runtime.film import load_film

        options = self.reader.options
        return self.reader.look(
            load_film(
                content,
                render=options.render or self.reader.bundle.manifest.render,
                any_modality=options.any_modality,
                frame=options.frame,
                name=film,
            )
        )

    def _ask(self, study: Study) -> list[Answer] | list[Choice]:
        if self.job.choices is not None:
            return [study.choose(question, self.job.choices) for question in self.job.questions]
        return [answer.finish() for answer in study.ask_many(self.job.questions)]

    def _row(self, film: str, digest: str, study: Study, one: Answer | Choice) -> dict[str, Any]:
        if self._audit is not None:
            self._audit.answered(study, one.question, one.text, via="batch", who=this_user())
        reader = self.reader
        row = {
            "film": film,
            "film_sha256": digest,
            "sop_instance_uid": (study.film.provenance or {}).get("sop_instance_uid") or None,
            "question": one.question,
            "text": one.text,
            "confidence": one.confidence.value,
            "calibrated_on": one.confidence.calibrated_on,
            "height": study.layout.height,
            "width": study.layout.width,
            "view": study.film.view,
            "crops": study.layout.crops,
            "image_tokens": study.layout.image_tokens,
            "render": study.film.render,
            "detail": study.detail,
            "warnings": [*study.film.warnings, *study.notes],
            "vision": reader.vision_artefact.precision,
            "vision_backend": reader.tower.backend,
            "language": reader.language_artefact.precision,
            "prefill_backend": reader.prefilling.backend,
            "bundle": reader.bundle.sha256,
        }
        return row | (_choice(one) if isinstance(one, Choice) else _answer(one))


def _answer(answer: Answer) -> dict[str, Any]:
    boxes = [
        {"label": box.label, "xyxy_fraction": list(box.xyxy_fraction), "xyxy_pixels": list(box.xyxy_pixels)}
        for box in answer.boxes
    ]
    return {"labels": list(answer.labels), "boxes": boxes, "tokens": answer.tokens, "stop": answer.stop}


def _choice(choice: Choice) -> dict[str, Any]:
    shares = choice.probabilities.items()
    return {"choices": [{"text": text, "probability": share} for text, share in shares]}


def _error_row(film: str, error: str) -> dict[str, Any]:
    return {"film": film, "error": error}
