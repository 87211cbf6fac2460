"""One peer in a process of its own, bounded in memory: loads, warms up, is timed, writes JSON and ends.

python -m radvlm_edge.benchmarks.peers_child PEER SETUP_JSON OUT
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.bench_cases import FIRST_QUESTION, SECOND_QUESTION
from radvlm_edge.benchmarks.bench_child import peak_bytes
from radvlm_edge.benchmarks.bench_film import drawn_film
from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.peers_setup import Asked, Peer, Setup, Written

OURS = "radvlm-edge"
ENOUGH_MS = 20_000.0
"""Second questions are not repeated beyond this: from the pixels on each takes as long as the first."""


def open_peer(name: str, setup: Setup) -> Peer:
    """A peer by its name in `peers.PEERS`."""
    engine, _, rest = name.partition(", ")
    if engine == OURS:
        from radvlm_edge.benchmarks.peers_ours import OursPeer

        return OursPeer(setup)
    if engine == "llama.cpp multimodal":
        from radvlm_edge.benchmarks.peers_llama import LlamaPeer

        return LlamaPeer(setup)
    from radvlm_edge.benchmarks.peers_transformers import open_peer as open_transformers

    return open_transformers(setup, rest)


def measure(name: str, setup: Setup, *, extras: bool = True) -> dict[str, Any]:
    """Times and answers of one peer. The small film before is not counted: weights come from disk with it."""
    peer = open_peer(name, setup)
    try:
        film, answer = Path(setup.film), Written(setup.answer_tokens)
        peer.cold(drawn_film(330, 330), FIRST_QUESTION, Written(2))
        cold = peer.cold(film.read_bytes(), FIRST_QUESTION, answer)
        about, second = peer.describe(), [peer.again(SECOND_QUESTION, answer)]
        while len(second) < setup.repeats and sum(one.total_ms for one in second) < ENOUGH_MS:
            second.append(peer.again(SECOND_QUESTION, answer))
        long = peer.again(SECOND_QUESTION, Written(setup.decode_tokens))
        found: dict[str, Any] = {
            "peer": name,
            "machine": machine(),
            "load_ms": round(peer.load_ms, 1),
            "cold": _times(cold),
            "second": [_times(one) for one in second],
            "about": about,
            "decode_tokens_per_s": round((long.tokens - 1) / (long.total_ms - long.first_ms) * 1e3, 3),
            "peak_bytes": peak_bytes(),
        }
        if setup.accuracy_films:
            found["accuracy"] = _accuracy(peer, setup.accuracy_films)
        if extras:
            if setup.accuracy_films:  # other films have been looked at since
                peer.cold(film.read_bytes(), FIRST_QUESTION, Written(1))
            found["extras"] = peer.extras(setup, film)
        return found
    finally:
        peer.close()


def _times(asked: Asked) -> dict[str, float]:
    """Without the text: of random weights it says nothing, of a patient's film it is not kept."""
    return {
        "first_ms": round(asked.first_ms, 2),
        "total_ms": round(asked.total_ms, 2),
        "tokens": asked.tokens,
    }


def _accuracy(peer: Peer, films: int) -> dict[str, Any]:
    """Yes/no questions of the frozen suite's first phantoms: how many right, every answer's first word."""
    import io

    from PIL import Image

    from radvlm_edge.benchmarks.nano_suite import phantoms

    words, right = [], 0
    for pixels, items in phantoms(films):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        asked = [item for item in items if item.task == "yesno"]
        for index, item in enumerate(asked):
            written = Written(24, stop=True)
            given = (
                peer.cold(png.getvalue(), item.question, written)
                if index == 0
                else peer.again(item.question, written)
            )
            word = given.text.split(" ")[0].strip(".,").lower()
            words.append(word if word in ("yes", "no") else "other")
            right += words[-1] == ("yes" if item.truth else "no")
    return {"films": films, "questions": len(words), "right": right, "words": words}


def bound_memory(most_bytes: int) -> None:
    """Refuse this process more private memory (Linux counts mapped files apart)."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def main() -> None:
    name, setup, out, memory, extras = sys.argv[1:]
    bound_memory(int(memory))
    found = measure(name, Setup(**json.loads(setup)), extras=extras == "extras")
    Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def command(name: str, setup: Setup, out: Path, memory_bytes: int, *, extras: bool) -> list[str]:
    """How the parent starts it."""
    flags = [str(memory_bytes), "extras" if extras else "times"]
    module = "radvlm_edge.benchmarks.peers_child"
    return [sys.executable, "-m", module, name, json.dumps(asdict(setup)), str(out), *flags]


if __name__ == "__main__":
    main()
