"""What the fuzzing itself is tested with: inputs that do, by their number, one of each thing it looks for."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

PROBE = "probe"


def make(kind: str, seed: int, number: int) -> bytes:
    return str(number).encode()


@contextlib.contextmanager
def probe_target() -> Iterator[Callable[[bytes], str]]:
    """One of each finding, by number, to test that they are found: crash 3, untyped 5, hang 7, memory 9."""

    def run(content: bytes) -> str:
        number = int(content)
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5:
            raise ValueError("not foreseen")
        while number == 7:
            pass
        held = b"x" * (1 << 28) if number == 9 else b""
        return "accepted" if len(held) < 1 << 29 else "never"

    yield run
