"""Labelled questions → a temperature for a bundle's yes/no confidence, sealed into it with its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from radvlm_edge.bundle import Bundle
from radvlm_edge.calibration.labelled import Labelled
from radvlm_edge.calibration.temperature import LIMIT, compare, fit_temperature
from radvlm_edge.errors import RecipeError
from radvlm_edge.reseal import reseal
from radvlm_edge.runtime.confidence import DECISION
from radvlm_edge.runtime.limits import combination
from radvlm_edge.runtime.reader import Reader

FILE = "confidence.json"
FORMAT = 1
FEWEST_GROUPS = 4
"""Films (or patients): two to fit on and two to measure on."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What a bundle made of one question."""

    group: str
    margin: float
    """Log probability of Yes minus that of No, as the first words of an answer."""
    truth: bool
    """Whether Yes is right."""
    mass: float
    """Probability of both together."""


def ask(reader: Reader, films: Iterable[Labelled], progress: Say = lambda line: None) -> list[Asked]:
    """Put every question to a bundle: one step of decoding each. Raises FilmError, QuestionError."""
    asked = []
    for index, film in enumerate(films):
        study = reader.look(film.film)
        for question, truth in film.questions:
            choice = study.choose(question, DECISION)
            yes, no = (max(choice.probabilities[word], 1e-300) for word in DECISION)
            asked.append(Asked(film.group, math.log(yes) - math.log(no), truth, choice.mass))
        if (index + 1) % 50 == 0:
            progress(f"{index + 1} films asked")
    return asked


def calibrate(asked: list[Asked], name: str) -> dict[str, Any]:
    """Fit a temperature on half of the groups and measure it on the others; figures for confidence.json.

    `name`: what the questions are called wherever the confidence is shown. Raises RecipeError for too
    few groups, or if a half knows only one answer.
    """
    groups = sorted({one.group for one in asked})
    if len(groups) < FEWEST_GROUPS:
        raise RecipeError(
            f"{name}: {len(groups)} films (or patients); at least {FEWEST_GROUPS} are needed, half to "
            "measure on"
        )
    order = np.random.default_rng(0).permutation(len(groups))
    number = {groups[index]: place for place, index in enumerate(order)}
    half = len(groups) // 2
    fitted = [one for one in asked if number[one.group] < half]
    held = [one for one in asked if number[one.group] >= half]
    for which, part in (("fitted on", fitted), ("measured on", held)):
        if len({one.truth for one in part}) < 2:
            raise RecipeError(f"{name}: the half it is {which} has one and the same right answer; add films")
    margins, truths, places = _arrays(held, number)
    temperature = fit_temperature(*_arrays(fitted, number)[:2])
    return {
        "calibrated_on": name,
        "temperature": temperature,
        "at_limit": not 1.01 / LIMIT < temperature < LIMIT / 1.01,
        "fitted": {"groups": half, "questions": len(fitted)},
        "held_out": {
            "groups": len(groups) - half,
            "questions": len(held),
            "accuracy": float(((margins >= 0) == truths).mean()),
            "mean_mass": float(np.mean([one.mass for one in held])),
            **compare(margins, truths, places - half, temperature),
        },
    }


def _arrays(asked: list[Asked], number: dict[str, int]) -> tuple[Any, Any, Any]:
    return (
        np.array([one.margin for one in asked]),
        np.array([one.truth for one in asked]),
        np.array([number[one.group] for one in asked], np.int64),
    )


def write(bundle: Bundle, used: str, detail: str, figures: dict[str, Any]) -> Bundle:
    """Put a combination's temperature and figures into a bundle, sealed anew.

    `used`: `VISION+LANGUAGE`. Other combinations' calibrations stay. Raises BundleError, OutputError.
    """
    path = bundle.folder / FILE
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    combinations = {**held.get("combinations", {}), used: {**figures, "detail": detail}}
    brief = {key: figures[key] for key in ("temperature", "calibrated_on")}
    confidence = {**(bundle.manifest.confidence or {}), used: {**brief, "detail": detail}}
    text = json.dumps({"format": FORMAT, "combinations": combinations}, indent=1, sort_keys=True) + "\n"
    return reseal(bundle, replace(bundle.manifest, confidence=confidence), {FILE: text.encode()})


def calibrate_bundle(
    reader: Reader, films: Iterable[Labelled], name: str, progress: Say = lambda line: None
) -> tuple[Bundle, dict[str, Any]]:
    """Ask, fit, measure and seal; returns the bundle as it is now and the figures."""
    used = combination(reader.vision_artefact.precision, reader.language_artefact.precision)
    figures = calibrate(ask(reader, films, progress), name)
    return write(reader.bundle, used, "exact", figures), figures


def line(figures: dict[str, Any]) -> str:
    """The figures in one line."""
    held = figures["held_out"]
    before, after = held["before"], held["after"]
    return (
        f"temperature {figures['temperature']:.3f} fitted on {figures['fitted']['questions']} questions; on "
        f"{held['questions']} others ECE {before['ece']:.3f} ({_between(before)}) became "
        f"{after['ece']:.3f} ({_between(after)}), accuracy {held['accuracy']:.3f}"
        + ("; the temperature is at its limit: these answers say little" if figures["at_limit"] else "")
    )


def _between(one: dict[str, Any]) -> str:
    low, high = one["interval_95"]
    return f"{low:.3f} to {high:.3f}"
