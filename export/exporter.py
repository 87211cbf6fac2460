"""Checkpoint folder → sealed bundle: the order of things, and what is written when."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.bundle import SCHEMA, Bundle, BundleWriter, Manifest
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export import language as language_stage
from radvlm_edge.export import quantisation
from radvlm_edge.export import vision as vision_stage
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.golden import write_golden
from radvlm_edge.export.imatrix_file import ImportanceMatrix, as_llama
from radvlm_edge.export.parity import LEVELS, check_parity
from radvlm_edge.export.reference import build_reference

TOOLS = ("radvlm-edge", "torch", "transformers", "optimum-onnx", "onnx", "gguf", "llama-cpp-python", "numpy")
VISION_DEFAULTS = ("fp16", "fp32")
"""Used without being asked for, in this order, where the bundle holds it; language: quantisation.py."""


def export_checkpoint(
    folder: Path,
    out: Path,
    *,
    vision: Sequence[str] = ("fp32", "fp16"),
    language: Sequence[str] = ("F16", "Q8_0", "Q4_K_M"),
    parity: str = "quick",
    render: str | None = None,
    device: str = "any",
    imatrix: Callable[[Checkpoint], ImportanceMatrix] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Export a checkpoint, compare the result with it, seal it at `out`.

    The exact gates apply to `fp32` and `F16`; where those were not asked for they are made, compared
    and left out. The default language artefact is chosen for `device`, one of `devices.CLASSES`.
    `imatrix` gives the importance matrix quantisation uses, once the checkpoint is open.
    Raises CheckpointError, OutputError or ParityError; nothing is left behind then.
    """
    _check_names("vision", vision, tuple(vision_stage.PRECISIONS))
    _check_names("language", language, language_stage.PRECISIONS)
    _check_names("parity", [parity], LEVELS)
    checkpoint = open_checkpoint(folder)
    with (
        BundleWriter(out, force=force) as writer,
        tempfile.TemporaryDirectory(dir=writer.folder.parent) as spare,
    ):
        vision_paths = _write_vision(checkpoint, vision, parity, writer, Path(spare), progress)
        matrix = imatrix(checkpoint) if imatrix else None
        language_paths = _write_language(checkpoint, language, matrix, writer, Path(spare), progress)
        newline = checkpoint.tensor("image_newline").float().numpy()
        np.save(writer.path("vision/image_newline.npy"), newline)
        progress("reference: the checkpoint in transformers")
        reference = build_reference(checkpoint)
        write_golden(checkpoint, reference, writer.path("golden.npz"))
        figures: dict[str, Any] = {"level": "none"}
        if parity != "none":
            figures = check_parity(
                checkpoint,
                vision_paths,
                language_paths,
                newline,
                level=parity,
                progress=progress,
                reference=reference,
            )
        text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
        writer.path("parity.json").write_text(text, encoding="utf-8")
        rule = quantisation.rule_for(
            quantisation.weights(checkpoint.config.language, tied=checkpoint.tied),
            quantisation.whole_rows(checkpoint.config.language),
            device,
        )
        progress(f"default language artefact for {device} device: {rule.reason}")
        manifest = _manifest(checkpoint, writer, render, rule)
        if matrix:
            manifest = replace(manifest, calibration={**(manifest.calibration or {}), **matrix.described()})
        writer.write_manifest(manifest)
        return writer.seal()


def _check_names(what: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    unknown = [name for name in given if name not in accepted]
    if unknown or not given:
        raise CheckpointError(f"--{what} {','.join(given) or '(empty)'}: choose from {', '.join(accepted)}")


def _write_vision(
    checkpoint: Checkpoint,
    wanted: Sequence[str],
    parity: str,
    writer: BundleWriter,
    spare: Path,
    progress: Callable[[str], None],
) -> dict[str, Path]:
    graph = vision_stage.VisionGraph(checkpoint).eval()
    paths = {}
    for precision in dict.fromkeys([*wanted, *(["fp32"] if parity != "none" else [])]):
        progress(f"vision {precision}")
        name = f"vision/{precision}.onnx"
        shipped = precision in wanted
        paths[precision] = writer.path(name) if shipped else spare / f"{precision}.onnx"
        vision_stage.write_vision(checkpoint, graph, precision, paths[precision])
        if shipped:
            writer.add("vision", precision, "onnx", name)
    return paths


def _write_language(
    checkpoint: Checkpoint,
    wanted: Sequence[str],
    matrix: ImportanceMatrix | None,
    writer: BundleWriter,
    spare: Path,
    progress: Callable[[str], None],
) -> dict[str, Path]:
    paths = {}
    importances, _kept = as_llama(matrix, checkpoint) if matrix else (None, None)
    if warning := quantisation.warn_of_rows(checkpoint.config.language, wanted):
        progress(warning)
    for precision in dict.fromkeys(["F16", *wanted]):
        progress(f"language {precision}")
        name = f"language/{precision}.gguf"
        shipped = precision in wanted
        paths[precision] = writer.path(name) if shipped else spare / f"{precision}.gguf"
        if precision == "F16":
            language_stage.write_f16(checkpoint, paths["F16"])
        else:
            language_stage.quantise(paths["F16"], paths[precision], precision, importances)
        if shipped:
            writer.add("language", precision, "gguf", name)
    return paths


def _manifest(
    checkpoint: Checkpoint, writer: BundleWriter, render: str | None, rule: quantisation.Rule
) -> Manifest:
    facts = checkpoint.facts
    held = {
        role: [a.precision for a in writer.artefacts if a.role == role] for role in ("vision", "language")
    }
    stated = ("name", "demonstration", "redistributable", "licence", "render")
    return Manifest(
        schema=SCHEMA,
        name=str(facts["name"]),
        demonstration=bool(facts["demonstration"]),
        redistributable=bool(facts["redistributable"]),
        licence=str(facts["licence"]),
        render=render or str(facts["render"]),
        source={"sha256": checkpoint.sha256(), "architecture": checkpoint.config.raw["architectures"][0]},
        geometry=checkpoint.config.geometry,
        preprocessing=checkpoint.preprocessing,
        prompting=checkpoint.prompting,
        artefacts=tuple(writer.artefacts),
        defaults={
            "vision": next((p for p in VISION_DEFAULTS if p in held["vision"]), held["vision"][0]),
            "language": quantisation.default_precision(rule, held["language"]),
        },
        tools={name: importlib.metadata.version(name) for name in TOOLS},
        notes={key: value for key, value in facts.items() if key not in stated},
    )
