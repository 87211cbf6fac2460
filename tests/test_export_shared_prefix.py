"""The layer-streaming reference is transformers' model, in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import make_checkpoint

from radvlm_edge.export import shared_prefix
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.reference import build_reference, image_features, language_logits
from radvlm_edge.export.shared_prefix import Sequences, stream_hidden, stream_image_features
from radvlm_edge.export.streaming_reference import normalise

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(
        make_checkpoint(tmp_path_factory.mktemp("c") / "c", seed=3, tied=request.param, shards=3)
    )


def films(checkpoint: Checkpoint, seed: int = 0) -> list[Sequences]:
    rng = np.random.default_rng(seed)
    width, vocab = checkpoint.config.language.hidden, 300
    return [
        Sequences(
            rng.integers(0, vocab, head).tolist(),
            rng.standard_normal((image, width)).astype(np.float32),
            [rng.integers(0, vocab, tail).tolist() for tail in tails],
        )
        for head, image, tails in ((4, 30, (7, 1, 12)), (0, 9, (3,)), (5, 0, (2, 2)))
    ]


def test_logits_of_every_tail_are_transformers(checkpoint: Checkpoint) -> None:
    """transformers is fed each prompt alone; tails must not see each other."""
    model = build_reference(checkpoint)
    ours = list(shared_prefix.language_logits(checkpoint, films(checkpoint)))
    for film, got in zip(films(checkpoint), ours, strict=True):
        for tail, logits in zip(film.tails, got, strict=True):
            expected = language_logits(model, film.head, film.image, tail)
            assert logits.shape == expected.shape
            np.testing.assert_allclose(logits, expected, atol=2e-4 * float(expected.std()), rtol=0)


def test_projected_tokens_are_transformers(checkpoint: Checkpoint) -> None:
    rng = np.random.default_rng(1)
    size = checkpoint.config.geometry.crop_px
    views = [rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8) for n in (2, 9, 1)]
    model = build_reference(checkpoint)
    for crops, ours in zip(views, stream_image_features(checkpoint, views), strict=True):
        expected = image_features(model, normalise(checkpoint, crops)).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-5 * float(np.abs(expected).max()), rtol=0)


def test_one_layer_is_held_at_a_time(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[int] = set()
    most = 0

    class Watched(shared_prefix._Layer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.__class__.count(id(self))

        @staticmethod
        def count(layer: int) -> None:
            nonlocal most
            alive.add(layer)
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr(shared_prefix, "_Layer", Watched)
    stream_hidden(checkpoint, films(checkpoint))
    assert most == 1


def test_every_matrix_is_observed_with_its_own_input(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against forward hooks on transformers' modules, a film with one tail at a time."""
    monkeypatch.setattr(shared_prefix, "ROWS_AT_ONCE", 5)
    model = build_reference(checkpoint)
    seen: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    film = films(checkpoint)[1]
    stream_hidden(
        checkpoint,
        [film],
        observe=lambda _, start, name, x: seen.__setitem__(
            name, torch.cat([seen.get(name, x[:0])[:start], x])
        ),
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("language_model" in name or name == "lm_head"):
            canonical = name.replace("model.language_model.", "language_model.model.").replace(
                "lm_head", "language_model.lm_head"
            )
            module.register_forward_pre_hook(
                lambda _, inputs, name=canonical: expected.__setitem__(f"{name}.weight", inputs[0][0].clone())
            )
    embed = model.get_input_embeddings()
    with torch.no_grad():
        tail = embed(torch.tensor(film.tails[0]))
        whole = torch.cat([torch.from_numpy(film.image), tail])[None]
        model.lm_head(model.model.language_model(inputs_embeds=whole).last_hidden_state)
    if checkpoint.tied:
        head = expected.pop("language_model.lm_head.weight")
        expected["language_model.model.embed_tokens.weight"] = head
    assert seen.keys() == expected.keys() and len(seen) >= 14
    for name, values in expected.items():
        torch.testing.assert_close(seen[name], values, atol=1e-4, rtol=1e-4)


def test_groups_of_films_give_the_same_bits(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    indices: list[int] = []
    together = stream_hidden(checkpoint, films(checkpoint))
    monkeypatch.setattr(shared_prefix, "GROUP_BYTES", 1)
    apart = stream_hidden(
        checkpoint, films(checkpoint), observe=lambda film, start, name, x: indices.append(film)
    )
    assert sorted(set(indices)) == [0, 1, 2]
    for a, b in zip(together, apart, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_reads_every_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "c"))
    read: list[str] = []
    tensor = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    stream_hidden(checkpoint, films(checkpoint) * 3)
    assert sorted(read) == sorted(n for n in checkpoint.where if n.startswith("language_model."))
