"""Checkpoint folder → sealed bundle: the order of things, and what is written when."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.bundle import PHRASES, SCHEMA, Bundle, Manifest
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export import language as language_stage
from radvlm_edge.export import prefill as prefill_stage
from radvlm_edge.export import prefill_int8, quantisation, vision_int8
from radvlm_edge.export import vision as vision_stage
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.golden import write_golden
from radvlm_edge.export.imatrix_file import ImportanceMatrix, as_llama
from radvlm_edge.export.int8_table import Table
from radvlm_edge.export.parity import LEVELS, check_parity
from radvlm_edge.export.partial import ResumableWriter
from radvlm_edge.export.progress import Progress

TOOLS = ("radvlm-edge", "torch", "transformers", "optimum-onnx", "onnx", "gguf", "llama-cpp-python", "numpy")
VISION = ("fp32", "fp16", "int8")
"""What may be asked for; `int8` also writes `int8-trt`, the same layers for TensorRT."""
VISION_DEFAULTS = ("fp16", "fp32", "int8")
"""Used without being asked for, in this order, where the bundle holds it; language: quantisation.py."""
PREFILL = ("int8", "fp16", "fp32")
"""What may be asked for; the first of these a bundle holds is used without being asked for."""
PREFILL_TABLE = "prefill/int8.json"
PREFILL_SLACK = 2.0
"""Times its gate an INT8 prefill may be off on parity's film: the gate is a mean over films, and rounding in
torch is not rounding in llama.cpp's f16."""

Calibrate = Callable[[Checkpoint, str, Callable[[], Path]], Table]
"""Checkpoint, its digest, and what writes its fp32 graph where that is needed → calibration."""
CalibratePrefill = Callable[[Checkpoint, str], Table]
"""Checkpoint and its digest → calibration of the INT8 prefill graph."""


