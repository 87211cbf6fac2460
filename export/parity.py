"""Does the bundle say what the checkpoint says? Every stage against transformers, all mismatches at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from radvlm_edge.errors import ParityError
from radvlm_edge.export.checkpoint import Checkpoint, read_json
from radvlm_edge.export.reference import build_reference, image_features, language_logits, normalise
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
    progress: Callable[[str], None],
    reference: Any = None,
) -> dict[str, Any]:
    """Compare artefacts (precision → path) with their checkpoint; returns the figures.

    `vision` must hold `fp32` and `language` `F16`, the artefacts the exact gates apply to.
    Raises ParityError, one line naming every mismatch.
    """
    found = Findings()
    model = reference if reference is not None else build_reference(checkpoint)
    films = _films(checkpoint)
    progress("parity: crops, image tokens, packing")
    views = _compare_crops(checkpoint, films, found)
    _compare_packing(checkpoint, model, films, newline, found)
    progress("parity: projected tokens")
    image = _compare_vision(checkpoint, model, vision, views[0], found)
    _compare_tokenizer(checkpoint, language["F16"], found)
    progress("parity: logits")
    _compare_logits(checkpoint, model, language, image, found)
    if level == "full":
        progress("parity: 50 greedy answers")
        _compare_answers(checkpoint, model, vision["fp32"], language["F16"], newline, films[:5], found)
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
    raw = read_json(checkpoint.folder / "preprocessor_config.json")
    processor = LlavaOnevisionImageProcessor(**raw)
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
    model: Any,
    films: list[npt.NDArray[np.uint8]],
    newline: npt.NDArray[np.float32],
    found: Findings,
) -> None:
    geometry = checkpoint.config.geometry
    rng = np.random.default_rng(1)
    worst = 0.0
    for film in films:
        layout = crops.plan(film.shape[0], film.shape[1], geometry)
        shape = (layout.crops, geometry.tokens_per_crop, geometry.embed_dim)
        features = rng.standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            theirs, _ = model.model.pack_image_features(
                [torch.from_numpy(features)],
                torch.tensor([[layout.height, layout.width]]),
                image_newline=model.model.image_newline,
                vision_aspect_ratio=f"anyres_max_{geometry.max_crops}",
            )
        ours = anyres.pack(features, layout, newline)
        name = f"a {layout.width}x{layout.height} film"
        if len(theirs[0]) != layout.image_tokens:
            found.require(False, f"{name} has {len(theirs[0])} image tokens, planned {layout.image_tokens}")
            continue
        worst = max(worst, float(np.abs(theirs[0].numpy() - ours).max()))
        found.require(worst <= PACK_TOLERANCE, f"image tokens of {name} differ by {worst:.2g}")
    found.figures["packing"] = {"films": len(films), "largest_difference": worst}


def _compare_vision(
    checkpoint: Checkpoint,
    model: Any,
    artefacts: Mapping[str, Path],
    views: npt.NDArray[np.uint8],
    found: Findings,
) -> npt.NDArray[np.float32]:
    """Compare projected tokens; returns the reference's, for the logits to start from."""
    reference = image_features(model, normalise(checkpoint, views)).numpy()
    scale = float(np.abs(reference).max())
    figures = {}
    for precision, path in artefacts.items():
        tokens = open_tower(path).encode(views)
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


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _compare_tokenizer(checkpoint: Checkpoint, path: Path, found: Findings) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.folder / "tokenizer.json"))
    specials = checkpoint.prompting.special_tokens
    texts = [*TEXTS, *QUESTIONS, *(f"a{token}\nb" for token in specials), "".join(specials)]
    model = LanguageModel(path, context=64)
    try:
        wrong = [
            text for text in texts if model.tokenize(text) != theirs.encode(text, add_special_tokens=False)
        ]
    finally:
        model.close()
    found.require(not wrong, f"token ids differ for {wrong}")
    found.figures["tokenizer"] = {"texts": len(texts), "different": len(wrong)}


def _prompt(checkpoint: Checkpoint, question: str, model: LanguageModel) -> tuple[list[int], list[int]]:
    head, tail = prompts.render([prompts.Turn(question)], checkpoint.prompting)
    return model.tokenize(head), model.tokenize(tail)


def _compare_logits(
    checkpoint: Checkpoint,
    reference: Any,
    artefacts: Mapping[str, Path],
    image: npt.NDArray[np.float32],
    found: Findings,
) -> None:
    """Final logits of a multimodal prompt; F16 is gated, what is quantised is written down."""
    figures = {}
    for precision, path in artefacts.items():
        context = len(image) + 512
        model = LanguageModel(path, context=context)
        try:
            worst = squares = 0.0
            agree = 0
            for question in QUESTIONS:
                head, tail = _prompt(checkpoint, question, model)
                expected = language_logits(reference, head, image, tail)[-1]
                model.start([head, image])
                model.prefill(tail)
                difference = np.abs(model.logits() - expected)
                deviation = float(expected.std())
                worst = max(worst, float(difference.max()) / deviation)
                squares += float((difference**2).mean()) / deviation**2
                same = _same_choice(int(model.logits().argmax()), expected)
                agree += int(model.logits().argmax()) == int(expected.argmax())
                if precision == "F16":
                    found.require(same, f"language F16 chooses another token after {question!r}")
        finally:
            model.close()
        count = len(QUESTIONS)
        figures[precision] = {
            "largest_difference": worst,
            "rms_difference": (squares / count) ** 0.5,
            "top1": agree / count,
        }
        found.require(bool(np.isfinite(worst)), f"language {precision} gives logits that are not finite")
        if precision == "F16":
            found.require(
                worst <= LOGIT_TOLERANCE,
                f"language F16 logits differ by {worst:.2g} of their deviation (limit {LOGIT_TOLERANCE:g})",
            )
    found.figures["language"] = figures


def _same_choice(token: int, expected: npt.NDArray[np.float32]) -> bool:
    """True if `token` is the reference's choice, or a tie: the gap is within the logits' tolerance."""
    gap = float(expected.max() - expected[token])
    return gap <= LOGIT_TOLERANCE * float(expected.std())


def _compare_answers(
    checkpoint: Checkpoint,
    reference: Any,
    vision: Path,
    language: Path,
    newline: npt.NDArray[np.float32],
    films: list[npt.NDArray[np.uint8]],
    found: Findings,
) -> None:
    """Greedy answers of the exported path, each token judged by transformers fed the same beginning."""
    geometry = checkpoint.config.geometry
    tower = open_tower(vision)
    stop_ids = checkpoint.prompting.stop_ids
    model = LanguageModel(language, context=geometry.max_image_tokens + 512)
    identical = ties = 0
    try:
        for film in films:
            views, layout = crops.cut(film, geometry)
            ours = anyres.pack(tower.encode(views), layout, newline)
            features = image_features(reference, normalise(checkpoint, views)).numpy()
            theirs = anyres.pack(features, layout, newline)
            for number, question in enumerate(QUESTIONS):
                head, tail = _prompt(checkpoint, question, model)
                if number == 0:
                    model.start([head, ours])
                answer = list(model.generate(tail, stop_ids=stop_ids, max_tokens=ANSWER_TOKENS))
                expected = language_logits(reference, head, theirs, tail + answer[:-1])[-len(answer) :]
                different = [i for i, t in enumerate(answer) if t != int(expected[i].argmax())]
                excused = [i for i in different if _same_choice(answer[i], expected[i])]
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
