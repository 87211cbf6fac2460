"""One film, one bundle, one machine: every case of every variant, interleaved."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from radvlm_edge.benchmarks import bench_cases as cases
from radvlm_edge.benchmarks import bench_child as processes
from radvlm_edge.benchmarks.bench_cases import BundleRunner, Run
from radvlm_edge.benchmarks.bench_ceilings import Ceilings, measure_ceilings
from radvlm_edge.benchmarks.bench_roofline import fractions, on_cpu, phases
from radvlm_edge.benchmarks.energy import Meter, Spent, open_meters
from radvlm_edge.benchmarks.latency import machine, summary
from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.roofline import network_of
from radvlm_edge.runtime.vision import available_cpus

FORMAT = 1
Say = Callable[[str], None]


class Runner(Protocol):
    """Something that does the cases."""

    name: str

    def describe(self) -> dict[str, Any]: ...

    def run(self, case: str) -> Run | None: ...


@dataclass(frozen=True)
class Plan:
    """What is timed."""

    bundle: Path
    film: bytes
    film_name: str
    options: Options
    visions: tuple[str | None, ...] = (None,)
    languages: tuple[str | None, ...] = (None,)
    details: tuple[str | None, ...] = (None,)
    against: Path | None = None
    """Checkpoint folder."""
    repeats: int = 5
    warm_up: int = 1
    report_tokens: int = cases.REPORT_TOKENS

    def variants(self) -> dict[str, Options]:
        """Name of each combination of the choices, and the options it is opened with."""
        bundle = Bundle.open(self.bundle)
        found = {}
        for vision, language, detail in product(self.visions, self.languages, self.details):
            chosen = (
                bundle.artefact(role, one).precision
                for role, one in (("vision", vision), ("language", language))
            )
            name = " ".join([*chosen, *([] if detail is None else [f"detail {detail}"])])
            found[name] = replace(self.options, vision=vision, language=language, detail=detail)
        return found


def measure(plan: Plan, say: Say = lambda line: None) -> dict[str, Any]:
    """Do everything; figures as JSON (docs/benchmarks.md). Raises what opening and looking raise."""
    header, bundle = machine(), Bundle.open(plan.bundle)
    variants = plan.variants()
    meters, missing = open_meters()
    try:
        say("what the machine can do at best")
        ceilings = measure_ceilings(plan.options.threads)
        described, runs = _in_process(plan, variants, meters, say)
    finally:
        for meter in meters:
            meter.close()
    for name, rows in _in_processes(plan, variants, say).items():
        runs[name] |= rows
    figures = {name: {**described[name], "cases": _cases(rows)} for name, rows in runs.items()}
    for name in variants:
        figures[name]["roofline"] = _roofline(bundle, figures[name], runs[name], ceilings)
        figures[name]["joules_per_study"] = _joules(runs[name])
    _same_answers(runs, figures)
    return {
        "format": FORMAT,
        "machine": header,
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "film": plan.film_name,
        "repeats": plan.repeats,
        "warm_up": plan.warm_up,
        "ceilings": ceilings.as_json(),
        "energy": {"meters": [meter.name for meter in meters], "missing": missing},
        "variants": figures,
    }


def _in_process(
    plan: Plan, variants: dict[str, Options], meters: list[Meter], say: Say
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[Run]]]]:
    """All variants open at once, taking turns at every case."""
    with contextlib.ExitStack() as opened:
        runners: list[Runner] = []
        for name, options in variants.items():
            reader = opened.enter_context(Reader.open(plan.bundle, options))
            runners.append(BundleRunner(name, reader, plan.film, plan.report_tokens))
        if plan.against is not None:
            from radvlm_edge.benchmarks.bench_checkpoint import CheckpointRunner

            say("loading the checkpoint")
            threads = plan.options.threads or available_cpus()
            limits = plan.options.max_tokens, plan.report_tokens
            runners.append(CheckpointRunner(plan.against, plan.film, threads, *limits))
        runs: dict[str, dict[str, list[Run]]] = {runner.name: {} for runner in runners}
        for repeat in range(plan.warm_up + plan.repeats):
            say(f"repeat {repeat + 1} of {plan.warm_up + plan.repeats}")
            turn = repeat % len(runners)
            for case in cases.CASES:
                for runner in [*runners[turn:], *runners[:turn]]:
                    found = _once(runner, case, meters)
                    if found is not None and repeat >= plan.warm_up:
                        runs[runner.name].setdefault(case, []).append(found)
        return {runner.name: runner.describe() for runner in runners}, runs


def _once(runner: Runner, case: str, meters: list[Meter]) -> Run | None:
    if case != cases.COLD:
        return runner.run(case)
    with Spent(meters) as spent:
        found = runner.run(case)
    if found is not None:
        found.joules = spent.joules
    return found


def _in_processes(plan: Plan, variants: dict[str, Options], say: Say) -> dict[str, dict[str, list[Run]]]:
    """A process that keeps the study, and a second that finds it; a new cache every repeat.

    No warm-up: the rounds before have read every file.
    """
    runs: dict[str, dict[str, list[Run]]] = {name: {} for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film"
        film.write_bytes(plan.film)
        for repeat in range(plan.repeats):
            say(f"processes, {repeat + 1} of {plan.repeats}")
            for name, options in variants.items():
                studies = Path(folder) / f"studies {repeat} {name}"
                for case in (processes.FIRST, processes.SECOND):
                    found = processes.run_process(film, cases.FIRST_QUESTION, plan.bundle, options, studies)
                    kept = sum(path.stat().st_size for path in studies.iterdir())
                    found.counts["study_bytes"] = kept
                    runs[name].setdefault(case, []).append(found)
                for path in studies.iterdir():
                    path.unlink()
    return runs


def _cases(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Times of each part and in all; counts, which must not differ between repeats, from the last."""
    return {
        case: {
            "ms": {part: summary([run.parts_ms[part] for run in rows]) for part in rows[0].parts_ms}
            | {"total": summary([sum(run.parts_ms.values()) for run in rows])},
            "counts": rows[-1].counts,
        }
        for case, rows in runs.items()
    }


