"""Does a bundle answer as its checkpoint does? Every combination of artefacts, on the same prompts.

The reference is the checkpoint in float32, one layer in memory at a time (`shared_prefix.py`). Only
aggregates leave this file: no film, no text, no identifier.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import ParityError
from radvlm_edge.export import fidelity_metrics as metrics
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.fidelity_detail import measure_levels
from radvlm_edge.export.fidelity_prompts import ANSWER_TOKENS, QUESTIONS, described
from radvlm_edge.export.fidelity_reference import ReferenceAnswers, answer_by_drafts
from radvlm_edge.export.fidelity_score import Score, beyond, judged
from radvlm_edge.export.probe_films import ProbeFilms
from radvlm_edge.export.shared_prefix import OutputHead, Sequences, stream_image_features
from radvlm_edge.reseal import reseal
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.detail import EXACT
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.limits import combination
from radvlm_edge.runtime.overlap import Coming
from radvlm_edge.runtime.vision import open_tower

FORMAT = 1
MOST_PASSES = 12
EXACT_FIRST = ("F16", "Q8_0", "Q6_K", "Q5_K_M")
"""Which language artefact drafts the checkpoint's answers: the nearest to it."""

Floats = npt.NDArray[np.float32]
Say = Callable[[str], None]


def measure(
    bundle: Bundle,
    checkpoint: Checkpoint,
    films: ProbeFilms,
    *,
    threads: int | None = None,
    most_passes: int = MOST_PASSES,
    details: Sequence[int | None] = (),
    progress: Say = lambda line: None,
) -> dict[str, Any]:
    """Figures of every combination of the bundle's artefacts; see docs/fidelity.md for their meaning.

    With `details` (caps in pixels, `None`: exact) also of the default combination at each of them.

    Raises ParityError if the bundle was made from another checkpoint, or with another vocabulary.
    """
    if bundle.manifest.source.get("sha256") != checkpoint.sha256():
        raise ParityError(
            f"{bundle.folder}: was not made from {checkpoint.folder} (its source digest differs); "
            "give the folder it was exported from, and the --lora, if one was merged"
        )
    rows = bundle.manifest.geometry.vocab
    if rows != checkpoint.config.language.vocab:
        raise ParityError(
            f"{bundle.folder}: has {rows} rows of vocabulary, not {checkpoint.config.language.vocab}; "
            "give --trim-vocab exactly if it was exported so"
        )
    cut = [crops.cut(film.pixels, checkpoint.config.geometry) for film in films.films]
    expected = stream_image_features(checkpoint, [views for views, _ in cut], progress)
    newline = checkpoint.tensor("image_newline").float().numpy()
    asked = _Asked(bundle, threads)
    questions = [
        Sequences(asked.head, anyres.pack(feature, layout, newline), asked.tails)
        for feature, (_, layout) in zip(expected, cut, strict=True)
    ]
    used = ~checkpoint.unused
    reference = asked.reference(checkpoint, questions, most_passes, used, progress)
    vision, images = _by_vision(bundle, cut, expected, newline, threads, progress)
    held = list(vision)
    head = OutputHead(checkpoint)
    combinations = {}
    for artefact in bundle.manifest.artefacts:
        if artefact.role != "language":
            continue
        with asked.open(artefact.precision) as model:
            for precision in held:
                name = combination(precision, artefact.precision)
                progress(f"answers of {name}")
                score = asked.score(model, images[precision], reference, head, used)
                combinations[name] = score.figures()
    unsettled = sum(not one for film in reference.settled for one in film)
    detail = {}
    if details:
        scored = partial(asked.score, reference=reference, head=head, used=used)
        pixels = [film.pixels for film in films.films]
        detail["detail"] = _by_detail(asked, pixels, details, newline, scored, progress)
    return {
        "format": FORMAT,
        "asked": described(films.described, reference.passes, unsettled),
        "source_sha256": bundle.manifest.source["sha256"],
        "vision": vision,
        "combinations": combinations,
        **detail,
    }


def write(bundle: Bundle, figures: dict[str, Any], limits: dict[str, float]) -> Bundle:
    """Put figures, limits and verdicts into a bundle, sealed anew.

    A combination that was ever measured beyond its limits is named for ever.
    """
    before = bundle.manifest.fidelity or {"ever_beyond": []}
    verdicts = _verdicts(figures["combinations"], limits)
    ever = sorted({*before["ever_beyond"], *(name for name, found in verdicts.items() if found)})
    fidelity: dict[str, Any] = {"beyond": verdicts, "ever_beyond": ever}
    if "detail" in figures:
        less = {name: one for name, one in figures["detail"]["levels"].items() if name != EXACT}
        fidelity["detail"] = {figures["detail"]["combination"]: _verdicts(less, limits)}
    manifest = replace(bundle.manifest, limits=dict(limits), fidelity=fidelity)
    stored = {**figures, "limits": dict(limits), "beyond": verdicts}
    text = json.dumps(stored, indent=1, sort_keys=True) + "\n"
    return reseal(bundle, manifest, {"fidelity.json": text.encode()})


def _by_vision(
    bundle: Bundle,
    cut: list[tuple[npt.NDArray[np.uint8], crops.Layout]],
    expected: Sequence[Floats],
    newline: Floats,
    threads: int | None,
    progress: Say,
) -> tuple[dict[str, Any], dict[str, list[Floats]]]:
    """Figures and image tokens of every vision artefact."""
    vision, images = {}, {}
    for precision in [a.precision for a in bundle.manifest.artefacts if a.role == "vision"]:
        progress(f"vision {precision}")
        tower = open_tower(bundle.path(bundle.artefact("vision", precision)), threads)
        tokens = [tower.encode(views) for views, _ in cut]
        vision[precision] = _vision_figures(expected, tokens)
        images[precision] = [
            anyres.pack(one, layout, newline) for one, (_, layout) in zip(tokens, cut, strict=True)
        ]
    return vision, images


