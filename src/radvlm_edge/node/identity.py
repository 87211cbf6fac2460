"""Who made a result, and the UIDs that follow from it: the same work always has the same names."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from dataclasses import asdict, dataclass

from radvlm_edge.node.questions import Questions
from radvlm_edge.runtime.reader import Reader

MANUFACTURER = "radvlm-edge"


def derived_uid(*parts: str) -> str:
    """A UID below `2.25` (PS3.5 B.2) that is a function of `parts` alone."""
    digest = hashlib.sha256(json.dumps(["radvlm-edge node", *parts]).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


@dataclass(frozen=True)
class Maker:
    """Everything an answer depends on besides the film."""

    version: str
    """Of this software."""
    bundle: str
    """The bundle's name."""
    bundle_sha256: str
    vision: str
    """Precision of the vision artefact."""
    language: str
    detail: str
    render: str
    max_tokens: int
    questions: str
    """Digest of the questions."""
    demonstration: bool = False

    @classmethod
    def of(cls, reader: Reader, questions: Questions) -> Maker:
        from radvlm_edge import __version__
        from radvlm_edge.runtime.detail import named, resolve

        bundle, options = reader.bundle, reader.options
        return cls(
            version=__version__,
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            vision=reader.vision_artefact.precision,
            language=reader.language_artefact.precision,
            detail=named(resolve(options.detail)),
            render=options.render or bundle.manifest.render,
            max_tokens=options.max_tokens,
            questions=questions.digest,
            demonstration=bundle.manifest.demonstration,
        )

    @property
    def device_uid(self) -> str:
        """Device UID: of the bundle and the artefacts used. Another quantisation is another device."""
        return derived_uid("device", self.bundle_sha256, self.vision, self.language)

    @property
    def digest(self) -> str:
        """SHA-256 of everything here but the software's version: an update must not answer a film twice."""
        facts = {name: value for name, value in asdict(self).items() if name != "version"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def model(self) -> str:
        """Model name, bundle and artefacts, as people read it; at most 64 characters (LO)."""
        return f"{self.bundle[:24]} {self.bundle_sha256[:12]} {self.vision}+{self.language}"[:64]

    def result_uid(self, kind: str, film: str) -> str:
        """SOP Instance UID of a film's result."""
        return derived_uid(kind, film, self.digest)

    def series_uid(self, kind: str, film: str) -> str:
        """UID of the new series it stands in."""
        return derived_uid("series", kind, film, self.digest)


class Aliases:
    """Names for the log: salted hashes, so that no UID is in it and one film can still be followed."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, uid: str) -> str:
        """12 hexadecimal digits."""
        return hmac.new(self._salt, uid.encode(), hashlib.sha256).hexdigest()[:12]
