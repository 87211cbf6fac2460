"""Which language artefact a bundle uses by default: a table, with reasons.

Rows are input widths of the matrices. K- and I-quants with super-blocks (Q4_K, Q5_K, Q6_K, IQ4_XS) need
rows of a multiple of 256; llama.cpp silently stores other rows in blocks of 32 (Q5_0, Q8_0, IQ4_NL), larger
and, on CPUs, without the repacked kernels that make Q4_K, Q4_0 and IQ4_NL fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radvlm_edge.export.config import Language
from radvlm_edge.runtime.devices import CLASSES

if TYPE_CHECKING:
    from radvlm_edge.export.checkpoint import Checkpoint

SUPER_BLOCK = 256
SUPER_BLOCKED = ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
SMALL_MODEL = 1_500_000_000
"""Weights up to which a language model counts as small."""


@dataclass(frozen=True)
class Rule:
    """One line of the table; the first that fits decides."""

    devices: tuple[str, ...]
    """Device classes it speaks for (`runtime/devices.py`)."""
    small: bool
    """For models of up to `SMALL_MODEL` weights, or for larger ones."""
    whole_rows: bool | None
    """Whether every row must be (or must not be) a multiple of 256; `None`: no matter."""
    order: tuple[str, ...]
    """Best first; the first the bundle holds is used."""
    reason: str


TABLE = (
    Rule(
        CLASSES,
        True,
        None,
        ("Q8_0", "F16", "Q6_K", "Q5_K_M", "IQ4_NL", "Q4_K_M", "Q4_0", "IQ4_XS"),
        "a small model fits everywhere at 8 bits and loses most by fewer (at the 0.5B geometry Q4_0 moved "
        "logits ten times as far as Q8_0); rows of 896 leave Q4_K_M hardly smaller",
    ),
    Rule(
        ("cpu",),
        False,
        True,
        ("Q4_K_M", "IQ4_NL", "Q4_0", "Q5_K_M", "IQ4_XS", "Q6_K", "Q8_0", "F16"),
        "a CPU is bound by memory bandwidth, and Q4_K with whole rows has repacked kernels",
    ),
    Rule(
        ("cpu",),
        False,
        False,
        ("IQ4_NL", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_M", "Q6_K", "IQ4_XS", "F16"),
        "a CPU is bound by memory bandwidth; of the 4-bit types only blocks of 32 keep their repacked "
        "kernels with these rows",
    ),
    Rule(
        ("small",),
        False,
        None,
        ("Q4_K_M", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "F16"),
        "8 to 16 GB shared with the system hold 7B weights at 4 bits beside the tower and the film's K/V",
    ),
    Rule(
        ("large",),
        False,
        None,
        ("Q6_K", "Q8_0", "Q5_K_M", "Q4_K_M", "IQ4_XS", "IQ4_NL", "Q4_0", "F16"),
        "memory is no constraint, and 6 bits cost a short answer under 0.3 s against 4 (derived)",
    ),
    Rule(
        ("any",),
        False,
        None,
        ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "IQ4_NL", "Q4_0", "F16"),
        "the device is unknown: closest to the checkpoint at half its size; say --device for another choice",
    ),
)


def weights(language: Language, *, tied: bool) -> int:
    """Number of weights in the language model's matrices, as quantised."""
    kv = language.kv_heads * language.head_dim
    layer = language.hidden * (2 * language.hidden + 2 * kv + 3 * language.mlp)
    return language.layers * layer + language.vocab * language.hidden * (1 if tied else 2)


def whole_rows(language: Language) -> bool:
    """True if every matrix's rows fill super-blocks of 256."""
    return language.hidden % SUPER_BLOCK == 0 and language.mlp % SUPER_BLOCK == 0


def rule_for(count: int, whole: bool, device: str = "any") -> Rule:
    """The table's line for a model of `count` weights, whole rows or not, on a device class."""
    small = count <= SMALL_MODEL
    return next(
        rule
        for rule in TABLE
        if device in rule.devices and rule.small == small and rule.whole_rows in (None, whole)
    )


def rule_of(checkpoint: Checkpoint, device: str) -> Rule:
    """The table's line for a checkpoint."""
    language = checkpoint.config.language
    return rule_for(weights(language, tied=checkpoint.tied), whole_rows(language), device)


def default_precision(rule: Rule, held: Sequence[str]) -> str:
    """The artefact a bundle that holds these uses unless told otherwise."""
    return next((name for name in rule.order if name in held), held[0])


def warn_of_rows(language: Language, wanted: Sequence[str]) -> str | None:
    """One line about wanted types that these rows cannot have; `None` if all is well."""
    broken = sorted({row for row in (language.hidden, language.mlp) if row % SUPER_BLOCK})
    affected = [name for name in wanted if name in SUPER_BLOCKED]
    if not broken or not affected:
        return None
    rows = " and ".join(map(str, broken))
    return (
        f"{', '.join(affected)}: rows of {rows} are no multiple of {SUPER_BLOCK}; llama.cpp stores those "
        "matrices in larger types (Q5_0, Q8_0, IQ4_NL)"
    )
