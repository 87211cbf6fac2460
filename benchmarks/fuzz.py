"""Damaged films, bundles, GGUF headers and requests by the thousand: nothing crashes, hangs or blows up.

    python -m radvlm_edge.benchmarks.fuzz [--inputs 100000] [--seed 0] [--only KIND] [--json OUT]

Every input is made from its kind, the seed and its number (fuzz_inputs.py), so a finding can be made again
with `--only KIND --first NUMBER --inputs 1`. Inputs run one after the other in a process of their kind, which
is watched from outside and started anew where it dies: a crash of a native decoder counts like any other. A
finding is

crash     the process ended (signal or exit code)
hang      an input took more than `Limits.cpu_s` of CPU, or `wall_s` without end
memory    an input made the process grow by more than `memory_bytes`
untyped   an exception that is no RadvlmError, an error text of several lines, a status of 500
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.fuzz_probe import PROBE

SHARES = {"dicom": 45, "picture": 20, "chat": 15, "bundle": 10, "http": 5, "gguf": 5}
"""Of 100 inputs."""
ADDRESS_BYTES = 24 << 30
CHUNK = 200
EXAMPLES = 20


@dataclass(frozen=True)
class Limits:
    """What one input may take."""

    cpu_s: float = 20.0
    wall_s: float = 300.0
    memory_bytes: int = 3 << 30
    """Room for the largest film the service takes: 40 million pixels in several float64 arrays."""


@dataclass
class Found:
    """What inputs of one kind did."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    """The first `EXAMPLES` of them; `outcomes` counts all."""
    peak_bytes: int = 0
    """Most memory a process had resident."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """CPU time of the inputs, the processes' start left out."""

    def finding(self, what: str, number: int, text: str) -> None:
        self.outcomes[what] += 1
        if len(self.findings) < EXAMPLES:
            self.findings.append({"what": what, "number": number, "text": text})


