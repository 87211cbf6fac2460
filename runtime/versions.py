"""Versions of installed packages, for the keys of what is kept."""

from __future__ import annotations


def version_of(package: str) -> str | None:
    """A distribution's version; `None` if it is not installed."""
    import importlib.metadata  # takes as long to load as a small film to read

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
