"""Image-bearing prompts → the calibration of the INT8 prefill graph.

One pass over the layers fills the histograms of every group's input, image tokens alone: they are all the
graph ever runs. Smoothing and threshold of a group are chosen by its own error, as the tower's are. Then the
prompts held out are run with the image tokens' products in INT8 and everything else in float, and the groups
with the largest errors return to float until the logits behind the questions are near enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from radvlm_edge.calibration.dialogues import dialogues
from radvlm_edge.calibration.histograms import ChannelHistograms
from radvlm_edge.calibration.smooth import choose, fake_quantised
from radvlm_edge.errors import ParityError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.int8_graph import quantise_weight
from radvlm_edge.export.int8_table import Group, Table
from radvlm_edge.export.prefill_graph import source
from radvlm_edge.export.prefill_int8 import PREFILL_GROUPS, SMOOTHED
from radvlm_edge.export.probe_films import ProbeFilms
from radvlm_edge.export.shared_prefix import OutputHead, Sequences, stream_hidden

Floats = npt.NDArray[np.float32]
Say = Callable[[str], None]

GATE = 0.05
"""Largest root mean square of a logit's error, in standard deviations of the logits: about what rounding the
language model's weights to Q8_0 costs (0.036 at the 0.5B geometry)."""
FILMS, HELD_OUT = 12, 4
FIRST_SEED = 44_000_000
"""Of calibration phantoms: apart from the others'."""
ROWS = 512
"""Sampled inputs of a group, on which smoothing and threshold are chosen."""


def calibrate(
    checkpoint: Checkpoint,
    source_sha256: str,
    films: ProbeFilms,
    held_out: ProbeFilms,
    *,
    gate: float = GATE,
    say: Say,
) -> Table:
    """Scales for every group of `PREFILL_GROUPS` (`layers.3.qkv`). Raises ParityError if float fails."""
    say(f"prefill calibration on {films.described['count']} films: {films.described['kind']}")
    asked = dialogues(checkpoint, films)
    inputs = _Inputs(checkpoint, asked)
    stream_hidden(checkpoint, asked, observe=inputs.observe)
    groups: dict[str, Group] = {}
    for name, histogram in inputs.histograms.items():
        layer, _, kind = name.rpartition(".")
        weights = [_weight(checkpoint, f"{layer}.{linear}.weight") for linear in PREFILL_GROUPS[kind]]
        groups[name] = choose(
            histogram, inputs.sampled(name), np.concatenate(weights, 1), smooth=kind in SMOOTHED
        )
    described = {
        "kind": films.described["kind"],
        "films": films.described["count"],
        "image_tokens": sum(len(one.image) for one in asked),
        "held_out_films": held_out.described["count"],
    }
    table = Table(source_sha256, groups, gate=gate, films=described)
    return until_gate(checkpoint, table, dialogues(checkpoint, held_out, seed=1), say)


class _Inputs:
    """Histograms and samples of every group's input, at image positions."""

    def __init__(self, checkpoint: Checkpoint, asked: Sequence[Sequences]) -> None:
        language = checkpoint.config.language
        self._image = [image_rows(one) for one in asked]
        self._share = ROWS // len(asked) + 1
        self._rng = np.random.default_rng(0)
        self._first: dict[str, str] = {}
        self.histograms: dict[str, ChannelHistograms] = {}
        self._rows: dict[str, list[Floats]] = {}
        for index in range(language.layers):
            for kind, linears in PREFILL_GROUPS.items():
                name = f"layers.{index}.{kind}"
                width = language.mlp if kind == "down_proj" else language.hidden
                self._first[source(f"layers.{index}.{linears[0]}.weight")] = name
                self.histograms[name] = ChannelHistograms(width if kind in SMOOTHED else 1)
                self._rows[name] = []

    def observe(self, film: int, start: int, matrix: str, values: torch.Tensor) -> None:
        name = self._first.get(matrix)
        low, high = (min(max(at - start, 0), len(values)) for at in self._image[film])
        if name is None or low == high:
            return
        rows: Floats = values[low:high].numpy()
        self.histograms[name].add(rows)
        self._rows[name].append(rows[self._rng.permutation(len(rows))[: self._share]])

    def sampled(self, name: str) -> Floats:
        return np.concatenate(self._rows[name])[: 2 * ROWS]


