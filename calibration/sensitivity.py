"""Which blocks suffer from INT8, and which groups of layers go back to float until the tower is good enough.

Measured is what the language model gets: the cosine of every projected token with the float graph's, on
crops that no scale was made from. The worst hundredth of tokens (p1) is held to the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.calibration.pieces import BATCH, Pieces
from radvlm_edge.errors import ParityError
from radvlm_edge.export.int8_table import GROUPS, Table

Floats = npt.NDArray[np.float32]
Crops = npt.NDArray[np.uint8]
Advance = Callable[[int], None]


def cosines(tokens: Floats, reference: Floats) -> Floats:
    """Cosine of every token of `[n, t, d]` with its reference, `[n * t]`."""
    a = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    b = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: Floats = ((a * b).sum(1) / np.maximum(lengths, 1e-30)).astype(np.float32)
    return found


def figures(found: Floats) -> dict[str, float]:
    """`p1`, the cosine 99 of 100 tokens exceed, and `min`."""
    return {"p1": round(float(np.quantile(found, 0.01)), 6), "min": round(float(found.min()), 6)}


class Search:
    """Float and quantised runs of the held-out crops."""

    def __init__(self, pieces: Pieces, crops: Crops, advance: Advance = lambda count: None) -> None:
        if len(crops) == 0:
            raise ValueError("no held-out crops")
        self._pieces, self._advance = pieces, advance
        self.blocks = range(pieces.blocks)
        self._batches = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
        self._reference = [self._tokens(batch, {}) for batch in self._batches]

    def measure(self, table: Table, blocks: Sequence[int]) -> dict[str, float]:
        """Token cosine with these blocks as `table` quantises them, all others in float."""
        wanted = [block for block in blocks if table.quantised(block)]
        sessions = {block: self._pieces.quantised(block, table) for block in wanted}
        found = [self._tokens(batch, sessions) for batch in self._batches]
        self._advance(1)
        return figures(np.concatenate([cosines(*pair) for pair in zip(found, self._reference, strict=True)]))

    def each_block(self, table: Table) -> dict[str, dict[str, float]]:
        """The same for every block alone, sharing the float blocks before it."""
        found: dict[int, list[Floats]] = {block: [] for block in range(self._pieces.blocks)}
        sessions = {block: self._pieces.quantised(block, table) for block in found if table.quantised(block)}
        for batch, reference in zip(self._batches, self._reference, strict=True):
            hidden = self._pieces.start(batch)
            for block in range(self._pieces.blocks):
                if block in sessions:
                    other = self._pieces.run(block, sessions[block], hidden)
                    tokens = self._pieces.finish(self._behind(block, other))
                    found[block].append(cosines(tokens, reference))
                hidden, _ = self._pieces.step(block, hidden)
            self._advance(1)
        return {f"blocks.{block}": figures(np.concatenate(parts)) for block, parts in found.items() if parts}

    def _behind(self, block: int, hidden: Floats) -> Floats:
        """Run the float blocks behind one."""
        for index in range(block + 1, self._pieces.blocks):
            hidden, _ = self._pieces.step(index, hidden)
        return hidden

    def _tokens(self, batch: Crops, sessions: dict[int, Any]) -> Floats:
        hidden = self._pieces.start(batch)
        for block in range(self._pieces.blocks):
            if block in sessions:
                hidden = self._pieces.run(block, sessions[block], hidden)
            else:
                hidden, _ = self._pieces.step(block, hidden)
        return self._pieces.finish(hidden)


def until_gate(search: Search, table: Table, say: Callable[[str], None] = lambda line: None) -> Table:
    """Return groups to float, the worst of the worst block first, until p1 reaches the table's gate.

    The result holds every block's sensitivity and the curve. Raises ParityError if even the last group's
    return does not help, which only an engine that computes wrongly can cause.
    """
    alone = search.each_block(table)
    table = replace(table, sensitivity=alone)
    left = {int(name.split(".")[1]): one["p1"] for name, one in alone.items()}
    curve = []
    while True:
        now = search.measure(table, search.blocks)
        curve.append(_point(table, now))
        say(
            f"{len(table.float_groups)} groups in float: token cosine p1 {now['p1']:.5f}, gate {table.gate:g}"
        )
        if now["p1"] >= table.gate:
            return replace(table, curve=tuple(curve))
        if not left:
            raise ParityError(
                f"token cosine p1 is {now['p1']:.5f} with every layer in float, gate {table.gate:g}; "
                "the engine computes wrongly on this machine"
            )
        worst = min(left, key=lambda block: left[block])
        table = _return_one(search, table, worst)
        if table.quantised(worst):
            left[worst] = search.measure(table, [worst])["p1"]
        else:
            del left[worst]


def _return_one(search: Search, table: Table, block: int) -> Table:
    """Return the group of a block to float that loses most when quantised alone."""
    kinds = table.quantised(block)
    if len(kinds) > 1:
        kept = set(table.float_groups)
        losses = {}
        for kind in kinds:
            others = [f"blocks.{block}.{k}" for k in GROUPS if k != kind]
            alone = replace(table, float_groups=tuple({*kept, *others}))
            losses[kind] = search.measure(alone, [block])["p1"]
        kinds = sorted(kinds, key=lambda kind: losses[kind])
    return replace(table, float_groups=(*table.float_groups, f"blocks.{block}.{kinds[0]}"))


def _point(table: Table, found: dict[str, float]) -> dict[str, Any]:
    blocks = {name.split(".")[1] for name in table.float_groups}
    linears = sum(len(GROUPS[name.split(".")[2]]) for name in table.float_groups)
    return {
        "float_groups": len(table.float_groups),
        "float_blocks": len(blocks),
        "float_linears": linears,
        **found,
    }
