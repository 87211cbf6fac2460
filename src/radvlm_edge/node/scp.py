"""Films in: a C-STORE and C-ECHO provider that says yes only when the film is on disk and in the queue."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable

import pydicom
from pydicom import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from radvlm_edge.errors import NodeError
from radvlm_edge.node.folder import FILM, Folder
from radvlm_edge.node.identity import Aliases
from radvlm_edge.node.queue import Queue, QueuedFilm
from radvlm_edge.node.settings import Settings
from radvlm_edge.node.trouble import where
from radvlm_edge.runtime.dicom import DAMAGE

log = logging.getLogger("radvlm_edge.node")

FILMS = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation)
"""CR and DX as they are meant to be looked at; raw detector images (DX For Processing) are not taken."""
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
)
"""What the runtime decodes. JPEG Extended is not among them: only a GPL decoder reads its 12 bits."""

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
DISCARDED = 0xB006
"""Warning, elements discarded: another content under a known UID, of which the first is kept."""
LIKE_UID = re.compile(r"[0-9][0-9.]{0,63}")
"""What is taken for a UID: components that begin with a zero are wrong and common."""
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


class RefusedError(Exception):
    """A film that is not taken: its DIMSE status, and why, without anything of the film."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status, self.comment = status, comment


class Receiver:
    """The provider, on a thread of its own and one for each association."""

    def __init__(self, settings: Settings, folder: Folder, queue: Queue, arrived: Callable[[], None]) -> None:
        """`arrived` is called after each film that was queued."""
        self._settings, self._folder, self._queue, self._arrived = settings, folder, queue, arrived
        self._alias = Aliases(queue.salt)
        self._one = threading.Lock()
        self._entity = AE(settings.ae)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(settings.allow)
        self._entity.maximum_associations = settings.associations
        self._entity.network_timeout = self._entity.dimse_timeout = settings.wait_s
        self._entity.acse_timeout = settings.wait_s
        self._entity.maximum_pdu_size = 1 << 18
        self._entity.add_supported_context(Verification)
        for film in FILMS:
            self._entity.add_supported_context(film, list(SYNTAXES))

    def start(self) -> int:
        """Listen; returns the port. Raises NodeError where the address cannot be had."""
        settings = self._settings
        handlers: list[tuple[evt.EventType, Callable[..., object]]] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, self._rejected),
        ]
        try:
            server = self._entity.start_server(
                (settings.host, settings.port),
                block=False,
                ssl_context=settings.server_tls(),
                evt_handlers=handlers,  # type: ignore[arg-type]  # its alias is of lists of any length
            )
        except OSError as error:
            raise NodeError(
                f"{settings.host}:{settings.port}: cannot be listened on ({error.strerror or error}); "
                "choose another --port"
            ) from error
        assert server is not None
        return int(server.server_address[1])

    def stop(self) -> None:
        """Take no more films; a film in mid-air is not acknowledged, so its sender keeps it."""
        self._entity.shutdown()

    def _rejected(self, event: evt.Event) -> None:
        log.warning("an association of %s was rejected", _title(event))

    def _store(self, event: evt.Event) -> int | Dataset:
        try:
            return self._take(event)
        except RefusedError as error:
            log.warning("a film of %s was refused with %04X: %s", _title(event), error.status, error.comment)
            return _answer(error.status, error.comment)
        except (OSError, sqlite3.Error) as error:
            log.error("a film of %s could not be stored: %s", _title(event), where(error))
            return _answer(OUT_OF_RESOURCES, "the film could not be stored; send it again later")
        except Exception as error:  # noqa: BLE001 - its text may quote the film, and a sender needs an answer
            log.error("a film of %s was not taken: %s", _title(event), where(error))
            return _answer(CANNOT_UNDERSTAND, "the film was not taken; the node's log says where it failed")

    def _take(self, event: evt.Event) -> int | Dataset:
        content, request = event.encoded_dataset(), event.request
        assert isinstance(request, C_STORE)
        uid = check_film(content, str(request.AffectedSOPInstanceUID or ""))
        digest = hashlib.sha256(event.encoded_dataset(include_meta=False)).hexdigest()
        with self._one:  # two senders with one film: one file, one record
            known = self._queue.find(uid)
            if known is None:
                self._keep(uid, digest, content, _title(event))
                return SUCCESS
        log.info("film %s came again from %s", self._alias(uid), _title(event))
        if known.digest == digest:
            return SUCCESS
        return _answer(DISCARDED, "this SOP Instance UID is known; its first content is kept")

    def _keep(self, uid: str, digest: str, content: bytes, sender: str) -> None:
        settings = self._settings
        if len(content) > settings.film_bytes:
            raise RefusedError(CANNOT_UNDERSTAND, f"larger than the {settings.film_bytes} bytes taken")
        if self._folder.free_bytes() < settings.reserve_bytes + len(content):
            raise RefusedError(OUT_OF_RESOURCES, "the disk is full; send it again later")
        if self._queue.waiting() >= settings.queue:
            raise RefusedError(OUT_OF_RESOURCES, f"{settings.queue} films wait; send it again later")
        file = self._folder.keep(FILM, content)
        self._queue.add(QueuedFilm(uid, digest, file, sender, time.time()))
        log.info("film %s received from %s: %d bytes", self._alias(uid), sender, len(content))
        self._arrived()


def check_film(content: bytes, announced: str) -> str:
    """SOP Instance UID of a stored film. Raises RefusedError unless its header can be read and agrees."""
    try:
        with io.BytesIO(content) as file:
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=[*NEEDED, "Rows", "Columns"]
            )
        uids = {name: str(header.get(name) or "") for name in NEEDED}
    except DAMAGE as error:
        raise RefusedError(CANNOT_UNDERSTAND, "its header is damaged") from error
    for name, uid in uids.items():
        if not LIKE_UID.fullmatch(uid):
            raise RefusedError(MISMATCH, f"{name} is missing or no UID")
    if uids["SOPInstanceUID"] != announced:
        raise RefusedError(MISMATCH, "SOPInstanceUID is not the one announced")
    if uids["SOPClassUID"] not in FILMS:
        raise RefusedError(MISMATCH, "SOPClassUID is neither CR nor DX For Presentation")
    return uids["SOPInstanceUID"]


def _title(event: evt.Event) -> str:
    """Calling AE title, fit for a log."""
    title = str(event.assoc.requestor.ae_title or "").strip()
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in title)[:16] or "?"


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment[:64]
    return answer
