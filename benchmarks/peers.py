"""Our runtime beside whoever else can run LLaVA-OneVision here: same checkpoint, film, questions and machine.

    python -m radvlm_edge.benchmarks.peers --geometry radvlm-0.5b --work WORK -o docs/peers-0.5b.json
    python -m radvlm_edge.benchmarks.peers --detail exact --accuracy 40 --work WORK -o docs/peers-nano.json
    python tools/peers_table.py docs/benchmarks.md

WORK keeps random weights, bundle and every finished measurement, one file for each peer and round: the same
command again goes on where it was ended, and does nothing twice. Every peer runs in a process of its own that
may take `--memory-gib` of private memory and `--minutes`; one that cannot is reported with the reason. Rounds
go through all peers in turn, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks import peers_child, targets
from radvlm_edge.benchmarks.bench_film import NAME, drawn_film
from radvlm_edge.benchmarks.latency import machine, summary
from radvlm_edge.benchmarks.peers_setup import MMPROJ, Setup
from radvlm_edge.bundle import demo_bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.vision import available_cpus

FORMAT = 1
OURS = peers_child.OURS
PEERS = (
    OURS,
    "transformers, fp32",
    "transformers, fp32 kept",
    "transformers, bf16",
    "transformers, bf16 kept",
    "llama.cpp multimodal",
)
"""`kept`: as upstream but for the film's K/V, which stays between questions."""
ABSENT = {
    "vLLM": "runs LLaVA-OneVision; its wheels are for CUDA, on a CPU it is built from source",
    "SGLang": "runs LLaVA-OneVision on GPUs",
    "MLX-VLM": "runs LLaVA-OneVision since August 2026, on Apple silicon",
    "transformers.js": "runs published ONNX exports of the 0.5B checkpoint, others with its export scripts",
    "TensorRT Edge-LLM, TensorRT-LLM": "no LLaVA-OneVision in their lists of models",
    "ONNX Runtime GenAI, OpenVINO GenAI, optimum-onnx": "no LLaVA-OneVision",
    "Ollama, LMDeploy, MLC-LLM": "no LLaVA-OneVision",
}
"""Others, and why they are not timed here; from their documentation, not tried."""
CHECKPOINTS = {"nano": None, "radvlm-0.5b": "0.5b", "radvlm-7b": "7b", "eighth": "eighth", "tiny": "tiny"}
GIB = 1 << 30


def prepare(
    geometry: str, work: Path, *, bundle: Path | None, say: Callable[[str], None]
) -> tuple[Path, Path]:
    """Checkpoint and bundle, made in `work` unless they are there; `nano`: those of the sources."""
    scale = CHECKPOINTS[geometry]
    work.mkdir(parents=True, exist_ok=True)
    if scale is None:
        return Path(__file__).parents[1] / "training" / "nano", bundle or demo_bundle()
    from radvlm_edge.benchmarks.random_checkpoint import SCALES, write_checkpoint
    from radvlm_edge.export.exporter import export_checkpoint

    checkpoint, made = work / f"random-{scale}", work / f"random-{scale}.bundle"
    if not checkpoint.exists():
        say(f"writing {checkpoint}")
        new = checkpoint.with_name(f"new-{checkpoint.name}")
        shutil.rmtree(new, ignore_errors=True)  # of a run that was ended
        write_checkpoint(SCALES[scale], new)
        new.rename(checkpoint)
    if bundle is None and not made.exists():
        say(f"exporting {made}")
        export_checkpoint(checkpoint, made, resume=True)
    return checkpoint, bundle or made


