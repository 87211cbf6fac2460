"""Prefill of image tokens by every engine, interleaved, random weights at a published model's size.

    python -m radvlm_edge.benchmarks.prefill --geometry radvlm-0.5b --tokens 729,3159 --work WORK -o OUT.json

WORK keeps checkpoint, language artefacts and graphs for the next run (0.5b: 6 GB); without it they are made
in a temporary folder. What is timed is all `Reader.look` does for a prefill: llama.cpp's own, or
reading llama.cpp's state, the graph in chunks, writing the state and giving it back.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # llama.cpp's waiting threads would slow the others

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.random_checkpoint import SCALES, write_checkpoint
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.prefill import CHUNK, SplitPrefill, form_of
from radvlm_edge.runtime.prefill_choice import anonymous_bytes
from radvlm_edge.runtime.prefill_onnx import OnnxPrefill
from radvlm_edge.runtime.prefill_openvino import OpenvinoPrefill

Floats = npt.NDArray[np.float32]

GEOMETRIES = {"radvlm-0.5b": "0.5b", "radvlm-7b": "7b", "eighth": "eighth"}
HEAD = 16
"""Tokens before the image."""


@dataclass
class Variant:
    """One way to prefill, loaded."""

    name: str
    model: LanguageModel
    split: SplitPrefill | None
    memory_bytes: int
    """What loading it took beside the language artefact."""

    def seconds(self, head: list[int], image: Floats) -> float:
        """Time from the tokens before the image being there to those of the image being there."""
        self.model.clear()
        self.model.split = None
        self.model.start([head])
        self.model.split = self.split
        began = time.perf_counter()
        self.model.start([head, image])
        took_s = time.perf_counter() - began
        if self.model.notes:
            raise BackendError(self.model.notes[0])
        return took_s


def measure(
    geometry: str,
    tokens: Sequence[int],
    work: Path,
    *,
    language: Sequence[str] = ("Q8_0", "Q4_0"),
    graphs: Sequence[str] = ("fp32", "int8"),
    repeats: int = 5,
    threads: int | None = None,
    chunk: int = CHUNK,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Seconds and tokens a second of every variant; a warm-up each, then `repeats` rounds through all."""
    files = make_files(geometry, work, language, graphs, say)
    scale = SCALES[GEOMETRIES[geometry]]
    rng = np.random.default_rng(3)
    image = rng.standard_normal((max(tokens), scale.geometry.embed_dim)).astype(np.float32) * 0.05
    head = list(range(HEAD))
    variants = _open(files, scale.geometry, max(tokens) + HEAD + 8, threads, chunk, say)
    results = []
    try:
        for count in tokens:
            times: dict[str, list[float]] = {variant.name: [] for variant in variants}
            for round_ in range(1 + repeats):
                for variant in variants:
                    took_s = variant.seconds(head, image[:count])
                    if round_:
                        times[variant.name].append(took_s)
                say(f"{count} tokens: round {round_} of {repeats}")
            results.append({"tokens": count, "variants": {n: summary(t, count) for n, t in times.items()}})
    finally:
        for model in {id(v.model): v.model for v in variants}.values():
            model.close()
    return {
        "geometry": geometry,
        "machine": machine() | {"load": os.getloadavg()[0]},
        "threads": threads,
        "chunk": chunk,
        "repeats": repeats,
        "memory_mib": {v.name: round(v.memory_bytes / 2**20, 1) for v in variants},
        "results": results,
    }


def summary(times: Sequence[float], tokens: int) -> dict[str, float]:
    """Seconds, and tokens a second at the median and at best."""
    ordered = sorted(times)
    median = statistics.median(ordered)
    return {
        "min_s": round(ordered[0], 3),
        "median_s": round(median, 3),
        "p95_s": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "median_tokens_per_s": round(tokens / median, 1),
        "best_tokens_per_s": round(tokens / ordered[0], 1),
    }


