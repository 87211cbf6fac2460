"""Killed exports, full disks: no bundle that is wrong, and the work is not lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import OutputError, RadvlmError
from radvlm_edge.export import exporter, partial
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.imatrix_file import ImportanceMatrix, as_llama
from radvlm_edge.export.language import gguf_name

pytestmark = pytest.mark.torch
KILLS = int(os.environ.get("RADVLM_EDGE_KILLS", "3"))
"""Random moments at which an export is killed; set it to 20 for the full run."""

WHOLE = "tiny.bundle"
EXPORT = """
import sys
from pathlib import Path
from radvlm_edge.export.exporter import export_checkpoint
say = lambda line: print(line, flush=True)
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), resume="resume" in sys.argv, progress=say)
print("sealed", flush=True)
"""


@pytest.fixture
def whole(tiny_checkpoint: Path, tiny_bundle: Path) -> Path:
    """A checkpoint, with its bundle beside it as `WHOLE`."""
    assert tiny_bundle == tiny_checkpoint.parent / WHOLE
    return tiny_checkpoint


def content(bundle: Path) -> dict[str, bytes]:
    return {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def start(checkpoint: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment_and_resumed(whole: Path, tmp_path: Path, seed: int) -> None:
    """Whatever stands under the bundle's name is whole; whatever else is found goes on to the same bytes."""
    out, rng = tmp_path / "b", random.Random(seed)
    stop_at = rng.randrange(1, 10)
    with start(whole, out) as process:
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout):
            if number == stop_at:
                time.sleep(rng.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
    if out.exists():
        Bundle.open(out).verify()
    else:
        for folder in tmp_path.iterdir():
            assert not (folder / "bundle.json").exists()
        export_checkpoint(whole, out, resume=True)
    assert content(out) == content(whole.parent / WHOLE)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def interrupted(
    whole: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> None:
    """An export that the user interrupts before parity."""
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "check_parity", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(whole, out, **options)


def raise_interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_resume_makes_no_finished_file_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "b", []
    interrupted(whole, out, monkeypatch)
    assert not out.exists()
    journal = json.loads((tmp_path / ".b.partial" / partial.JOURNAL).read_text())
    assert len(journal["finished"]) == 6
    damaged = tmp_path / ".b.partial" / "bundle" / "language" / "Q8_0.gguf"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    for stage, name in ((exporter.vision_stage, "write_vision"), (exporter.language_stage, "write_f16")):
        monkeypatch.setattr(stage, name, raise_interrupt)
    export_checkpoint(whole, out, resume=True, progress=said.append)
    assert any(line.startswith("resume: bundle/golden.npz, bundle/language/F16.gguf") for line in said)
    assert content(out) == content(whole.parent / WHOLE)


@pytest.mark.parametrize("same", [True, False], ids=["same matrix", "another matrix"])
def test_quantised_files_are_kept_only_of_the_same_importance_matrix(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """F16 is kept in any case; Q4_K_M has the bytes of the matrix given last."""
    out, made = tmp_path / "b", []
    interrupted(whole, out, monkeypatch, vision=("fp16",), imatrix=matrix_of(0))
    quantise = exporter.language_stage.quantise

    def counted(source: Path, target: Path, precision: str, **more: Any) -> None:
        made.append(precision)
        quantise(source, target, precision, **more)

    monkeypatch.setattr(exporter.language_stage, "quantise", counted)
    monkeypatch.setattr(exporter.language_stage, "write_f16", raise_interrupt)
    last = matrix_of(0 if same else 1)
    bundle = export_checkpoint(whole, out, vision=("fp16",), parity="none", resume=True, imatrix=last)
    assert made == ([] if same else ["Q8_0", "Q4_K_M"])
    source = bundle.folder / "language" / "F16.gguf"
    importances, _alive = as_llama(last(open_checkpoint(whole)), open_checkpoint(whole))
    quantise(source, tmp_path / "expected", "Q4_K_M", imatrix=importances)
    assert (bundle.folder / "language" / "Q4_K_M.gguf").read_bytes() == (tmp_path / "expected").read_bytes()
    plain = content(whole.parent / WHOLE)["language/Q4_K_M.gguf"]
    assert (tmp_path / "expected").read_bytes() != plain
    bundle.verify()


def matrix_of(phase: int) -> Callable[[Checkpoint], ImportanceMatrix]:
    """One channel in eight counts; which ones depends on `phase`."""

    def give(checkpoint: Checkpoint) -> ImportanceMatrix:
        shapes = checkpoint.config.tensor_shapes(tied=True).items()
        means = {
            gguf_name(name): np.where(np.arange(shape[1]) % 8 == phase, 1e4, 1).astype(np.float32)
            for name, shape in shapes
            if name.startswith("language_model.") and len(shape) == 2
        }
        return ImportanceMatrix(means, 1, ())

    return give


@pytest.mark.parametrize("change", ["other weights", "other options", "without --resume"])
def test_another_export_starts_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out, said = tmp_path / "b", []
    interrupted(whole, out, monkeypatch, vision=("fp32",), language=("Q8_0",))
    source = make_checkpoint(tmp_path / "c", seed=5) if change == "other weights" else whole
    bundle = export_checkpoint(
        source,
        out,
        vision=("fp32",),
        language=("Q8_0",),
        resume=change != "without --resume",
        trim_vocab=change == "other options",
        progress=said.append,
    )
    assert "resume: nothing finished to go on from" in said or change == "without --resume"
    bundle.verify()
    assert bundle.manifest.geometry.vocab == (300 if change == "other options" else 320)


def test_two_exports_of_one_bundle(whole: Path, tmp_path: Path) -> None:
    with (
        partial.ResumableWriter(tmp_path / "b"),
        pytest.raises(OutputError, match="another export is writing"),
    ):
        export_checkpoint(whole, tmp_path / "b")


@pytest.mark.parametrize("resume", [False, True])
def test_a_disk_that_refuses(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    out = tmp_path / "b"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "write_golden", full)
        expected = "--resume continues it" if resume else "nothing was left behind"
        with pytest.raises(OutputError, match=f"No space left on device; {expected}"):
            export_checkpoint(whole, out, resume=resume)
    assert not out.exists() and bool(list(tmp_path.iterdir())) is resume
    export_checkpoint(whole, out, resume=resume)
    assert content(out) == content(whole.parent / WHOLE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(whole: Path, small_disk: Path) -> None:
    with pytest.raises(RadvlmError) as error:
        export_checkpoint(whole, small_disk / "b")
    assert "\n" not in str(error.value)
    assert not list(small_disk.iterdir()), "nothing may be left on a full disk"
