"""What ships: the nano checkpoint, the bundle made of it, the example films."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.selftest import self_test

ROOT = Path(__file__).parents[1]
NANO, EXAMPLES = ROOT / "training" / "nano", ROOT / "examples"
DATA = Path(os.environ.get("RADVLM_EDGE_DATA", ""))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sizes_stay_within_what_a_repository_can_carry() -> None:
    assert size(NANO) <= 16e6
    assert size(demo_bundle()) <= 32e6
    assert len(list(EXAMPLES.glob("*.dcm"))) <= 3


@pytest.mark.torch
def test_nano_is_of_radvlms_class_and_its_k_quants_are_real() -> None:
    from safetensors import safe_open

    config = json.loads((NANO / "config.json").read_text())
    text = config["text_config"]
    assert config["architectures"] == ["LlavaOnevisionForConditionalGeneration"]
    assert text["vocab_size"] <= 4096
    assert text["hidden_size"] % 256 == text["intermediate_size"] % 256 == 0
    assert len(config["image_grid_pinpoints"]) > 1 and config["vision_aspect_ratio"] == "anyres_max_9"
    with safe_open(NANO / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"F16"}
    assert sum(math.prod(shape) for shape in shapes.values()) <= 8e6
    assert "image_newline" in shapes


@pytest.mark.torch
def test_special_tokens_are_named_as_qwens_with_their_ids_in_the_config() -> None:
    config = json.loads((NANO / "config.json").read_text())
    tokens = json.loads((NANO / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert config["image_token_index"] == ids["<image>"]
    assert config["text_config"]["eos_token_id"] == ids["<|im_end|>"]
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"} <= set(ids)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano checkpoint exported here and now, every gate of full parity passed."""
    pytest.importorskip("torch", reason="needs the torch world (extra `export`)")
    from radvlm_edge.export.exporter import export_checkpoint
    from radvlm_edge.export.int8_table import load_table

    out = tmp_path_factory.mktemp("nano") / "bundle"
    table = load_table(NANO.with_name("nano.int8.json"))
    bundle = export_checkpoint(  # as `make demo-bundle`
        NANO, out, vision=("fp16", "int8"), calibration=lambda *_: table, parity="full"
    )
    return bundle.folder


@pytest.mark.torch
def test_the_demonstration_bundle_is_the_checkpoints_export(exported: Path) -> None:
    """Weights, graphs and manifest byte for byte; measured figures differ between CPUs in the last bits."""
    ours, theirs = Bundle.open(demo_bundle()), Bundle.open(exported)
    assert ours.manifest.source == theirs.manifest.source
    assert {a.path: a.sha256 for a in ours.manifest.artefacts} == {
        a.path: a.sha256 for a in theirs.manifest.artefacts
    }
    for field in ("name", "geometry", "prompting", "preprocessing", "defaults", "render", "notes", "licence"):
        assert getattr(ours.manifest, field) == getattr(theirs.manifest, field), field
    assert ours.manifest.demonstration and ours.manifest.redistributable
    newline = Path("vision/image_newline.npy")
    assert (ours.folder / newline).read_bytes() == (theirs.folder / newline).read_bytes()
    with np.load(ours.folder / "golden.npz") as a, np.load(theirs.folder / "golden.npz") as b:
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.torch
def test_nano_passes_full_parity(exported: Path) -> None:
    figures = json.loads((exported / "parity.json").read_text())
    assert figures["crops"]["different"] == 0
    assert figures["answers"]["asked"] == 50
    assert figures["answers"]["identical"] + figures["answers"]["ties"] == 50
    shipped = json.loads((demo_bundle() / "parity.json").read_text())
    assert shipped["level"] == "full" and shipped["answers"]["asked"] == 50


def test_the_demonstration_bundle_computes_right_here() -> None:
    bundle = Bundle.open(demo_bundle())
    bundle.verify()
    assert len(list(self_test(bundle))) == len(bundle.manifest.artefacts)


def test_what_it_was_trained_on_is_written_down() -> None:
    trained = Bundle.open(demo_bundle()).manifest.notes["trained_on"]
    assert trained["phantoms"] and trained["recipe"]
    assert len(trained["real_films"]["ids"]) > 100
    assert "nihcc.app.box.com" in trained["real_films"]["source"]
    shipped = {pydicom.dcmread(path).PatientID for path in EXAMPLES.glob("*.dcm")}
    assert not {name.partition("_")[0] for name in trained["real_films"]["ids"]} & shipped


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.dcm")), ids=lambda path: path.name)
def test_examples_are_what_a_reader_of_plates_sends(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    assert (dataset.Modality, dataset.PhotometricInterpretation) == ("CR", "MONOCHROME1")
    assert dataset.BitsAllocated == 16 and dataset.WindowWidth > 0
    assert "NIH" in dataset.ImageComments and path.name in (EXAMPLES / "README.md").read_text()
    film = load_film(path)
    assert film.provenance is not None and film.provenance["window"]["function"] == "LINEAR"
    assert not film.warnings and film.spacing_mm is not None
    assert int(film.pixels.min()) < 40 and int(film.pixels.max()) > 215


def test_the_demonstration_answers_in_sentences_with_boxes_and_labels() -> None:
    with Reader.open(options=Options(threads=1)) as reader:
        study = reader.look(EXAMPLES / "chest.dcm")
        answer = study.ask("any effusion?")
        assert answer.text.startswith(("Yes, ", "No, ")) and "effusion" in answer.text
        assert answer.stop == "eos"
        assert study.task("report").text.endswith(".")


def test_the_demonstration_tells_the_lungs_apart() -> None:
    with Reader.open(options=Options(threads=1)) as reader:
        study = reader.look(EXAMPLES / "chest.dcm")
        lungs = {side: study.task(f"locate={side} lung").boxes for side in ("right", "left")}
        assert all(len(boxes) == 1 for boxes in lungs.values())
        # The patient's right is on the image's left.
        assert lungs["right"][0].xyxy_fraction[0] < lungs["left"][0].xyxy_fraction[0]
        assert "effusion" in study.task("report").text


def chest_films() -> list[str]:
    if not os.environ.get("RADVLM_EDGE_DATA"):
        return []
    with (DATA / "dicom" / "manifest.csv").open(newline="") as file:
        return [r["file"] for r in csv.DictReader(file) if r["kind"] == "chest" and "ERR" not in r["decode"]]


@pytest.mark.realdata
def test_every_real_chest_file_is_answered() -> None:
    films = chest_films()
    assert len(films) >= 3
    with Reader.open() as reader:
        for name in films:
            answer = reader.look(DATA / "dicom" / name).ask("any effusion?")
            assert answer.text.startswith(("Yes, ", "No, ")), name
