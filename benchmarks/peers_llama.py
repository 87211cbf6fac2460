"""llama.cpp's own multimodal path (libmtmd) as a peer, through its C API in the same build as ours.

It keeps K/V of the film between questions, as its server's slots do. Its image tokens are not the
checkpoint's (peers_mmproj.py), so it is a peer in speed; `--accuracy` says what that costs.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from PIL import Image

from radvlm_edge.benchmarks.peers_setup import Asked, Setup, Written
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.llama import PREFIX

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaPeer:
    """See `peers_setup.Peer`."""

    def __init__(self, setup: Setup) -> None:
        began = time.perf_counter()
        language, mmproj = setup.language_file(), setup.mmproj_file()
        self._model = LanguageModel(language, context=setup.context, threads=setup.threads)
        self._llama = self._model.engine
        mtmd.mtmd_helper_log_set(SILENT, ctypes.c_void_p(0))
        params = mtmd.mtmd_context_params_default()
        params.n_threads, params.warmup, params.print_timings, params.use_gpu = (
            setup.threads,
            False,
            False,
            False,
        )
        self._mtmd: Any = mtmd.mtmd_init_from_file(str(mmproj).encode(), self._llama._model, params)
        if not self._mtmd:
            raise BackendError(f"{mmproj}: llama.cpp's multimodal path cannot load this file")
        self.load_ms = (time.perf_counter() - began) * 1e3
        self._prompting, self._render = setup.prompting(), setup.render
        self._stop_ids = self._prompting.stop_ids
        self._image_tokens = 0
        self._bytes = {"language": language.stat().st_size, "vision": mmproj.stat().st_size}

    def describe(self) -> dict[str, Any]:
        return {
            "engine": f"llama.cpp libmtmd, llama-cpp-python {llama_cpp.__version__}",
            "image_tokens": self._image_tokens,
            "note": "no newline tokens, its own padding: not the checkpoint's answers",
            "bytes": self._bytes,
        }

    def cold(self, film: bytes, question: str, written: Written) -> Asked:
        began = time.perf_counter()
        pixels = load_film(film, render=self._render).pixels
        rgb = np.ascontiguousarray(np.asarray(Image.fromarray(pixels).convert("RGB")))
        self._model.clear()
        head, tail = prompts.render([prompts.Turn(question)], self._prompting)
        self._model.prefix_tokens = self._evaluate(head, rgb)
        self._image_tokens = self._model.prefix_tokens - len(self._model.tokenize(head))
        return self._answer(tail, written, began)

    def again(self, question: str, written: Written) -> Asked:
        began = time.perf_counter()
        return self._answer(prompts.render([prompts.Turn(question)], self._prompting)[1], written, began)

    def _answer(self, tail: str, written: Written, began: float) -> Asked:
        self._model.prefill(self._model.tokenize(tail))
        steps, first_ms = [], 0.0
        stop_ids = self._stop_ids if written.stop else ()
        for step in self._model.steps(stop_ids=stop_ids, max_tokens=written.tokens):
            first_ms = first_ms or (time.perf_counter() - began) * 1e3
            steps.append(step.token)
        total_ms = (time.perf_counter() - began) * 1e3
        text = b"".join(self._model.piece(token) for token in steps if token not in stop_ids)
        return Asked(first_ms, total_ms, len(steps), text.decode("utf-8", "replace").strip())

    def _evaluate(self, head: str, rgb: np.ndarray[Any, Any]) -> int:
        """Text before the image and the image; positions taken."""
        height, width, _ = rgb.shape
        text = head.encode() + (mtmd.mtmd_default_marker() or b"")
        asked = mtmd.mtmd_input_text(text, len(text), False, True)
        bitmap = mtmd.mtmd_bitmap_init(width, height, rgb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            status = mtmd.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(asked), bitmaps, 1)
            end = llama_cpp.llama_pos(0)
            if status == 0:
                status = mtmd.mtmd_helper_eval_chunks(
                    self._mtmd,
                    self._llama._context,
                    chunks,
                    0,
                    PREFIX,
                    self._llama.batch,
                    False,
                    ctypes.byref(end),
                )
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)
        if status != 0:
            raise BackendError(f"llama.cpp's multimodal path could not run the film (status {status})")
        return int(end.value)

    def extras(self, setup: Setup, film: Path) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        mtmd.mtmd_free(self._mtmd)
        self._model.close()
