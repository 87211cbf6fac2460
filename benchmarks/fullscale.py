"""Export random weights at the published models' full size: memory, time, bytes, and logits.

    python -m radvlm_edge.benchmarks.fullscale 0.5b WORK -o fullscale-0.5b.json --tokenizer tokenizer.json

WORK needs room for the checkpoint, the bundle and, unless F16 is asked for, an F16 file: 50 GB for 7b.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.memory import run
from radvlm_edge.benchmarks.random_checkpoint import SCALES, write_checkpoint

PUBLISHED_SHARDS_GB = {"7b": (4.91, 4.99, 4.93, 1.23)}
"""KrauthammerLab/RadVLM's files, as its page listed them."""


def measure(
    scale: str,
    work: Path,
    *,
    tokenizer: Path | None = None,
    language: str = "F16,Q8_0,Q4_K_M",
    against_transformers: bool = False,
    keep: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint of `scale`, export it in a process of its own, and say what that took."""
    folder, bundle = work / f"random-{scale}", work / f"random-{scale}.bundle"
    began = time.perf_counter()
    shards = write_checkpoint(SCALES[scale], folder, tokenizer=tokenizer)
    written_s = time.perf_counter() - began
    program = "from radvlm_edge.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "export",
        str(folder),
        "-o",
        str(bundle),
        "--language",
        language,
    ]
    result = run(command)
    if result.status:
        raise SystemExit(f"the export ended with status {result.status}")
    report = {
        "scale": scale,
        "machine": machine() | {"load": os.getloadavg()[0]},
        "checkpoint": {"shard_bytes": shards, "bytes": sum(shards), "write_s": round(written_s, 1)},
        "export": {
            "command": "radvlm-edge export CKPT --language " + language,
            "seconds": round(result.seconds, 1),
            "peak_anonymous_bytes": result.peak_anonymous_bytes,
            "samples": result.samples,
        },
        "bundle_bytes": {
            path.relative_to(bundle).as_posix(): path.stat().st_size
            for path in sorted(bundle.rglob("*"))
            if path.is_file()
        },
        "parity": json.loads((bundle / "parity.json").read_text(encoding="utf-8")),
    }
    if against_transformers:
        report["transformers"] = compare(folder, bundle)
    if not keep:
        shutil.rmtree(folder)
        shutil.rmtree(bundle)
    return report


def compare(folder: Path, bundle: Path) -> dict[str, float]:
    """Logits of the whole model in transformers (float32, from_pretrained) against ours, one prompt.

    The streamed reference must be the same numbers; the F16 artefact is compared in deviations.
    """
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.streaming_reference import language_logits
    from radvlm_edge.runtime.language import LanguageModel

    checkpoint = open_checkpoint(folder)
    rng = np.random.default_rng(5)
    image = rng.standard_normal((32, checkpoint.config.language.hidden)).astype(np.float32) * 0.05
    head, tail = (rng.integers(0, 1000, 12).tolist() for _ in range(2))
    (streamed,) = language_logits(checkpoint, [[head, image, tail]], keep=[1])[0]
    whole = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    embed = whole.get_input_embeddings()
    with torch.no_grad():
        parts = [embed(torch.tensor(head)), torch.from_numpy(image), embed(torch.tensor(tail))]
        hidden = whole.model.language_model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state
        expected = whole.lm_head(hidden[0, -1:]).numpy()[0]
    del whole
    model = LanguageModel(bundle / "language" / "F16.gguf", context=128)
    try:
        model.start([head, image])
        model.prefill(tail)
        ours = model.logits()
    finally:
        model.close()
    real = ~checkpoint.unused
    deviation = float(expected[real].std())
    return {
        "streamed_largest_difference": float(np.abs(streamed - expected)[real].max()) / deviation,
        "f16_largest_difference": float(np.abs(ours - expected)[real].max()) / deviation,
        "same_choice": float(ours.argmax() == expected[real].argmax() == streamed.argmax()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scale", choices=sorted(SCALES))
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--language", default="F16,Q8_0,Q4_K_M")
    parser.add_argument("--against-transformers", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = vars(parser.parse_args())
    out = options.pop("out")
    report = measure(options.pop("scale"), options.pop("work"), **options)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
