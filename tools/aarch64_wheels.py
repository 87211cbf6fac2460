"""What the base install is installed from on an aarch64 machine, by pip's own resolver.

    python tools/aarch64_wheels.py                                    # JetPack 6 and JetPack 7
    python tools/aarch64_wheels.py --python 3.11 --glibc 36 --download WHEELS

Prints every distribution with its file, and exits 1 naming one that has none. llama-cpp-python is published
as source only and compiled on the target (tools/llama_wheel.py): of it the source must be there, and wheels
of all it requires. Asks the index pip is set up with; nothing is installed. Needs Python 3.11, and this
project's own environment for llama-cpp-python's requirements. pip takes environment markers from the Python
it runs in; the base install has none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
SOURCE_ONLY = "llama-cpp-python"
OLDEST_GLIBC = 17
"""manylinux2014's: every aarch64 wheel asks for this one or a newer."""


@dataclass(frozen=True)
class Machine:
    """What decides which wheels a machine takes."""

    name: str
    python: str
    glibc: int
    """Minor version: 35 is glibc 2.35."""

    def options(self) -> list[str]:
        """pip's for such a machine."""
        kinds = [f"manylinux_2_{minor}_aarch64" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        platforms = [*kinds, "manylinux2014_aarch64", "linux_aarch64"]
        named = [f"--platform={platform}" for platform in platforms]
        return ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}", *named]


JETPACKS = (Machine("JetPack 6", "3.10", 35), Machine("JetPack 7", "3.12", 39))
"""Ubuntu 22.04 and 24.04."""


@dataclass(frozen=True)
class Found:
    """One distribution and the file it comes in."""

    name: str
    version: str
    file: str


class NoWheelError(Exception):
    """pip found none; its own words."""


def base_requirements() -> list[str]:
    """As pyproject.toml states them."""
    return list(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])


def wheels_wanted(requirements: Sequence[str]) -> list[str]:
    """All but llama-cpp-python itself, and what that requires."""
    its_own = importlib.metadata.requires(SOURCE_ONLY) or []
    return [
        *(one for one in requirements if not one.startswith(SOURCE_ONLY)),
        *(one for one in its_own if "extra ==" not in one),
    ]


def resolve(machine: Machine, wanted: Sequence[str], index: Sequence[str] = ()) -> list[Found]:
    """The wheels `machine` would install for these requirements and all they require, by name.

    `index` are pip's options for other than its own index. Raises NoWheelError.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run_pip(
            ["install", "--dry-run", "--ignore-installed", f"--target={folder}/none", f"--report={report}"],
            [*machine.options(), *index, *wanted],
        )
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = [
        Found(one["metadata"]["name"], one["metadata"]["version"], one["download_info"]["url"].split("/")[-1])
        for one in installs
    ]
    return sorted(found, key=lambda one: one.name.lower())


def sources(requirement: str, index: Sequence[str] = ()) -> list[str]:
    """Versions of a distribution that are published as source. Raises NoWheelError for none."""
    name = requirement.split(">")[0].split("=")[0].strip()
    said = run_pip(["index", "versions", f"--no-binary={name}"], [*index, name])
    line = next(line for line in said.splitlines() if line.startswith("Available versions:"))
    return [version.strip() for version in line.split(":", 1)[1].split(",")]


def download(machine: Machine, wanted: Sequence[str], folder: Path) -> None:
    """Put the same wheels into a folder. Raises NoWheelError."""
    run_pip(["download", f"--dest={folder}"], [*machine.options(), *wanted])


def run_pip(command: Sequence[str], rest: Sequence[str]) -> str:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    pip = pip if command[0] != "index" else pip[:-1]  # quiet, it would not even answer
    result = subprocess.run([*pip, *command, *rest], capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        raise NoWheelError("; ".join(errors) or result.stderr[-2000:])
    return result.stdout


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", help="another machine's Python, e.g. 3.11; with --glibc")
    parser.add_argument("--glibc", type=int, help="minor version of its glibc, e.g. 36")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="also put its wheels there")
    options = parser.parse_args()
    if (options.python is None) != (options.glibc is None) or (options.download and not options.python):
        parser.error("write --python and --glibc together; --download needs both")
    machines = [Machine("aarch64", options.python, options.glibc)] if options.python else JETPACKS
    requirements = base_requirements()
    wanted = wheels_wanted(requirements)
    try:
        for machine in machines:
            say(f"{machine.name}: Python {machine.python}, glibc 2.{machine.glibc}")
            for one in resolve(machine, wanted):
                say(f"  {one.name:22} {one.version:12} {one.file}")
            if options.download:
                download(machine, wanted, options.download)
        (compiled,) = (one for one in requirements if one.startswith(SOURCE_ONLY))
        say(f"compiled on the target: {compiled}, source of {sources(compiled)[0]}")
    except NoWheelError as error:
        sys.exit(f"radvlm-edge: {machine.name}: {error}")


if __name__ == "__main__":
    main()
