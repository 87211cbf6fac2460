"""Does the bundle say what the checkpoint says? Every stage against transformers, all mismatches at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer  # type: ignore[import-untyped]
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from radvlm_edge.errors import ParityError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.parity_int8 import compare_int8
from radvlm_edge.export.parity_prefill import compare_prefill
from radvlm_edge.export.probe_films import phantoms
from radvlm_edge.export.progress import Progress
from radvlm_edge.export.streaming_reference import (
    Part,
    image_features,
    language_logits,
    normalise,
    pack_image_features,
)
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.vision import open_tower

LEVELS = ("quick", "full", "none")
VISION_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3}
"""Largest difference of a projected token, as a fraction of the largest reference value."""
LOGIT_TOLERANCE = 0.01
"""Largest difference of a logit for F16, as a fraction of the reference logits' standard deviation."""
PACK_TOLERANCE = 1e-5
FILMS = ((1.0, 1.0), (1.3, 1.0), (1.0, 1.4), (3.1, 2.5), (5.3, 5.3), (0.3, 0.4), (1.0, 3.0))
"""Heights and widths of the compared films, in crops."""
QUESTIONS = (
    "any effusion?",
    "Provide a radiology report for this Chest X-Ray.",
    "Are there any abnormalities on this Chest X-ray?",
    "Where is the right lung located in this Chest X-ray?",
    "Is the heart enlarged?",
    "Please locate the following sentence: left pleural effusion",
    "Is there a pneumothorax on the left side?",
    "Are abnormalities present on this Chest X-ray? Where exactly can they be found?",
    "Is this film normal?",
    "Which lung is abnormal?",
)
TEXTS = (
    "any effusion?",
    "[0.12, 0.5, 0.56, 1.0] and [0.0, 0.33, 0.7, 0.9]",
    "No pleural effusion; the heart isn't enlarged (CTR 0.48).\n\n  Lines:\ttip 3.5 cm",
    "Überblähung, pneumothorax à gauche, 胸腔積液, 🫁",
)
ANSWER_TOKENS = 48
QUICK_IMAGE_TOKENS = 256
"""Image tokens in front of the questions whose logits are compared."""
PREFILL_SEED = 45_000_000
"""Of the phantom prefill graphs are compared on."""
LARGE = 1 << 28
"""Bytes of an artefact from which engines are held to mapped weights: repacked copies would fill memory."""


