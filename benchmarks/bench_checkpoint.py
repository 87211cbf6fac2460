"""The checkpoint itself in transformers, float32, in a bundle's cases. Needs the torch world."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer  # type: ignore[import-untyped]
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from radvlm_edge.benchmarks.bench_cases import (
    COLD,
    FIRST_QUESTION,
    REPORT,
    REPORT_TOKENS,
    SECOND,
    SECOND_QUESTION,
    Run,
)
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.reference import build_reference, image_features
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.film import load_film


class CheckpointRunner:
    """transformers as the paper's own evaluation uses it: every question starts from the pixels again."""

    name = "checkpoint, transformers fp32"

    def __init__(
        self, folder: Path, film: bytes, threads: int, max_tokens: int, report_tokens: int = REPORT_TOKENS
    ):
        torch.set_num_threads(threads)
        began = time.perf_counter()
        self.checkpoint = open_checkpoint(folder)
        self.model = build_reference(self.checkpoint)
        self.load_ms = (time.perf_counter() - began) * 1e3
        self.tokenizer = Tokenizer.from_str(json.dumps(self.checkpoint.tokenizer))
        self.processor = LlavaOnevisionImageProcessor(**self.checkpoint.processor)
        self.newline = self.checkpoint.tensor("image_newline").float().numpy()
        self.film, self.max_tokens, self.report_tokens = film, max_tokens, report_tokens

    def describe(self) -> dict[str, Any]:
        """What the times are of."""
        return {
            "engines": {"vision": "transformers", "language": "transformers"},
            "vision": "fp32",
            "language": "fp32",
            "detail": "exact",
            "load_ms": round(self.load_ms, 2),
            "bytes": {"weights": sum(p.numel() * p.element_size() for p in self.model.parameters())},
        }

    def run(self, case: str) -> Run | None:
        """Do one case; `None` for one that is not a single question."""
        questions = {COLD: FIRST_QUESTION, SECOND: SECOND_QUESTION, REPORT: prompts.task_question("report")}
        if case not in questions:
            return None
        return self._ask(questions[case], self.report_tokens if case == REPORT else None)

    def _ask(self, question: str, exactly: int | None) -> Run:
        marks = [time.perf_counter()]
        pixels = load_film(self.film).pixels
        marks.append(time.perf_counter())
        picture = Image.fromarray(pixels).convert("RGB")
        views = self.processor(picture, return_tensors="pt")["pixel_values"][0]
        height, width = pixels.shape
        layout = crops.plan(height, width, self.checkpoint.config.geometry)
        marks.append(time.perf_counter())
        features = image_features(self.model, views).numpy()
        image = anyres.pack(features, layout, self.newline)
        marks.append(time.perf_counter())
        prefilled, ids, prefill_s, decode_s = self._generate(question, image, exactly)
        began = time.perf_counter()
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        detokenise_s = time.perf_counter() - began
        names = ("DICOM", "crops", "vision")
        parts = {name: (b - a) * 1e3 for name, a, b in zip(names, marks, marks[1:], strict=False)}
        stopped = bool(ids) and ids[-1] in self.checkpoint.prompting.stop_ids
        return Run(
            {
                **parts,
                "prefill": prefill_s * 1e3,
                "decode": decode_s * 1e3,
                "detokenise": detokenise_s * 1e3,
            },
            {
                "crops": layout.crops,
                "image_tokens": layout.image_tokens,
                "prefilled": prefilled,
                "steps": len(ids),
                "tokens": len(ids) - (stopped and exactly is None),
            },
            text,
        )

    @torch.no_grad()
    def _generate(
        self, question: str, image: np.ndarray[Any, Any], exactly: int | None
    ) -> tuple[int, list[int], float, float]:
        """Greedy decoding behind one prefill, K and V kept; tokens prefilled, ids, seconds of both."""
        began = time.perf_counter()
        head, tail = prompts.render([prompts.Turn(question)], self.checkpoint.prompting)
        embed = self.model.get_input_embeddings()
        before, behind = (
            embed(torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.long))
            for text in (head, tail)
        )
        whole = torch.cat([before, torch.from_numpy(image), behind])[None]
        language = self.model.model.language_model
        state = language(inputs_embeds=whole, use_cache=True)
        used = torch.from_numpy(~self.checkpoint.unused)
        token = self._best(state.last_hidden_state, used)
        prefilled_at = time.perf_counter()
        ids = [token]
        stop_ids = () if exactly else self.checkpoint.prompting.stop_ids
        while len(ids) < (exactly or self.max_tokens) and token not in stop_ids:
            state = language(
                inputs_embeds=embed(torch.tensor([[token]])),
                past_key_values=state.past_key_values,
                use_cache=True,
            )
            token = self._best(state.last_hidden_state, used)
            ids.append(token)
        return whole.shape[1], ids, prefilled_at - began, time.perf_counter() - prefilled_at

    def _best(self, hidden: torch.Tensor, used: torch.Tensor) -> int:
        logits = self.model.lm_head(hidden[0, -1])
        return int(torch.where(used, logits, -torch.inf).argmax())
