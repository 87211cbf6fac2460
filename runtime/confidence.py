"""How sure an answer is: the model's own probability, or one whose meaning was measured.

A bundle may hold a temperature (Guo et al. 2017, "On calibration of modern neural networks") fitted on
yes/no questions with known answers, for one combination of artefacts at one detail. Where it holds, and an
answer begins with Yes or No, its confidence is `sigmoid(|margin| / temperature)`, the margin being the
difference of the two words' logits at that place. Everything else is said to be uncalibrated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from radvlm_edge.bundle import Bundle

UNCALIBRATED = "uncalibrated"
DECISION = ("Yes", "No")
"""What a calibrated answer begins with."""


@dataclass(frozen=True)
class Confidence:
    """How sure, and by what right."""

    value: float
    """0 to 1."""
    calibrated_on: str
    """Name of the questions its meaning was measured on, or `uncalibrated`."""


@dataclass(frozen=True)
class Temperature:
    """What a bundle says of one combination of artefacts."""

    value: float
    calibrated_on: str
    detail: str
    """The detail it was measured at; it holds for no other."""

    def soften(self, margin: float) -> float:
        """Probability of the answer that is ahead by `margin` (0 or more) in logits."""
        return 1 / (1 + math.exp(-min(margin / self.value, 700.0)))


def temperature_of(bundle: Bundle, combination: str) -> Temperature | None:
    """The temperature a bundle holds for a combination of artefacts, if it was ever measured."""
    found = (bundle.manifest.confidence or {}).get(combination)
    if found is None:
        return None
    return Temperature(float(found["temperature"]), str(found["calibrated_on"]), str(found["detail"]))


def decision_tokens(tokenize: Callable[[str], list[int]]) -> tuple[int, ...]:
    """Token ids of Yes and No; none where a tokenizer spells either with several."""
    spelled = [tokenize(word) for word in DECISION]
    return tuple(ids[0] for ids in spelled) if all(len(ids) == 1 for ids in spelled) else ()


def of_choice(
    probabilities: Mapping[str, float], temperature: Temperature | None
) -> tuple[Confidence, dict[str, float] | None]:
    """Confidence of the likeliest choice, and calibrated probabilities of all if there are any."""
    best = max(probabilities, key=lambda text: probabilities[text])
    if temperature is None or sorted(probabilities) != sorted(DECISION):
        return Confidence(probabilities[best], UNCALIBRATED), None
    yes, no = (max(probabilities[word], 1e-300) for word in DECISION)
    value = temperature.soften(abs(math.log(yes) - math.log(no)))
    calibrated = {text: value if text == best else 1 - value for text in probabilities}
    return Confidence(value, temperature.calibrated_on), calibrated


def of_answer(logprobs: Sequence[float], margin: float | None, temperature: Temperature | None) -> Confidence:
    """Confidence of a written answer.

    `margin`: how far Yes and No were apart in logits where it began with one of them. Without it or a
    temperature, the geometric mean of its tokens' probabilities, uncalibrated.
    """
    if margin is None or temperature is None:
        mean = math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0  # nothing was written
        return Confidence(mean, UNCALIBRATED)
    return Confidence(temperature.soften(abs(margin)), temperature.calibrated_on)
