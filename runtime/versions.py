"""Versions of installed packages, for the keys of what is kept."""

from __future__ import annotations

from collections.abc import Iterable


def version_of(package: str) -> str | None:
    """A distribution's version; `None` if it is not installed."""
    import importlib.metadata  # takes as long to load as a small film to read

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by distribution; what is not installed is left out."""
    found = {name: version_of(name) for name in packages}
    return {name: version for name, version in found.items() if version is not None}
