"""INT8 in a bundle: its gate, calibrations that are refused, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from tests.int8 import Tower, phantom
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import Bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import CheckpointError, OutputError, ParityError
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.int8_table import Table, load_table
from radvlm_edge.export.vision_int8 import write_int8
from radvlm_edge.runtime.reader import Options, Reader

pytestmark = pytest.mark.torch


def test_a_bundle_holds_both_and_answers_with_int8(
    int8_bundle: Bundle, int8_table: Table, tmp_path: Path
) -> None:
    held = {a.precision: a.path for a in int8_bundle.manifest.artefacts if a.role == "vision"}
    assert held == {
        "fp16": "vision/fp16.onnx",
        "int8": "vision/int8.onnx",
        "int8-trt": "vision/int8-trt.onnx",
    }
    int8_bundle.verify()
    assert int8_bundle.manifest.defaults["vision"] == "fp16"
    assert load_table(int8_bundle.folder / "vision" / "int8.json") == int8_table
    said = (int8_bundle.manifest.calibration or {})["vision"]
    assert said["sha256"] == int8_table.sha256() and said["float_groups"] == ["blocks.1.fc1"]
    parity = json.loads((int8_bundle.folder / "parity.json").read_text())["vision"]
    for precision in ("int8", "int8-trt"):
        assert parity[precision]["token_cosine_p1"] >= parity[precision]["gate"] == 0.995
    Image.fromarray(phantom(3).load().pixels).save(tmp_path / "film.png")
    with Reader.open(int8_bundle.folder, Options(vision="int8", max_tokens=4)) as reader:
        answer = reader.look(tmp_path / "film.png").ask("any effusion?")
        assert answer.tokens > 0 and answer.provenance["vision"] == "int8"


def test_parity_holds_int8_to_its_gate(tower: Tower, int8_table: Table, tmp_path: Path) -> None:
    coarse = {
        name: replace(group, thresholds={k: v * 30 for k, v in group.thresholds.items()})
        for name, group in int8_table.groups.items()
    }
    with pytest.raises(ParityError, match="vision int8 has token cosine p1 .* .gate 0.995"):
        export_checkpoint(
            tower.checkpoint.folder,
            tmp_path / "b",
            vision=("int8",),
            language=("F16",),
            calibration=lambda *_: replace(int8_table, groups=coarse),
        )
    assert not list(tmp_path.iterdir())


def test_calibrations_that_do_not_fit_are_refused(
    tower: Tower, int8_table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tower.checkpoint.folder
    with pytest.raises(CheckpointError, match="--vision int8 needs a calibration"):
        export_checkpoint(folder, tmp_path / "b", vision=("int8",))
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="another checkpoint's"):
        export_checkpoint(
            other, tmp_path / "b", vision=("int8",), parity="none", calibration=lambda *_: int8_table
        )
    group = int8_table.groups["blocks.0.qkv"]
    wide = replace(int8_table, groups={"blocks.0.qkv": replace(group, shifts=(1,) * 40)})
    with pytest.raises(CheckpointError, match="has 40 channels, this tower 32"):
        write_int8(tower.checkpoint, wide, "int8", tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("no", "not JSON"),
        ("[]", "calibration format None"),
        ('{"format": 7}', "calibration format 7, not 1"),
        ('{"format": 1}', "damaged calibration file"),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        load_table(tmp_path / "c.json")
    with pytest.raises(CheckpointError, match="no such file"):
        load_table(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "median"},
        {"thresholds": {"mse": float("nan")}, "method": "mse"},
        {"shifts": [1], "name": "blocks.0.fc2"},
        {"name": "blocks.x.fc2"},
    ],
)
def test_damaged_groups_are_refused(int8_table: Table, tmp_path: Path, change: dict[str, Any]) -> None:
    data = json.loads(int8_table.text())
    name = change.pop("name", "blocks.0.fc1")
    data["groups"][name] = {**data["groups"]["blocks.0.fc2"], **change}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="damaged calibration file"):
        load_table(tmp_path / "c.json")


def test_the_command_line_calibrates_and_exports(
    tower: Tower, int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, out = tmp_path / "films", tmp_path / "c.json"
    films.mkdir()
    for seed in range(4):
        Image.fromarray(phantom(seed).load().pixels).save(films / f"{seed}.png")
    checkpoint = str(tower.checkpoint.folder)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, arguments)

    small = ["--crops", "12", "--held-out", "4", "--threads", "1"]
    result = run("calibrate", checkpoint, str(films), "-o", str(out), *small)
    assert result.exit_code == 0, result.output
    assert "8 of 8 groups of layers in INT8, token cosine p1 0.99" in result.output
    assert {p.name for p in tmp_path.iterdir()} == {"films", "c.json", "c.json.salt"}
    assert (tmp_path / "c.json.salt").stat().st_mode & 0o077 == 0
    made = load_table(out)
    assert isinstance(run("calibrate", checkpoint, str(films), "-o", str(out)).exception, OutputError)
    from_bundle = run("calibrate", str(int8_bundle.folder), str(films), "-o", str(out), "--force", *small)
    assert from_bundle.exit_code == 0, from_bundle.output
    half = load_table(out)  # of the fp16 artefact: the int8_bundle has no fp32
    assert half.source_sha256 == made.source_sha256 and half.films == made.films
    assert half.groups["blocks.0.fc2"].thresholds["minmax"] == pytest.approx(
        made.groups["blocks.0.fc2"].thresholds["minmax"], rel=1e-2
    )
    options = ["--vision", "int8", "--language", "F16", "--parity", "none", "-o", str(tmp_path / "b")]
    result = run("export", checkpoint, *options, "--calibration", str(out))
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "b").manifest.defaults["vision"] == "int8"
    refused = run("export", checkpoint, "--calibration", str(out))
    assert refused.exit_code == 2 and "--calibration is for --vision int8" in refused.output


def test_without_a_file_the_export_calibrates_itself(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radvlm_edge.calibration import film_sets, vision

    monkeypatch.delenv("RADVLM_EDGE_DATA", raising=False)
    small = tmp_path / "small.yaml"
    small.write_text(
        "phantoms: {first_seed: 5, count: 3, short_side_crops: [1.8, 2.6]}\nnih_chestxray14: []\n"
    )
    monkeypatch.setattr(film_sets, "OPEN_SET", small)
    monkeypatch.setattr(vision.calibrate, "__kwdefaults__", {**vision.calibrate.__kwdefaults__, "crops": 10})
    arguments = ["export", str(tower.checkpoint.folder), "-o", str(tmp_path / "b"), "--language", "F16"]
    result = CliRunner().invoke(cli, [*arguments, "--vision", "int8", "--parity", "none"])
    assert result.exit_code == 0, result.output
    table = load_table(tmp_path / "b" / "vision" / "int8.json")
    assert table.films["kind"] == "open set" and table.films["films"] == 3
    held = {p.name for p in (tmp_path / "b" / "vision").iterdir()}
    assert held == {"int8.onnx", "int8-trt.onnx", "int8.json", "image_newline.npy"}