@dataclass
class Findings:
    """Figures for parity.json, and what did not agree."""

    figures: dict[str, Any] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    def require(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.mismatches.append(complaint)


def check_parity(
    checkpoint: Checkpoint,
    vision: Mapping[str, Path],
    language: Mapping[str, Path],
    newline: npt.NDArray[np.float32],
    *,
    level: str,
    progress: Progress,
    int8_gate: float = 0.0,
    prefill: Mapping[str, Path] | None = None,
    prefill_gate: float = 0.0,
) -> dict[str, Any]:
    """Compare artefacts (precision → path) with their checkpoint; returns the figures.

    `vision` must hold `fp32` and `language` `F16`, the artefacts the exact gates apply to. INT8 artefacts
    are held to `int8_gate`, the cosine 99 of 100 projected tokens of a phantom must keep; `prefill` graphs to
    parity_prefill.py's limits.
    Raises ParityError, one line naming every mismatch.
    """
    found = Findings()
    films = _films(checkpoint)
    progress.stage("parity: crops, image tokens, packing")
    views = _compare_crops(checkpoint, films, found)
    _compare_packing(checkpoint, films, newline, found)
    progress.stage("parity: projected tokens")
    floats = {precision: path for precision, path in vision.items() if precision in VISION_TOLERANCE}
    image = _compare_vision(checkpoint, floats, views[0], found)
    if quantised := {precision: path for precision, path in vision.items() if precision not in floats}:
        progress.stage("parity: projected tokens of INT8")
        figures = compare_int8(checkpoint, quantised, int8_gate)
        found.figures["vision"] |= figures
        for precision, one in figures.items():
            p1 = one["token_cosine_p1"]
            found.require(
                p1 >= int8_gate, f"vision {precision} has token cosine p1 {p1:.4f} (gate {int8_gate:g})"
            )
    _compare_tokenizer(checkpoint, language["F16"], found)
    _compare_logits(checkpoint, language, image[:QUICK_IMAGE_TOKENS], found, progress)
    if prefill:
        progress.stage("parity: K and V of the prefill graphs")
        _compare_prefill(checkpoint, prefill, language["F16"], newline, prefill_gate, found)
    if level == "full":
        progress.stage("parity: 50 greedy answers")
        _compare_answers(checkpoint, vision["fp32"], language["F16"], newline, films[:5], found)
    if found.mismatches:
        raise ParityError(f"{checkpoint.folder}: the export differs: {'; '.join(found.mismatches)}")
    return {"level": level, **found.figures}


def _films(checkpoint: Checkpoint) -> list[npt.NDArray[np.uint8]]:
    """Seeded films of several shapes: smooth shapes and noise, so that resizing is really tested."""
    size = checkpoint.config.geometry.crop_px
    rng = np.random.default_rng(20250203)
    films = []
    for tall, wide in FILMS:
        height, width = max(8, int(tall * size) + 1), max(8, int(wide * size) - 1)
        y, x = np.mgrid[0:1:height*1j, 0:1:width*1j]  # fmt: skip
        smooth = 128 + 90 * np.sin(9 * x + rng.uniform(0, 6)) * np.cos(7 * y)
        films.append(np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8))
    colour = rng.integers(0, 256, (size + 3, 2 * size - 5, 3), dtype=np.uint8)
    return [*films, colour]


def _compare_crops(
    checkpoint: Checkpoint, films: list[npt.NDArray[np.uint8]], found: Findings
) -> list[npt.NDArray[np.uint8]]:
    """Crops must be the processor's bit for bit; the reference is asked for pixels, not floats."""
    processor = LlavaOnevisionImageProcessor(**checkpoint.processor)
    geometry = checkpoint.config.geometry
    all_views, wrong = [], 0
    for film in films:
        views, layout = crops.cut(film, geometry)
        picture = Image.fromarray(film).convert("RGB")
        theirs = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
        same = theirs["pixel_values"][0].shape == views.shape and np.array_equal(
            theirs["pixel_values"][0], views
        )
        found.require(same, f"crops of a {layout.width}x{layout.height} film are not the processor's")
        wrong += not same
        all_views.append(views)
    found.figures["crops"] = {"films": len(films), "different": wrong}
    return all_views


def _compare_packing(
    checkpoint: Checkpoint,
    films: list[npt.NDArray[np.uint8]],
    newline: npt.NDArray[np.float32],
    found: Findings,
) -> None:
    geometry = checkpoint.config.geometry
    rng = np.random.default_rng(1)
    expected_newline = checkpoint.tensor("image_newline").float()
    worst = 0.0
    for film in films:
        layout = crops.plan(film.shape[0], film.shape[1], geometry)
        shape = (layout.crops, geometry.tokens_per_crop, geometry.embed_dim)
        features = rng.standard_normal(shape).astype(np.float32)
        theirs = pack_image_features(
            checkpoint, torch.from_numpy(features), layout.height, layout.width, expected_newline
        )
        ours = anyres.pack(features, layout, newline)
        name = f"a {layout.width}x{layout.height} film"
        if len(theirs) != layout.image_tokens:
            found.require(False, f"{name} has {len(theirs)} image tokens, planned {layout.image_tokens}")
            continue
        worst = max(worst, float(np.abs(theirs - ours).max()))
        found.require(worst <= PACK_TOLERANCE, f"image tokens of {name} differ by {worst:.2g}")
    found.figures["packing"] = {"films": len(films), "largest_difference": worst}


