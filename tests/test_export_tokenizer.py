"""The GGUF's tokenizer is the checkpoint's, id for id."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.tiny import make_checkpoint
from tokenizers import Tokenizer

from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.language import _add_tokenizer, write_f16
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.llama import Llama, quiet

pytestmark = pytest.mark.torch

PIECES = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=("L", "M", "N", "P", "Z", "S")), max_size=20),
    st.sampled_from(
        ["\r\n", "  ", "\t\n ", "'S", "'ll", "12,345.67", "e\u0301", "\u1100\u1161", "🫁", "ﬁ", "½"]
    ),
    st.sampled_from(["<|im_end|>", "<image>", "<|im_start|>user\n", "<|endoftext|>", "<|im_"]),
)
TEXT = st.lists(PIECES, max_size=6).map("".join)
REASONABLE = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Both:
    """A tokenizer in llama.cpp, from our writer's GGUF, and in `tokenizers`."""

    def __init__(self, checkpoint: Checkpoint, tokenize: Any) -> None:
        self.theirs = Tokenizer.from_str(json.dumps(checkpoint.tokenizer))
        self.ours = tokenize

    def differs(self, text: str) -> str | None:
        expected = self.theirs.encode(text, add_special_tokens=False).ids
        found = self.ours(text)
        return None if found == expected else f"{text!r}: {found} instead of {expected}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("t")
    checkpoint = open_checkpoint(make_checkpoint(folder / "c"))
    write_f16(checkpoint, folder / "a.gguf")
    model = LanguageModel(folder / "a.gguf", context=64)
    yield Both(checkpoint, model.tokenize)
    model.close()


@REASONABLE
@given(TEXT)
@example("e\u0301\u0327 \u212b \uac00 a\u0308<image>\u0301")
def test_any_text_has_the_same_ids(tiny: Both, text: str) -> None:
    assert tiny.differs(text) is None


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Qwen's 151,643 tokens through our writer, loaded by llama.cpp without weights."""
    data = Path(os.environ["RADVLM_EDGE_DATA"]) / "qwen2_tokenizer"
    folder = tmp_path_factory.mktemp("q")
    tokenizer = json.loads((data / "qwen3_tokenizer.json").read_text(encoding="utf-8"))
    checkpoint = open_checkpoint(make_checkpoint(folder / "c"))
    language = replace(checkpoint.config.language, vocab=151936)
    checkpoint = replace(
        checkpoint, tokenizer=tokenizer, config=replace(checkpoint.config, language=language)
    )
    writer = gguf.GGUFWriter(folder / "v.gguf", "qwen2")
    _add_tokenizer(writer, checkpoint)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quiet()
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(folder / "v.gguf").encode(), options)
    assert model
    bare = Llama.__new__(Llama)
    bare._vocab = llama_cpp.llama_model_get_vocab(model)
    yield Both(checkpoint, lambda text: bare.tokenize(text, special=True))
    llama_cpp.llama_model_free(model)


@pytest.mark.realdata
def test_published_vectors(full: Both) -> None:
    """llama.cpp's own 47 vectors for Qwen2."""
    data = Path(os.environ["RADVLM_EDGE_DATA"]) / "qwen2_tokenizer"
    texts = (data / "ggml-vocab-qwen2.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (data / "ggml-vocab-qwen2.gguf.out").read_text(encoding="utf-8").split("\n")
    vectors = [[int(i) for i in line.split()] for line in lines]
    assert len(texts) == len(vectors) == 47
    for text, vector in zip(texts, vectors, strict=True):
        assert full.ours(text) == vector, repr(text)
        assert full.differs(text) is None


@pytest.mark.realdata
def test_every_special_token(full: Both) -> None:
    added = json.loads(full.theirs.to_str())["added_tokens"]
    assert len(added) > 20
    for token in added:
        text = f"a{token['content']}\nb"
        assert full.differs(text) is None
        assert token["id"] in full.ours(text)


@pytest.mark.realdata
@REASONABLE
@given(TEXT)
def test_any_text_has_the_same_ids_in_the_full_vocabulary(full: Both, text: str) -> None:
    assert full.differs(text) is None
