"""Do two `radvlm-edge infer --json` say the same? Prints a line; exits 1 where an answer differs.

    python tools/same_answers.py HERE.json THERE.json [NAME]

Texts, boxes, labels, lengths, crops and image tokens must be equal; how far confidences are apart is told.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SAID = ("question", "text", "boxes", "labels", "tokens", "stop", "prefill_tokens")
SEEN = ("height", "width", "crops", "image_tokens")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What two records of one film do not have in common."""
    found = [key for key in SEEN if ours["image"][key] != theirs["image"][key]]
    if len(ours["answers"]) != len(theirs["answers"]):
        return [*found, "number of answers"]
    for index, (one, other) in enumerate(zip(ours["answers"], theirs["answers"], strict=True)):
        found += [f"answer {index + 1}: {key}" for key in SAID if one[key] != other[key]]
    return found


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest difference of a confidence."""
    pairs = zip(ours["answers"], theirs["answers"], strict=False)
    return max(abs(one["confidence"]["value"] - other["confidence"]["value"]) for one, other in pairs)


def main() -> None:
    ours, theirs = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    name = "".join(f"{one}: " for one in sys.argv[3:])
    found = differences(ours, theirs)
    boxes = sum(len(answer["boxes"]) for answer in ours["answers"])
    said = (
        f"{len(ours['answers'])} answers, {boxes} boxes; confidences at most {apart(ours, theirs):.2g} apart"
    )
    sys.stdout.write(f"{name}{'different: ' + ', '.join(found) if found else 'identical'}; {said}\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
