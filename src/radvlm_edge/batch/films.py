"""Which films a command line means."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from radvlm_edge.errors import FilmError


def gather(named: tuple[str, ...], listed: str | None) -> list[str]:
    """Paths in the order given, each once; a folder stands for all files in it, in the order of their names.

    `listed`: a file with a path a line, `-` for stdin. A path that is no file stays: it becomes an error row.
    Raises FilmError for a list that cannot be read, or where nothing is named.
    """
    found = dict.fromkeys(_expanded([*named, *(_list(listed) if listed is not None else ())]))
    if not found:
        raise FilmError("no films; name files or folders, or a list with --films-from FILE")
    return list(found)


def _expanded(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if Path(path).is_dir():
            yield from _inside(path)
        else:
            yield path


def _inside(folder: str) -> Iterator[str]:
    """Files below a folder; hidden ones and DICOMDIR, which holds no film, are left out."""
    for here, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name != "DICOMDIR":
                yield str(Path(here) / name)


def _refuse(error: OSError) -> None:
    raise FilmError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _list(path: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise FilmError(f"{path}: the list of films cannot be read: {error.strerror}") from error
    return [os.fsdecode(line.strip(b"\r")) for line in content.split(b"\n") if line.strip()]
