"""The importance matrix is what brute force gives, survives its file, and changes what is quantised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import Bundle
from radvlm_edge.calibration.dialogues import dialogues, without_images
from radvlm_edge.calibration.imatrix import MeanSquares, collect, collect_from
from radvlm_edge.errors import CheckpointError, FilmError
from radvlm_edge.export import probe_films
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.imatrix_file import ImportanceMatrix, load_imatrix
from radvlm_edge.export.language import gguf_name
from radvlm_edge.export.reference import build_reference
from radvlm_edge.export.shared_prefix import Sequences

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def films(checkpoint: Checkpoint) -> probe_films.ProbeFilms:
    return probe_films.phantoms(2, 5, checkpoint.config.geometry)


@pytest.fixture(scope="module")
def sequences(checkpoint: Checkpoint, films: probe_films.ProbeFilms) -> list[Sequences]:
    return dialogues(checkpoint, films)


@pytest.fixture(scope="module")
def matrix(checkpoint: Checkpoint, films: probe_films.ProbeFilms) -> ImportanceMatrix:
    return collect(checkpoint, films)


def brute_force(checkpoint: Checkpoint, sequences: list[Sequences], share: float) -> dict[str, Any]:
    """Hooks on transformers' modules: the prefix alone once, then every prompt whole, its tail counted."""
    model = build_reference(checkpoint)
    squares: dict[str, list[list[torch.Tensor]]] = {}
    counted: tuple[slice, slice] = (slice(0), slice(0))

    def hook(name: str) -> Any:
        def note(_: Any, inputs: Any) -> None:
            for kind in (0, 1):
                squares.setdefault(name, [[], []])[kind].append(inputs[0][0][counted[kind]].double() ** 2)

        return note

    for name, module in model.model.language_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(gguf_name(f"language_model.model.{name}.weight")))
    embed = model.get_input_embeddings()
    with torch.no_grad():
        for film in sequences:
            image = slice(len(film.head), len(film.head) + len(film.image))
            for number, tail in enumerate(film.tails):
                parts = [
                    embed(torch.tensor(film.head, dtype=torch.long)),
                    torch.from_numpy(film.image),
                    embed(torch.tensor(tail)),
                ]
                whole = torch.cat(parts)
                text = list(range(image.stop, len(whole)))
                if number == 0:
                    text = list(range(image.start)) + text
                counted = (image if number == 0 else slice(0), text)  # type: ignore[assignment]
                model.model.language_model(inputs_embeds=whole[None])
    means = {}
    for name, kinds in squares.items():
        image_mean, text_mean = (torch.cat(kind).mean(0) for kind in kinds)
        means[name] = ((1 - share) * image_mean + share * text_mean).numpy()
    return means


def test_means_are_those_of_hooks_on_transformers(checkpoint: Checkpoint, sequences: list[Sequences]) -> None:
    few = [replace(film, image=film.image[:40], tails=film.tails[:3]) for film in sequences]
    ours = collect_from(checkpoint, few, ["x"], 0.2)
    expected = brute_force(checkpoint, few, 0.2)
    assert set(ours.means) == {*expected, "token_embd.weight"}
    for name, values in expected.items():
        np.testing.assert_allclose(ours.means[name], values, rtol=1e-4, atol=1e-9, err_msg=name)


def test_prompts_bear_images_and_every_task(checkpoint: Checkpoint, sequences: list[Sequences]) -> None:
    for film in sequences:
        assert len(film.image) > 20 and len(film.tails) >= 12
        assert all(tail[-1] == checkpoint.prompting.stop_ids[0] for tail in film.tails)
    bare = without_images(sequences)
    assert [one.tails for one in bare] == [one.tails for one in sequences]
    image = collect_from(checkpoint, sequences, [], 0.0).means["blk.0.attn_q.weight"]
    text = collect_from(checkpoint, bare, [], 0.0).means["blk.0.attn_q.weight"]
    assert np.corrcoef(image, text)[0, 1] < 0.9


