"""The tokenizer is of Qwen2's type: bytes complete, digits single, specials last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the torch world (extra `train`)")
pytest.importorskip("transformers", reason="needs the torch world (extra `train`)")

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer

pytestmark = pytest.mark.torch

TEXTS = [
    "Is there a pleural effusion? No, there is no pleural effusion.",
    "The box is [0.12, 0.34, 0.56, 0.78].",
]


def test_any_text_survives_and_specials_follow_the_ordinary_ids() -> None:
    tokenizer = build_tokenizer(TEXTS * 4, 320)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    assert size <= 320
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(size - 5, size))
    for text in ("any effusion?", "Größe 12½ µm ✓\n\tend", "it's  two   spaces"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens() -> None:
    tokenizer = build_tokenizer(["0.12, 0.12, 0.12"] * 50, 400)
    assert tokenizer.encode("0.12").tokens == ["0", ".", "1", "2"]


def test_same_texts_give_the_same_ids() -> None:
    first, second = (build_tokenizer(TEXTS * 3, 300).to_str() for _ in range(2))
    assert first == second


def test_saved_folder_loads_offline_with_consistent_merges(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(TEXTS * 4, 320)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "<|im_start|>user\n<image>\nany effusion?<|im_end|>\n"
    assert loaded(prompt)["input_ids"] == tokenizer.encode(prompt).ids
    assert loaded.eos_token == "<|im_end|>"
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        assert {left, right, left + right} <= set(model["vocab"])


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(RecipeError, match="260"):
        build_tokenizer(TEXTS, 260)
