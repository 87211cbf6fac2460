"""Estimates are the written formulas, move the right way, and agree with the published anchors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radvlm_edge.bundle import Bundle
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime.devices import DEVICES, Device
from radvlm_edge.runtime.roofline import BITS, PUBLISHED, Estimate, estimate, network_of

SEVEN, NETWORK = GEOMETRIES["radvlm-7b"], PUBLISHED["radvlm-7b"]


def plan(device: Device, *, tokens: int = 7371, crops: int = 31, precision: str = "Q4_K_M") -> Estimate:
    return estimate(
        device,
        SEVEN,
        NETWORK,
        image_tokens=tokens,
        crops=crops,
        vision_bytes=NETWORK.vision_weights * 2,
        language_bytes=round(NETWORK.language_weights * BITS[precision] / 8),
    )


@pytest.mark.parametrize(("name", "bound"), [("agx-orin-64", 42.7), ("rtx-4090", 210), ("cpu", 18.7)])
def test_decode_bounds_are_those_derived_elsewhere(name: str, bound: float) -> None:
    """7B Q4_K_M behind 7.4k tokens of f16 K/V, bytes over bandwidth."""
    assert plan(DEVICES[name]).tokens_per_s_bound == pytest.approx(bound, rel=0.02)


def test_work_is_that_derived_elsewhere() -> None:
    """107 TFLOP of prefill at 7,371 tokens, 19.9 of vision for 31 crops."""
    device = replace(DEVICES["cpu"], vision_tflops=1, prefill_tflops=1)
    found = plan(device, tokens=7371 - 30)
    assert found.prefill_s == pytest.approx(107, rel=0.01)
    assert found.vision_s == pytest.approx(19.9, rel=0.06)


def test_what_fits_where() -> None:
    assert not plan(DEVICES["orin-nano-8"]).fits
    assert plan(DEVICES["orin-nx-16"]).fits
    assert not plan(DEVICES["orin-nx-16"], precision="F16").fits
    assert plan(DEVICES["agx-orin-64"], precision="F16").fits


@given(st.sampled_from(sorted(DEVICES)), st.integers(1, 8000), st.integers(2, 37))
def test_more_to_do_never_takes_less(name: str, tokens: int, crops: int) -> None:
    less, more = plan(DEVICES[name], tokens=tokens, crops=crops), plan(DEVICES[name], tokens=8765, crops=37)
    assert less.first_answer_s <= more.first_answer_s and less.kv_bytes <= more.kv_bytes
    assert less.next_answer_s < less.first_answer_s
    assert less.tokens_per_s <= less.tokens_per_s_bound


def test_every_number_is_marked_and_sourced() -> None:
    for device in DEVICES.values():
        record = plan(device).as_json()
        assert record["kind"] == "derived" and len(record["source"]) > 20


@pytest.mark.torch
def test_sizes_of_a_bundle_come_from_its_artefacts(tiny_bundle: Path) -> None:
    network = network_of(Bundle.open(tiny_bundle))
    assert network.language_weights == pytest.approx(2 * 458_752 + 320 * 256, rel=0.2)
