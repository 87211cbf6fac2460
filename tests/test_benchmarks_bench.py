"""What `bench` counts is what was done; its meters, ceilings, traces and pictures say what they are given."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from radvlm_edge.benchmarks import bench, bench_cases, bench_ceilings, energy
from radvlm_edge.benchmarks.bench_cases import CHECKLIST, COLD, REPORT, SECOND, BundleRunner, Run
from radvlm_edge.benchmarks.bench_ceilings import Ceilings, measure_ceilings
from radvlm_edge.benchmarks.bench_film import drawn_film
from radvlm_edge.benchmarks.bench_roofline import fractions, kv_bytes_read, phases
from radvlm_edge.benchmarks.bench_trace import record, record_start, write_trace
from radvlm_edge.benchmarks.gemm_graph import matmul_graph
from radvlm_edge.benchmarks.plot import ticks
from radvlm_edge.bundle import Artefact, demo_bundle
from radvlm_edge.cli import cli
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime import reader as stage
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.roofline import PUBLISHED
from radvlm_edge.runtime.vision_onnx import open_session

ROOT = Path(__file__).parents[1]
FULL = GEOMETRIES["radvlm-7b"]
SMALL = drawn_film(400, 330)


def test_the_drawn_film_is_a_detectors_and_always_the_same() -> None:
    film = load_film(drawn_film())
    assert film.pixels.shape == (3056, 2544) and film.warnings == () and film.view == "PA"
    assert drawn_film(400, 330) == SMALL
    assert int(film.pixels.max()) - int(film.pixels.min()) > 150
    assert crops.plan(*film.pixels.shape, FULL).image_tokens == 7241


@pytest.fixture(scope="module")
def small_ceilings() -> Ceilings:
    return measure_ceilings(1, read_bytes=1 << 20, side=64)


@pytest.fixture(scope="module")
def result(small_ceilings: Ceilings) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Two variants, twice, and the order in which their cases were done."""
    done: list[tuple[str, str]] = []
    whole = BundleRunner.run

    def noted(self: BundleRunner, case: str) -> Run:
        done.append((self.name, case))
        return whole(self, case)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundleRunner, "run", noted)
        patch.setattr(bench, "measure_ceilings", lambda threads: small_ceilings)
        plan = bench.Plan(
            demo_bundle(),
            SMALL,
            "small",
            Options(threads=1, max_tokens=24),
            languages=("Q8_0", "F16"),
            repeats=1,
            warm_up=1,
            report_tokens=40,
        )
        return bench.measure(plan), done


def test_variants_take_turns_at_every_case(result: tuple[dict[str, Any], list[tuple[str, str]]]) -> None:
    names = list(result[0]["variants"])
    assert names == ["fp16 Q8_0", "fp16 F16"]
    expected = [
        (name, case) for order in (names, names[::-1]) for case in bench_cases.CASES for name in order
    ]
    assert result[1] == expected


def test_counts_are_what_was_done(result: tuple[dict[str, Any], list[tuple[str, str]]]) -> None:
    with Reader.open(options=Options(threads=1, max_tokens=24)) as reader:
        study = reader.look(SMALL)
        asked = study.ask(bench_cases.FIRST_QUESTION)
        own = asked.prefill_tokens
        list_alone = [study.ask(text).finish() for text in prompts.task_questions("checklist")]
        rows = result[0]["variants"]["fp16 Q8_0"]["cases"]
        assert rows[COLD]["counts"] == {
            "prefilled": own,
            "steps": len(asked._logprobs),
            "tokens": asked.tokens,
            "crops": study.layout.crops,
            "image_tokens": study.layout.image_tokens,
        }
        assert rows[SECOND]["counts"]["prefilled"] == study.ask(bench_cases.SECOND_QUESTION).prefill_tokens
        together = rows[CHECKLIST]["counts"]
        assert together["steps"] == max(len(answer._logprobs) for answer in list_alone)
        assert together["prefilled"] < sum(answer.prefill_tokens for answer in list_alone)
    assert (rows[REPORT]["counts"]["steps"], rows[REPORT]["counts"]["tokens"]) == (40, 40)
    first, second = (rows[name]["counts"] for name in ("first process", "second process"))
    assert (first["hit"], first["prefilled"]) == (0, own)
    assert second["hit"] == 1 and second["prefilled"] == own - study.prefix_tokens
    state = study.prefix_tokens * reader.bundle.manifest.geometry.kv_bytes_per_token
    assert first["study_bytes"] == second["study_bytes"] > state
    assert first["peak_bytes"] > 20e6
    assert set(rows[COLD]["ms"]) == {"DICOM", "crops", "vision", "prefill", "decode", "detokenise", "total"}
    assert {"start", "load", "cache"} < set(rows["second process"]["ms"])
    assert rows["second process"]["ms"]["vision"] == {"min": 0.0, "median": 0.0, "p95": 0.0}


