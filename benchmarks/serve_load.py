"""Many clients at once against a real service on this machine: nothing lost, bounded memory, latencies.

    python -m radvlm_edge.benchmarks.serve_load [--seconds 600] [--clients 64] [--queue 16] [--json OUT]

Starts `radvlm-edge serve` as a process of its own. First one client alone asks every question; its answers
are what all others must get. Then every client uploads a film and asks about it, one question after another;
told 429, it waits as long as `Retry-After` says and asks again. At the end the service's own counts are
compared with what the clients saw, and it is told to stop.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from radvlm_edge.benchmarks.memory import anonymous_bytes

QUESTIONS = ("any effusion?", "Is there a pacemaker?", "Is there cardiomegaly?", "Is the heart enlarged?")
FILMS = 4
PATIENCE_S = 600.0
GROWTH = 1.25
"""Most the memory of the second half may exceed that of the first, once every film has been seen."""


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    """Of answers, from the request's first byte to the reply's last; refusals are not in it."""
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    without_retry_after: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, status: int, took_ms: float | None = None) -> None:
        with self._lock:
            self.statuses[f"{what} {status}"] += 1
            if took_ms is not None:
                self.latencies_ms.append(took_ms)

    def complain(self, where: list[str], text: str) -> None:
        with self._lock:
            where.append(text)


class Client:
    """One connection to the service, kept open."""

    def __init__(self, port: int, tally: Tally, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self._tally, self._model = tally, model

    def upload(self, film: bytes, until_s: float) -> str | None:
        record = self._post("upload", "/v1/studies", "image/png", film, until_s)
        return None if record is None else str(record["id"])

    def ask(self, study: str, question: str, until_s: float) -> str | None:
        image = {"type": "image_url", "image_url": {"url": f"study:{study}"}}
        message = {"role": "user", "content": [image, {"type": "text", "text": question}]}
        body = json.dumps({"model": self._model, "messages": [message]}).encode()
        record = self._post("chat", "/v1/chat/completions", "application/json", body, until_s)
        return None if record is None else str(record["choices"][0]["message"]["content"])

    def close(self) -> None:
        self._connection.close()

    def _post(self, what: str, path: str, media: str, body: bytes, until_s: float) -> dict[str, Any] | None:
        """The reply; `None` where the time was over before the service had room."""
        while time.monotonic() < until_s:
            began = time.perf_counter()
            self._connection.request("POST", path, body, {"Content-Type": media})
            reply = self._connection.getresponse()
            content = reply.read()
            took_ms = (time.perf_counter() - began) * 1e3
            good = reply.status in (200, 201)
            self._tally.note(what, reply.status, took_ms if good and what == "chat" else None)
            if good:
                record: dict[str, Any] = json.loads(content)
                return record
            if reply.status != 429:
                raise ValueError(f"{what}: status {reply.status}: {content[:200]!r}")
            wait = reply.getheader("Retry-After")
            self._tally.without_retry_after += wait is None
            time.sleep(max(min(float(wait or 1), until_s - time.monotonic()), 0.0))
        return None


def film(number: int) -> bytes:
    """A drawn film, small: the service is under load, not the decoder."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 230, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((320, 384), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def expected(port: int, model: str) -> dict[tuple[int, str], str]:
    """Answers by (film, question) as one client alone gets them."""
    client, end, found = Client(port, Tally(), model), time.monotonic() + PATIENCE_S, {}
    for number in range(FILMS):
        study = client.upload(film(number), end)
        assert study is not None
        for question in QUESTIONS:
            answer = client.ask(study, question, end)
            assert answer is not None
            found[number, question] = answer
    client.close()
    return found


def _client(
    port: int, number: int, until_s: float, tally: Tally, answers: dict[tuple[int, str], str]
) -> None:
    which, turn = number % FILMS, number
    client = Client(port, tally, "radvlm-nano")
    try:
        study = client.upload(film(which), until_s)
        while study is not None and time.monotonic() < until_s:
            question = QUESTIONS[turn % len(QUESTIONS)]
            turn += 1
            answer = client.ask(study, question, until_s)
            if answer is not None and answer != answers[which, question]:
                tally.complain(tally.wrong, f"film {which}, {question}: {answer[:80]}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        tally.complain(tally.lost, f"client {number}: {type(error).__name__}: {error}")
    finally:
        client.close()


def load(port: int, pid: int, *, clients: int, seconds: float) -> dict[str, Any]:
    """Run the clients and gather what happened."""
    answers, tally = expected(port, "radvlm-nano"), Tally()
    before = _counts(port)
    until_s, memory = time.monotonic() + seconds, list[int]()
    threads = [
        threading.Thread(target=_client, args=(port, number, until_s, tally, answers))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(anonymous_bytes(pid))
        time.sleep(min(1.0, seconds / 20))
    for thread in threads:
        thread.join()
    after = _counts(port)
    served = {key: int(after[key] - before[key]) for key in after if after[key] - before[key]}
    return _summary(tally, served, memory) | {"clients": clients, "seconds": seconds}


def _summary(tally: Tally, served: dict[str, int], memory: list[int]) -> dict[str, Any]:
    half = len(memory) // 2
    first, second = max(memory[:half] or [0]), max(memory[half:] or [0])
    took = np.array(tally.latencies_ms or [float("nan")])
    return {
        "answers": len(tally.latencies_ms),
        "statuses": dict(sorted(tally.statuses.items())),
        "counted_by_the_service": dict(sorted(served.items())),
        "lost": tally.lost[:20],
        "wrong_answers": tally.wrong[:20],
        "refusals_without_retry_after": tally.without_retry_after,
        "latency_ms": {name: round(float(np.quantile(took, q)), 1) for name, q in
                       (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("longest", 1.0))},
        "memory_mib": {"first_half": first >> 20, "second_half": second >> 20},
        "verdict": {
            "nothing_lost": not tally.lost and tally.statuses == Counter(served),
            "answers_as_alone": not tally.wrong,
            "refused_only_by_429": not tally.lost and not tally.without_retry_after,
            "memory_bounded": second <= first * GROWTH,
        },
    }  # fmt: skip


def _counts(port: int) -> Counter[str]:
    """Requests the service counted, as `chat 200`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r'radvlm_requests_total\{endpoint="(chat|upload)",status="(\d+)"\} ([\d.e+]+)', page)
    return Counter({f"{endpoint} {status}": int(float(count)) for endpoint, status, count in found})


@contextmanager
def service(*options: str) -> Iterator[tuple[int, int, subprocess.Popen[str]]]:
    """Port, process id and process of a service; stopped as a service manager would."""
    command = [
        sys.executable,
        "-c",
        "from radvlm_edge.cli import main; main()",
        "serve",
        "--port",
        "0",
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if "serving on" not in line:
                raise RuntimeError(f"the service did not start: {line.strip()}")
            yield int(line.rpartition(":")[2]), process.pid, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    given = parser.parse_args()
    options = [
        "--queue",
        str(given.queue),
        "--studies",
        str(2 * given.clients + FILMS),
        "--timeout",
        str(PATIENCE_S),
    ]
    options += ["--threads", str(given.threads)] if given.threads else []
    with service(*options) as (port, pid, process):
        result = load(port, pid, clients=given.clients, seconds=given.seconds)
    result |= {"queue": given.queue, "exit_code": process.returncode}
    result["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps(result, indent=1) + "\n"
    if given.json is not None:
        given.json.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit(0 if all(result["verdict"].values()) and process.returncode == 0 else 1)


if __name__ == "__main__":
    main()
