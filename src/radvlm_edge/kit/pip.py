"""pip, run as its own process: it has no Python interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from radvlm_edge.errors import KitError


def pip(*arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run one pip command; return what it printed.

    Raises KitError with pip's own last words when it fails.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise KitError(f"pip {arguments[0]} failed: {' '.join(told) or f'exit code {done.returncode}'}")
    return done.stdout
