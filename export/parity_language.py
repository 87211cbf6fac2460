"""Token ids, logits, K and V, and whole answers against transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer  # type: ignore[import-untyped]

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.parity_findings import LARGE, Findings, artefact_bytes
from radvlm_edge.export.parity_prefill import compare_prefill
from radvlm_edge.export.probe_films import phantoms
from radvlm_edge.export.progress import Progress
from radvlm_edge.export.streaming_reference import (
    Part,
    image_features,
    language_logits,
    normalise,
)
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.vision import open_tower

LOGIT_TOLERANCE = 0.01
"""Largest difference of a logit for F16, as a fraction of the reference logits' standard deviation."""
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


def compare_tokenizer(checkpoint: Checkpoint, path: Path, found: Findings) -> None:
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


def compare_logits(
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
        model = LanguageModel(path, context=len(image) + 512, repack=artefact_bytes(path) < LARGE)
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


def compare_language_prefill(
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


def compare_answers(
    checkpoint: Checkpoint,
    vision: Path,
    language: Path,
    newline: npt.NDArray[np.float32],
    films: list[npt.NDArray[np.uint8]],
    found: Findings,
) -> None:
    """Greedy answers of the exported path, each token judged by transformers fed the same beginning."""
    geometry = checkpoint.config.geometry
    tower = open_tower(vision, mapped=artefact_bytes(vision) >= LARGE)
    model = LanguageModel(
        language, context=geometry.max_image_tokens + 512, repack=artefact_bytes(language) < LARGE
    )
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
