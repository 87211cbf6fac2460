"""A real kit, installed and asked in a network namespace that has no route anywhere.

radvlm-edge pack src/radvlm_edge/demo.bundle --target x86_64 -o KIT.tar.zst
RADVLM_EDGE_KIT=KIT.tar.zst python -m pytest tests/test_kit_real.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

KIT = os.environ.get("RADVLM_EDGE_KIT")
FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
pytestmark = [
    pytest.mark.skipif(not KIT, reason="RADVLM_EDGE_KIT is unset; it names a packed kit for this machine"),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a namespace needs root"),
    pytest.mark.timeout(3600),
]


def isolated(*command: str | Path, home: Path = Path("/nonexistent")) -> subprocess.CompletedProcess[str]:
    """Run with an own, empty network: not even the loopback device is up."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        ["unshare", "--net", *command], capture_output=True, text=True, check=False, env=env, cwd="/"
    )


def test_a_real_kit_installs_and_answers_without_a_network(tmp_path: Path) -> None:
    assert isolated("ip", "route").stdout == ""
    unreachable = isolated("python3", "-c", "import socket; socket.create_connection(('192.0.2.1', 443), 5)")
    assert "unreachable" in unreachable.stderr
    subprocess.run(["tar", "--zstd", "-xf", str(KIT), "-C", tmp_path], check=True)
    (kit,) = tmp_path.iterdir()
    prefix, home = tmp_path / "opt", tmp_path / "home"
    home.mkdir()
    done = isolated("sh", kit / "install.sh", "install", "--prefix", prefix, "--no-systemd", home=home)
    print(done.stderr)  # noqa: T201 - shown with -s: what the installer said
    assert done.returncode == 0, done.stderr
    assert "every file as sealed" in done.stderr and "language F16: off by" in done.stderr
    bundle = prefix / "current" / "bundle"
    command = [
        prefix / "bin" / "radvlm-edge",
        "infer",
        FILM,
        "--bundle",
        bundle,
        "--ask",
        "any effusion?",
        "--json",
    ]
    asked = isolated(*command, home=home)
    assert {p.name for p in home.glob(".cache/*")} <= {"radvlm-edge"}, "something else keeps files there"
    assert asked.returncode == 0, asked.stderr
    print(asked.stdout)  # noqa: T201
    (answer,) = json.loads(asked.stdout)["answers"]
    assert answer["text"].split()[0].strip(",.") in ("Yes", "No")
    kernels = "from radvlm_edge.runtime.llama import quiet; quiet(); print(open('/proc/self/maps').read())"
    maps = isolated(prefix / "current" / "venv" / "bin" / "python", "-c", kernels, home=home).stdout
    loaded = {Path(line.split()[-1]).name for line in maps.splitlines() if "libggml-cpu" in line}
    print(loaded)  # noqa: T201
    assert len(loaded) == 1, "one CPU's kernels of those in the wheel"
    removed = isolated("sh", kit / "install.sh", "uninstall", "--prefix", prefix)
    assert removed.returncode == 0 and not prefix.exists(), removed.stderr