def test_bytes_and_absent_energy_are_said(result: tuple[dict[str, Any], list[tuple[str, str]]]) -> None:
    figures = result[0]["variants"]["fp16 F16"]
    held = {a.precision: a.bytes for a in bench.Bundle.open(demo_bundle()).manifest.artefacts}
    assert figures["bytes"]["vision"] == held["fp16"] and figures["bytes"]["language"] == held["F16"]
    measured = result[0]["energy"]
    assert len(measured["meters"]) + len(measured["missing"]) == 3
    assert (figures["joules_per_study"] is None) == (not measured["meters"])
    assert set(figures["roofline"]) == {"vision", "prefill", "decode"}
    assert all(row["fraction"] > 0 for row in figures["roofline"].values())
    assert json.loads(json.dumps(result[0])) == result[0]


@pytest.mark.torch
def test_the_checkpoint_is_timed_on_the_same_prompt() -> None:
    from radvlm_edge.benchmarks.bench_checkpoint import CheckpointRunner

    theirs = CheckpointRunner(ROOT / "training" / "nano", SMALL, 1, 24, 15)
    with Reader.open(options=Options(language="F16", threads=1, max_tokens=24)) as reader:
        ours = BundleRunner("ours", reader, SMALL, 15)
        cold, cold_here = theirs.run(COLD), ours.run(COLD)
        assert cold is not None and cold.answer == cold_here.answer and "effusion" in cold.answer
        assert cold.counts == cold_here.counts, "crops, tokens prefilled, steps and tokens"
        report, report_here = theirs.run(REPORT), ours.run(REPORT)
        assert report is not None and report.counts["steps"] == report_here.counts["steps"] == 15
        assert report.answer.split()[:4] == report_here.answer.split()[:4]
        assert report.counts["prefilled"] > report_here.counts["prefilled"], "it starts from the pixels"
    assert theirs.run(CHECKLIST) is None


@pytest.mark.parametrize("kind", [np.float32, np.int8])
def test_a_written_graph_multiplies(kind: Any) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (24, 40)).astype(kind)
    graph = matmul_graph(3, weights)
    left = rng.integers(0, 255, (3, 24)).astype(np.uint8 if kind is np.int8 else np.float32)
    (out,) = open_session(graph, 1).run(["out"], {"a": left})
    expected = left.astype(np.int64) @ weights.astype(np.int64)
    assert np.array_equal(out, expected) and out.dtype == (np.int32 if kind is np.int8 else np.float32)
    onnx = pytest.importorskip("onnx", reason="needs the torch world (extra `export`)")
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


def test_ceilings_divide_work_by_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0, *([3, 1] * 100)]))
    monkeypatch.setattr(
        bench_ceilings, "time", type("Clock", (), {"perf_counter": lambda: float(next(clock))})
    )
    found = measure_ceilings(1, read_bytes=1 << 20, side=32)
    assert found.read_bytes_per_s == (1 << 20) / 3 and found.copy_bytes_per_s == (1 << 21) / 3
    assert found.fp32_operations_per_s == found.int8_operations_per_s == 2 * 512 * 32 * 32 / 3


