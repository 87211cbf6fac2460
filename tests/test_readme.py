"""README's transcript is what the program prints, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from radvlm_edge.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = Path(sys.executable).with_name("radvlm-edge")


def transcript() -> list[tuple[str, str]]:
    """(command, what it printed) of README's console blocks."""
    pairs = []
    for block in re.findall(r"```console\n(.*?)```", README, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            pairs.append((command, printed.strip()))
    return pairs


@pytest.mark.parametrize(("command", "printed"), transcript(), ids=lambda text: text[:40])
def test_transcript_is_real(command: str, printed: str) -> None:
    name, *arguments = shlex.split(command)
    assert name == "radvlm-edge"
    result = subprocess.run(
        [CLI, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == printed


def test_there_is_a_transcript_and_a_picture() -> None:
    assert len(transcript()) >= 3
    assert re.search(r"!\[[^]]+\]\(docs/[\w.-]+\.png\)", README)
    assert "@@" not in README


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http://", "https://")):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_command_is_named() -> None:
    for name in cli.commands:
        assert f"radvlm-edge {name}" in README, name


def test_the_model_cards_tables_are_the_measured_figures() -> None:
    script = ROOT / "tools" / "nano_card.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
