"""The table has an answer for every geometry and device, and says what the facts say."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.tiny import make_checkpoint

from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.config import Language
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.language import PRECISIONS
from radvlm_edge.export.quantisation import (
    TABLE,
    default_precision,
    rule_for,
    warn_of_rows,
    weights,
    whole_rows,
)
from radvlm_edge.runtime.devices import CLASSES, DEVICES

pytestmark = pytest.mark.torch
SEVEN = Language(3584, 18944, 28, 28, 4, 152128, 1e-6, 1e6, 32768)
HALF = Language(896, 4864, 24, 14, 2, 152000, 1e-6, 1e6, 32768)
NANO = Language(256, 512, 4, 4, 2, 1024, 1e-6, 1e4, 2048)


def chosen(language: Language, device: str, held: tuple[str, ...], *, tied: bool) -> str:
    rule = rule_for(weights(language, tied=tied), whole_rows(language), device)
    return default_precision(rule, held)


def test_weights_are_the_published_counts() -> None:
    assert weights(SEVEN, tied=False) == pytest.approx(7_616.1e6, rel=1e-3)
    assert weights(HALF, tied=True) == pytest.approx(494.1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("language", "tied", "device", "expected"),
    [
        (SEVEN, False, "cpu", "Q4_K_M"),
        (SEVEN, False, "small", "Q4_K_M"),
        (SEVEN, False, "large", "Q6_K"),
        (SEVEN, False, "any", "Q8_0"),
        *((HALF, True, device, "Q8_0") for device in CLASSES),
        *((NANO, True, device, "Q8_0") for device in CLASSES),
    ],
)
def test_defaults_of_the_known_geometries(language: Language, tied: bool, device: str, expected: str) -> None:
    assert chosen(language, device, PRECISIONS, tied=tied) == expected


def test_a_large_model_with_odd_rows_avoids_super_blocks_on_a_cpu() -> None:
    odd = Language(3520, 18944, 28, 28, 4, 152128, 1e-6, 1e6, 32768)
    assert chosen(odd, "cpu", ("Q4_K_M", "Q4_0", "IQ4_NL"), tied=False) == "IQ4_NL"


def test_every_case_has_one_line_that_orders_every_precision() -> None:
    for device, count, whole in itertools.product(CLASSES, (1, 10**10), (True, False)):
        assert sorted(rule_for(count, whole, device).order) == sorted(PRECISIONS)
    assert all(rule.reason for rule in TABLE)
    assert {device.kind for device in DEVICES.values()} <= set(CLASSES)


def test_rows_that_k_quants_cannot_use_are_said() -> None:
    assert warn_of_rows(SEVEN, PRECISIONS) is None
    assert warn_of_rows(HALF, ("F16", "Q8_0", "Q4_0")) is None
    warning = warn_of_rows(HALF, ("F16", "Q4_K_M"))
    assert warning is not None and warning.startswith("Q4_K_M: rows of 896 are no multiple of 256")


def test_the_exporter_follows_the_table(tmp_path: Path) -> None:
    said: list[str] = []
    folder = make_checkpoint(tmp_path / "c")
    config = open_checkpoint(folder).config.language
    bundle = export_checkpoint(
        folder, tmp_path / "b", language=("Q4_0", "Q6_K"), parity="none", device="cpu", progress=said.append
    )
    rule = rule_for(weights(config, tied=True), whole_rows(config), "cpu")
    assert bundle.manifest.defaults["language"] == default_precision(rule, ("Q4_0", "Q6_K")) == "Q6_K"
    assert any(rule.reason in line for line in said)
