"""Every changed byte is found, by `verify` always, and at load in spite of what is remembered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.test_bundle import write

from radvlm_edge import integrity, reseal, signing
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BackendError, BundleError, OutputError
from radvlm_edge.integrity import SIGNATURE, SUMS, digest
from radvlm_edge.reseal import reseal as reseal_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A small bundle whose files count as settled at once."""
    monkeypatch.setattr(integrity, "RACY_NS", 0)
    return write(tmp_path / "b")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Private and public key, made by OpenSSL."""
    folder = tmp_path_factory.mktemp("keys")
    key, public = folder / "key.pem", folder / "pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    return key, public


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(bundle: Bundle, data: st.DataObject) -> None:
    """SHA256SUMS included: its newline with one bit flipped is a vertical tab, which also ends lines."""
    path = data.draw(st.sampled_from(files_of(bundle.folder)))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        with pytest.raises(BundleError):
            Bundle.open(bundle.folder).verify()
        with pytest.raises(BundleError):
            Bundle.open(bundle.folder).check()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("ending", ["\x0b", "\x0c", "\x1c", "", "\n\n", "\r\n", "\u2028"])
def test_sums_have_one_spelling(bundle: Bundle, ending: str) -> None:
    sums = bundle.folder / SUMS
    sums.write_text(sums.read_text().removesuffix("\n") + ending, newline="")
    with pytest.raises(BundleError, match="SHA256SUMS: missing or malformed"):
        bundle.verify()


def test_what_was_found_as_sealed_is_not_read_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.check() == 3
    read: list[str] = []
    monkeypatch.setattr(
        integrity, "digest", lambda path, advance=None: read.append(path.name) or digest(path)
    )
    assert bundle.check() == 0
    assert read == [SUMS]
    bundle.verify()
    assert sorted(read[1:]) == ["F16.gguf", "bundle.json", "fp32.onnx"]
    (record,) = (Path(os.environ["XDG_CACHE_HOME"]) / "radvlm-edge" / "verified").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600


def overwrite(path: Path) -> None:
    """Other content of the same size, modification time put back."""
    seen = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def swap_in(path: Path) -> None:
    """Another file of the same size and modification time renamed into place."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [overwrite, swap_in])
def test_memory_is_not_fooled_by_size_and_modification_time(bundle: Bundle, change: Any) -> None:
    bundle.check()
    change(bundle.folder / "vision/fp32.onnx")
    with pytest.raises(BundleError, match=r"vision/fp32.onnx was altered"):
        bundle.check()


def test_memory_does_not_vouch_for_other_sums(bundle: Bundle) -> None:
    """Whoever changes a file and its digest in SHA256SUMS still contradicts bundle.json."""
    bundle.check()
    path = bundle.folder / "vision/fp32.onnx"
    old = digest(path)
    path.write_bytes(b"other!!")
    sums = bundle.folder / SUMS
    sums.write_text(sums.read_text().replace(old, digest(path)))
    with pytest.raises(BundleError, match=r"bundle.json and SHA256SUMS disagree"):
        bundle.check()


def test_a_file_just_written_is_hashed_again(tmp_path: Path) -> None:
    """A second write within the clock's resolution would leave no trace."""
    bundle = write(tmp_path / "b")
    assert [bundle.check(), bundle.check()] == [3, 3]


def test_a_file_changed_while_it_was_hashed_is_not_remembered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle.folder / "vision/fp32.onnx"

    def slow(file: Path, advance: Any = None) -> str:
        found = digest(file)
        if file == path:
            overwrite(path)
        return found

    monkeypatch.setattr(integrity, "digest", slow)
    bundle.check()
    monkeypatch.undo()
    with pytest.raises(BundleError, match="was altered"):
        bundle.check()


def memory_file() -> Path:
    (record,) = (Path(os.environ["XDG_CACHE_HOME"]) / "radvlm-edge" / "verified").iterdir()
    return record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "sums": "x"}', "\x00"])
def test_a_broken_memory_is_no_memory(bundle: Bundle, text: str) -> None:
    bundle.check()
    memory_file().write_text(text)
    assert bundle.check() == 3


def test_a_memory_others_could_write_is_not_believed(bundle: Bundle) -> None:
    bundle.check()
    memory_file().chmod(0o620)
    assert bundle.check() == 3


def test_no_cache_means_hashing_every_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert [bundle.check(), bundle.check()] == [3, 3]