def test_work_is_counted_as_the_design_counts_it() -> None:
    cold = Run({}, {"crops": 31, "image_tokens": 7241, "prefilled": 7271})
    report = Run({}, {"prefilled": 30, "steps": 3})
    vision, language = (
        Artefact("vision", "fp16", "onnx", "", "", 0),
        Artefact("language", "Q4_K_M", "gguf", "", "", 4_680_000_000),
    )
    work = phases(cold, report, FULL, PUBLISHED["radvlm-7b"], vision, language)
    assert work["vision"]["operations"] == pytest.approx(31 * 0.67e12, rel=0.05)
    assert work["prefill"]["operations"] == pytest.approx(105e12, rel=0.05)
    assert work["decode"]["steps"] == 2
    assert work["decode"]["kv_bytes"] == kv_bytes_read(7271, 2, FULL) == 57344 * (7271 + 7272)
    assert work["decode"]["bytes"] - work["decode"]["kv_bytes"] == pytest.approx(2 * 4.35e9, rel=0.01)
    ceilings = Ceilings(1e9, 2e9, 3e9, 6e9, 1)
    seconds = {"vision": 10.0, "prefill": 10.0, "decode": 10.0}
    found = fractions(work, seconds, ceilings, on_cpu={"vision": False, "language": True})
    assert found["vision"]["fraction"] is None
    assert found["prefill"]["fraction"] == pytest.approx(work["prefill"]["operations"] / 10 / 6e9)
    assert found["decode"]["ceiling_per_s"] == 2e9


def rapl(root: Path, readings: dict[str, int]) -> Path:
    for zone, value in readings.items():
        (root / zone).mkdir(parents=True, exist_ok=True)
        name = "package-0" if zone.count(":") == 1 else "core"
        for file, content in (("name", name), ("energy_uj", value), ("max_energy_range_uj", 1_000_000)):
            (root / zone / file).write_text(f"{content}\n")
    return root


def test_rapl_counts_packages_across_their_wrap(tmp_path: Path) -> None:
    meter = energy.Rapl(rapl(tmp_path, {"intel-rapl:0": 900_000, "intel-rapl:0:0": 5, "intel-rapl:1": 10}))
    rapl(tmp_path, {"intel-rapl:0": 100_000, "intel-rapl:0:0": 999, "intel-rapl:1": 30})
    assert meter.joules() == pytest.approx(0.2 + 20e-6)
    rapl(tmp_path, {"intel-rapl:0": 200_000})
    assert meter.joules() == pytest.approx(0.3 + 20e-6)
    with pytest.raises(OSError, match="no RAPL"):
        energy.Rapl(tmp_path / "none")