class Runner:
    """A process that runs inputs of one kind, and what is known of it from outside."""

    def __init__(self, kind: str, seed: int, limits: Limits) -> None:
        self.kind, self.seed, self.limits = kind, seed, limits
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._number = context.Value("q", -1, lock=False)
        self._process = context.Process(
            target=_serve, args=(theirs, self._number, kind, seed, limits), daemon=True
        )
        self._process.start()
        theirs.close()

    def run(self, first: int, count: int, found: Found) -> int:
        """Run inputs from `first` on; returns the number of the next to run, less than all after a death."""
        self._number.value, limits = -1, self.limits
        self._ours.send((first, count))
        watched, since_s, since_cpu_s = -1, time.monotonic(), 0.0
        while not self._ours.poll(0.25):
            number = self._number.value
            if number != watched:
                watched, since_s, since_cpu_s = number, time.monotonic(), self._cpu_s()
            elif number >= 0 and (
                self._cpu_s() - since_cpu_s > limits.cpu_s or time.monotonic() - since_s > limits.wall_s
            ):
                self.stop()
                found.finding("hang", number, f"{self.limits}")
                return self._after(number, first, found)
        try:
            said = self._ours.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code, number = self._process.exitcode or 0, self._number.value
            if number < 0:
                raise RuntimeError(
                    f"the process for {self.kind} ended (code {code}) before its first input"
                ) from None
            how = next((one.name for one in signal.Signals if one.value == -code), f"exit code {code}")
            found.finding("crash", number, how)
            return self._after(number, first, found)
        found.inputs += count
        found.outcomes.update(said["outcomes"])
        for one in said["findings"]:
            found.finding(**one)
        found.peak_bytes = max(found.peak_bytes, said["peak_bytes"])
        found.cpu_s += said["cpu_s"]
        return first + count

    def stop(self) -> None:
        self._ours.close()
        self._process.kill()
        self._process.join()

    def _after(self, number: int, first: int, found: Found) -> int:
        # Outcomes of the chunk's inputs before it are lost with the process: they are run again, without it.
        found.inputs += 1
        before = number - first
        if before:
            again = Runner(self.kind, self.seed, self.limits)
            try:
                again.run(first, before, found)
            finally:
                again.stop()
        return number + 1

    def _cpu_s(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(connection: Connection, current: Any, kind: str, seed: int, limits: Limits) -> None:
    """The process: chunks of inputs as told, until nobody tells any more."""
    opened: AbstractContextManager[Callable[[bytes], str]]
    if kind == PROBE:
        from radvlm_edge.benchmarks.fuzz_probe import make, probe_target

        opened = probe_target()
    else:
        from radvlm_edge.benchmarks.fuzz_inputs import make
        from radvlm_edge.benchmarks.fuzz_targets import TARGETS

        opened = TARGETS[kind]()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders and llama.cpp write what they think of an input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else a debugger is started over every abort
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    with opened as target:
        while True:
            try:
                first, count = connection.recv()
            except EOFError:
                os._exit(0)  # threads of a service would wait for their clients
            outcomes: Counter[str] = Counter()
            findings: list[dict[str, Any]] = []
            began_s, peak = time.process_time(), _peak_bytes()
            for number in range(first, first + count):
                content = make(kind, seed, number)
                current.value = number
                try:
                    outcomes[target(content)] += 1
                except Exception as error:  # noqa: BLE001 - that is what is looked for
                    findings.append({"what": "untyped", "number": number, "text": _where(error)})
                held = _peak_bytes()
                if held - peak > limits.memory_bytes:
                    findings.append({"what": "memory", "number": number, "text": f"{held >> 20} MiB"})
                peak = held
            spent_s = time.process_time() - began_s
            connection.send(
                {"outcomes": outcomes, "findings": findings, "peak_bytes": peak, "cpu_s": spent_s}
            )


def _peak_bytes() -> int:
    """Most memory this process ever had resident; getrusage would count its parent's as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _where(error: BaseException) -> str:
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno} ({frame.name}): {text}"


def fuzz(kind: str, inputs: int, seed: int, first: int = 0, limits: Limits = Limits()) -> Found:
    """Run `inputs` inputs of a kind, from number `first` on."""
    found, began, number, end = Found(), time.perf_counter(), first, first + inputs
    runner = Runner(kind, seed, limits)
    try:
        while number < end:
            wanted = min(CHUNK, end - number)
            following = runner.run(number, wanted, found)
            if following != number + wanted or not runner._process.is_alive():
                runner.stop()
                runner = Runner(kind, seed, limits)
            number = following
    finally:
        runner.stop()
    found.seconds = time.perf_counter() - began
    return found


def report(results: dict[str, Found], seed: int) -> dict[str, Any]:
    """Everything as JSON."""
    kinds = {
        kind: {
            "inputs": found.inputs,
            "outcomes": dict(sorted(found.outcomes.items())),
            "findings": found.findings,
            "peak_mib": round(found.peak_bytes / 2**20),
            "cpu_ms_per_input": round(found.cpu_s * 1e3 / max(found.inputs, 1), 2),
            "seconds": round(found.seconds, 1),
        }
        for kind, found in results.items()
    }
    bad = Counter[str]()
    for found in results.values():
        bad.update({what: found.outcomes[what] for what in ("crash", "hang", "memory", "untyped")})
    return {
        "inputs": sum(found.inputs for found in results.values()),
        "seed": seed,
        "findings": dict(bad),
        "limits": asdict(Limits()),
        "kinds": kinds,
        "machine": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "system": platform.machine(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SHARES), help="inputs of this kind alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--json", type=Path, help="write the result here as well; kept up to date meanwhile")
    given = parser.parse_args()
    shares = {given.only: 100} if given.only else SHARES
    results: dict[str, Found] = {}
    for kind, share in shares.items():
        results[kind] = fuzz(kind, given.inputs * share // 100, given.seed, given.first)
        sys.stderr.write(f"{kind}: {dict(results[kind].outcomes)}\n")
        text = json.dumps(report(results, given.seed), indent=1) + "\n"
        if given.json is not None:
            given.json.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit(1 if any(report(results, given.seed)["findings"].values()) else 0)


if __name__ == "__main__":
    main()