def _roofline(
    bundle: Bundle, figures: dict[str, Any], runs: dict[str, list[Run]], ceilings: Ceilings
) -> dict[str, dict[str, Any]]:
    """Fractions by the median of each phase."""
    artefacts = (bundle.artefact(role, figures[role]) for role in ("vision", "language"))
    network, geometry = network_of(bundle), bundle.manifest.geometry
    work = phases(runs[cases.COLD][-1], runs[cases.REPORT][-1], geometry, network, *artefacts)
    cold, report = (figures["cases"][case]["ms"] for case in (cases.COLD, cases.REPORT))
    seconds = {
        "vision": cold["vision"]["median"] / 1e3,
        "prefill": cold["prefill"]["median"] / 1e3,
        "decode": report["decode"]["median"] / 1e3,
    }
    return fractions(work, seconds, ceilings, on_cpu=on_cpu(figures["engines"]["vision"]))


def _joules(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]] | None:
    """Energy of a study (cold look and first answer) by meter, the machine's idling included."""
    rows = [run.joules for run in runs[cases.COLD]]
    return {name: summary([row[name] for row in rows]) for name in rows[0]} or None


def _same_answers(runs: dict[str, dict[str, list[Run]]], figures: dict[str, dict[str, Any]]) -> None:
    """Whether each variant gave the first one's first answer; the text itself is not kept."""
    first: Sequence[dict[str, list[Run]]] = list(runs.values())
    expected = first[0][cases.COLD][-1].answer
    for name, rows in runs.items():
        figures[name]["answers_as_first_variant"] = rows[cases.COLD][-1].answer == expected


def default_bundle() -> Path:
    """The demonstration bundle."""
    return demo_bundle()
