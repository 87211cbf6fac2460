"""Everything pip will be asked for on the target, as files: given, built here, or fetched for its tags."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from radvlm_edge.errors import KitError
from radvlm_edge.integrity import digest
from radvlm_edge.kit import llama
from radvlm_edge.kit.closure import Closure, close
from radvlm_edge.kit.distributions import Distribution, in_folders
from radvlm_edge.kit.own import PROJECT, own_wheel
from radvlm_edge.kit.pip import pip
from radvlm_edge.kit.targets import Target, environment, platforms, tags

EXTRAS = ("serve", "sign", "studies", "node")
"""Of radvlm-edge's extras, those a clinic's machine wants, where this version has them."""
ROUNDS = 6
"""pip is asked again while something is missing that it left out; chains of markers are short."""
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
_MANYLINUX = re.compile(r"manylinux_2_(\d+)_")


@dataclass
class Gathered:
    """The files of a kit's `wheels/`."""

    own: Distribution
    files: dict[str, Distribution] = field(default_factory=dict)
    """File name → file, what builds on the target need included."""
    locks: dict[str, str] = field(default_factory=dict)
    """Python version → requirements with hashes: what is installed there."""
    needs: dict[str, set[str]] = field(default_factory=dict)
    """Canonical name → names it requires, on any of the Pythons."""

    @property
    def glibc(self) -> int:
        """The C library 2.N that the most demanding wheel needs."""
        return max((_glibc_of(one) for one in self.files.values() if one.wheel), default=0)


def gather(
    target: Target,
    pythons: tuple[str, ...],
    folders: list[Path],
    work: Path,
    *,
    index: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Gathered:
    """Collect every file for some Pythons of a target; `folders` are looked at first.

    Raises KitError naming what is in no folder and, with `index`, not to be had either.
    """
    given = in_folders(folders)
    own = own_wheel(given, work)
    local = [one for one in given if one.name != PROJECT] + [own]
    if target.sources:
        local += _sources(target, given, work, index)
    else:
        local = [one for one in local if one.name != llama.NAME]
        local.append(llama.generic_wheel(target, given, say))
    gathered = Gathered(own)
    extras = sorted(own.extras.intersection(EXTRAS))
    roots = [f"{PROJECT}[{','.join(extras)}]=={own.version}", *target.requirements]
    for python in pythons:
        say(f"packages for Python {python}")
        closure = _complete(target, python, roots, local, work / f"fetched-{python}", index)
        tools = _complete(target, python, _tools(target), local, work / f"tools-{python}", index)
        gathered.locks[python] = lock(closure)
        for one in (*closure.chosen.values(), *tools.chosen.values()):
            gathered.files[one.path.name] = one
        for name, needs in closure.needs.items():
            gathered.needs.setdefault(name, set()).update(needs)
    return gathered


def lock(closure: Closure) -> str:
    """requirements.txt of pip's hash-checking mode: one file a package, nothing else can be installed."""
    lines = (
        f"{name}=={one.version} --hash=sha256:{digest(one.path)}\n"
        for name, one in sorted(closure.chosen.items())
    )
    return "".join(lines)


def _tools(target: Target) -> list[str]:
    """What installs the rest: pip, since many systems' Pythons come without it, and the sources' builds."""
    return ["pip>=23.1", *(need for needs in target.sources.values() for need in needs)]


def _sources(target: Target, given: list[Distribution], work: Path, index: bool) -> list[Distribution]:
    """The sdists a target compiles, fetched where none is given."""
    found = []
    for name in target.sources:
        held = [one for one in given if one.name == name and not one.wheel]
        if not held and index:
            pinned = f"{name}=={llama.version()}" if name == llama.NAME else name
            folder = work / f"source-{name}"
            pip("download", "--quiet", "--no-deps", "--no-binary", name, "--dest", folder, pinned)
            held = in_folders([folder])
        if not held:
            raise KitError(f"no sdist of {name}, which {target.name} compiles; put it into a --wheels folder")
        found.append(max(held, key=lambda one: one.version))
    return found


def _complete(
    target: Target, python: str, roots: list[str], local: list[Distribution], folder: Path, index: bool
) -> Closure:
    """Fetch until every requirement the target's Python will evaluate is met."""
    accepted, marks = tags(target, python), environment(target, python)
    wanted = [Requirement(root) for root in roots]
    asked: dict[str, str] = {}
    fetched: list[Distribution] = []
    for turn in range(ROUNDS):
        closure = close(wanted, [*local, *fetched], marks, accepted, target.sources)
        if not closure.missing:
            return closure
        if not index or asked.items() >= closure.missing.items():
            break
        asked |= closure.missing
        into = folder / str(turn)
        _download(target, python, list(asked.values()), into)
        fetched = in_folders([into])
    names = ", ".join(closure.missing.values())
    where = "or to be fetched" if index else "and --no-index forbids fetching"
    raise KitError(f"{target.name}, Python {python}: not in any --wheels folder {where}: {names}")


def _download(target: Target, python: str, requirements: list[str], folder: Path) -> None:
    short = python.replace(".", "")
    arguments = ["--quiet", "--only-binary=:all:", "--implementation", "cp", "--python-version", short]
    arguments += [part for abi in (f"cp{short}", "abi3", "none") for part in ("--abi", abi)]
    arguments += [part for name in platforms(target) for part in ("--platform", name)]
    folder.mkdir(parents=True, exist_ok=True)
    pip("download", *arguments, "--dest", folder, *requirements)


def _glibc_of(one: Distribution) -> int:
    """2.N as a wheel's tag promises it, or as the libraries of one without such a tag ask for it."""
    promised = [int(found[1]) for tag in one.tags if (found := _MANYLINUX.match(tag.platform))]
    if promised:
        return min(promised)
    if not any(tag.platform.startswith("linux_") for tag in one.tags):
        return 0
    with zipfile.ZipFile(one.path) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if ".so" in name.rpartition("/")[2]]
    return max((int(minor) for library in libraries for minor in _GLIBC.findall(library)), default=0)
