"""A kit as one file: the same contents give the same bytes, whoever packs them and when."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import zstandard

from radvlm_edge.errors import KitError, OutputError
from radvlm_edge.kit.own import EPOCH

LEVEL = 3
"""Wheels and GGUF hardly shrink further: what is compressed already only takes time."""
SUFFIXES = (".tar.zst", ".tar")
EXECUTABLE = ("install.sh",)


def write(out: Path, top: str, contents: Mapping[str, Path | bytes], *, force: bool = False) -> int:
    """Write `contents` (name → file or content) below a folder `top`; return the archive's size in bytes.

    Names are sorted; times, owners and modes do not depend on the files'. One thread compresses, since
    several would cut the stream where it suits the machine. The archive appears whole or not at all.
    Raises as `check_name`, and OutputError where it cannot be written.
    """
    check_name(out, force=force)
    spare = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with spare.open("wb") as file, _stream(file, out) as stream:
            _fill(stream, top, contents)
        spare.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: not written: {error.strerror}; nothing was left behind") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            spare.unlink()
    return out.stat().st_size


def check_name(out: Path, *, force: bool) -> None:
    """Raises OutputError for a file that exists already, KitError for another suffix."""
    if not out.name.endswith(SUFFIXES):
        raise KitError(f"{out}: write -o NAME.tar.zst, or NAME.tar for a target without zstd")
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; choose another -o or pass --force to replace it")


@contextlib.contextmanager
def _stream(file: IO[bytes], out: Path) -> Iterator[IO[bytes]]:
    if out.name.endswith(".tar"):
        yield file
        return
    with zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_writer(
        file, closefd=False
    ) as stream:
        yield stream


def _fill(stream: IO[bytes], top: str, contents: Mapping[str, Path | bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(contents):
            content = contents[name]
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.mtime, entry.mode = EPOCH, 0o755 if name in EXECUTABLE else 0o644
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                entry.size = content.stat().st_size
                with content.open("rb") as source:
                    archive.addfile(entry, source)
