"""Is everything there that a Python of the target will ask for? pip answers only for the Python it runs in.

`pip download --platform --python-version` evaluates markers (`python_version < "3.11"`) for the machine that
packs, so what it fetched for another one may lack packages. Here they are evaluated for the target.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import canonicalize_name

from radvlm_edge.kit.distributions import Distribution


@dataclass
class Closure:
    """What some requirements come to on one Python of the target."""

    chosen: dict[str, Distribution] = field(default_factory=dict)
    """Canonical name → the file that is installed."""
    missing: dict[str, str] = field(default_factory=dict)
    """Canonical name → requirement no file meets."""
    needs: dict[str, set[str]] = field(default_factory=dict)
    """Canonical name → names it requires here."""


def close(
    roots: Iterable[Requirement],
    files: Iterable[Distribution],
    environment: Mapping[str, str],
    accepted: Mapping[Tag, int],
    sources: Iterable[str] = (),
) -> Closure:
    """Follow requirements from `roots` through the metadata of `files`.

    The highest version that meets all that is asked of a package is taken, a wheel before an sdist, and an
    sdist only of the packages named in `sources`.
    """
    usable = [one for one in files if _usable(one, accepted, set(sources))]
    asked: dict[str, SpecifierSet] = {}
    roots = list(roots)
    while True:  # a specifier met late may rule out a version taken early; specifiers only ever grow
        before = dict(asked)
        closure = _walk(roots, usable, environment, accepted, asked)
        if asked == before:
            return closure


def _walk(
    roots: list[Requirement],
    usable: list[Distribution],
    environment: Mapping[str, str],
    accepted: Mapping[Tag, int],
    asked: dict[str, SpecifierSet],
) -> Closure:
    closure, seen = Closure(), set()
    queue = deque((root, "", "") for root in roots)
    while queue:
        requirement, parent, extra = queue.popleft()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        asked[name] = asked.get(name, SpecifierSet()) & requirement.specifier
        if parent:
            closure.needs.setdefault(parent, set()).add(name)
        found = [
            one for one in usable if one.name == name and asked[name].contains(one.version, prereleases=True)
        ]
        if not found:
            closure.missing[name] = f"{name}{_extras(requirement)}{asked[name]}"
            continue
        best = max(found, key=lambda one: (one.version, one.wheel, -_rank(one, accepted)))
        closure.chosen[name] = best
        closure.needs.setdefault(name, set())
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                queue.extend(
                    (one, name, wanted) for one in best.requires if _of_extra(one, wanted, environment)
                )
    return closure


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _of_extra(requirement: Requirement, extra: str, environment: Mapping[str, str]) -> bool:
    """Whether a requirement belongs to an extra and not to the base as well."""
    if requirement.marker is None:
        return extra == ""
    return not extra or not requirement.marker.evaluate({**environment, "extra": ""})


def _usable(one: Distribution, accepted: Mapping[Tag, int], sources: set[str]) -> bool:
    return not one.tags.isdisjoint(accepted) if one.wheel else one.name in sources


def _rank(one: Distribution, accepted: Mapping[Tag, int]) -> int:
    return min((accepted[tag] for tag in one.tags if tag in accepted), default=len(accepted))