def test_two_copies_are_remembered_side_by_side(bundle: Bundle) -> None:
    shutil.copytree(bundle.folder, bundle.folder.with_name("copy"))
    copy = Bundle.open(bundle.folder.with_name("copy"))
    assert [bundle.check(), copy.check(), bundle.check(), copy.check()] == [3, 3, 0, 0]


def test_progress_ends_at_every_byte(bundle: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    total = bundle.verify(lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (total, total) and all(done <= whole == total for done, whole in seen)


def test_openssl_checks_our_signature_and_we_its(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    key, public = keys
    signing.sign(bundle.folder, signing.load_private(key))
    ours = bundle.folder / SIGNATURE
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    subprocess.run([*check, "-in", bundle.folder / SUMS, "-sigfile", ours], check=True, capture_output=True)
    made = ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", bundle.folder / SUMS]
    subprocess.run([*made, "-out", ours], check=True)
    signing.check_signature(bundle.folder, signing.load_public(public))
    bundle.verify()


def test_a_flipped_byte_in_sums_or_signature_fails_trust(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    key, public = (signing.load_private(keys[0]), signing.load_public(keys[1]))
    signing.sign(bundle.folder, key)
    for name in (SUMS, SIGNATURE):
        path = bundle.folder / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(BundleError, match="not of the trusted key"):
                signing.check_signature(bundle.folder, public)
        path.write_bytes(whole)
    (bundle.folder / SIGNATURE).unlink()
    with pytest.raises(BundleError, match="not signed"):
        signing.check_signature(bundle.folder, public)


def test_other_keys_are_one_clear_error(bundle: Bundle, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "rsa.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "rsa", "-out", other], check=True, capture_output=True
    )
    with pytest.raises(BundleError, match="not an Ed25519 key; make one with `openssl"):
        signing.load_private(other)
    with pytest.raises(BundleError, match="no public key in PEM"):
        signing.load_public(keys[0])
    with pytest.raises(BundleError, match="no unencrypted private key in PEM"):
        signing.load_private(bundle.folder / SUMS)


def test_without_cryptography_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BackendError, match=r"pip install 'radvlm-edge\[sign\]'"):
        signing.load_public(tmp_path / "any")


def test_resealing_replaces_files_and_carries_the_others(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    signing.sign(bundle.folder, signing.load_private(keys[0]))
    inode = (bundle.folder / "vision/fp32.onnx").stat().st_ino
    again = reseal_bundle(bundle, bundle.manifest, {"fidelity.json": b"{}"})
    assert again.verify() and not again.signed
    assert (bundle.folder / "vision/fp32.onnx").stat().st_ino == inode
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["b"]
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=bundle.folder, check=True)


def test_resealing_launders_nothing(bundle: Bundle) -> None:
    (bundle.folder / "vision/fp32.onnx").write_bytes(b"altered")
    again = reseal_bundle(bundle, bundle.manifest, {"fidelity.json": b"{}"})
    with pytest.raises(BundleError, match=r"vision/fp32.onnx was altered"):
        again.verify()
    with pytest.raises(BundleError, match="changed since it was opened"):
        reseal_bundle(
            Bundle(bundle.folder, bundle.manifest, "0" * 64), bundle.manifest, {"fidelity.json": b"{}"}
        )


@pytest.mark.parametrize("failing", ["_link", "move_into_place"])
def test_a_failed_reseal_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in files_of(bundle.folder)}
    monkeypatch.setattr(reseal, failing, full)
    with pytest.raises(OutputError, match="No space left on device; it is as it was"):
        reseal_bundle(bundle, bundle.manifest, {"fidelity.json": b"{}"})
    assert {p.name: p.read_bytes() for p in files_of(bundle.folder)} == before
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["b"]


def test_declared_limits_and_verdicts_survive_the_manifest(bundle: Bundle) -> None:
    raw = json.loads((bundle.folder / "bundle.json").read_text())
    assert "limits" not in raw and "fidelity" not in raw  # so that earlier bundles keep their digest
    raw |= {"limits": {"flip_rate": 0.5, "box_iou_loss": 0.1}, "fidelity": {"beyond": {}, "ever_beyond": []}}
    (bundle.folder / "bundle.json").write_text(json.dumps(raw))
    manifest = Bundle.open(bundle.folder).manifest
    assert manifest.limits["flip_rate"] == 0.5 and manifest.fidelity == raw["fidelity"]