def test_text_positions_count_where_there_is_no_image() -> None:
    squares = MeanSquares([Sequences([1], np.zeros((0, 2), np.float32), [[2]])])
    squares.observe(0, 0, "language_model.lm_head.weight", torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert squares.matrix(["x"], 0.5).means["output.weight"].tolist() == [5.0, 2.0]


def test_round_trip_in_llama_cpps_format(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    matrix.save(tmp_path / "m.gguf")
    again = load_imatrix(tmp_path / "m.gguf")
    assert again.tokens == matrix.tokens and again.datasets == matrix.datasets
    for name, values in matrix.means.items():
        np.testing.assert_allclose(again.means[name], values, rtol=1e-6)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("general.type").contents() == "imatrix"
    names = {tensor.name for tensor in reader.tensors}
    assert {"blk.1.ffn_down.weight.in_sum2", "blk.1.ffn_down.weight.counts"} <= names


def test_other_files_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    with pytest.raises(CheckpointError, match="no GGUF importance matrix"):
        load_imatrix(tmp_path / "text")
    with pytest.raises(CheckpointError, match="holds no importance matrix"):
        load_imatrix(tiny_bundle / "language" / "F16.gguf")
    ImportanceMatrix({"a": np.array([1, -1], np.float32)}, 1, ()).save(tmp_path / "negative")
    with pytest.raises(CheckpointError, match="a holds importances that are negative"):
        load_imatrix(tmp_path / "negative")


def test_a_matrix_of_another_model_is_refused(
    checkpoint: Checkpoint, matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    short = {name: values[:-1] for name, values in matrix.means.items() if "ffn_up" not in name}
    other = ImportanceMatrix(short, 1, ())
    with pytest.raises(CheckpointError, match=r"missing blk.0.ffn_up.weight; .* more; collect it from this"):
        export_checkpoint(checkpoint.folder, tmp_path / "b", imatrix=lambda _: other)
    assert not list(tmp_path.iterdir())


def test_the_quantised_file_differs_and_the_manifest_says_why(
    checkpoint: Checkpoint, tiny_bundle: Path, matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    bundle = export_checkpoint(checkpoint.folder, tmp_path / "b", parity="none", imatrix=lambda _: matrix)
    plain, ours = (
        {t.name: t for t in gguf.GGUFReader(folder / "language" / "Q4_K_M.gguf").tensors}
        for folder in (tiny_bundle, bundle.folder)
    )
    changed = [name for name in plain if not np.array_equal(plain[name].data, ours[name].data)]
    assert {"blk.0.attn_q.weight", "blk.1.ffn_up.weight"} <= set(changed)
    for name in changed:
        assert plain[name].tensor_type == ours[name].tensor_type
    said = Bundle.open(bundle.folder).manifest.calibration
    assert said is not None and said["imatrix"]["sha256"] == matrix.sha256()
    assert "phantoms" in json.dumps(said)


def test_weighted_rounding_serves_the_channels_that_matter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Error of a matrix, weighted by importance, falls against a matrix quantised without."""
    shapes = checkpoint.config.tensor_shapes(tied=True)
    means = {
        gguf_name(name): np.where(np.arange(shape[1]) % 8 == 0, 1e4, 1).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("language_model.") and len(shape) == 2
    }
    errors = {}
    for label, give in (("without", None), ("with", lambda _: ImportanceMatrix(means, 1, ()))):
        bundle = export_checkpoint(
            checkpoint.folder, tmp_path / label, language=("F16", "Q4_K_M"), parity="none", imatrix=give
        )
        exact, rounded = (
            {t.name: t for t in gguf.GGUFReader(bundle.folder / "language" / f"{kind}.gguf").tensors}
            for kind in ("F16", "Q4_K_M")
        )
        name = "blk.0.attn_q.weight"
        difference = gguf.dequantize(rounded[name].data, rounded[name].tensor_type) - exact[name].data
        errors[label] = float((difference.astype(np.float64) ** 2 * means[name]).sum())
    assert errors["with"] < 0.7 * errors["without"]


def test_users_films_are_read_and_others_passed_over_aloud(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name, size in (("b.png", (60, 50)), ("a.png", (40, 90))):
        Image.fromarray(np.full(size, 9, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    said: list[str] = []
    films = probe_films.user_films(tmp_path, "voi", said.append)
    assert [film.pixels.shape for film in films.films] == [(40, 90), (60, 50)]
    assert len(said) == 1 and "notes.txt" in said[0]
    assert films.described == {"kind": "the user's films", "count": 2}
    assert len(dialogues(checkpoint, films)) == 2
    with pytest.raises(FilmError, match="no film there that can be read"):
        (tmp_path / "empty").mkdir()
        probe_films.user_films(tmp_path / "empty", "voi")


def test_untied_output_is_covered_too(tmp_path: Path) -> None:
    untied = open_checkpoint(make_checkpoint(tmp_path / "c", tied=False))
    found = collect(untied, probe_films.phantoms(1, 5, untied.config.geometry))
    assert "output.weight" in found.means and "token_embd.weight" not in found.means
