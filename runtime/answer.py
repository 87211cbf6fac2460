"""An answer while it is written and afterwards: text, boxes, labels, counts, timing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radvlm_edge.runtime.answers import Box, parse_boxes, parse_labels
from radvlm_edge.runtime.confidence import Confidence, of_answer

if TYPE_CHECKING:
    from radvlm_edge.runtime.many import Written
    from radvlm_edge.runtime.reader import Study


@dataclass(frozen=True)
class Timing:
    """Where the time of one answer went, in milliseconds."""

    prefill_ms: float
    """Running what was not in the K/V state yet: for a film's first answer the film itself too."""
    first_token_ms: float
    """`prefill_ms` and choosing the first token."""
    decode_ms: float
    """From the first token to the last."""


class Answer:
    """An answer being written. Iterate it to stream; any attribute waits for the end."""

    def __init__(
        self,
        study: Study,
        question: str,
        steps: Callable[[], Generator[str, None, None]],
        prompt_tokens: int,
    ) -> None:
        self.question = question
        self.prompt_tokens = prompt_tokens
        """Tokens the answer follows: film, question and earlier turns, prefilled for it or not."""
        self._study = study
        self._pieces: list[str] = []
        self._stream = steps()
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._margin: float | None = None
        self._prefilled = 0
        self._stop, self._ended = "", False
        self._timing = Timing(0.0, 0.0, 0.0)

    def __iter__(self) -> Iterator[str]:
        index = 0
        while True:
            while index < len(self._pieces):
                yield self._pieces[index]
                index += 1
            piece = next(self._stream, None)
            if piece is None:
                self._ended = True
                return
            self._pieces.append(piece)

    def finish(self) -> Answer:
        """Decode to the end."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """Write no more: what there is stays the answer, and `stop` says `cancelled`.

        Nothing is run for it any more; an answer already ended stays as it is.
        """
        if not self._ended:
            self._stream.close()
            self._stop, self._ended = "cancelled", True

    @classmethod
    def _of(cls, study: Study, question: str, text: str, written: Written, prompt_tokens: int) -> Answer:
        """An answer already written."""
        answer = cls(study, question, _nothing, prompt_tokens)
        answer._pieces, answer._stop = [text], written.stop
        answer._ids, answer._logprobs, answer._prefilled = written.ids, written.logprobs, written.prefilled
        answer._margin = study.reader._margin(written.ids[:1], written.watched)
        first_ms = written.prefill_ms + written.first_ms
        answer._timing = Timing(written.prefill_ms, first_ms, written.decode_ms)
        return answer

    @property
    def text(self) -> str:
        self.finish()
        return "".join(self._pieces).strip()

    @property
    def boxes(self) -> tuple[Box, ...]:
        layout = self._study.layout
        return parse_boxes(self.text, layout.height, layout.width)

    @property
    def labels(self) -> tuple[str, ...]:
        """Findings the answer affirms."""
        return parse_labels(self.text)

    @property
    def confidence(self) -> Confidence:
        """How sure the answer is, and what that was calibrated on.

        Of an answer that begins with Yes or No, from a bundle with a temperature: the calibrated probability
        of that word. Of all others the geometric mean of the tokens' probabilities, `uncalibrated`.
        """
        self.finish()
        return of_answer(self._logprobs, self._margin, self._study.temperature)

    @property
    def token_logprobs(self) -> list[tuple[bytes, float]]:
        """Bytes of each token and natural logarithm of its probability, the stop token's left out."""
        self.finish()
        piece = self._study.reader._language.piece
        return [(piece(token), logprob) for token, logprob in zip(self._ids, self._logprobs, strict=False)]

    @property
    def tokens(self) -> int:
        """Answer length in tokens, the stop token not counted."""
        self.finish()
        return len(self._ids)

    @property
    def prefill_tokens(self) -> int:
        """Tokens really prefilled for this answer; what was in the K/V state already is not counted.

        A film's first answer counts the film's own tokens.
        """
        self.finish()
        return self._prefilled

    @property
    def stop(self) -> str:
        """`eos` if the model ended its answer, `length` if `max_tokens` did, `cancelled` if `cancel` did."""
        self.finish()
        return self._stop

    @property
    def timing(self) -> Timing:
        self.finish()
        return self._timing

    @property
    def provenance(self) -> dict[str, object]:
        """Which bundle, artefacts and film this answer comes from."""
        return self._study.provenance


def _nothing() -> Generator[str, None, None]:
    """Pieces of an answer that was not streamed."""
    yield from ()
