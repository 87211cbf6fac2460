"""A wheel or sdist as a file: what it is called, what it needs, what it says about its licence."""

from __future__ import annotations

import functools
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from radvlm_edge.errors import KitError

LICENCE_NAMES = ("licen", "copying", "notice", "copyright", "authors", "thirdparty", "third_party")
"""How the names of files begin that hold licence texts, in small letters."""


@dataclass(frozen=True)
class Distribution:
    """One file pip can install."""

    path: Path
    name: str
    """Canonical: small letters, dashes."""
    version: Version
    tags: frozenset[Tag]
    """What a wheel runs on; empty for an sdist."""

    @property
    def wheel(self) -> bool:
        return self.path.suffix == ".whl"

    @functools.cached_property
    def metadata(self) -> Message:
        """Core metadata. Raises KitError where there is none."""
        try:
            raw = self._member("METADATA" if self.wheel else "PKG-INFO")
        except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise KitError(
                f"{self.path}: not a wheel or sdist that can be read ({error}); fetch it again"
            ) from error
        return BytesParser().parsebytes(raw)

    @functools.cached_property
    def requires(self) -> tuple[Requirement, ...]:
        """Raises KitError for a requirement that is none."""
        try:
            return tuple(Requirement(text) for text in self.metadata.get_all("Requires-Dist", []))
        except InvalidRequirement as error:
            raise KitError(f"{self.path}: its metadata holds no valid requirement ({error})") from error

    @property
    def extras(self) -> set[str]:
        return {canonicalize_name(name) for name in self.metadata.get_all("Provides-Extra", [])}

    @property
    def licence(self) -> str:
        """SPDX expression, else what the metadata's licence field or classifiers say; may be empty."""
        expression: str = self.metadata.get("License-Expression", "")
        field: str = self.metadata.get("License", "")
        short = field if len(field) <= 100 and "\n" not in field and field != "UNKNOWN" else ""
        prefix = "License :: "
        classified = [
            text.rpartition(" :: ")[2]
            for text in self.metadata.get_all("Classifier", [])
            if text.startswith(prefix) and not text.endswith("OSI Approved")
        ]
        return expression or short or " / ".join(classified)

    def licence_texts(self) -> dict[str, bytes]:
        """Path inside the file → text, of everything that looks like a licence or a notice."""
        if not self.wheel:
            depth = 2  # PACKAGE-1.0/LICENSE; what an sdist vendors deeper down stays in the sdist
            with tarfile.open(self.path) as archive:
                members = [
                    m for m in archive if m.isfile() and m.name.count("/") < depth and _licence(m.name)
                ]
                texts = {m.name.partition("/")[2]: archive.extractfile(m) for m in members}
                return {name: file.read() for name, file in texts.items() if file is not None}
        with zipfile.ZipFile(self.path) as archive:
            return {n: archive.read(n) for n in archive.namelist() if ".dist-info/" in n and _licence(n)}

    def libraries(self) -> dict[str, bytes]:
        """Shared libraries a wheel brings beside its own modules → content (`NAME.libs/`, `lib/`)."""
        if not self.wheel:
            return {}
        with zipfile.ZipFile(self.path) as archive:
            names = [n for n in archive.namelist() if ".so" in Path(n).name and _vendored(n)]
            return {name: archive.read(name) for name in names}

    def _member(self, name: str) -> bytes:
        if self.wheel:
            with zipfile.ZipFile(self.path) as archive:
                found = [
                    n for n in archive.namelist() if n.endswith(f".dist-info/{name}") and n.count("/") == 1
                ]
                return archive.read(found[0]) if found else archive.read(name)
        with tarfile.open(self.path) as archive:
            for member in archive:
                if member.name.count("/") == 1 and member.name.endswith(f"/{name}"):
                    file = archive.extractfile(member)
                    return file.read() if file is not None else b""
        raise KeyError(f"no {name} in it")


def _licence(name: str) -> bool:
    return name.rpartition("/")[2].lower().startswith(LICENCE_NAMES)


def _vendored(name: str) -> bool:
    folders = name.split("/")[:-1]
    return any(folder.endswith(".libs") or folder == "lib" for folder in folders)


def read(path: Path) -> Distribution | None:
    """What a file is by its name; `None` for a file of another kind."""
    try:
        if path.suffix == ".whl":
            name, version, _, tags = parse_wheel_filename(path.name)
            return Distribution(path, name, version, tags)
        name, version = parse_sdist_filename(path.name)
        return Distribution(path, name, version, frozenset())
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def in_folders(folders: list[Path]) -> list[Distribution]:
    """Every wheel and sdist in some folders, subfolders apart. Raises KitError for a folder there is not."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise KitError(f"{folder}: no folder of wheels; pass --wheels and one that exists")
        found += [one for path in sorted(folder.iterdir()) if (one := read(path)) is not None]
    return found