def export_checkpoint(
    folder: Path,
    out: Path,
    *,
    vision: Sequence[str] = ("fp32", "fp16"),
    language: Sequence[str] = ("F16", "Q8_0", "Q4_K_M"),
    prefill: Sequence[str] = (),
    parity: str = "quick",
    render: str | None = None,
    device: str = "any",
    imatrix: Callable[[Checkpoint], ImportanceMatrix] | None = None,
    calibration: Calibrate | None = None,
    prefill_calibration: CalibratePrefill | None = None,
    lora: Path | None = None,
    trim_vocab: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Export a checkpoint, compare the result with it, seal it at `out`.

    The exact gates apply to `fp32` and `F16`; where those were not asked for they are made, compared
    and left out. The default language artefact is chosen for `device`, one of `devices.CLASSES`. `imatrix`
    gives the importance matrix quantisation uses, once the checkpoint is open; `calibration` the scales of
    `int8` vision, from the checkpoint, its digest and its fp32 graph; `prefill_calibration` those of `int8`
    `prefill`, the language model's prefill as a graph (none unless asked for). `lora` names a peft folder
    whose adapter is merged, `trim_vocab` drops the rows behind the last token, `resume` goes on with what a
    killed export of the same checkpoint finished.
    Raises CheckpointError, OutputError or ParityError; nothing is left behind then, but with `resume` for
    a disk that is full.
    """
    _check_names("vision", vision, VISION)
    if "int8" in vision and calibration is None:
        raise CheckpointError("--vision int8 needs a calibration; make one with `radvlm-edge calibrate`")
    _check_names("language", language, language_stage.PRECISIONS)
    if prefill:
        _check_names("prefill", prefill, PREFILL)
    if "int8" in prefill and prefill_calibration is None:
        raise CheckpointError("--prefill int8 needs a calibration; give export_checkpoint what makes one")
    _check_names("parity", [parity], LEVELS)
    report = Progress(progress)
    checkpoint = open_checkpoint(folder, lora=lora, trim_vocab=trim_vocab)
    with ResumableWriter(out, force=force, resume=resume) as writer:
        report.stage("source: digest of the checkpoint's files")
        source = checkpoint.sha256()
        kept = writer.begin(_request(checkpoint, source, trim_vocab))
        if resume:
            report.stage(f"resume: {', '.join(kept) or 'nothing finished to go on from'}")
        vision_paths = _write_vision(checkpoint, vision, parity, writer, report)
        table = None
        if "int8" in vision and calibration is not None:
            graph = partial(vision_int8.fp32_graph, checkpoint, writer, report)
            table = calibration(checkpoint, source, graph)
            vision_paths |= vision_int8.write_both(checkpoint, source, table, writer, report)
        matrix = imatrix(checkpoint) if imatrix else None
        language_paths = _write_language(checkpoint, language, parity, matrix, writer, report)
        prefill_table = None
        if "int8" in prefill and prefill_calibration is not None:
            prefill_table = prefill_calibration(checkpoint, source)
        prefill_paths = _write_prefill(checkpoint, prefill, prefill_table, writer, report)
        newline = checkpoint.tensor("image_newline").float().numpy()
        np.save(writer.path("vision/image_newline.npy"), newline)
        phrases = folder / Path(PHRASES).name
        if phrases.exists() and checkpoint.facts["redistributable"]:  # answers may hold what patients have
            writer.path(PHRASES).write_bytes(phrases.read_bytes())
        report.stage("golden values: the checkpoint in transformers, layer by layer")
        writer.make(writer.place("golden.npz"), lambda path: write_golden(checkpoint, path))
        figures: dict[str, Any] = {"level": "none"}
        if parity != "none":
            figures = check_parity(
                checkpoint,
                vision_paths,
                language_paths,
                newline,
                level=parity,
                progress=report,
                int8_gate=table.gate if table else 0.0,
                prefill=prefill_paths,
                prefill_gate=prefill_table.gate * PREFILL_SLACK if prefill_table else 0.0,
            )
        text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
        writer.path("parity.json").write_text(text, encoding="utf-8")
        rule = quantisation.rule_of(checkpoint, device)
        report.stage(f"default language artefact for {device} device: {rule.reason}")
        manifest = _manifest(checkpoint, source, writer, render, rule)
        noted = matrix.described() if matrix else {}
        noted |= vision_int8.told(table) if table else {}
        noted |= _told(prefill_table) if prefill_table else {}
        if noted:
            manifest = replace(manifest, calibration={**(manifest.calibration or {}), **noted})
        writer.write_manifest(manifest)
        return writer.seal()


def _request(checkpoint: Checkpoint, source: str, trim_vocab: bool) -> dict[str, Any]:
    """What a finished file depends on, beside its own name."""
    return {"source": source, "facts": checkpoint.facts, "trim_vocab": trim_vocab, "tools": _tools()}


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def _check_names(what: str, given: Sequence[str], accepted: Sequence[str]) -> None:
    unknown = [name for name in given if name not in accepted]
    if unknown or not given:
        raise CheckpointError(f"--{what} {','.join(given) or '(empty)'}: choose from {', '.join(accepted)}")


def _write_vision(
    checkpoint: Checkpoint,
    wanted: Sequence[str],
    parity: str,
    writer: ResumableWriter,
    report: Progress,
) -> dict[str, Path]:
    paths = {}
    floats = [p for p in wanted if p in vision_stage.PRECISIONS]
    for precision in dict.fromkeys([*floats, *(["fp32"] if parity != "none" else [])]):
        name, shipped = f"vision/{precision}.onnx", precision in wanted
        paths[precision] = writer.place(name, shipped=shipped)
        report.stage(f"vision {precision}", vision_stage.weight_bytes(checkpoint, precision))
        write = partial(vision_stage.write_vision, checkpoint, precision, advance=report.advance)
        writer.make(paths[precision], write)
        if shipped:
            writer.add("vision", precision, "onnx", name)
    return paths


def _write_language(
    checkpoint: Checkpoint,
    wanted: Sequence[str],
    parity: str,
    matrix: ImportanceMatrix | None,
    writer: ResumableWriter,
    report: Progress,
) -> dict[str, Path]:
    """Quantised files are made anew where a kept one was made with another importance matrix, or none."""
    paths = {
        p: writer.place(f"language/{p}.gguf", shipped=p in wanted) for p in dict.fromkeys(["F16", *wanted])
    }
    importances, _alive = as_llama(matrix, checkpoint) if matrix else (None, None)
    made_with = f"imatrix {matrix.sha256()}" if matrix else ""
    if warning := quantisation.warn_of_rows(checkpoint.config.language, wanted):
        report.stage(warning)
    total = language_stage.f16_bytes(checkpoint)
    quantised = [p for p in paths if p != "F16"]
    finished = all(writer.finished(paths[p], made_with) for p in quantised)
    if "F16" in wanted or parity != "none" or not finished:
        report.stage("language F16", total)
        writer.make(paths["F16"], partial(language_stage.write_f16, checkpoint, advance=report.advance))
    for precision in quantised:
        report.stage(f"language {precision}", total)

        def write(path: Path, precision: str = precision) -> None:
            language_stage.quantise(
                paths["F16"], path, precision, imatrix=importances, advance=report.advance
            )

        writer.make(paths[precision], write, made_with)
    for precision in paths:
        if precision in wanted:
            writer.add("language", precision, "gguf", f"language/{precision}.gguf")
    if "F16" not in wanted and parity == "none":
        writer.discard(paths.pop("F16"))
    return paths


def _write_prefill(
    checkpoint: Checkpoint,
    wanted: Sequence[str],
    table: Table | None,
    writer: ResumableWriter,
    report: Progress,
) -> dict[str, Path]:
    paths = {}
    for precision in dict.fromkeys(wanted):
        name = f"prefill/{precision}.onnx"
        paths[precision] = writer.place(name)
        report.stage(f"prefill {precision}", prefill_stage.weight_bytes(checkpoint, precision))
        if precision == "int8" and table is not None:
            write = partial(prefill_int8.write_int8, checkpoint, table, advance=report.advance)
            writer.make(paths[precision], write, f"calibration {table.sha256()}")
            writer.path(PREFILL_TABLE).write_text(table.text(), encoding="utf-8")
        else:
            write = partial(prefill_stage.write_prefill, checkpoint, precision, advance=report.advance)
            writer.make(paths[precision], write)
        writer.add("prefill", precision, "onnx", name)
    return paths


def _told(table: Table) -> dict[str, Any]:
    """What bundle.json says of the prefill's calibration; all of it is in prefill/int8.json."""
    return {
        "prefill": {
            "sha256": table.sha256(),
            "file": PREFILL_TABLE,
            **table.films,
            "gate": table.gate,
            "float_groups": list(table.float_groups),
            "held_out": table.curve[-1] if table.curve else None,
        }
    }


def _manifest(
    checkpoint: Checkpoint,
    source: str,
    writer: ResumableWriter,
    render: str | None,
    rule: quantisation.Rule,
) -> Manifest:
    facts = checkpoint.facts
    held = {
        role: [a.precision for a in writer.artefacts if a.role == role]
        for role in ("vision", "language", "prefill")
    }
    stated = ("name", "demonstration", "redistributable", "licence", "render")
    return Manifest(
        schema=SCHEMA,
        name=str(facts["name"]),
        demonstration=bool(facts["demonstration"]),
        redistributable=bool(facts["redistributable"]),
        licence=str(facts["licence"]),
        render=render or str(facts["render"]),
        source={"sha256": source, "architecture": checkpoint.config.raw["architectures"][0]},
        geometry=checkpoint.config.geometry,
        preprocessing=checkpoint.preprocessing,
        prompting=checkpoint.prompting,
        artefacts=tuple(writer.artefacts),
        defaults={
            "vision": next((p for p in VISION_DEFAULTS if p in held["vision"]), held["vision"][0]),
            "language": quantisation.default_precision(rule, held["language"]),
            **({"prefill": next(p for p in PREFILL if p in held["prefill"])} if held["prefill"] else {}),
        },
        tools=_tools(),
        notes={key: value for key, value in facts.items() if key not in stated},
    )
