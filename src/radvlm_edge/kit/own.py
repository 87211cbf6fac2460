"""radvlm-edge's own wheel: one given, or one built from the clone this process runs from."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.version import Version

from radvlm_edge.errors import KitError
from radvlm_edge.kit.distributions import Distribution, in_folders
from radvlm_edge.kit.pip import pip

PROJECT = "radvlm-edge"
EPOCH = 315532800
"""1 January 1980, the oldest time a zip can hold: time stamps of what is built here."""


def own_wheel(given: Iterable[Distribution], work: Path) -> Distribution:
    """The wheel of the version that packs, from `given`, else built in `work`.

    Raises KitError where there is neither a wheel nor a clone.
    """
    version = Version(importlib.metadata.version(PROJECT))
    for one in given:
        if one.name == PROJECT and one.wheel and one.version == version:
            return one
    clone = _clone()
    if clone is None:
        raise KitError(
            f"no wheel of {PROJECT} {version}, and this is not run from a clone; "
            "pass --wheels and a folder that holds it"
        )
    source, out = work / "source", work / "own"
    hidden = shutil.ignore_patterns(".*", "build", "dist", "runs", "out", "__pycache__", "*.egg-info")
    shutil.copytree(clone, source, symlinks=True, ignore=hidden)  # what an older build left would be packed
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", out, source, env={"SOURCE_DATE_EPOCH": str(EPOCH)})
    (built,) = in_folders([out])
    return built


def _clone() -> Path | None:
    """Folder of the clone an editable install points at."""
    told = importlib.metadata.distribution(PROJECT).read_text("direct_url.json")
    record = json.loads(told) if told else {}
    if not record.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(record["url"]).path))