def _open(
    files: dict[str, Path],
    geometry: Any,
    context: int,
    threads: int | None,
    chunk: int,
    say: Callable[[str], None],
) -> list[Variant]:
    """llama.cpp with every language artefact, and every graph in every engine before the first of them."""
    variants: list[Variant] = []
    for name, path in files.items():
        if path.suffix == ".gguf":
            before = anonymous_bytes()
            model = LanguageModel(path, context=context, threads=threads)
            variants.append(Variant(f"llama.cpp {name}", model, None, anonymous_bytes() - before))
    host = variants[0].model
    form = form_of(host.engine, geometry.layers, geometry.kv_heads * geometry.head_dim)
    engines: dict[str, Callable[[Path], Any]] = {
        "onnxruntime": partial(OnnxPrefill, threads=threads),
        "openvino": partial(OpenvinoPrefill, threads=threads),
        "openvino, calibrated scales": partial(OpenvinoPrefill, threads=threads, group=0),
    }
    for name, path in files.items():
        for engine, open_engine in engines.items():
            if path.suffix != ".onnx" or ("scales" in engine and name != "int8"):
                continue
            before = anonymous_bytes()
            try:
                split = SplitPrefill(open_engine(path), form, chunk=chunk)
            except BackendError as error:
                say(str(error))
                continue
            variants.append(Variant(f"{engine} {name}", host, split, anonymous_bytes() - before))
    return variants


def make_files(
    geometry: str, work: Path, language: Sequence[str], graphs: Sequence[str], say: Callable[[str], None]
) -> dict[str, Path]:
    """Language artefacts and graphs of random weights by precision; those in `work` already are used."""
    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.language import quantise, write_f16
    from radvlm_edge.export.prefill import write_prefill
    from radvlm_edge.export.prefill_int8 import write_int8

    folder = work / f"random-{GEOMETRIES[geometry]}"
    if not folder.exists():
        say(f"writing {folder}")
        write_checkpoint(SCALES[GEOMETRIES[geometry]], folder)
    checkpoint = open_checkpoint(folder)

    def made(path: Path, write: Callable[[Path], None]) -> Path:
        if not path.exists():
            say(f"writing {path}")
            write(path.with_name(f"new-{path.name}") if path.suffix == ".gguf" else path)
            if path.suffix == ".gguf":
                path.with_name(f"new-{path.name}").replace(path)
        return path

    stem = f"{GEOMETRIES[geometry]}"
    f16 = made(work / f"{stem}-F16.gguf", partial(write_f16, checkpoint))
    files = {
        precision: f16
        if precision == "F16"
        else made(work / f"{stem}-{precision}.gguf", partial(quantise, f16, precision=precision))
        for precision in language
    }
    for precision in graphs:
        write = partial(write_prefill, checkpoint, precision)
        if precision == "int8":
            write = partial(_write_int8, checkpoint, write_int8)
        files[precision] = made(work / f"{stem}-{precision}.onnx", write)
    return files


def _write_int8(checkpoint: Any, write: Callable[..., None], path: Path) -> None:
    """With scales from the largest values of random image tokens: speed does not depend on them."""
    from radvlm_edge.export.int8_table import Group, Table
    from radvlm_edge.export.prefill_graph import source
    from radvlm_edge.export.prefill_int8 import PREFILL_GROUPS
    from radvlm_edge.export.shared_prefix import Sequences, stream_hidden

    largest: dict[str, float] = {}

    def observe(film: int, start: int, name: str, values: Any) -> None:
        largest[name] = max(largest.get(name, 0.0), float(values.abs().max()))

    language = checkpoint.config.language
    image = np.random.default_rng(3).standard_normal((64, language.hidden)).astype(np.float32) * 0.05
    stream_hidden(checkpoint, [Sequences([0], image, [[0]])], observe=observe)
    groups = {
        f"layers.{index}.{kind}": Group(
            {"minmax": largest[source(f"layers.{index}.{linears[0]}.weight")]}, "minmax"
        )
        for index in range(language.layers)
        for kind, linears in PREFILL_GROUPS.items()
    }
    write(checkpoint, Table("random", groups), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="radvlm-0.5b")
    parser.add_argument("--tokens", default="729,3159", help="numbers of image tokens")
    parser.add_argument("--language", default="Q8_0,Q4_0", help="language artefacts")
    parser.add_argument("--graphs", default="fp32,int8", help="prefill artefacts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--work", type=Path, help="folder that keeps the files")
    parser.add_argument("-o", "--out", type=Path, help="[default: stdout]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        work = options.work or Path(spare)
        work.mkdir(parents=True, exist_ok=True)
        report = measure(
            options.geometry,
            [int(count) for count in options.tokens.split(",")],
            work,
            language=options.language.split(","),
            graphs=options.graphs.split(","),
            repeats=options.repeats,
            threads=options.threads,
            chunk=options.chunk,
            say=lambda line: print(line, file=sys.stderr),  # noqa: T201
        )
    text = json.dumps(report, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
