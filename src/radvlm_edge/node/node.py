"""A running node: folder, queue, provider, model and sender, and their orderly end."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from radvlm_edge.audit import AuditLog
from radvlm_edge.errors import NodeError
from radvlm_edge.node.folder import Folder
from radvlm_edge.node.identity import Aliases
from radvlm_edge.node.questions import Questions
from radvlm_edge.node.queue import Queue
from radvlm_edge.node.scp import Receiver
from radvlm_edge.node.send import Sender
from radvlm_edge.node.settings import Settings
from radvlm_edge.node.trouble import hush
from radvlm_edge.node.work import Worker
from radvlm_edge.runtime.reader import Reader

log = logging.getLogger("radvlm_edge.node")

STOP_S = 20.0
"""A film under way may take this long after the signal to stop; it is begun anew otherwise."""


class Node:
    """Everything at work in one folder."""

    def __init__(
        self,
        reader: Reader,
        settings: Settings,
        questions: Questions | None = None,
        *,
        any_view: bool = False,
        audit: AuditLog | None = None,
    ) -> None:
        """Take the folder and find out what waits in it. Raises NodeError where that cannot be."""
        hush()
        settings.check()
        questions = questions or Questions()
        questions.check(reader.bundle.manifest.prompting)
        self.folder = Folder(settings.folder)
        try:
            self.queue = Queue(self.folder.queue)
        except BaseException:
            self.folder.close()
            raise
        self.folder.sweep(self.queue.files())
        self._sender = Sender(settings, self.folder, self.queue)
        self._worker = Worker(
            reader,
            questions,
            settings,
            self.folder,
            self.queue,
            self._sender.wake,
            any_view=any_view,
            audit=audit,
        )
        self._receiver = Receiver(settings, self.folder, self.queue, self._worker.wake)

    def start(self) -> int:
        """Begin to work; returns the port films are taken on. Raises NodeError if it cannot be had."""
        port = self._receiver.start()
        self._worker.start()
        self._sender.start()
        return port

    def stop(self, wait_s: float = STOP_S) -> None:
        """Take no more films, finish the one under way, and end."""
        self._receiver.stop()
        finished = self._worker.stop(wait_s)
        self._sender.stop(wait_s)
        if finished:  # else its thread may still write to both
            self.queue.close()
            self.folder.close()


def run(
    reader: Reader,
    settings: Settings,
    questions: Questions,
    ready: Callable[[int], None],
    *,
    any_view: bool = False,
    audit: AuditLog | None = None,
) -> None:
    """Work until SIGTERM or SIGINT; `ready` is called with the port when films are taken."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    node = Node(reader, settings, questions, any_view=any_view, audit=audit)
    kept = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ready(node.start())
        stop.wait()
    finally:
        node.stop()
        for number, handler in kept.items():
            signal.signal(number, handler)


def status(folder: Path, *, revive: bool = False) -> dict[str, Any]:
    """What is in a node's folder, with films under their log aliases; `revive`: send dead letters again.

    Reads beside a running node. Raises NodeError where there is no queue.
    """
    path = folder / "queue.sqlite"
    if not path.is_file():
        raise NodeError(f"{folder}: no node has worked there; name its --folder")
    with contextlib.closing(Queue(path, owner=False)) as queue:
        alias = Aliases(queue.salt)
        revived = queue.revive() if revive else 0
        dead = [{"film": alias(uid), "kind": kind, "problem": why} for uid, kind, why in queue.dead()]
        return {**queue.counts(), "dead": dead, "revived": revived}
