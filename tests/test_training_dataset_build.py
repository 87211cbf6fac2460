"""Shards that are the same to the byte, whatever stopped the build before."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.datasets import ROOT, bytes_of, recipe, rows_of, small

from radvlm_edge.cli import cli
from radvlm_edge.errors import OutputError
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build, count
from radvlm_edge.training.dataset_recipe import Entry
from radvlm_edge.training.dataset_render import generator


def test_a_build_writes_what_it_counts(built_set: Path, collections: Path) -> None:
    manifest = json.loads((built_set / "dataset.json").read_text())
    counts = count(small(), collections)
    for entry, one in zip(manifest["entries"], counts, strict=True):
        assert entry["pairs"] == one.pairs and entry["rejected"] == {}
        assert entry["written"] == one.pairs * one.entry.repeats
    rows = rows_of(built_set)
    assert len(rows) == manifest["pairs"] and len({row["id"] for row in rows}) == len(rows)
    assert all((collections / str(row["image"])).is_file() for row in rows)


def test_two_builds_are_the_same_to_the_byte(built_set: Path, collections: Path, tmp_path: Path) -> None:
    build(small(), collections, tmp_path / "again", TemplateWriter())
    assert bytes_of(tmp_path / "again") == bytes_of(built_set)


KILLED = """
import os, signal, sys
from pathlib import Path
from radvlm_edge.training import dataset_state
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build
sys.path.insert(0, sys.argv[4])
from tests.datasets import small
replace, left = Path.replace, [int(sys.argv[3])]
def dying(self, target):
    if str(target).endswith(".parquet"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
build(small(), Path(sys.argv[1]), Path(sys.argv[2]), TemplateWriter())
"""


def test_a_killed_build_goes_on_to_the_same_bytes(built_set: Path, collections: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, collections, out, "5", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(finished) == 5 and not (out / "dataset.json").exists()
    assert any(path.name.endswith(".partial") for path in out.iterdir())
    with (out / "shards.jsonl").open("a") as file:
        file.write('{"name": "cut o')  # the kill may also cut the journal's last line off
    build(small(), collections, out, TemplateWriter())
    assert bytes_of(out) == bytes_of(built_set)
    assert all((out / name).stat().st_mtime_ns == time for name, time in finished.items()), "written twice"


def test_a_damaged_shard_is_written_again(built_set: Path, collections: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    build(small(), collections, out, TemplateWriter())
    victim = sorted(out.glob("*.parquet"))[2]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    build(small(), collections, out, TemplateWriter())
    assert bytes_of(out) == bytes_of(built_set)


def test_a_full_disk_is_one_error_and_the_build_goes_on_later(
    built_set: Path, collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, [4]

    def full(self: Path, target: Path) -> Path:
        left[0] -= target.suffix == ".parquet"
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        build(small(), collections, tmp_path / "full", TemplateWriter())
    monkeypatch.undo()
    build(small(), collections, tmp_path / "full", TemplateWriter())
    assert bytes_of(tmp_path / "full") == bytes_of(built_set)


def test_other_inputs_are_refused_and_named(collections: Path, tmp_path: Path) -> None:
    plan = recipe(Entry("classify", "chexpert", take=2))
    build(plan, collections, tmp_path / "out", TemplateWriter())
    other = recipe(Entry("classify", "chexpert", take=2), seed=1)
    with pytest.raises(OutputError, match="recipe: seed"):
        build(other, collections, tmp_path / "out", TemplateWriter())
    build(other, collections, tmp_path / "out", TemplateWriter(), force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(OutputError, match="no data set"):
        build(plan, collections, tmp_path / "mine", TemplateWriter(), force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_webdataset_shards_hold_films_and_are_the_same_to_the_byte(collections: Path, tmp_path: Path) -> None:
    plan = recipe(
        Entry("detect", "vindr-cxr"),
        Entry("classify", "chexpert", take=3),
        format="webdataset",
        longest_px=128,
    )
    for name in ("one", "two"):
        build(plan, collections, tmp_path / name, TemplateWriter())
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    from PIL import Image

    with tarfile.open(next((tmp_path / "one").glob("*vindr*.tar"))) as archive:
        names = archive.getnames()
        film = archive.extractfile(names[0])
        about = archive.extractfile(names[1])
        assert film and about
        assert names[:2] == ["000000000.jpg", "000000000.json"]
        assert Image.open(film).size == (96, 128)
        assert json.load(about)["source"] == "vindr-cxr"


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=20), st.integers(0, 2**31))
def test_random_numbers_depend_on_the_name_alone(name: str, seed: int) -> None:
    assert generator(seed, name).integers(2**60) == generator(seed, name).integers(2**60)
    assert generator(seed, name).integers(2**60) != generator(seed, name + "x").integers(2**60)


def test_the_build_command_counts_in_a_table_and_builds(collections: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\npairs: [{task: classify, source: chexpert, take: 4, repeats: 2, paper: 191027}]"
    )
    arguments = ["dataset", "build", str(path), "--root", str(collections)]
    table = CliRunner().invoke(cli, [*arguments, "--dry-run"]).stdout.splitlines()
    assert table[1].split() == ["classify", "chexpert", "4", "2", "191027"]
    assert table[2].split()[-2:] == ["8", "382054"]
    made = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "out")])
    assert made.exit_code == 0 and "8/8 pairs, 0 rejected, 0:00:00 left" in made.stderr, made.output
    assert len(rows_of(tmp_path / "out")) == 8
