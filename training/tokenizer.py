"""Texts → a byte-level BPE tokenizer of Qwen2's type, small enough for a nano model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import (  # type: ignore[import-untyped]
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE  # type: ignore[import-untyped]
from tokenizers.trainers import BpeTrainer  # type: ignore[import-untyped]

from radvlm_edge.errors import RecipeError

END_OF_TEXT, TURN_START, TURN_END, IMAGE, VIDEO = SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
)
"""In the order of their ids, which follow the ordinary ones as in RadVLM's checkpoint."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer (llama.cpp knows it as `qwen2`): every digit is a token of its own."""


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from texts; at most `vocab_size` ids, special tokens included.

    All 256 byte symbols are ids, so any text can be written. The same texts give the same ids.
    Raises RecipeError if `vocab_size` leaves no room for them.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise RecipeError(f"vocab_size is {vocab_size}; the bytes and special tokens alone need {least}")
    tokenizer = Tokenizer(BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the files `AutoTokenizer.from_pretrained(folder)` needs."""
    from transformers import Qwen2TokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    fast = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        bos_token=None,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END, IMAGE, VIDEO],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
