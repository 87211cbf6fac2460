"""What `doctor` measures: every variant in turns, and no engine chosen that computes something else."""

from __future__ import annotations

import importlib.util
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from radvlm_edge.benchmarks import vision_backends, vision_memory
from radvlm_edge.benchmarks.vision_backends import LEAST_TURNS, Variant, _fastest, measure
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import vision
from radvlm_edge.runtime.vision import Plan

openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed (extra `openvino`)"
)


class Tower:
    """Counts what it is asked; time is what the test says it is."""

    clock = 0.0

    def __init__(self, plan: Plan, engine: str, costs: dict[str, float], wrong: float) -> None:
        self.backend, self.plan, self.engine = engine, plan, engine
        self.costs, self.wrong = costs, wrong
        self.runs: list[int] = []

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.runs.append(len(crops))
        fixed = self.costs.get(f"{self.engine} run", 0.0)
        seconds = fixed + len(crops) * self.costs[f"{self.engine} {self.plan.threads}"]
        Tower.clock += seconds
        return np.full((len(crops), 2, 3), 1 + self.wrong, np.float32)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two engines on four CPUs; each test sets seconds a crop by engine and threads."""
    given: dict[str, Any] = {"costs": {}, "wrong": 0.0, "missing": None, "loaded": [], "most": 0}

    def open_fake(path: Path, threads: int, *, backend: str, crops_per_batch: int, sha256: str) -> Tower:
        if given["missing"] == backend:
            raise BackendError(f"{path}: it cannot load this graph")
        plan = Plan(threads, crops_per_batch, sha256=sha256)
        given["loaded"] = [one for one in given["loaded"] if one() is not None]
        tower = Tower(plan, backend, given["costs"], given["wrong"] if backend == "openvino" else 0.0)
        given["loaded"].append(weakref.ref(tower))
        given["most"] = max(given["most"], len(given["loaded"]))
        return tower

    monkeypatch.setattr(vision_backends, "open_tower", open_fake)
    monkeypatch.setattr(vision_backends, "available_cpus", lambda: 4)
    monkeypatch.setattr(vision_backends.time, "perf_counter", lambda: Tower.clock)
    return given


BOTH = ("onnx", "openvino")


def costs(**seconds: float) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in seconds.items()}


def test_the_fastest_setting_of_each_engine_wins(tiny_bundle: Path, fakes: dict[str, Any]) -> None:
    fakes["costs"] = costs(onnx_4=0.02, onnx_2=0.02, openvino_4=0.01, openvino_2=0.03, openvino_run=0.004)
    measured, report = measure(Bundle.open(tiny_bundle), engines=BOTH)
    assert measured.chosen == "openvino" and set(measured.best) == set(BOTH)
    onnx, other = measured.best["onnx"], measured.best["openvino"]
    assert (onnx.threads, onnx.crops_per_batch) == (2, 1), "as fast with less"
    assert (other.threads, other.crops_per_batch) == (4, 8), "its runs cost something besides the crops"
    assert other.ms_per_crop == pytest.approx(10.5) and onnx.ms_per_crop == pytest.approx(20)
    assert all(row["turns"] >= LEAST_TURNS for row in report["rows"])
    assert [row["stage"] for row in report["rows"]] == (
        ["crops per batch"] * 8 + ["threads"] * 4 + ["engines"] * 2
    )
    json.dumps(report)
    assert fakes["most"] == 2, "towers in memory at a time"


def test_one_engine_alone_finds_its_threads(tiny_bundle: Path, fakes: dict[str, Any]) -> None:
    fakes["costs"] = costs(onnx_4=0.02, onnx_2=0.01)
    measured, report = measure(Bundle.open(tiny_bundle), engines=["onnx"])
    assert measured.best["onnx"].threads == 2 and measured.best["onnx"].ms_per_crop == pytest.approx(10)
    assert {row["stage"] for row in report["rows"]} == {"crops per batch", "threads"}


def test_threads_that_are_given_are_the_only_ones(tiny_bundle: Path, fakes: dict[str, Any]) -> None:
    fakes["costs"] = costs(onnx_3=0.02, openvino_3=0.03)
    measured, report = measure(Bundle.open(tiny_bundle), engines=BOTH, threads=3)
    assert {row["threads"] for row in report["rows"]} == {3}
    assert measured.chosen == "onnx"


def test_a_little_faster_is_no_reason_to_leave_the_compared_engine(
    tiny_bundle: Path, fakes: dict[str, Any]
) -> None:
    fakes["costs"] = costs(onnx_1=0.02, openvino_1=0.019)
    assert measure(Bundle.open(tiny_bundle), engines=BOTH, threads=1)[0].chosen == "onnx"
    fakes["costs"] = costs(onnx_1=0.02, openvino_1=0.018)
    assert measure(Bundle.open(tiny_bundle), engines=BOTH, threads=1)[0].chosen == "openvino"


def test_a_slow_tower_is_not_asked_for_long_batches(tiny_bundle: Path, fakes: dict[str, Any]) -> None:
    fakes["costs"] = costs(onnx_1=0.4)
    measured, report = measure(Bundle.open(tiny_bundle), engines=["onnx"], threads=1)
    assert {row["crops_per_batch"] for row in report["rows"]} == {1, 2}
    assert measured.chosen == "onnx"


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_an_engine_that_computes_something_else_is_never_chosen(
    tiny_bundle: Path, fakes: dict[str, Any], wrong: float
) -> None:
    fakes["costs"], fakes["wrong"] = costs(onnx_1=0.02, openvino_1=0.001), wrong
    measured, _ = measure(Bundle.open(tiny_bundle), engines=BOTH, threads=1)
    assert measured.chosen == "onnx" and list(measured.best) == ["onnx"]
    assert "not to be used" in measured.notes["openvino"]


def test_an_engine_that_cannot_load_is_named_and_the_others_measured(
    tiny_bundle: Path, fakes: dict[str, Any]
) -> None:
    fakes["costs"], fakes["missing"] = costs(onnx_1=0.02), "openvino"
    measured, _ = measure(Bundle.open(tiny_bundle), engines=BOTH, threads=1)
    assert "cannot load" in measured.notes["openvino"] and measured.chosen == "onnx"


def test_ties_go_to_what_takes_less() -> None:
    times = {
        Variant("onnx", 2, 1): [10.2, 10.3, 90.0],
        Variant("onnx", 1, 4): [10.1, 10.2, 10.3],
        Variant("onnx", 2, 8): [10.0, 10.0, 10.0],
        Variant("openvino", 1, 1): [1.0, 1.0, 1.0],
    }
    assert _fastest(times, "onnx") == Variant("onnx", 1, 4)


@openvino
def test_real_engines_on_a_real_artefact(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    measured, report = measure(bundle, threads=1, seconds=0.01)
    installed = {
        name for name, engine in vision.ENGINES.items() if engine.installed and engine.device == "cpu"
    }
    assert {"onnx", "openvino"} <= installed and set(measured.best) | set(measured.notes) == installed
    assert 0 < report["difference"]["openvino"] < 1e-2
    assert all(0 < row["min_ms"] <= row["median_ms"] and row["cpu_ms"] > 0 for row in report["rows"])


def test_memory_is_measured_in_a_process_of_its_own(tiny_bundle: Path) -> None:
    result = vision_memory.measure(Bundle.open(tiny_bundle), "fp32", crops=2, batch=1, repeats=1, runs=2)
    assert {"onnx, arena", "onnx, no arena"} <= set(result["variants"])
    for row in result["variants"].values():
        assert 0 < row["loaded_bytes"] <= row["peak_bytes"] and row["cpu_ms_per_crop"] > 0
