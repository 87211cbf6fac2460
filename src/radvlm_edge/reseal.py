"""A sealed bundle with a few files replaced, sealed anew: whole or as it was, never in between."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from radvlm_edge.bundle import MANIFEST, Bundle, Manifest, manifest_text, move_into_place
from radvlm_edge.errors import BundleError, OutputError
from radvlm_edge.integrity import SUMS, read_sums, sums_text


def reseal(bundle: Bundle, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Put `manifest` and `files` (name → content) into a bundle; everything else stays as it is.

    Untouched files are linked, not copied, where the file system can, so a bundle of any size takes
    milliseconds. Their digests are carried over from SHA256SUMS, never recomputed: what was altered
    stays recognisable. A signature is dropped, since it signed the old SHA256SUMS; sign again.

    Raises BundleError for a bundle that changed since it was opened, OutputError where it cannot be
    written; the bundle is unchanged then.
    """
    sums = read_sums(bundle.folder)
    if sums.get(MANIFEST) != bundle.sha256:
        raise BundleError(f"{bundle.folder}: changed since it was opened; try again")
    replaced = {**files, MANIFEST: manifest_text(manifest).encode()}
    spare = bundle.folder.parent / f".{bundle.folder.name}.partial-{os.getpid()}"
    try:
        try:
            for name in sums.keys() - replaced.keys():
                _link(bundle.folder / name, spare / name)
            for name, content in replaced.items():
                (spare / name).parent.mkdir(parents=True, exist_ok=True)
                (spare / name).write_bytes(content)
                sums[name] = hashlib.sha256(content).hexdigest()
            (spare / SUMS).write_text(sums_text(sums), encoding="utf-8")
            move_into_place(spare, bundle.folder)
        finally:
            shutil.rmtree(spare, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{bundle.folder}: not resealed: {error.strerror}; it is as it was before"
        ) from error
    return Bundle.open(bundle.folder)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # a file system without links, or a folder on another one
        shutil.copy2(source, target)