def image_rows(one: Sequences) -> tuple[int, int]:
    """First position of a film's image tokens, and the one behind them."""
    return len(one.head), len(one.head) + len(one.image)


class RoundedImages:
    """Products as the INT8 graph makes them for image tokens, exact ones for all others."""

    def __init__(self, table: Table, asked: Sequence[Sequences]) -> None:
        self._table, self._image = table, [image_rows(one) for one in asked]
        self._held: dict[str, torch.Tensor] = {}
        self._groups: dict[str, Group] = {}
        for name, group in table.groups.items():
            layer, _, kind = name.rpartition(".")
            if name not in table.float_groups:
                self._groups |= {source(f"{layer}.{one}.weight"): group for one in PREFILL_GROUPS[kind]}

    def multiply(
        self, film: int, start: int, matrix: str, values: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        exact = F.linear(values, weight)
        group = self._groups.get(matrix)
        low, high = (min(max(at - start, 0), len(values)) for at in self._image[film])
        if group is None or low == high:
            return exact
        shifts = np.array(group.shifts, np.int32) if group.shifts else np.zeros(values.shape[1], np.int32)
        rows = np.ldexp(values[low:high].numpy(), -shifts).astype(np.float32)
        rounded = torch.from_numpy(fake_quantised(rows, group.thresholds[group.method]))
        exact[low:high] = rounded @ self._rounded(matrix, weight, group)
        return exact

    def _rounded(self, matrix: str, weight: torch.Tensor, group: Group) -> torch.Tensor:
        """`[in, out]` behind rounding, kept while its layer runs."""
        if matrix not in self._held:
            layer = matrix.rsplit(".", 3)[0]
            self._held = {name: one for name, one in self._held.items() if name.startswith(f"{layer}.")}
            codes, steps = quantise_weight(np.ascontiguousarray(weight.numpy().T), group.shifts)
            self._held[matrix] = torch.from_numpy(codes * steps)
        return self._held[matrix]


def until_gate(checkpoint: Checkpoint, table: Table, asked: Sequence[Sequences], say: Say) -> Table:
    """Return as few groups to float as the gate allows, by halving, those with the largest errors first."""
    order = sorted(table.groups, key=lambda name: -table.groups[name].error)
    head, real = OutputHead(checkpoint), ~checkpoint.unused
    exact = [head.logits(torch.cat(tails))[:, real] for tails in stream_hidden(checkpoint, asked)]
    curve: dict[int, dict[str, Any]] = {}

    def passes(count: int) -> bool:
        if count not in curve:
            rounded = RoundedImages(replace(table, float_groups=tuple(order[:count])), asked)
            found = stream_hidden(checkpoint, asked, multiply=rounded.multiply)
            logits = [head.logits(torch.cat(tails))[:, real] for tails in found]
            curve[count] = {"float_groups": count, **difference(logits, exact)}
            say(
                f"{count} of {len(order)} groups in float: logits differ by {curve[count]['rms']:.4f} "
                f"of their deviation, gate {table.gate:g}"
            )
        return bool(curve[count]["rms"] <= table.gate)

    low, high = 0, len(order)
    while low < high:
        middle = 0 if not curve else (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle + 1
    if not passes(low):
        raise ParityError(f"prefill: logits differ beyond {table.gate:g} with every layer in float")
    points = tuple(curve[count] for count in sorted(curve) if count <= low)
    return replace(table, float_groups=tuple(order[:low]), curve=points)


def difference(found: Sequence[Floats], exact: Sequence[Floats]) -> dict[str, float]:
    """Of logits `[t, tokens]` of films: root mean square in standard deviations, share of equal choices."""
    a, b = np.concatenate(found).astype(np.float64), np.concatenate(exact).astype(np.float64)
    relative = (a - b) / b.std(axis=1, keepdims=True)
    return {
        "rms": round(float(np.sqrt(np.mean(relative * relative))), 6),
        "top1": round(float(np.mean(a.argmax(1) == b.argmax(1))), 6),
    }


def _weight(checkpoint: Checkpoint, parameter: str) -> Floats:
    """A weight `[in, out]` in float32."""
    values: Floats = checkpoint.tensor(source(parameter)).float().numpy().T
    return np.ascontiguousarray(values)
