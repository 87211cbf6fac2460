"""The bundle on disk: sealed whole or not at all, and every change to it noticed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from radvlm_edge.bundle import Bundle, BundleWriter, Manifest, Prompting
from radvlm_edge.errors import BundleError, OutputError
from radvlm_edge.geometry import GEOMETRIES


def write(out: Path, *, force: bool = False, weights: bytes = b"weights") -> Bundle:
    with BundleWriter(out, force=force) as writer:
        writer.path("vision/fp32.onnx").write_bytes(weights)
        writer.path("language/F16.gguf").write_bytes(b"language")
        writer.add("vision", "fp32", "onnx", "vision/fp32.onnx")
        writer.add("language", "F16", "gguf", "language/F16.gguf")
        writer.write_manifest(
            Manifest(
                schema=1,
                name="test",
                demonstration=False,
                redistributable=True,
                licence="none",
                render="voi",
                source={},
                geometry=GEOMETRIES["radvlm-7b"],
                preprocessing={},
                prompting=Prompting("", "<image>", (1,), ("<image>",)),
                artefacts=tuple(writer.artefacts),
                defaults={"vision": "fp32", "language": "F16"},
                tools={},
            )
        )
        return writer.seal()


def test_round_trip_and_sha256sum_agree(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    again = Bundle.open(tmp_path / "b")
    assert again == bundle
    assert again.manifest.geometry == GEOMETRIES["radvlm-7b"]
    assert (
        again.verify()
        == sum(p.stat().st_size for p in (tmp_path / "b").rglob("*") if p.is_file())
        - (tmp_path / "b" / "SHA256SUMS").stat().st_size
    )
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "b", check=True)


def test_every_changed_byte_and_missing_or_added_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "b")
    for path in [p for p in (tmp_path / "b").rglob("*") if p.is_file() and p.name != "SHA256SUMS"]:
        name = path.relative_to(tmp_path / "b").as_posix()
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(BundleError, match=r"was altered|not a bundle manifest"):
                Bundle.open(tmp_path / "b").verify()
        path.unlink()
        with pytest.raises(BundleError, match=rf"{name} is missing|no bundle.json"):
            Bundle.open(tmp_path / "b").verify()
        path.write_bytes(whole)
    (tmp_path / "b" / "extra").write_text("")
    with pytest.raises(BundleError, match="extra is not listed"):
        Bundle.open(tmp_path / "b").verify()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": "x"}', "\x00"])
def test_a_manifest_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="not a bundle manifest"):
        Bundle.open(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    write(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps({**manifest, "schema": 2, "more": 1}))
    with pytest.raises(BundleError, match="schema 2 is newer than this program's 1; upgrade"):
        Bundle.open(tmp_path / "b")


def test_an_unknown_artefact_names_those_held(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no language artefact 'Q2_K'; this bundle has F16"):
        write(tmp_path / "b").artefact("language", "Q2_K")


def test_an_existing_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    write(tmp_path / "b")
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "b", weights=b"other")
    assert (tmp_path / "b/vision/fp32.onnx").read_bytes() == b"weights"
    write(tmp_path / "b", force=True, weights=b"other").verify()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_failed_export_leaves_nothing_and_the_old_bundle_alone(tmp_path: Path) -> None:
    write(tmp_path / "b")
    with pytest.raises(RuntimeError), BundleWriter(tmp_path / "b", force=True) as writer:
        writer.path("vision/x").write_text("x")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    Bundle.open(tmp_path / "b").verify()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(OutputError, match="No space left on device; nothing was left"),
        BundleWriter(tmp_path / "b") as writer,
    ):
        writer.path("x").write_text("x")
        full.write_text("x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), BundleWriter(tmp_path / "file" / "b"):
        pass


def test_moving_a_bundle_changes_nothing(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    shutil.move(tmp_path / "b", tmp_path / "c")
    moved = Bundle.open(tmp_path / "c")
    assert moved.sha256 == bundle.sha256 and moved.verify() and os.listdir(tmp_path) == ["c"]  # noqa: PTH208
