"""Calibration of the INT8 tower: what is watched, chosen, stored, resumed, and returned to float."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from PIL import Image
from pydicom.dataset import FileMetaDataset
from safetensors.torch import load_file, save_file
from tests.int8 import Tower, make_tower, phantom, phantoms

from radvlm_edge.calibration import film_sets, pieces
from radvlm_edge.calibration import vision as stage
from radvlm_edge.calibration.crop_choice import BASE, EDGE, INNER, Choice, batches, choose_crops
from radvlm_edge.calibration.histograms import ChannelHistograms
from radvlm_edge.calibration.pieces import Pieces
from radvlm_edge.calibration.sensitivity import cosines, figures
from radvlm_edge.calibration.smooth import choose, fake_quantised, shifts_for
from radvlm_edge.errors import FilmError, ParityError
from radvlm_edge.export.int8_graph import quantise_weight
from radvlm_edge.export.int8_table import METHODS, Table
from radvlm_edge.runtime.vision import open_tower

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def table(tower: Tower, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return tower.calibrate(phantoms(), tmp_path_factory.mktemp("table") / "unfinished")


def choice_of(tower: Tower, crops: int = 40) -> Choice:
    return choose_crops(phantoms().seen, tower.checkpoint.config.geometry, crops, 8)


def test_pieces_in_a_row_are_the_whole_graph(tower: Tower) -> None:
    crops = tower.crops()
    cut_up = Pieces(tower.graph, 1)
    hidden = cut_up.start(crops)
    for block in range(cut_up.blocks):
        hidden, inputs = cut_up.step(block, hidden)
        assert [values.shape[-1] for values in inputs.values()] == [32, 32, 32, 48]
    whole = open_tower(tower.graph, 1).encode(crops)
    np.testing.assert_allclose(cut_up.finish(hidden), whole, atol=1e-5 * np.abs(whole).max())


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, crops: np.ndarray) -> None:
        self.left: Iterator[Any] = iter([{"crops": crops}])

    def get_next(self) -> Any:
        return next(self.left, None)


def test_largest_values_are_those_of_onnxruntimes_calibrator(tower: Tower, tmp_path: Path) -> None:
    crops = tower.crops()
    augmented = str(tmp_path / "augmented.onnx")
    theirs = create_calibrator(
        tower.graph,
        ["MatMul"],
        augmented_model_path=augmented,
        calibrate_method=CalibrationMethod.MinMax,
    )
    theirs.collect_data(Reader(crops))
    ranges = {
        name: max(float(np.abs(v).max()) for v in data.range_value)
        for name, data in theirs.compute_data().items()
    }
    cut_up = Pieces(tower.graph, 1)
    hidden, compared = cut_up.start(crops), 0
    for block in range(cut_up.blocks):
        hidden, inputs = cut_up.step(block, hidden)
        for kind, linear in (("qkv", "q_proj"), ("out_proj", "out_proj"), ("fc1", "fc1"), ("fc2", "fc2")):
            name = cut_up._input_of(f"blocks.{block}.{linear}.weight")
            assert np.abs(inputs[kind]).max() == pytest.approx(ranges[name], rel=1e-5)
            compared += 1
    assert compared == 8


def test_alpha_and_threshold_have_the_least_error_of_those_tried() -> None:
    rng = np.random.default_rng(5)
    channels = np.where(np.arange(64) % 16 == 0, 60.0, 1.0)
    rows = (rng.standard_normal((400, 64)) * channels).astype(np.float32)
    weight = (rng.standard_normal((64, 96)) / channels[:, None]).astype(np.float32)
    histogram = ChannelHistograms(64)
    histogram.add(rows)
    group = choose(histogram, rows, weight, smooth=True)
    plain = choose(histogram, rows, weight, smooth=False)
    assert group.alpha is not None and group.error < plain.error / 20
    assert plain.alpha is None and plain.shifts == ()
    exact = rows @ weight
    for chosen in (group, plain):
        assert set(chosen.thresholds) == set(METHODS)
        codes, steps = quantise_weight(weight, chosen.shifts)
        smoothed = rows / np.float32(2) ** np.array(chosen.shifts or [0] * 64, np.float32)
        errors = {
            method: float(
                np.mean((fake_quantised(smoothed, threshold) @ (codes * steps) - exact) ** 2)
                / np.mean(exact**2)
            )
            for method, threshold in chosen.thresholds.items()
        }
        assert chosen.error == pytest.approx(min(errors.values()), rel=1e-3)
        assert errors[chosen.method] == min(errors.values())


def test_smoothing_follows_the_papers_formula() -> None:
    inputs, weights = np.array([4.0, 64.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 4.0])
    factors = inputs[[0, 1, 3]] ** 0.5 / weights[[0, 1, 3]] ** 0.5
    expected = np.rint(np.log2(factors) - np.log2(factors).mean()).astype(int)
    found = shifts_for(inputs.astype(np.float32), weights.astype(np.float32), 0.5)
    assert [found[0], found[1], found[3]] == expected.tolist() and found[2] == 0


def test_every_kind_of_crop_and_film_is_taken_and_held_out_films_are_others(tower: Tower) -> None:
    geometry = tower.checkpoint.config.geometry
    films = list(phantoms(12).seen)
    films[0] = replace(films[0], view="LL")
    choice = choose_crops(films, geometry, 30, 6)
    kinds = [pick.kind for pick in choice.picks]
    assert len(kinds) == 30 and min(kinds.count(kind) for kind in (BASE, INNER, EDGE)) >= 5
    assert not {p.film.digest for p in choice.picks} & {p.film.digest for p in choice.held_out}
    assert films[0].digest in {pick.film.digest for pick in (*choice.picks, *choice.held_out)[:6]}
    assert choose_crops(films[::-1], geometry, 30, 6) == choice
    found = np.concatenate([*batches(choice.picks, geometry, 4)])
    assert found.shape == (30, 3, 28, 28)
    for pick, crop in zip(choice.picks, found, strict=True):
        sides = (crop[0, :, 0], crop[0, :, -1], crop[0, 0], crop[0, -1])
        if pick.kind == EDGE:
            assert any((side == 0).all() for side in sides)


def test_films_that_are_the_same_count_once(tower: Tower) -> None:
    with pytest.raises(FilmError, match="1 different films; at least 2"):
        choose_crops([phantom(1), phantom(1)], tower.checkpoint.config.geometry, 10, 2)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on(tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tower.calibrate(phantoms(), tmp_path / "straight")
    seen: list[int] = []
    start = Pieces.start

    def counting(self: Pieces, crops: Any) -> Any:
        seen.append(len(crops))
        if limit is not None and sum(seen) > limit:
            raise Killed
        return start(self, crops)

    monkeypatch.setattr(Pieces, "start", counting)
    limit: int | None = 25
    with pytest.raises(Killed):
        tower.calibrate(phantoms(), tmp_path / "unfinished", save_every=8)
    limit, whole = None, []
    for unfinished in ("unfinished", "nothing"):
        seen.clear()
        again = tower.calibrate(phantoms(), tmp_path / unfinished)
        assert again == straight
        whole.append(sum(seen))
        assert not (tmp_path / unfinished).exists()
    assert whole[1] - whole[0] == 24  # crops whose counts were saved


@pytest.mark.parametrize("damage", ["cut short", "another choice"])
def test_what_another_run_left_is_not_taken(
    tower: Tower, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(stage, "_choose", lambda *_: (_ for _ in ()).throw(Killed))
    left = tmp_path / "unfinished"
    with pytest.raises(Killed):
        tower.calibrate(phantoms(), left, 40 if damage == "cut short" else 30, save_every=8)
    monkeypatch.undo()
    if damage == "cut short":
        left.write_bytes(left.read_bytes()[:-200])
    assert tower.calibrate(phantoms(), left) == table


def write_dicom(path: Path, seed: int, view: str) -> None:
    pixels = phantom(seed).load().pixels
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
        f"1.2.826.0.1.3680043.10.{seed}.77"
    )
    dataset.PatientID, dataset.PatientName = f"MRN-{seed}-4711", "MUELLER^ERIKA"
    dataset.Modality, dataset.ViewPosition, dataset.AccessionNumber = "DX", view, "ACC0815"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "Mueller_Erika"
    folder.mkdir()
    for seed, view in enumerate(["PA", "AP", "LL", "MUELLER^ERIKA", ""]):
        write_dicom(folder / f"mueller_{seed}.dcm", seed, view)
    Image.fromarray(phantom(7).load().pixels).save(folder / "erika_scan.png")
    (folder / "notes.txt").write_text("no film")
    return folder


def test_nothing_stored_names_a_film_or_a_patient(tower: Tower, archive: Path, tmp_path: Path) -> None:
    geometry = tower.checkpoint.config.geometry
    said: list[str] = []
    seen = film_sets.of_folder(archive, "voi", geometry, said.append)
    assert len(seen) == 6 and len(said) == 1 and "notes.txt" in said[0]
    films = stage.Films(seen, "films of a folder", "a-salt")
    kept: list[bytes] = []
    save = stage._save

    def keeping(path: Path, *arguments: Any) -> None:
        save(path, *arguments)
        kept.append(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_save", keeping)
        table = tower.calibrate(films, tmp_path / "unfinished", crops=20, save_every=4)
    table.save(tmp_path / "calibration.json")
    kept.append((tmp_path / "calibration.json").read_bytes())
    assert len(kept) > 2
    for content in kept:
        for secret in (b"MRN", b"4711", b"UELLER", b"ueller", b"rika", b"ACC0815", b"1.2.826", b"a-salt"):
            assert secret not in content
        assert str(archive).encode() not in content and seen[0].digest.encode() not in content
    stored = json.loads(kept[-1])["films"]
    assert stored["views"] == {"AP": 1, "LL": 1, "PA": 1, "not stated": 2, "other": 1}
    assert stored["photometric"] == {"MONOCHROME2": 5, "picture": 1}
    assert sum(stored["mean_brightness"]) == stored["films"] == len(stored["salted_hashes"]) == 6


def test_other_names_of_the_same_films_give_the_same_calibration(
    tower: Tower, archive: Path, tmp_path: Path
) -> None:
    for index, path in enumerate(sorted(archive.glob("*.dcm"), reverse=True)):
        shutil.copy(path, tmp_path / f"{index}.dcm")
    shutil.copy(archive / "erika_scan.png", tmp_path / "a.png")
    geometry = tower.checkpoint.config.geometry
    tables = [
        tower.calibrate(
            stage.Films(film_sets.of_folder(folder, "voi", geometry, lambda line: None), "x", salt),
            tmp_path / "unfinished",
            crops=20,
        )
        for folder, salt in ((archive, "one"), (tmp_path, "one"), (tmp_path, "two"))
    ]
    assert tables[0] == tables[1]
    hashes = [set(table.films["salted_hashes"]) for table in tables[1:]]
    assert not hashes[0] & hashes[1]
    assert tables[2].groups == tables[1].groups


def planted(tiny_checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with one channel of block 1's MLP that is enormous and matters to nothing but int8."""
    shutil.copytree(tiny_checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    root = "vision_tower.vision_model.encoder.layers.1.mlp."
    state[f"{root}fc1.weight"][5] = 0
    state[f"{root}fc1.bias"][5] = 900.0  # a constant behind GELU
    column = state[f"{root}fc2.weight"][:, 5].float()
    state[f"{root}fc2.weight"][:, 5] = (torch.sign(column) * 0.02).half()
    bias = state[f"{root}fc2.bias"].float()
    state[f"{root}fc2.bias"] = (bias - 900 * state[f"{root}fc2.weight"][:, 5].float()).half()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_planted_outlier_is_found_and_returned_to_float(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tower = make_tower(planted(tiny_checkpoint, tmp_path / "ckpt"), tmp_path)
    table = tower.calibrate(phantoms(), tmp_path / "unfinished", gate=0.998)
    assert table.float_groups == ("blocks.1.fc2",)
    assert min(table.sensitivity, key=lambda name: table.sensitivity[name]["p1"]) == "blocks.1"
    before, after = table.curve
    assert (before["float_blocks"], after["float_blocks"], after["float_linears"]) == (0, 1, 1)
    assert before["p1"] < 0.998 <= after["p1"]
    # without the gate, the graph as it would have been
    assert tower.calibrate(phantoms(), tmp_path / "unfinished", gate=0.0).float_groups == ()


def test_a_gate_no_int8_can_hold_returns_everything(tower: Tower, tmp_path: Path) -> None:
    table = tower.calibrate(phantoms(), tmp_path / "unfinished", gate=1.0)
    assert len(table.float_groups) == len(table.groups) == 8
    assert table.curve[-1] == {
        "float_groups": 8, "float_blocks": 2, "float_linears": 12, "p1": 1.0, "min": 1.0
    }  # fmt: skip
    assert [point["float_groups"] for point in table.curve] == list(range(9))


def test_an_engine_that_computes_wrongly_is_said_to(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, calls = Pieces.finish, iter(range(10**6))
    monkeypatch.setattr(
        pieces.Pieces,
        "finish",
        lambda self, hidden: np.roll(finish(self, hidden), next(calls), axis=-1),
    )
    with pytest.raises(ParityError, match="every layer in float"):
        tower.calibrate(phantoms(), tmp_path / "unfinished", gate=1.0)


def test_cosines_are_numpys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 50, 8)).astype(np.float32)
    by_hand = [
        x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in zip(a.reshape(-1, 8), b.reshape(-1, 8), strict=True)
    ]
    np.testing.assert_allclose(cosines(a, b), by_hand, rtol=1e-5)
    assert figures(np.linspace(0, 1, 101, dtype=np.float32)) == {"p1": 0.01, "min": 0.0}


def test_the_set_that_ships_says_when_it_is_phantoms_alone(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADVLM_EDGE_DATA", raising=False)
    said: list[str] = []
    seen = film_sets.of_definition(film_sets.OPEN_SET, tower.checkpoint.config.geometry, said.append)
    assert len(seen) == 120 and "120 phantoms alone" in said[0]
    choice = choose_crops(seen, tower.checkpoint.config.geometry, stage.CROPS, stage.HELD_OUT)
    assert len(choice.picks) == 500 and len(choice.held_out) == 16


@pytest.mark.realdata
def test_nih_films_of_the_set_are_training_films_of_different_patients() -> None:
    import csv
    import os

    import yaml

    names = yaml.safe_load(film_sets.OPEN_SET.read_text())["nih_chestxray14"]
    with (Path(os.environ["RADVLM_EDGE_DATA"]) / "nih_cxr14" / "labels.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert {rows[name]["split"] for name in names} == {"train"}
    assert len({rows[name]["patient"] for name in names}) == len(names) == 120
