"""The kept measurement: used where everything is as it was measured, and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radvlm_edge.runtime import vision_choice
from radvlm_edge.runtime.vision import CROPS_PER_BATCH
from radvlm_edge.runtime.vision_choice import Measured, Setting, choose_engine, keep, recall

SHA = "a" * 64
BEST = {"onnx": Setting(2, 4, 9.5), "openvino": Setting(1, 8, 3.25)}
MEASURED = Measured(BEST, "openvino", "2026-01-02T03:04:05Z", 0.5, {"other": "cannot run"})


def test_a_measurement_comes_back_as_it_was_kept_and_is_used() -> None:
    assert recall(SHA) == (None, None)
    path = keep(MEASURED, SHA)
    assert recall(SHA) == (MEASURED, None)
    assert path.stat().st_mode & 0o077 == 0 and [path] == list(path.parent.iterdir())
    chosen = choose_engine(SHA)
    assert (chosen.backend, chosen.threads, chosen.crops_per_batch) == ("openvino", 1, 8)
    assert "measured best" in chosen.why and choose_engine(SHA, "auto") == chosen
    asked = choose_engine(SHA, "onnx")
    assert (asked.backend, asked.threads, asked.crops_per_batch) == ("onnx", 2, 4)
    assert asked.why == "asked for; setting measured"


def test_without_a_measurement_nothing_changes() -> None:
    for backend, engine in ((None, "onnx"), ("auto", "onnx"), ("openvino", "openvino")):
        chosen = choose_engine(SHA, backend, 3)
        assert (chosen.backend, chosen.threads, chosen.crops_per_batch) == (engine, 3, CROPS_PER_BATCH)
        assert "nothing measured" in chosen.why and chosen.trouble is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_name", lambda: "another CPU"),
        ("_cpu_features", lambda: "fewer flags"),
        ("available_cpus", lambda: 77),
        ("package_versions", lambda: {"onnxruntime": "0.1"}),
    ],
)
def test_it_holds_for_nothing_else(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(MEASURED, SHA)
    assert choose_engine("b" * 64).backend == choose_engine(SHA, threads=2).backend == "onnx"
    monkeypatch.setattr(vision_choice, name, value)
    assert choose_engine(SHA).backend == "onnx"


def broken(record: dict[str, Any], what: str) -> bytes:
    if what == "empty":
        return b""
    if what == "not an object":
        return b"[1]"
    if what == "another machine":
        record["key"]["cpu"] = "another CPU"
    elif what == "another format":
        record["format"] = 99
    elif what == "unmeasured engine":
        record["chosen"] = "mlx"
    elif what == "no threads":
        record["best"]["openvino"]["threads"] = 0
    elif what == "words":
        record["best"]["onnx"]["crops_per_batch"] = "four"
    elif what == "missing field":
        del record["when"]
    return json.dumps(record).encode()


DAMAGE = ("empty", "not an object", "another machine", "another format", "unmeasured engine", "no threads")


@pytest.mark.parametrize("what", [*DAMAGE, "words", "missing field"])
def test_a_damaged_one_is_not_used_and_said(what: str) -> None:
    path = keep(MEASURED, SHA)
    path.write_bytes(broken(json.loads(path.read_bytes()), what))
    chosen = choose_engine(SHA)
    assert (chosen.backend, chosen.crops_per_batch) == ("onnx", CROPS_PER_BATCH)
    assert chosen.trouble is not None and "\n" not in chosen.trouble
    assert str(path) in chosen.trouble and "radvlm-edge doctor" in chosen.trouble


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_raises(data: st.DataObject) -> None:
    path = keep(MEASURED, SHA)
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    chosen = choose_engine(SHA)
    assert chosen.backend in ("onnx", "openvino") and chosen.crops_per_batch >= 1
    assert chosen.threads is None or chosen.threads >= 1


def test_a_write_that_fails_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(MEASURED, SHA)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(json, "dump", refuse)
        keep(Measured({"onnx": BEST["onnx"]}, "onnx", "later", 0.0), SHA)
    assert recall(SHA) == (MEASURED, None) and [path] == list(path.parent.iterdir())


def test_the_folder_is_xdgs_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keep(MEASURED, SHA).parent == tmp_path / ".cache" / "radvlm-edge" / "vision"
