"""K/V states: read and written as the llama.cpp that is installed reads and writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.runtime.kv_state import (
    Form,
    KeyValues,
    StateError,
    find_form,
    read_state,
    state_bytes,
    write_state,
)
from radvlm_edge.runtime.llama import PREFIX, TAIL, Llama

TOKENS = 40


@pytest.fixture(scope="module", params=[False, True], ids=["V transposed", "flash attention"])
def llama(request: pytest.FixtureRequest) -> Iterator[Llama]:
    """The demonstration's F16 artefact without and with flash attention."""
    bundle = Bundle.open(demo_bundle())
    path = bundle.path(bundle.artefact("language", "F16"))
    flash = "on" if request.param else "off"
    model = Llama(path, context=128, threads=1, gpu_layers=0, flash_attention=flash)
    yield model
    model.close()


@pytest.fixture
def form(llama: Llama) -> Form:
    geometry = Bundle.open(demo_bundle()).manifest.geometry
    run(llama, 3)
    return find_form(llama.save(PREFIX), geometry.layers, geometry.kv_heads * geometry.head_dim)


def run(llama: Llama, tokens: int) -> None:
    llama.forget(PREFIX)
    llama.decode(list(range(5, 5 + tokens)), 0, PREFIX)


def continued(llama: Llama, state: bytes | bytearray) -> npt.NDArray[np.float32]:
    """Logits of one more token behind a state, from an empty cache: flash attention sums by place."""
    llama.forget(TAIL)
    llama.forget(PREFIX)
    llama.restore(PREFIX, state)
    llama.fork(PREFIX, TAIL)
    llama.decode([7], llama.length(PREFIX), TAIL)
    return llama.logits()


@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
def test_what_llama_cpp_wrote_comes_out_as_it_went_in(llama: Llama, form: Form, tokens: int) -> None:
    run(llama, tokens)
    state = bytes(llama.save(PREFIX))
    kv = read_state(state, form)
    assert kv.tokens == tokens and len(kv.keys) == len(kv.values) == form.layers
    assert bytes(write_state(kv, form)) == state


def test_both_kinds_of_v_are_tried(llama: Llama, form: Form, request: pytest.FixtureRequest) -> None:
    assert form.transposed == ("V transposed" in request.node.name)


def test_a_state_written_here_goes_on_as_llama_cpps_own(llama: Llama, form: Form) -> None:
    run(llama, TOKENS)
    state = bytes(llama.save(PREFIX))
    expected = continued(llama, state)
    kv = read_state(state, form)
    floats = KeyValues([k.astype(np.float32) for k in kv.keys], [v.astype(np.float32) for v in kv.values])
    assert np.array_equal(continued(llama, write_state(floats, form)), expected)
    run(llama, 3)
    assert bytes(llama.save(PREFIX)) != state


def test_keys_in_another_order_change_the_answer(llama: Llama, form: Form) -> None:
    """The control: what is written really is what llama.cpp attends to."""
    run(llama, TOKENS)
    state = bytes(llama.save(PREFIX))
    kv = read_state(state, form)
    expected = continued(llama, state)
    for wrong in (
        KeyValues([k[::-1] for k in kv.keys], kv.values),
        KeyValues(kv.keys, [v[::-1] for v in kv.values]),
    ):
        logits = continued(llama, write_state(wrong, form))
        assert np.abs(logits - expected)[expected > -1e20].max() > 0.1 * expected[expected > -1e20].std()


def test_a_state_of_nothing(llama: Llama, form: Form) -> None:
    llama.forget(PREFIX)
    state = llama.save(PREFIX)
    kv = read_state(state, form)
    assert kv.tokens == 0 and write_state(kv, form) == state


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_k_and_v_come_back(data: st.DataObject) -> None:
    form = Form(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)), data.draw(st.booleans()))
    tokens = data.draw(st.integers(1, 7))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts = [
        rng.standard_normal((tokens, form.width)).astype(np.float16) * 100 for _ in range(2 * form.layers)
    ]
    kv = KeyValues(parts[: form.layers], parts[form.layers :])
    state = write_state(kv, form, data.draw(st.integers(0, 3)))
    assert len(state) == state_bytes(form, tokens)
    again = read_state(state, form)
    for before, after in zip([*kv.keys, *kv.values], [*again.keys, *again.values], strict=True):
        assert np.array_equal(before, after)
    assert find_form(state, form.layers, form.width) == form


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_not_a_state_is_refused(data: st.DataObject) -> None:
    """Cut short, or with any byte of its structure changed, it is never read as something else."""
    form = Form(2, 4, data.draw(st.booleans()))
    kv = KeyValues([np.ones((3, 4), np.float16)] * 2, [np.ones((3, 4), np.float16)] * 2)
    state = write_state(kv, form)
    if data.draw(st.booleans()):
        damaged = state[: data.draw(st.integers(0, len(state) - 1))]
    else:
        damaged = bytearray(state)
        structure = [*range(4), *range(8, 16)]
        structure += [16 + 12 * cell + byte for cell in range(3) for byte in range(8)]
        structure += range(52, 60 + 12)
        damaged[data.draw(st.sampled_from(structure))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StateError):
        read_state(damaged, form)


def test_other_layers_types_and_infinite_values_are_refused(tmp_path: Path) -> None:
    form = Form(2, 4, False)
    ones = [np.ones((3, 4), np.float32)] * 2
    state = write_state(KeyValues(ones, ones), form)
    for other in (Form(3, 4, False), Form(2, 8, False), Form(2, 4, True)):
        with pytest.raises(StateError):
            read_state(state, other)
    quantised = bytearray(state)
    struct.pack_into("<i", quantised, 60, 8)  # q8_0
    with pytest.raises(StateError, match=r"\(8, 8\), expected \(1, 8\)"):
        read_state(quantised, form)
    with pytest.raises(StateError, match="not finite in f16"):
        write_state(KeyValues([ones[0] * 1e6, ones[0]], ones), form)
    with pytest.raises(StateError, match=r"shape \[2, 4\]"):
        write_state(KeyValues(ones, [ones[0], ones[0][:2]]), form)
