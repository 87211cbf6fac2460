"""What every result takes over from its film, and says of its maker."""

from __future__ import annotations

import datetime
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.filebase import DicomBytesIO
from pydicom.multival import MultiValue
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.valuerep import DA, TM, PersonName

from radvlm_edge.node.codes import OWN, OWN_NAME, PROCESSING
from radvlm_edge.node.identity import MANUFACTURER, Maker
from radvlm_edge.runtime.dicom import DAMAGE

NOTICE = "AI output for research, not for diagnosis."
DEMONSTRATION = "The demonstration model was trained mostly on synthetic films."
DESCRIPTION = "AI, research use only"
SERIES = {"sr": 9001, "gsps": 9002, "capture": 9003}
"""Series numbers, far from a modality's own."""

NAMES = ("PatientName", "ReferringPhysicianName")
DATES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
TEXTS = ("PatientID", "PatientSex", "AccessionNumber", "StudyID")
KEPT = ("IssuerOfPatientID", "StudyDescription")
AGE = re.compile(r"[0-9]{3}[DWMY]")
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PIXELS = ("Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored",
          "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelSpacing",
          "ImagerPixelSpacing", "PixelAspectRatio", "PatientOrientation", "ModalityLUTSequence")  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """A film's identity and a result's maker: what all its results have in common."""

    film: Dataset
    """Patient, study, UIDs and pixel description, decoded; what the film lacks is empty."""
    maker: Maker
    received: datetime.datetime
    """When the film was stored. All dates of a result are this one, so that a repeated result is the same."""

    @classmethod
    def of(cls, content: bytes, maker: Maker, received_s: float) -> Heading:
        """Heading of a stored film. Raises what pydicom raises for a header that cannot be read."""
        with quietly():
            header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
            film = identity_of(header)
        received = datetime.datetime.fromtimestamp(int(received_s)).astimezone()
        return cls(film, maker, received)

    @property
    def uid(self) -> str:
        """The film's SOP Instance UID."""
        return str(self.film.SOPInstanceUID)

    @property
    def notice(self) -> str:
        return f"{NOTICE} {DEMONSTRATION}" if self.maker.demonstration else NOTICE

    def common(self, kind: str) -> dict[str, Any]:
        """highdicom's arguments that all results share. Implicit VR: every DICOM system must take it."""
        maker = self.maker
        return {
            "series_instance_uid": maker.series_uid(kind, self.uid),
            "series_number": SERIES[kind],
            "sop_instance_uid": maker.result_uid(kind, self.uid),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": maker.model,
            "software_versions": (f"radvlm-edge {maker.version}", f"bundle {maker.bundle_sha256[:48]}"),
            "device_serial_number": maker.bundle_sha256,
            "series_description": DESCRIPTION,
            "transfer_syntax_uid": ImplicitVRLittleEndian,
        }

    def schemes(self) -> list[CodingSchemeIdentificationItem]:
        """Where our own codes are from."""
        return [
            CodingSchemeIdentificationItem(
                designator=OWN, name=OWN_NAME, responsible_organization=MANUFACTURER
            )
        ]

    def finish(self, result: Dataset) -> Dataset:
        """Contributing equipment, character set and time: the same for the same film, maker and day."""
        maker, item, purpose = self.maker, Dataset(), Dataset()
        purpose.CodeValue, purpose.CodingSchemeDesignator = PROCESSING.value, PROCESSING.scheme_designator
        purpose.CodeMeaning = PROCESSING.meaning
        item.PurposeOfReferenceCodeSequence = [purpose]
        item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, maker.model
        item.DeviceSerialNumber = maker.bundle_sha256
        item.SoftwareVersions = list(self.common("sr")["software_versions"])
        item.DeviceUID = maker.device_uid
        item.ContributionDateTime = self.received.strftime("%Y%m%d%H%M%S%z")
        item.ContributionDescription = self.notice
        result.ContributingEquipmentSequence = [item]
        result.SpecificCharacterSet = "ISO_IR 192"
        result.BodyPartExamined = "CHEST"
        result.TimezoneOffsetFromUTC = self.received.strftime("%z")
        day, time = self.received.strftime("%Y%m%d"), self.received.strftime("%H%M%S")
        for stem in ("Series", "InstanceCreation", "Content", "PresentationCreation", "{}OfSecondaryCapture"):
            for kind, value in (("Date", day), ("Time", time)):
                keyword = stem.format(kind) if "{}" in stem else stem + kind
                if keyword in result or stem == "Series":
                    setattr(result, keyword, value)
        return result


def identity_of(header: Dataset) -> Dataset:
    """What results take over from a film's header: a fixed list, with unreadable values left empty."""
    film = Dataset()
    for keyword in UIDS:
        setattr(film, keyword, _text(header, keyword))
    for keyword in NAMES:
        setattr(film, keyword, PersonName(_text(header, keyword)))
    for keyword in TEXTS:
        setattr(film, keyword, _text(header, keyword))
    if film.PatientSex not in ("M", "F", "O"):
        film.PatientSex = ""
    for keyword, kind in DATES.items():
        setattr(film, keyword, _date(_text(header, keyword), kind))
    for keyword in KEPT:
        if text := _text(header, keyword):
            setattr(film, keyword, text)
    if (age := _text(header, "PatientAge")) and AGE.fullmatch(age):
        film.PatientAge = age
    for keyword in PIXELS:
        value = _value(header, keyword)
        if value not in (None, "") and str(value).isascii():  # codes and numbers: no character set has a say
            setattr(film, keyword, value)
    _take_window(header, film)
    return film


def _take_window(header: Dataset, film: Dataset) -> None:
    """The first of the film's own presentations, as `runtime.dicom` applies it; none that cannot be one."""
    if tables := _value(header, "VOILUTSequence"):
        film.VOILUTSequence = [tables[0]]
        return
    try:
        center, width = (
            float(value[0] if isinstance(value, MultiValue) else value)
            for value in (_value(header, "WindowCenter"), _value(header, "WindowWidth"))
        )
    except (TypeError, ValueError, IndexError):
        return
    if math.isfinite(center) and math.isfinite(width) and width >= 1:
        film.WindowCenter, film.WindowWidth = center, width
        if (function := _text(header, "VOILUTFunction").upper()) in FUNCTIONS:
            film.VOILUTFunction = function


def encoded(result: Dataset) -> bytes:
    """A result as a DICOM file."""
    buffer = DicomBytesIO()
    with quietly():
        pydicom.dcmwrite(buffer, result, enforce_file_format=True)
    return bytes(buffer.getvalue())


@contextmanager
def quietly() -> Iterator[None]:
    """Take a film's values as they are: what its sender wrote wrongly must not cost it its report."""
    with disable_value_validation():
        yield


def _text(header: Dataset, keyword: str) -> str:
    value = _value(header, keyword)
    if isinstance(value, MultiValue):  # a backslash where none may be
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \t\r\n\0")


def _value(header: Dataset, keyword: str) -> Any:
    """An element's value; `None` where it is missing or damaged."""
    try:
        return header.get(keyword)
    except DAMAGE:
        return None


def _date(text: str, kind: Any) -> str:
    try:
        readable = kind(text) is not None  # None: whitespace of any kind
    except ValueError:
        return ""
    return text if readable and text.isascii() else ""
