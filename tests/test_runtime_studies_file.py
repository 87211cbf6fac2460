"""The file a study is kept in: every byte is checked, and with a key none of it can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.studies import (
    FEW,
    GIB,
    KEYS,
    QUESTIONS,
    SECRET,
    bits,
    path_of,
    reader_on,
    store_on,
)

from radvlm_edge.errors import BackendError, StudyCacheError
from radvlm_edge.runtime import study_file
from radvlm_edge.runtime.studies import open_store
from radvlm_edge.runtime.study_file import KEY_VARIABLE, load_secret


@pytest.mark.parametrize("secret", [None, SECRET], ids=["clear", "encrypted"])
@FEW
@given(
    state=st.binary(min_size=1, max_size=300),
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_is_found(
    tmp_path: Path, secret: bytes | None, state: bytes, where: float, flip: int
) -> None:
    store = store_on(tmp_path / "c", secret=secret)
    store.put(KEYS[0], 7, state, "bundle")
    tokens, held = store.get(KEYS[0]) or (0, b"")
    assert (tokens, bytes(held)) == (7, state)
    whole = path_of(store.folder).read_bytes()
    at = int(where * len(whole))
    path_of(store.folder).write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    assert store.get(KEYS[0]) is None
    (note,) = store.notes
    assert "\n" not in note and "looked at again" in note
    assert not path_of(store.folder).exists()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["clear", "encrypted"])
def test_every_byte_of_a_small_file_matters_and_every_length(tmp_path: Path, secret: bytes | None) -> None:
    store = store_on(tmp_path / "c", secret=secret)
    store.put(KEYS[0], 7, b"state", "bundle")
    path = path_of(store.folder)
    whole = path.read_bytes()
    broken = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    broken += [whole[:length] for length in range(len(whole))] + [whole + b"\0", b"", b"\0" * 500]
    for content in broken:
        path.write_bytes(content)
        assert store.get(KEYS[0]) is None and not path.exists()
    assert len(store.notes) == len(broken)


def test_a_valid_file_under_another_name_is_not_believed(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    store.put(KEYS[0], 7, b"state", "bundle")
    path_of(store.folder).rename(path_of(store.folder, KEYS[1]))
    assert store.get(KEYS[1]) is None and "renamed" in store.notes[0]


def test_study_file_is_what_its_docstring_says(tmp_path: Path) -> None:
    store = store_on(tmp_path / "c")
    store.put(KEYS[0], 7, b"state", "bundle")
    content = path_of(store.folder).read_bytes()
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + length])
    assert content[:8] == b"radvlmKV" and content[12 + length : -32] == b"state"
    assert set(header) == {"key", "tokens", "bytes", "bundle", "nonce", "format"}
    summed = subprocess.run(["sha256sum"], input=content[:-32], capture_output=True, check=True).stdout
    assert summed.split()[0].decode() == content[-32:].hex()
    assert header["format"] == study_file.FORMAT


def test_encryption_hides_the_state_and_another_implementation_reads_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    state = np.random.default_rng(0).bytes((1 << 20) + 5)
    store = store_on(tmp_path / "c", secret=SECRET)
    contents = []
    for _ in range(2):
        store.put(KEYS[0], 7, state, "bundle")
        contents.append(path_of(store.folder).read_bytes())
    for content in contents:
        assert not any(state[at : at + 8] in content for at in range(0, len(state), 16411))
        start = 12 + int.from_bytes(content[8:12], "little")
        nonce = bytes.fromhex(json.loads(content[12:start])["nonce"])
        assert AESGCM(SECRET).decrypt(nonce, content[start:-32], content[:start]) == state
    assert contents[0] != contents[1], "every file has a nonce of its own"
    tokens, held = store.get(KEYS[0]) or (0, b"")
    assert (tokens, bytes(held)) == (7, state)


def test_a_wrong_or_missing_key_is_an_error_and_overwrites_nothing(
    tiny_bundle: Path, named_films: list[Path], tmp_path: Path, cold: Any
) -> None:
    cache, right, wrong = tmp_path / "c", tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(SECRET)
    wrong.write_text(SECRET[::-1].hex() + "\n")
    with reader_on(tiny_bundle, cache, study_cache_key=right) as reader:
        key = reader.look(named_films[0]).key or ""
    before = path_of(cache, key).read_bytes()
    for chosen, complaint in ((wrong, "not encrypted with this key"), (None, "no key is given")):
        with reader_on(tiny_bundle, cache, study_cache_key=chosen) as reader:
            with pytest.raises(StudyCacheError, match=complaint) as error:
                reader.look(named_films[0])
            assert "\n" not in str(error.value)
        assert path_of(cache, key).read_bytes() == before
    with reader_on(tiny_bundle, cache, study_cache_key=right) as reader:
        study = reader.look(named_films[0])
        assert study.cache == "hit" and bits(study.ask(QUESTIONS[0])) == cold[0][0]


def test_what_lies_in_the_clear_is_replaced_once_there_is_a_key(tmp_path: Path) -> None:
    store_on(tmp_path / "c").put(KEYS[0], 7, b"state", "bundle")
    store = store_on(tmp_path / "c", secret=SECRET)
    assert store.get(KEYS[0]) is None and "not encrypted" in store.notes[0]
    assert not path_of(store.folder).exists()


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    file = tmp_path / "key"
    for content in (SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode() + b"\n"):
        file.write_bytes(content)
        assert load_secret(file) == SECRET
    assert load_secret(None) is None
    for content in (b"", SECRET[1:], SECRET.hex().encode()[1:], b"zz" * 32):
        file.write_bytes(content)
        with pytest.raises(StudyCacheError, match="openssl rand -out KEY 32"):
            load_secret(file)
    monkeypatch.setenv(KEY_VARIABLE, SECRET.hex())
    assert load_secret(None) == SECRET
    for value in ("0" * 63, "x" * 64, "0" * 32):
        monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(StudyCacheError, match=KEY_VARIABLE):
            load_secret(None)
    with pytest.raises(StudyCacheError, match="cannot be read"):
        load_secret(tmp_path / "none")
    with pytest.raises(StudyCacheError, match="without a study cache"):
        open_store(None, limit_bytes=1, days=1, key_file=file)


def test_without_cryptography_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    (tmp_path / "key").write_bytes(SECRET)
    with pytest.raises(BackendError, match=r"pip install 'radvlm-edge\[studies\]'"):
        open_store(tmp_path / "c", limit_bytes=GIB, days=7, key_file=tmp_path / "key")
    assert not (tmp_path / "c").exists()
