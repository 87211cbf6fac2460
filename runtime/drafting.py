"""What an answer will say next, guessed without the model, which then checks several tokens in one pass.

A pass over one token and a pass over five cost nearly the same where reading the weights is what takes
time. Guesses come from phrases known beforehand (a bundle may carry some) and from what the conversation
has already said. The model accepts a guess only where it would have chosen that token itself, so the
answer is the greedy one, whatever was guessed; but for ties within the engine's rounding, since a pass
over several tokens sums in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

ORDERS = (4, 3, 2)
"""Tokens that must agree before the next one is guessed; the longest first."""
EARLIEST = 8
"""Tokens an answer must have before anything is guessed: brief answers are left alone."""
FIRST, MOST = 3, 12
"""Tokens guessed at first, and at most."""
LONGEST_PAUSE = 32
"""Tokens without a guess after many wrong ones."""


class Phrases:
    """Which token follows which few, in texts known beforehand: token ids, read when first needed."""

    def __init__(self, read: Callable[[], Iterable[Sequence[int]]] = tuple) -> None:
        self._read = read
        self._next: dict[tuple[int, ...], int] | None = None

    def after(self, key: tuple[int, ...]) -> int | None:
        """The token that follows these most often; `None` where they were never seen."""
        if self._next is None:
            self._next = self._count()
        return self._next.get(key)

    def _count(self) -> dict[tuple[int, ...], int]:
        counts: dict[tuple[int, ...], Counter[int]] = {}
        for ids in self._read():
            for at in range(ORDERS[-1], len(ids)):
                for order in ORDERS:
                    if order <= at:
                        counts.setdefault(tuple(ids[at - order : at]), Counter())[ids[at]] += 1
        return {key: seen.most_common(1)[0][0] for key, seen in counts.items()}


class Drafter:
    """Guesses for one answer. `said` are the token ids before it, e.g. the question's."""

    def __init__(self, phrases: Phrases, said: Sequence[int], stop_ids: Sequence[int]) -> None:
        self._phrases, self._stop_ids = phrases, frozenset(stop_ids)
        self._said = list(said)
        self._own: dict[tuple[int, ...], int] = {}
        self._written = 0
        self._length, self._pause, self._wrong = FIRST, 0, 0
        for at in range(len(self._said)):
            self._index(at)

    def _index(self, at: int) -> None:
        for order in ORDERS:
            if order <= at:
                self._own[tuple(self._said[at - order : at])] = self._said[at]

    def add(self, token: int) -> None:
        """Note a token of the answer."""
        self._said.append(token)
        self._index(len(self._said) - 1)
        self._written += 1

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; often none."""
        if self._pause:
            self._pause -= 1
            return []
        if self._written < EARLIEST:
            return []
        text = self._said[-ORDERS[0] :]
        guessed: list[int] = []
        while len(guessed) < min(most, self._length):
            token = self._likeliest(text)
            if token is None or token in self._stop_ids:
                break
            guessed.append(token)
            text = [*text, token][-ORDERS[0] :]
        return guessed

    def _likeliest(self, text: Sequence[int]) -> int | None:
        for order in ORDERS:
            key = tuple(text[-order:])
            if len(key) == order:
                token = self._phrases.after(key)
                token = self._own.get(key) if token is None else token
                if token is not None:
                    return token
        return None

    def learn(self, guessed: int, right: int) -> None:
        """Guess further after success; after failures guess less, and for a while not at all."""
        if right == guessed:
            self._length, self._wrong = min(2 * self._length, MOST), 0
        elif right:
            self._length, self._wrong = max(FIRST, right), 0
        else:
            self._wrong += 1
            self._length = FIRST
            self._pause = min(2**self._wrong, LONGEST_PAUSE)