def _by_detail(
    asked: _Asked,
    films: list[npt.NDArray[np.uint8]],
    caps: Sequence[int | None],
    newline: Floats,
    score: Callable[[LanguageModel, list[Floats]], Score],
    progress: Say,
) -> dict[str, Any]:
    """The default artefacts with less of every film (fidelity_detail.py)."""
    bundle = asked.bundle
    vision, language = (bundle.artefact(role) for role in ("vision", "language"))

    def answer(images: list[Floats]) -> tuple[Score, list[float]]:
        with asked.open(language.precision) as model:
            return score(model, images), model.start_ms

    tower = open_tower(bundle.path(vision), asked.threads)
    found = measure_levels(films, bundle.manifest.geometry, caps, tower, newline, answer, progress)
    return {"combination": combination(vision.precision, language.precision), "levels": found}


def _verdicts(figures: dict[str, Any], limits: dict[str, float]) -> dict[str, list[str]]:
    return {name: beyond(one, limits) for name, one in figures.items() if judged(one)}


def _vision_figures(expected: Sequence[Floats], given: Sequence[Floats]) -> dict[str, Any]:
    values = np.concatenate([metrics.cosines(a, b) for a, b in zip(expected, given, strict=True)])
    return {
        "crops": len(values),
        "cosine_min": float(values.min()),
        "cosine_p1": float(np.quantile(values, 0.01)),
        "cosine_median": float(np.median(values)),
    }


class _Asked:
    """The prompts as the bundle's own tokenizer writes them, and its language artefacts at work."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self.bundle, self.threads = bundle, threads
        self.stop_ids = bundle.manifest.prompting.stop_ids
        held = [a.precision for a in bundle.manifest.artefacts if a.role == "language"]
        self.best = next((name for name in EXACT_FIRST if name in held), held[0])
        with self.open(self.best) as model:
            parts = [prompts.render([prompts.Turn(q.text)], bundle.manifest.prompting) for q in QUESTIONS]
            self.head = model.tokenize(parts[0][0])
            self.tails = [model.tokenize(tail) for _, tail in parts]

    def open(self, precision: str) -> _Open:
        geometry = self.bundle.manifest.geometry
        context = min(geometry.context, geometry.max_image_tokens + 512)
        path = self.bundle.path(self.bundle.artefact("language", precision))
        return _Open(path, context=context, threads=self.threads)

    def reference(
        self,
        checkpoint: Checkpoint,
        questions: list[Sequences],
        most_passes: int,
        used: npt.NDArray[np.bool_],
        progress: Say,
    ) -> ReferenceAnswers:
        """The checkpoint's greedy answers, drafted by the bundle's nearest language artefact."""
        with self.open(self.best) as model:
            on_film = -1

            def draft(film: int, begun: list[tuple[int, list[int]]]) -> list[list[int]]:
                nonlocal on_film
                if on_film != film:
                    model.start([self.head, questions[film].image])
                    on_film = film
                return [self._go_on(model, self.tails[number], answer) for number, answer in begun]

            return answer_by_drafts(
                checkpoint,
                questions,
                draft,
                max_tokens=ANSWER_TOKENS,
                most_passes=most_passes,
                used=used,
                progress=progress,
            )

    def _go_on(self, model: LanguageModel, tail: list[int], begun: list[int]) -> list[int]:
        """An answer begun, taken to its end greedily."""
        if len(begun) >= ANSWER_TOKENS or (begun and begun[-1] in self.stop_ids):
            return begun
        room = ANSWER_TOKENS - len(begun)
        return begun + list(model.generate(tail + begun, stop_ids=self.stop_ids, max_tokens=room))

    def score(
        self,
        model: LanguageModel,
        images: list[Floats],
        reference: ReferenceAnswers,
        head: OutputHead,
        used: npt.NDArray[np.bool_],
    ) -> Score:
        """One language artefact on one vision artefact's image tokens, over every film and question."""
        score = Score()
        for film, image in enumerate(images):
            model.start([self.head, image])
            for number, question in enumerate(QUESTIONS):
                if not reference.settled[film][number]:
                    continue
                expected = reference.tokens[film][number]
                theirs = head.logits(reference.hidden[film][number])
                ours = self._forced(model, self.tails[number], expected)
                score.add_logits(theirs[:, used], ours[:, used])
                given = self._go_on(model, self.tails[number], [])
                score.add_answer(
                    self._text(model, expected), self._text(model, given), yes_no=question.yes_no
                )
        return score

    def _forced(self, model: LanguageModel, tail: list[int], answer: list[int]) -> Floats:
        """Logits `[len(answer), vocab]` before each token of a given answer, decoded one at a time."""
        rows = []
        for count in range(len(answer)):
            model.prefill(tail + answer[:count], reuse=count > 0)
            rows.append(model.logits())
        return np.stack(rows)

    def _text(self, model: LanguageModel, answer: list[int]) -> str:
        pieces = b"".join(model.piece(token) for token in answer if token not in self.stop_ids)
        return pieces.decode("utf-8", "replace").strip()


class _Open(LanguageModel):
    """A language model closed at the end of a `with`; keeps what each prefix took."""

    def __init__(self, path: Path, *, context: int, threads: int | None) -> None:
        super().__init__(path, context=context, threads=threads)
        self.start_ms: list[float] = []

    def start(self, items: Sequence[list[int] | Floats | Coming]) -> int:
        began = time.perf_counter()
        run = super().start(items)
        self.start_ms.append((time.perf_counter() - began) * 1e3)
        return run

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