def _compare_vision(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    views: npt.NDArray[np.uint8],
    found: Findings,
) -> npt.NDArray[np.float32]:
    """Compare projected tokens; returns the reference's, for the logits to start from."""
    reference = image_features(checkpoint, normalise(checkpoint, views)).numpy()
    scale = float(np.abs(reference).max())
    figures = {}
    for precision, path in artefacts.items():
        tokens = open_tower(path, mapped=_bytes(path) >= LARGE).encode(views)
        difference = float(np.abs(tokens - reference).max()) / scale
        cosine = _cosine(tokens, reference)
        figures[precision] = {"largest_difference": difference, "cosine": cosine}
        limit = VISION_TOLERANCE[precision]
        found.require(
            difference <= limit,
            f"vision {precision} differs by {difference:.2g} of the scale (limit {limit:g})",
        )
    found.figures["vision"] = figures
    return reference.reshape(-1, reference.shape[-1])


def _bytes(path: Path) -> int:
    """Size of an artefact, with the weights beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _compare_tokenizer(checkpoint: Checkpoint, path: Path, found: Findings) -> None:
    theirs = _tokenizer(checkpoint)
    specials = checkpoint.prompting.special_tokens
    texts = [*TEXTS, *QUESTIONS, *(f"a{token}\nb" for token in specials), "".join(specials)]
    model = LanguageModel(path, context=64)
    try:
        wrong = [text for text in texts if model.tokenize(text) != _ids(theirs, text)]
    finally:
        model.close()
    found.require(not wrong, f"token ids differ for {wrong}")
    found.figures["tokenizer"] = {"texts": len(texts), "different": len(wrong)}


def _tokenizer(checkpoint: Checkpoint) -> Any:
    return Tokenizer.from_str(json.dumps(checkpoint.tokenizer))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _prompt(checkpoint: Checkpoint, question: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    head, tail = prompts.render([prompts.Turn(question)], checkpoint.prompting)
    return _ids(tokenizer, head), _ids(tokenizer, tail)


def _compare_logits(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    image: npt.NDArray[np.float32],
    found: Findings,
    progress: Progress,
) -> None:
    """Final logits of a multimodal prompt; F16 is gated, what is quantised is written down."""
    tokenizer = _tokenizer(checkpoint)
    asked = [_prompt(checkpoint, question, tokenizer) for question in QUESTIONS]
    progress.stage("parity: the checkpoint's logits", checkpoint.config.language.layers, "layers")
    sequences: list[list[Part]] = [[head, image, tail] for head, tail in asked]
    expected = language_logits(checkpoint, sequences, keep=[1] * len(asked), advance=progress.advance)
    real = ~checkpoint.unused
    figures = {}
    for precision, path in artefacts.items():
        progress.stage(f"parity: logits of {precision}", len(asked), "questions")
        model = LanguageModel(path, context=len(image) + 512, repack=_bytes(path) < LARGE)
        differences, agree = [], 0
        try:
            model.start([asked[0][0], image])
            for question, (_, tail), (theirs,) in zip(QUESTIONS, asked, expected, strict=True):
                model.prefill(tail)
                ours = model.logits()
                differences.append((ours - theirs)[real] / theirs[real].std())
                agree += int(ours.argmax()) == int(theirs.argmax())
                found.require(
                    real[int(ours.argmax())], f"language {precision} answers with a row that is no token"
                )
                if precision == "F16":
                    same = _same_choice(int(ours.argmax()), theirs, real)
                    found.require(same, f"language F16 chooses another token after {question!r}")
                progress.advance(1)
        finally:
            model.close()
        figures[precision] = _logit_figures(precision, np.stack(differences), agree, found)
    found.figures["language"] = figures


def _compare_prefill(
    checkpoint: Checkpoint,
    prefill: Mapping[str, Path],
    language: Path,
    newline: npt.NDArray[np.float32],
    gate: float,
    found: Findings,
) -> None:
    """On a phantom's image tokens: INT8's scales are made for chest films."""
    views, layout = crops.cut(
        phantoms(1, PREFILL_SEED, checkpoint.config.geometry).films[0].pixels, checkpoint.config.geometry
    )
    image = anyres.pack(image_features(checkpoint, normalise(checkpoint, views)).numpy(), layout, newline)
    image = image[: 2 * QUICK_IMAGE_TOKENS]
    asked = [_prompt(checkpoint, question, _tokenizer(checkpoint)) for question in QUESTIONS]
    sequences: list[list[Part]] = [[head, image, tail] for head, tail in asked]
    expected = [logits[0] for logits in language_logits(checkpoint, sequences, keep=[1] * len(asked))]
    prompts_ = asked[0][0], image, [tail for _, tail in asked]
    figures, beyond = compare_prefill(checkpoint, prefill, language, prompts_, expected, gate)
    found.figures["prefill"] = figures
    found.mismatches += beyond


def _logit_figures(
    precision: str, differences: npt.NDArray[np.float32], agree: int, found: Findings
) -> dict[str, float]:
    """Figures of `[questions, tokens]` differences, in standard deviations of the reference's logits."""
    worst = float(np.abs(differences).max())
    found.require(bool(np.isfinite(worst)), f"language {precision} gives logits that are not finite")
    if precision == "F16":
        found.require(
            worst <= LOGIT_TOLERANCE,
            f"language F16 logits differ by {worst:.2g} of their deviation (limit {LOGIT_TOLERANCE:g})",
        )
    return {
        "largest_difference": worst,
        "rms_difference": float(np.sqrt(np.mean(differences.astype(np.float64) ** 2))),
        "top1": agree / len(differences),
    }