def measure(
    setup: Setup,
    *,
    peers: Sequence[str] = PEERS,
    rounds: int = 3,
    memory_bytes: int = 20 * GIB,
    limit_s: float = 3600,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run what has not been run yet; figures of all rounds together. Failures are told, not kept."""
    work = Path(setup.work)
    _write_mmproj(setup)
    folder = work / f"peers-{_key(setup)}"
    folder.mkdir(exist_ok=True)
    failed: dict[str, str] = {}
    for round_ in range(rounds):
        for name in peers:
            out = folder / f"{name.replace(' ', '-').replace(',', '').replace('.', '')}-{round_}.json"
            if out.exists() or name in failed:
                continue
            say(f"round {round_ + 1} of {rounds}: {name}")
            try:
                _run(name, setup, out, memory_bytes, limit_s, extras=round_ == 0)
            except BackendError as error:
                failed[name] = str(error)
                say(f"{name}: {error}")
    found = {name: _rounds(folder, name) for name in peers}
    return {
        "format": FORMAT,
        "machine": machine(),
        "setup": {
            k: v for k, v in asdict(setup).items() if k not in ("checkpoint", "bundle", "work", "film")
        },
        "rounds": rounds,
        "peers": {name: _merged(rows) for name, rows in found.items() if rows},
        "failed": failed,
        "absent": ABSENT,
    }


def _key(setup: Setup) -> str:
    """Measurements of another setup, film or bundle are others."""
    facts = {k: v for k, v in asdict(setup).items() if k != "work"}
    facts["bundle"] = json.loads((Path(setup.bundle) / "bundle.json").read_text("utf-8"))["source"]
    facts["bytes"] = hashlib.sha256(Path(setup.film).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _write_mmproj(setup: Setup) -> None:
    from radvlm_edge.benchmarks.peers_mmproj import write_mmproj
    from radvlm_edge.export.checkpoint import open_checkpoint

    new = setup.mmproj_file().with_name(f"new-{MMPROJ}")
    write_mmproj(open_checkpoint(Path(setup.checkpoint)), new, setup.geometry.pinpoints)
    new.replace(setup.mmproj_file())


def _run(name: str, setup: Setup, out: Path, memory_bytes: int, limit_s: float, *, extras: bool) -> None:
    """One peer's process; its file is there when it ended well. Raises BackendError with its last line."""
    part = out.with_suffix(".part")
    command = peers_child.command(name, setup, part, memory_bytes, extras=extras)
    environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"took longer than {limit_s / 60:.0f} minutes") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise BackendError(last)
    part.replace(out)


def _rounds(folder: Path, name: str) -> list[dict[str, Any]]:
    stem = name.replace(" ", "-").replace(",", "").replace(".", "")
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{stem}-[0-9]*.json"))]


def _merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of a peer: times as minimum, median and 95th percentile."""
    seconds = [one for row in rows for one in row["second"]]
    found = {
        "rounds": len(rows),
        "load_ms": summary([row["load_ms"] for row in rows]),
        "cold_first_ms": summary([row["cold"]["first_ms"] for row in rows]),
        "cold_total_ms": summary([row["cold"]["total_ms"] for row in rows]),
        "second_first_ms": summary([one["first_ms"] for one in seconds]),
        "second_total_ms": summary([one["total_ms"] for one in seconds]),
        "decode_tokens_per_s": summary([row["decode_tokens_per_s"] for row in rows]),
        "peak_bytes": max(row["peak_bytes"] for row in rows),
        "load_average": [row["machine"]["load_average"][0] for row in rows],
        "about": rows[-1]["about"],
    }
    for part in ("extras", "accuracy"):
        kept = next((row[part] for row in rows if part in row), None)
        if kept is not None:
            found[part] = kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--geometry", choices=sorted(CHECKPOINTS), default="nano")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps everything (0.5b: 8 GB)")
    parser.add_argument("--bundle", type=Path, help="a bundle of that checkpoint, exported otherwise")
    parser.add_argument("--film", type=Path, help="[default: a drawn one, 2544x3056]")
    parser.add_argument("--detail", default="768", help="of the film, for all peers")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accuracy", type=int, default=0, help="films of the frozen suite to be asked about")
    parser.add_argument("--peers", help="some of them, separated by `;`")
    parser.add_argument("--options", default="{}", help="JSON: further options of our reader")
    parser.add_argument("--memory-gib", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=60, help="for one peer and round")
    parser.add_argument("-o", "--out", type=Path, help="[default: stdout]")
    given = parser.parse_args()
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731, T201
    checkpoint, bundle = prepare(given.geometry, given.work, bundle=given.bundle, say=say)
    film = given.film or given.work / "film.dcm"
    if given.film is None and not film.exists():
        film.write_bytes(drawn_film())
    setup = Setup(
        checkpoint=str(checkpoint.resolve()),
        bundle=str(bundle.resolve()),
        work=str(given.work.resolve()),
        film=str(film.resolve()),
        detail=given.detail,
        threads=given.threads,
        accuracy_films=given.accuracy,
        options=json.loads(given.options),
    )
    names = tuple(part.strip() for part in given.peers.split(";")) if given.peers else PEERS
    result = measure(
        setup,
        peers=names,
        rounds=given.rounds,
        memory_bytes=int(given.memory_gib * GIB),
        limit_s=given.minutes * 60,
        say=say,
    )
    result |= {"geometry": given.geometry, "film": NAME if given.film is None else "the caller's"}
    result["targets"] = targets.judge(result, startup=targets.startup(film))
    text = json.dumps(result, indent=1) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