class FakeNvml:
    """Two GPUs whose counters run."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.millijoules = status, 1000

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self.status

    nvmlShutdown = nvmlInit_v2  # noqa: N815

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:  # noqa: N802
        device._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, value: Any) -> int:  # noqa: N802
        value._obj.value = self.millijoules * device.value
        return 0


def test_nvml_sums_gpus_and_says_what_failed() -> None:
    library = FakeNvml()
    meter = energy.Nvml(library)
    library.millijoules = 3000
    assert meter.joules() == pytest.approx((3 - 1) + (6 - 2))
    with pytest.raises(OSError, match="nvmlInit_v2 failed with status 9"):
        energy.Nvml(FakeNvml(9))


def test_tegrastats_power_is_read_and_added_up(tmp_path: Path) -> None:
    orin = "RAM 2/7 SWAP 0/3 CPU [1%@729] VDD_IN 5012mW/4900mW VDD_CPU_GPU_CV 1000mW/900mW"
    assert energy.milliwatts(orin) == 5012
    assert energy.milliwatts("VDD_GPU_SOC 2000mW/1mW VDD_CPU_CV 500mW/1mW VIN_SYS_5V0 3000mW/1mW") == 5500
    assert energy.milliwatts("POM_5V_IN 4000/4000 POM_5V_GPU 100/100") == 4000
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile :; do echo '{orin}'; sleep 0.02; done\n")
    tool.chmod(0o755)
    meter = energy.Tegrastats(str(tool))
    deadline = time.monotonic() + 20
    while meter.joules() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    meter.close()
    assert meter.joules() > 0 and meter._process.poll() is not None
    with pytest.raises(FileNotFoundError):
        energy.Tegrastats(str(tmp_path / "none"))


def test_a_trace_holds_every_batch_and_leaves_nothing_behind(tmp_path: Path) -> None:
    cut, add = crops.cut, anyres.Packer.add
    with Reader.open(options=Options(threads=1, max_tokens=8)) as reader:
        trace = record(reader, SMALL)
        answer = reader.look(SMALL).ask(bench_cases.FIRST_QUESTION).finish()
        assert "encode" not in vars(reader.tower) and "_decode_batch" not in vars(reader._language._llama)
        layout = crops.plan(400, 330, reader.bundle.manifest.geometry)
    assert (crops.cut, anyres.Packer.add) == (cut, add)
    done = list(zip(trace.spans, trace.counts, strict=True))
    assert [span.name for span, _ in done[:4]] == ["DICOM", "crops", "vision", "pack"]
    assert done[2][1] == {"crops": layout.crops}
    assert sum(span.name == "decode" for span, _ in done) == len(answer._logprobs) - 1
    head = len(reader._recall.head)
    run = sum(counts["tokens"] for span, counts in done if span.name == "prefill")
    assert run == head + answer.prefill_tokens
    drawn = write_trace(trace, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == [span.name for span in trace.spans]
    ends = [event["ts"] + event["dur"] for event in events if event["ph"] == "X"]
    starts = [event["ts"] for event in events if event["ph"] == "X"]
    assert all(end <= start + 1 for end, start in zip(ends, starts[1:], strict=False)), "one after another"
    with Image.open(drawn) as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 5


def test_a_trace_of_a_start_shows_what_ran_at_once(tmp_path: Path) -> None:
    load, film = stage.load_film, tmp_path / "film.dcm"
    film.write_bytes(drawn_film(700, 600))
    trace = record_start(demo_bundle(), Options(threads=1, max_tokens=4, overlap=True), film)
    assert stage.load_film is load
    done = list(zip(trace.spans, trace.counts, strict=True))
    tracks = {span.name: span.track for span in trace.spans}
    assert tracks["open tower"] == "vision" and tracks["open language model"] == "language"
    (read,) = (span for span in trace.spans if span.name == "DICOM")
    (cut,) = (span for span in trace.spans if span.name == "crops")
    assert read.track == "film" and read.start + read.length <= cut.start
    layout = crops.plan(700, 600, bench.Bundle.open(demo_bundle()).manifest.geometry)
    batches = [counts["crops"] for span, counts in done if span.name == "vision"]
    assert sum(batches) == layout.crops and len(batches) > 1, "batch by batch"
    assert sum(counts["crops"] for span, counts in done if span.name == "pack") == layout.crops


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.034), (3, 1234), (0, 0)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 7 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)


def test_the_command_writes_figures_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_ceilings: Ceilings
) -> None:
    film, folder = tmp_path / "film.dcm", tmp_path / "out"
    film.write_bytes(SMALL)
    folder.mkdir()
    monkeypatch.setattr(bench, "measure_ceilings", lambda threads: small_ceilings)
    monkeypatch.setattr(bench, "_in_processes", lambda *_: {})  # measured above
    command = ["bench", "--film", str(film), "--threads", "1", "--repeat", "1", "--max-tokens", "4"]
    command += ["--detail", "exact,144", "--json", str(folder / "b.json"), "--plot", str(folder / "b.png")]
    run = CliRunner().invoke(cli, [*command, "--trace", str(folder / "t.json")])
    assert run.exit_code == 0, run.output
    assert sorted(path.name for path in folder.iterdir()) == ["b.json", "b.png", "t.json", "t.png"]
    figures = json.loads((folder / "b.json").read_text())
    assert list(figures["variants"]) == ["fp16 Q8_0 detail exact", "fp16 Q8_0 detail 144"]
    exact, less = (one["cases"][COLD]["counts"] for one in figures["variants"].values())
    assert exact["image_tokens"] > less["image_tokens"] and less["crops"] == 2
    for words in ("second question", "tokens prefilled", "on disk", "% of", "fp16 Q8_0 detail 144"):
        assert words in run.output


def test_a_failing_process_is_one_line(tmp_path: Path) -> None:
    from radvlm_edge.benchmarks.bench_child import run_process
    from radvlm_edge.errors import BackendError

    with pytest.raises(BackendError, match="the timed process ended with code 1: .*no such file") as error:
        run_process(tmp_path / "none", "a?", demo_bundle(), Options(threads=1), tmp_path / "studies")
    assert "\n" not in str(error.value)


def test_the_child_answers_on_its_own(tmp_path: Path) -> None:
    film = tmp_path / "film"
    film.write_bytes(SMALL)
    command = [
        sys.executable,
        "-m",
        "radvlm_edge.benchmarks.bench_child",
        film,
        "a?",
        demo_bundle(),
        tmp_path / "s",
    ]
    done = subprocess.run([*command, '{"threads": 1, "max_tokens": 2}'], capture_output=True, check=True)
    assert json.loads(done.stdout)["counts"]["steps"] <= 2
