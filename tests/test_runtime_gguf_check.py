"""Headers that would end the process in llama.cpp are refused in one line before it reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from radvlm_edge.bundle import demo_bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.gguf_check import check_header
from radvlm_edge.runtime.language import LanguageModel

LANGUAGE = demo_bundle() / "language"


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _header(tokens: list[bytes], layers: int = 4, pairs: int = 3) -> bytes:
    listed = b"".join(map(_string, tokens))
    return b"".join(
        (
            struct.pack("<4sIqq", b"GGUF", 3, 0, pairs),
            _string(b"general.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.0, 1.0, 2.0),
            _string(b"qwen2.block_count") + struct.pack("<II", 4, layers),
            _string(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + listed,
        )
    )


@pytest.mark.parametrize("path", sorted(LANGUAGE.glob("*.gguf")), ids=lambda path: str(path.stem))
def test_what_export_writes_is_taken(path: Path) -> None:
    check_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_header([b"a", b"b", b"a"]), "tokens 0 and 2 of its vocabulary are both 'a'"),
        (_header([b"[EMPTY_1]", b""]), r"tokens 0 and 1 of its vocabulary are both '\[EMPTY_1\]'"),
        (_header([b"a"], layers=0), "it states 0 layers"),
        (_header([b"a"], layers=513), "it states 513 layers; llama.cpp has room for 1 to 512"),
        (_header([b"a"])[:-1], "goes on behind the end"),
        (_header([b"a"], pairs=4), "unpack_from requires"),
        (b"GGML" + _header([b"a"])[4:], "begins with b'GGML'"),
        (b"", "cannot mmap an empty file"),
        (
            _header([b"a"]).replace(struct.pack("<IIQ", 9, 6, 3), struct.pack("<IIQ", 9, 6, 1 << 63)),
            "too large",
        ),
    ],
)
def test_a_header_that_would_end_the_process_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=said) as caught:
        check_header(path)
    assert "\n" not in str(caught.value)


def test_empty_tokens_are_told_apart_as_llama_does(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(_header([b"", b"", b"a"]))
    check_header(path)


@pytest.mark.parametrize(
    ("true", "forged"),
    [
        (_string(b"a") + _string(b"b"), _string(b"a") + _string(b"a")),
        (_string(b"qwen2.block_count") + struct.pack("<I", 4), None),
    ],
    ids=["tokens", "layers"],
)
def test_a_forged_model_is_an_error_and_no_abort(tmp_path: Path, true: bytes, forged: bytes | None) -> None:
    whole = next(iter(sorted(LANGUAGE.glob("*.gguf")))).read_bytes()
    assert whole.count(true) == 1
    end = whole.index(true) + len(true)
    changed = forged or true + struct.pack("<I", 1 << 31)
    path = tmp_path / "forged.gguf"
    path.write_bytes(whole[: end - len(true)] + changed + whole[end - len(true) + len(changed) :])
    with pytest.raises(BackendError, match="vocabulary are both 'a'|it states 2147483648 layers"):
        LanguageModel(path, context=256, threads=1)
