"""Parts of a job on this machine: one process per device, started anew where one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from radvlm_edge import errors
from radvlm_edge.batch.job import Job, Progress, part_path
from radvlm_edge.errors import BackendError, RadvlmError
from radvlm_edge.faults import keep_to_ourselves, where

TRIES = 2
"""How often a film may end its process before it gets an error row."""


@dataclass(frozen=True)
class Device:
    """What one process runs on."""

    gpu: str | None
    """For CUDA_VISIBLE_DEVICES; `None`: leave it as it is."""
    threads: int


@dataclass
class _Child:
    process: SpawnProcess
    connection: Connection
    device: Device
    part: int | None = None
    film: int | None = None
    """Index of the film it reads."""
    used: bool = False


def run(progress: Progress, devices: list[Device], begun: Callable[[], None]) -> None:
    """Do all missing parts; `begun` is called when a film's turn comes.

    Raises what ended a process's work on purpose, BackendError for a process that dies while it starts.
    Whatever ends this process ends the others.
    """
    waiting, deaths, children = deque(progress.missing()), Counter[int](), list[_Child]()
    try:
        while waiting or any(child.part is not None for child in children):
            _hand_out(progress, waiting, children, devices)
            for ready in wait([child.connection for child in children if child.part is not None]):
                child = next(one for one in children if one.connection is ready)
                try:
                    _hear(child, child.connection.recv(), begun)
                except (EOFError, ConnectionResetError):
                    children.remove(child)
                    assert child.part is not None
                    waiting.appendleft(child.part)
                    _bury(progress, child, deaths)
    finally:
        for child in children:
            child.connection.close()  # a child whose parent lets go ends
        for child in children:
            child.process.join(10)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()


def _hand_out(progress: Progress, waiting: deque[int], children: list[_Child], devices: list[Device]) -> None:
    """Give every idle process a part, and start processes while there are devices without one."""
    while waiting:
        idle = next((child for child in children if child.part is None), None)
        if idle is None and len(children) == len(devices):
            return
        if idle is None:
            taken = [id(child.device) for child in children]
            idle = _start(progress, next(one for one in devices if id(one) not in taken))
            children.append(idle)
        try:
            idle.connection.send((waiting[0], progress.deaths()))
        except BrokenPipeError:
            children.remove(idle)  # ended while it had nothing to do: nothing is lost
            if idle.part is None and not idle.used:
                raise BackendError("a process of the batch ended before it began") from None
            continue
        idle.part, idle.film, idle.used = waiting.popleft(), None, True


def _hear(child: _Child, said: tuple[str, Any], begun: Callable[[], None]) -> None:
    kind, value = said
    if kind == "film":
        child.film = value
        begun()
    elif kind == "done":
        child.part = None
    else:
        name, text = value
        raise getattr(errors, name, RadvlmError)(text)


def _bury(progress: Progress, child: _Child, deaths: Counter[int]) -> None:
    child.process.join()
    code = child.process.exitcode or 0
    how = next((one.name for one in signal.Signals if one.value == -code), f"exit code {code}")
    if child.film is None:
        raise BackendError(f"a process of the batch ended while it loaded the bundle ({how})")
    deaths[child.film] += 1
    if deaths[child.film] >= TRIES:
        progress.note_death(child.film, how)


def _start(progress: Progress, device: Device) -> _Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    job = replace(progress.job, options=replace(progress.job.options, threads=device.threads))
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if device.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device.gpu  # read when the child loads CUDA
        process = context.Process(target=_child, args=(theirs, job, str(progress.folder)), daemon=True)
        process.start()
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    theirs.close()
    return _Child(process, ours, device)


def _child(connection: Connection, job: Job, folder: str) -> None:
    """What a process of the batch does: parts as told, each written before it is said to be done."""
    from radvlm_edge.batch.answering import Answering
    from radvlm_edge.batch.rows import table_of, write_part
    from radvlm_edge.runtime.reader import Reader

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and lets go
    keep_to_ourselves()
    _end_with_parent()
    try:
        with Reader.open(job.bundle, job.options) as reader:
            answering = Answering(job, reader)
            while True:
                part, deaths = connection.recv()
                rows = answering.part(part, deaths, lambda index: connection.send(("film", index)))
                write_part(part_path(Path(folder), part), table_of(rows))
                connection.send(("done", part))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except RadvlmError as error:
        connection.send(("failed", (type(error).__name__, str(error))))
    except Exception as error:  # noqa: BLE001 - multiprocessing would print its text, which may quote a header
        connection.send(("failed", ("RadvlmError", f"a fault of the program: {where(error)}")))


def _end_with_parent() -> None:
    """A parent that is killed takes its children with it."""
    sentinel = multiprocessing.parent_process()
    assert sentinel is not None

    def watch() -> None:
        wait([sentinel.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def devices(processes: int | None, threads: int | None, gpus: int) -> list[Device]:
    """One process per GPU, or as many as asked for; CPU threads are shared out unless given."""
    count = processes or max(gpus, 1)
    cpus = len(os.sched_getaffinity(0))
    each = threads or max(cpus // count, 1)
    return [Device(str(index % gpus) if gpus > 1 else None, each) for index in range(count)]
