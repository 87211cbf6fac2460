"""Faults in a log: class and place, never the text, which may quote a film's header."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from typing import IO


def where(error: BaseException) -> str:
    """Class and places of an error, with an operating system's own words but no value."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{reason} at {places}"


def hush() -> None:
    """Keep the libraries' own logs and warnings off the log: they quote UIDs and header values."""
    for name in ("pynetdicom", "pydicom", "highdicom"):
        library = logging.getLogger(name)
        library.addHandler(logging.NullHandler())
        library.propagate = False
        library.setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")


def log_to_stderr() -> IO[str]:
    """Log to a copy of stderr, and return it: descriptor 2 is turned away while a film is decoded
    (runtime/dicom.py), and what another thread writes there meanwhile is gone."""
    stream = os.fdopen(os.dup(2), "w", buffering=1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=stream)
    return stream
