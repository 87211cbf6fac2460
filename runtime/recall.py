"""Where a study's prefix comes from when it is asked: the context, memory, disk, or a prefill."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.llama import Buffer
from radvlm_edge.runtime.studies import StudyStore, study_key
from radvlm_edge.runtime.versions import installed_versions

if TYPE_CHECKING:
    from radvlm_edge.runtime.overlap import Coming
    from radvlm_edge.runtime.reader import Study

VISION_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


class Parked:
    """States of studies that lost the context, at most `limit_bytes`; the least recently used go first.

    A study nobody holds any more takes its state with it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._states: weakref.WeakKeyDictionary[Study, Buffer] = weakref.WeakKeyDictionary()

    def held_bytes(self) -> int:
        return sum(len(state) for state in self._states.values())

    def __contains__(self, study: Study) -> bool:
        return study in self._states

    def get(self, study: Study) -> Buffer | None:
        """A study's state, now the most recently used."""
        state = self._states.pop(study, None)
        if state is not None:
            self._states[study] = state
        return state

    def put(self, study: Study, state: Buffer) -> None:
        """Keep a state, unless it alone is over the limit."""
        self._states.pop(study, None)
        if len(state) > self.limit_bytes:
            return
        for oldest in list(self._states.keys()):  # insertion order: `get` moves to the end
            if self.held_bytes() + len(state) <= self.limit_bytes:
                break
            del self._states[oldest]
        self._states[study] = state


class Recall:
    """Decides which study's prefix the context holds, and puts it there at the least cost."""

    def __init__(
        self,
        language: LanguageModel,
        head: list[int],
        *,
        memory_bytes: int,
        store: StudyStore | None,
        facts: Mapping[str, object],
    ) -> None:
        """`head`: token ids before the image. `facts`: what else a state depends on, besides the engines."""
        self.head = head
        self.parked = Parked(memory_bytes)
        self._language, self._store = language, store
        self._current: weakref.ref[Study] | None = None
        self._facts: dict[str, object] = {}
        if store is not None:
            engines = {"language": language.identity(), "vision": installed_versions(VISION_ENGINES)}
            self._facts = {**facts, "head": head, "engines": engines}

    def find(self, study: Study, views: npt.NDArray[np.uint8]) -> bool:
        """Put a new study's prefix into the context if the disk has it; sets `study.key` and `study.cache`.

        `views` are its crops `[n, 3, S, S]`. Raises StudyCacheError for a study encrypted with another key.
        """
        self._leave()
        if self._store is None:
            return False
        facts = {**self._facts, "layout": repr(study.layout)}
        if (other := self._language.prefill_identity()) is not None:
            facts["prefill"] = other
        study.key = study_key(facts, views)
        found = self._from_disk(study)
        study.cache = "hit" if found else "miss"
        return found

    def prefill(self, study: Study, coming: Coming | None = None) -> float:
        """Prefill a study's prefix from its image tokens; returns how long it took in milliseconds.

        `coming`: the tokens, where they are still being encoded; waiting for them is not counted.
        """
        began, image = time.perf_counter(), study.image if coming is None else coming
        engine = self._language.split
        study.uncharged_tokens += self._language.start([self.head, image])
        if self._language.split is not engine:
            study.key = None  # it names an engine that has just failed
        study.notes += self._language.notes
        self._language.notes = []
        took_ms = (time.perf_counter() - began) * 1e3 - (coming.waited_ms if coming is not None else 0.0)
        study.uncharged_ms += took_ms
        self._current = weakref.ref(study)
        return took_ms

    def keep(self, study: Study) -> None:
        """Write the prefix the context holds to disk, where there is a store."""
        if self._store is not None and study.key is not None:
            bundle = study.reader.bundle.sha256
            self._store.put(study.key, study.prefix_tokens, self._language.save_prefix(), bundle)
            self._take_notes(study)

    def resume(self, study: Study) -> None:
        """Let the context hold a study's prefix: as it is, from memory, from disk, or prefilled again."""
        if self._current is not None and self._current() is study:
            return
        self._leave()
        state = self.parked.get(study)
        if state is not None:
            self._language.restore_prefix(state, study.prefix_tokens)
            self._current = weakref.ref(study)
        elif not self._from_disk(study):
            self.prefill(study)

    def _leave(self) -> None:
        """Keep the current study's state aside before another takes the context."""
        study = self._current() if self._current is not None else None
        self._current = None
        if study is None or study in self.parked:
            return
        if self._language.prefix_bytes() <= self.parked.limit_bytes:
            self.parked.put(study, self._language.save_prefix())

    def _from_disk(self, study: Study) -> bool:
        if self._store is None or study.key is None:
            return False
        try:
            found = self._store.get(study.key)
        finally:
            self._take_notes(study)
        if found is None:
            return False
        try:
            self._language.restore_prefix(found[1], study.prefix_tokens)
        except BackendError as error:
            self._store.discard(study.key, str(error))
            self._take_notes(study)
            return False
        self._current = weakref.ref(study)
        return True

    def _take_notes(self, study: Study) -> None:
        if self._store is not None:
            study.notes += self._store.notes
            self._store.notes = []
