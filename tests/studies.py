"""What the tests of the study cache share: readers and stores on it, and what they count."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from radvlm_edge.runtime import llama
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.studies import StudyStore

CLI = Path(sys.executable).with_name("radvlm-edge")
QUESTIONS = ("any effusion?", "left or right?")
SECRET = bytes(range(32))
KEYS = [f"{n:064x}" for n in range(8)]
GIB = 1 << 30
FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def reader_on(bundle: Path, cache: Path | None = None, **options: Any) -> Reader:
    return Reader.open(bundle, Options(max_tokens=10, threads=1, study_cache=cache, **options))


def bits(answer: Answer) -> tuple[list[int], list[float]]:
    answer.finish()
    return answer._ids, answer._logprobs


class Counted:
    """Calls and tokens of llama_decode, and crops given to the tower."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.tokens = self.crops = 0
        decode = llama.llama_cpp.llama_decode

        def counting(context: Any, batch: Any) -> int:
            self.calls += 1
            self.tokens += batch.n_tokens
            return int(decode(context, batch))

        monkeypatch.setattr(llama.llama_cpp, "llama_decode", counting)

    def tower(self, reader: Reader) -> None:
        inner = reader.tower

        class Tower:
            backend = inner.backend

            def encode(tower, crops: Any) -> Any:  # noqa: N805
                self.crops += len(crops)
                return inner.encode(crops)

        reader.tower = Tower()


def store_on(folder: Path, *, limit: int = GIB, days: float = 7.0, secret: bytes | None = None) -> StudyStore:
    return StudyStore(folder, limit_bytes=limit, days=days, secret=secret)


def path_of(folder: Path, key: str = KEYS[0]) -> Path:
    return folder / f"{key}.kv"


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.kv"))
