"""onnxruntime reports nothing to its maker: it leaves no device id and no store of events behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from radvlm_edge.bundle import Bundle, demo_bundle

LOAD = (
    "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
)


def left_behind(home: Path, code: str) -> list[str]:
    """Files a process leaves in an empty home after opening a graph."""
    bundle = Bundle.open(demo_bundle())
    graph = bundle.path(bundle.artefact("vision"))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    command = [sys.executable, "-c", code, graph]
    subprocess.run(command, check=True, capture_output=True, env={**env, "HOME": str(home)})
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_with_us_onnxruntime_keeps_no_events(tmp_path: Path) -> None:
    assert not left_behind(tmp_path, f"import radvlm_edge; {LOAD}")


def test_without_us_it_does(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    found = left_behind(tmp_path, LOAD)
    if not found:
        pytest.skip("this onnxruntime has no telemetry; it came with the wheels of 1.32")
    assert "deviceid" in found
