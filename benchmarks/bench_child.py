"""One process that looks at a film and answers, with a study cache: run twice, it is the second process.

    python -m radvlm_edge.benchmarks.bench_child FILM QUESTION BUNDLE STUDIES OPTIONS_JSON

writes one JSON object to stdout: parts in milliseconds, counts, peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.bench_cases import Run
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.reader import Options, Reader

FIRST, SECOND = "first process", "second process"
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """VmHWM: most memory this process had resident at once, mapped weights included."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def answer(film: str, question: str, bundle: str, options: Options) -> dict[str, Any]:
    """What one process spends, start and end of the interpreter left out."""
    with Reader.open(bundle, options, ahead=film) as reader:
        study = reader.look(film)
        given = study.ask(question).finish()
        looked, timing = study.looked, given.timing
        return {
            "parts_ms": {
                "load": reader.load_ms,
                "DICOM": looked.decode_film_ms,
                "crops": looked.crops_ms,
                "vision": looked.vision_ms,
                "cache": looked.cache_ms,
                "prefill": timing.prefill_ms,
                "decode": timing.first_token_ms - timing.prefill_ms + timing.decode_ms,
            },
            "counts": {
                "hit": int(study.cache == "hit"),
                "prefilled": given.prefill_tokens,
                "steps": len(given._logprobs),
                "tokens": given.tokens,
                "peak_bytes": peak_bytes(),
            },
            "answer": given.text,
        }


def run_process(film: Path, question: str, bundle: Path, options: Options, studies: Path) -> Run:
    """Start a process for one answer; `start` is what the interpreter and its imports took.

    Raises BackendError with the last line of its complaint if it fails.
    """
    chosen = {
        name: value
        for name, value in vars(options).items()
        if value is not None and not name.startswith("study_")
    }
    command = [sys.executable, "-m", "radvlm_edge.benchmarks.bench_child", film, question, bundle, studies]
    began = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), json.dumps(chosen)], capture_output=True, text=True, check=False
    )
    wall_ms = (time.perf_counter() - began) * 1e3
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the timed process ended with code {done.returncode}: {last}")
    found = json.loads(done.stdout)
    inside = sum(found["parts_ms"].values())
    return Run({"start": wall_ms - inside, **found["parts_ms"]}, found["counts"], found["answer"])


def main() -> None:
    film, question, bundle, studies, chosen = sys.argv[1:]
    options = replace(Options(**json.loads(chosen)), study_cache=Path(studies))
    json.dump(answer(film, question, bundle, options), sys.stdout)


if __name__ == "__main__":
    main()