def _same_choice(token: int, expected: npt.NDArray[np.float32], real: npt.NDArray[np.bool_]) -> bool:
    """True if `token` is the reference's choice, or a tie: the gap is within the logits' tolerance."""
    gap = float(expected.max() - expected[token])
    return gap <= LOGIT_TOLERANCE * float(expected[real].std())


def _compare_answers(
    checkpoint: Checkpoint,
    vision: Path,
    language: Path,
    newline: npt.NDArray[np.float32],
    films: list[npt.NDArray[np.uint8]],
    found: Findings,
) -> None:
    """Greedy answers of the exported path, each token judged by transformers fed the same beginning."""
    geometry = checkpoint.config.geometry
    tower = open_tower(vision, mapped=_bytes(vision) >= LARGE)
    model = LanguageModel(language, context=geometry.max_image_tokens + 512, repack=_bytes(language) < LARGE)
    tokenizer = _tokenizer(checkpoint)
    identical = ties = 0
    try:
        for film in films:
            views, layout = crops.cut(film, geometry)
            ours = anyres.pack(tower.encode(views), layout, newline)
            features = image_features(checkpoint, normalise(checkpoint, views)).numpy()
            theirs = anyres.pack(features, layout, newline)
            asked = [_prompt(checkpoint, question, tokenizer) for question in QUESTIONS]
            model.start([asked[0][0], ours])
            answers = [
                list(model.generate(tail, stop_ids=checkpoint.prompting.stop_ids, max_tokens=ANSWER_TOKENS))
                for _, tail in asked
            ]
            sequences: list[list[Part]] = [
                [head, theirs, [*tail, *answer[:-1]]]
                for (head, tail), answer in zip(asked, answers, strict=True)
            ]
            expected = language_logits(checkpoint, sequences, keep=[len(answer) for answer in answers])
            for question, answer, logits in zip(QUESTIONS, answers, expected, strict=True):
                different = [i for i, t in enumerate(answer) if t != int(logits[i].argmax())]
                excused = [i for i in different if _same_choice(answer[i], logits[i], ~checkpoint.unused)]
                identical += not different
                ties += bool(different) and excused == different
                found.require(
                    excused == different,
                    f"answer to {question!r} on a {layout.width}x{layout.height} film leaves transformers' "
                    f"at token {(different or [0])[0]}",
                )
    finally:
        model.close()
    found.figures["answers"] = {"asked": len(films) * len(QUESTIONS), "identical": identical, "ties": ties}
