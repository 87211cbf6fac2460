"""Every error a user can meet, one class per thing that can be wrong.

A message is one line: what is wrong, the value, what is accepted, what to do. The command line
prints it and exits 1; a traceback is a bug.
"""

from __future__ import annotations


class RadvlmError(Exception):
    """Root of every error this package raises on purpose."""


class FilmError(RadvlmError):
    """A film that cannot be read, or is not a chest radiograph."""


class QuestionError(RadvlmError):
    """A question or task that cannot be asked."""


class DetailError(RadvlmError):
    """A level of detail the model does not have."""


class BundleError(RadvlmError):
    """A bundle that is missing, incomplete, altered or too new."""


class CheckpointError(RadvlmError):
    """A checkpoint folder that cannot be exported."""


class ParityError(RadvlmError):
    """An exported artefact that does not say what its checkpoint says."""


class BackendError(RadvlmError):
    """An inference engine that is missing or failed to load an artefact."""


class RecipeError(RadvlmError):
    """A training recipe or data folder that cannot be used."""


class OutputError(RadvlmError):
    """An output that cannot be written: it exists already, or the disk refuses."""


class StudyCacheError(RadvlmError):
    """A study cache whose folder or key cannot be used."""


class AuditError(RadvlmError):
    """An audit log that cannot be written, or is not what was written."""


class KitError(RadvlmError):
    """An offline kit that cannot be packed as asked."""


class ServiceError(RadvlmError):
    """A service that cannot be started as asked: address, token, certificate."""


class RequestError(RadvlmError):
    """A request the service does not take; `status` is its HTTP answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BusyError(RequestError):
    """The service's queue is full."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, 429)
        self.retry_after_s = retry_after_s


class NodeError(RadvlmError):
    """A DICOM node that cannot be started as asked: address, peer, folder, certificate, questions."""
