"""Results out: C-STORE to the one configured peer until it has them, or they are dead letters."""

from __future__ import annotations

import io
import logging
import threading
import time

import pydicom
from pydicom.uid import (
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association

from radvlm_edge.node.folder import Folder
from radvlm_edge.node.identity import Aliases
from radvlm_edge.node.queue import Queue, QueuedResult
from radvlm_edge.node.settings import Settings
from radvlm_edge.node.trouble import where
from radvlm_edge.runtime.dicom import DAMAGE

log = logging.getLogger("radvlm_edge.node")

CLASSES = {
    "sr": Comprehensive3DSRStorage,
    "gsps": GrayscaleSoftcopyPresentationStateStorage,
    "capture": SecondaryCaptureImageStorage,
}
IDLE_S = 1.0
FAULT_S = 30.0
"""Pause after a fault of our own, e.g. a queue that cannot be written; what was sent is then sent again."""


class Sender:
    """Sends results in the order they were made, on a thread of its own."""

    def __init__(self, settings: Settings, folder: Folder, queue: Queue) -> None:
        self._settings, self._folder, self._queue = settings, folder, queue
        self._alias = Aliases(queue.salt)
        self._tls = settings.client_tls()
        self._entity = AE(settings.ae)
        self._entity.connection_timeout = self._entity.acse_timeout = settings.wait_s
        self._entity.dimse_timeout = self._entity.network_timeout = settings.wait_s
        for stored in CLASSES.values():
            self._entity.add_requested_context(stored, ImplicitVRLittleEndian)
        self._awake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="send", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Results have been made."""
        self._awake.set()

    def stop(self, wait_s: float) -> None:
        self._stopping = True
        self._awake.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stopping:
            try:
                due = self._queue.due()
                if due:
                    self._send(due)
                pause_s = 0.0 if due else IDLE_S
            except Exception as error:  # noqa: BLE001 - results stay in the queue; the thread must live
                log.error("results could not be sent: %s", where(error))
                pause_s = FAULT_S
            if pause_s:
                self._awake.wait(pause_s)
                self._awake.clear()

    def _send(self, results: list[QueuedResult]) -> None:
        """Send what is due over one association."""
        peer = self._settings.to
        tls = (self._tls, peer.host) if self._tls is not None else None
        association = self._entity.associate(peer.host, peer.port, ae_title=peer.ae, tls_args=tls)
        if not association.is_established:
            reason = "rejects the association" if association.is_rejected else "cannot be reached"
            log.warning("the PACS %s; %d results wait", reason, len(results))
            for result in results:
                self._missed(result, f"the PACS {reason}", refused=False)
            return
        try:
            for result in results:
                if self._stopping:
                    return
                if not _alive(association):
                    self._missed(result, "the PACS ended the association", refused=False)
                    continue
                self._deliver(association, result)
        finally:
            if _alive(association):
                association.release()

    def _deliver(self, association: Association, result: QueuedResult) -> None:
        """One result. A warning counts as stored (PS3.4 B.2.3); anything else does not."""
        wanted = CLASSES[result.kind]
        if not any(context.abstract_syntax == wanted for context in association.accepted_contexts):
            self._missed(result, f"the PACS does not take {wanted.name}", refused=True)
            return
        try:
            dataset = pydicom.dcmread(io.BytesIO(self._folder.read(result.file)))
        except DAMAGE as error:
            self._bury(result, f"its file cannot be read: {where(error)}")
            return
        try:
            code = association.send_c_store(dataset).get("Status")
        except RuntimeError:  # pynetdicom's word for an association that has just ended
            code = None
        except ValueError as error:
            self._missed(result, f"it cannot be encoded: {where(error)}", refused=True)
            return
        if code is None:
            self._missed(result, "the PACS did not answer", refused=False)
        elif code == 0x0000 or code & 0xF000 == 0xB000:
            for name in self._queue.sent(result):
                self._folder.drop(name)
            log.info("film %s: %s sent", self._alias(result.film), result.kind)
        else:
            self._missed(result, f"the PACS refused it with {code:04X}", refused=True)

    def _missed(self, result: QueuedResult, problem: str, *, refused: bool) -> None:
        """Try again later, unless that was tried long or often enough."""
        settings = self._settings
        if time.time() - result.made_s > settings.give_up_s or (
            refused and result.refused + 1 >= settings.refusals
        ):
            self._bury(result, problem)
            return
        first_s, longest_s = settings.retry_s
        pause_s = min(first_s * 2.0 ** min(result.attempts, 30), longest_s)
        self._queue.later(result, pause_s, problem, refused=refused)

    def _bury(self, result: QueuedResult, problem: str) -> None:
        self._queue.bury(result, problem)
        log.error("film %s: %s is a dead letter: %s", self._alias(result.film), result.kind, problem)


def _alive(association: Association) -> bool:
    """Whether it is still there: the peer may end it at any moment."""
    return association.is_established
