"""Faults of the program, said without anything they may quote of a film."""

from __future__ import annotations

import os
import resource
import sys
import threading
import traceback


def where(error: BaseException) -> str:
    """Class and places of an error, without its text or any value."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames[-6:]))


def keep_to_ourselves() -> None:
    """No core dumps, no stack of a native fault with its arguments, no texts of faults in threads."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else llama.cpp starts a debugger that prints every argument
    threading.excepthook = _thread_fault
    sys.unraisablehook = _unraisable


def _thread_fault(fault: threading.ExceptHookArgs) -> None:
    _say(fault.exc_value, fault.exc_type)


def _unraisable(fault: sys.UnraisableHookArgs) -> None:
    _say(fault.exc_value, fault.exc_type)


def _say(error: BaseException | None, kind: type[BaseException]) -> None:
    told = where(error) if error is not None else kind.__name__
    sys.stderr.write(f"radvlm-edge: a fault of the program: {told}\n")
