"""Rows of the embedding that are no token: never produced, and left out on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import make_checkpoint

from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.language import quantise, write_f16
from radvlm_edge.export.reference import build_reference, language_logits
from radvlm_edge.runtime.language import LanguageModel

pytestmark = pytest.mark.torch


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def loud(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose padding rows shout down every token (RadVLM's are random draws)."""
    folder = make_checkpoint(tmp_path / "c", tied=request.param)
    state = load_file(folder / "model.safetensors")
    name = "language_model.model.embed_tokens.weight" if request.param else "language_model.lm_head.weight"
    unused = open_checkpoint(folder).unused
    assert unused.sum() == 20
    rows = torch.randn(20, state[name].shape[1], generator=torch.Generator().manual_seed(1)).half()
    state[name] = state[name].clone()
    state[name][torch.from_numpy(unused)] = 5 * rows
    save_file(state, folder / "model.safetensors")
    return folder


def answers(checkpoint: Checkpoint, path: Path) -> list[int]:
    """Greedy continuations of some prompts, one after another."""
    model = LanguageModel(path, context=128, threads=1)
    tokens = []
    try:
        for start in range(10):
            model.start([[start, start + 50]])
            tokens += list(model.generate([start + 100], stop_ids=(), max_tokens=8))
    finally:
        model.close()
    return tokens


@pytest.mark.parametrize("precision", ["F16", "Q8_0", "Q4_K_M"])
def test_padding_rows_are_never_produced(loud: Path, tmp_path: Path, precision: str) -> None:
    checkpoint = open_checkpoint(loud)
    raw = build_reference(checkpoint)
    image = np.zeros((0, checkpoint.config.language.hidden), np.float32)
    choices = [int(language_logits(raw, [i], image, [i + 100])[-1].argmax()) for i in range(10)]
    assert checkpoint.unused[choices].all(), "without a mask they would win"
    write_f16(checkpoint, tmp_path / "F16.gguf")
    if precision != "F16":
        quantise(tmp_path / "F16.gguf", tmp_path / f"{precision}.gguf", precision)
    produced = answers(checkpoint, tmp_path / f"{precision}.gguf")
    assert len(produced) == 80 and not checkpoint.unused[produced].any()


def test_trimming_changes_no_answer(loud: Path, tmp_path: Path) -> None:
    whole, trimmed = open_checkpoint(loud), open_checkpoint(loud, trim_vocab=True)
    assert (whole.config.geometry.vocab, trimmed.config.geometry.vocab) == (320, 300)
    assert not trimmed.unused.any() and len(trimmed.tensor("language_model.model.embed_tokens.weight")) == 300
    write_f16(whole, tmp_path / "whole.gguf")
    write_f16(trimmed, tmp_path / "trimmed.gguf")
    assert answers(whole, tmp_path / "whole.gguf") == answers(trimmed, tmp_path / "trimmed.gguf")
    saved = (tmp_path / "whole.gguf").stat().st_size - (tmp_path / "trimmed.gguf").stat().st_size
    assert saved > 20 * 256 * 2
