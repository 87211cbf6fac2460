"""DICOM file → Film: is it a chest radiograph, which pixels, how are they meant to be seen?"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import JPEGExtended12Bit

from radvlm_edge.errors import FilmError
from radvlm_edge.runtime import render as rendering
from radvlm_edge.runtime.dicom_jpeg import StreamError, choose_decoder
from radvlm_edge.runtime.film import Film, _check_size

FILMS = ("CR", "DX")
PICTURES = ("OT", "SC", "XC", "RG", "RF", "")
"""Modalities that may be a radiograph, and often are: accepted with a warning."""
CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TORAX", "BRUST", "POITRINE")
LATERAL = ("LL", "RL", "LAT", "LATERAL", "LLD", "RLD", "LLO", "RLO")
PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# Damaged files make pydicom and its decoders raise nearly anything; all of it means the same here.
DAMAGE = (
    AttributeError, EOFError, IndexError, KeyError, LookupError, MemoryError, NotImplementedError, OSError,
    OverflowError, RuntimeError, TypeError, ValueError, ZeroDivisionError, InvalidDicomError,
    BytesLengthException, struct.error, zlib.error,
)  # fmt: skip
NAMED = {
    "AR", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "DG", "DX", "ECG", "ES", "GM", "HD", "IO", "IVOCT",
    "IVUS", "KO", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTENF", "OPV", "OT", "PLAN", "PR",
    "PT", "PX", "REG", "RF", "RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV", "SC",
    "SEG", "SM", "SMR", "SR", "STAIN", "TG", "US", "VA", "XA", "XC", "ABDOMEN", "ANKLE", "ARM", "BREAST",
    "CSPINE", "ELBOW", "FOOT", "HAND", "HEAD", "HIP", "KNEE", "LEG", "LSPINE", "NECK", "PELVIS",
    "SHOULDER", "SKULL", "SPINE", "TSPINE", "WRIST", "EXTREMITY",
}  # fmt: skip
"""Modalities (PS3.3 C.7.3.1.1.1) and common body parts (PS3.16 annex L) that messages may repeat: anything
else in those elements may be about the patient, and messages end in logs."""


class _DamageError(ValueError):
    """Damage described in words that quote nothing of the header but numbers."""


def read_dicom(
    content: bytes, name: str, *, render: str, any_modality: bool, frame: int | None, max_pixels: int
) -> Film:
    """Read a DICOM file's content as a `Film`; FilmError says in one line why it cannot be."""
    with _quiet():
        dataset = _parse(content, name)
        notes = _check_kind(dataset, name, any_modality)
        _check_claims(dataset, name, max_pixels)
        try:
            stored = decode_pixels(dataset)
        except DAMAGE as error:
            raise FilmError(f"{name}: pixels cannot be decoded: {_why(dataset, error)}") from error
        try:
            return _film(dataset, stored, name, render, frame, notes)
        except DAMAGE as error:
            raise FilmError(f"{name}: its description of the pixels is damaged ({_said(error)})") from error


def decode_pixels(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values as the decoders give them: `[H, W]`, `[H, W, 3]`, or with frames in front."""
    choose_decoder(dataset)
    array: npt.NDArray[Any] = dataset.pixel_array
    return array


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which quote headers, and the decoders' own C chatter off terminals and logs.

    The C libraries write straight to file descriptor 2, so that is turned away while they run; what
    went wrong comes back as an exception.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _parse(content: bytes, name: str) -> Dataset:
    marked = content[128:132] == b"DICM"
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=not marked)
        held = [keyword for keyword in PIXEL_DATA if keyword in dataset]
        known = marked or "SOPClassUID" in dataset or "Rows" in dataset
        told = "TransferSyntaxUID" in getattr(dataset, "file_meta", Dataset())
        _ = dataset.file_meta.TransferSyntaxUID if told else None  # read now: it may be damaged
    except DAMAGE as error:
        if marked:
            raise FilmError(f"{name}: damaged DICOM file ({_said(error)}); copy it again") from error
        held, known, told = [], False, False
    if not known:
        raise FilmError(f"{name}: neither DICOM nor a picture; DICOM, PNG, JPEG and TIFF are accepted")
    if not held:
        raise FilmError(f"{name}: a DICOM file without pixels (or cut off before them)")
    if not told:
        raise FilmError(f"{name}: a DICOM file without transfer syntax; its pixels cannot be told apart")
    return dataset


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "").strip()
    except DAMAGE:  # the element itself is damaged: as good as absent
        return ""


def _check_kind(dataset: Dataset, name: str, any_modality: bool) -> list[str]:
    """Refuse what is no radiograph; say what may not be a frontal chest film."""
    notes = []
    modality = _text(dataset, "Modality").upper()
    if modality not in FILMS:
        if modality not in PICTURES and not any_modality:
            raise FilmError(
                f"{name}: modality {_named(modality)} is no chest radiograph (CR, DX); "
                "pass --any-modality to read it anyway"
            )
        stated = _named(modality) if modality else "not stated"
        notes.append(f"modality {stated}: the model knows chest radiographs (CR, DX) only")
    body = _text(dataset, "BodyPartExamined").upper()
    if body and not any(part in body for part in CHEST):
        notes.append(f"body part {_named(body)}: the model knows chest films only")
    view = _text(dataset, "ViewPosition").upper()
    if view in LATERAL:
        notes.append(f"view {view}: the model knows frontal films only")
    return notes


def _number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise _DamageError(f"{keyword} is missing")
        return default
    try:
        return int(value)
    except DAMAGE:
        raise _DamageError(f"{keyword} is no number") from None


def _check_claims(dataset: Dataset, name: str, max_pixels: int) -> None:
    """Refuse by its header what would be too large to decode."""
    try:
        rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
        frames, samples = _number(dataset, "NumberOfFrames", 1), _number(dataset, "SamplesPerPixel", 1)
    except DAMAGE as error:
        raise FilmError(f"{name}: size not readable ({_said(error)})") from error
    _check_size(name, rows, columns, max_pixels)
    if frames < 1 or frames * samples * rows * columns > max_pixels:
        raise FilmError(
            f"{name}: {frames} frames of {columns}x{rows} are more than the {max_pixels} values that are read"
        )


def _why(dataset: Dataset, error: BaseException) -> str:
    syntax = dataset.file_meta.TransferSyntaxUID
    known = syntax in UID_dictionary
    if syntax == JPEGExtended12Bit:
        return f"{syntax.name}: lossy JPEG of more than 8 bits, or damaged; store it in another syntax"
    return f"{syntax.name if known else 'a transfer syntax that is not known'}: {_said(error)}"


def _said(error: BaseException) -> str:
    """Our own words for damage, else its kind alone: the libraries' words may quote the patient's data."""
    return str(error) if isinstance(error, (_DamageError, StreamError)) else type(error).__name__


def _named(value: str) -> str:
    """A defined term as it is; what is none is not repeated."""
    return value if value in NAMED else "not a defined term"


def _film(
    dataset: Dataset, stored: npt.NDArray[Any], name: str, render: str, frame: int | None, notes: list[str]
) -> Film:
    colour = _number(dataset, "SamplesPerPixel", 1) > 1
    photometric = _text(dataset, "PhotometricInterpretation").upper()
    stored, frame = _one_frame(stored, colour, frame, name)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        stored, colour = (stored >> 8 if stored.dtype == np.uint16 else stored), True
    if colour:
        notes.append("a colour picture; its brightness is used")
        stored = rendering.to_bytes(stored[..., :3] @ np.array([0.299, 0.587, 0.114]))
    stored = np.nan_to_num(stored, nan=0.0, posinf=0.0, neginf=0.0) if stored.dtype.kind == "f" else stored
    valid = np.ones(stored.shape, np.bool_) if colour else ~_padding(dataset, stored)
    inverted = not colour and photometric == "MONOCHROME1"
    if not colour and photometric == "MONOCHROME2" and _text(dataset, "PresentationLUTShape") == "INVERSE":
        inverted = True
    applied: dict[str, Any] = {}
    if render == "minmax":
        pixels = rendering.render_minmax(stored)
        applied["window"] = "min to max of stored values"
    else:
        values = stored.astype(np.float64) if colour else _modality(dataset, stored)
        if render == "mimic":
            pixels = rendering.render_mimic(values, valid, inverted)
            applied["window"] = "min to max, equalised"
        else:
            voi, applied["window"] = (None, "as is") if colour else _voi(dataset, notes)
            pixels = (
                rendering.to_bytes(values) if colour else rendering.render_voi(values, valid, inverted, voi)
            )
    provenance = _provenance(dataset, photometric, frame) | applied
    return Film(
        np.ascontiguousarray(pixels),
        name,
        render,
        _spacing(dataset),
        _orientation(dataset),
        _text(dataset, "ViewPosition") or None,
        provenance,
        tuple(notes),
    )


def _one_frame(
    stored: npt.NDArray[Any], colour: bool, frame: int | None, name: str
) -> tuple[npt.NDArray[Any], int]:
    frames = stored.shape[0] if stored.ndim == 3 + colour else 1
    if frames > 1 and frame is None:
        raise FilmError(f"{name}: holds {frames} frames; pick one with --frame 0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise FilmError(f"{name}: no frame {frame}; --frame 0 to {frames - 1} are there")
    return (stored[frame or 0] if stored.ndim == 3 + colour else stored), frame or 0


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Pixels that are no part of the film (PS3.3 C.7.5.1.1.2), in stored values."""
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return np.zeros(stored.shape, np.bool_)
    last = dataset.get("PixelPaddingRangeLimit")
    bounds = sorted((int(first), int(first if last in (None, "") else last)))
    return (stored >= bounds[0]) & (stored <= bounds[1])


def _table(item: Dataset, signed: bool) -> tuple[int, npt.NDArray[Any], int]:
    """(first value mapped, entries, bits) of a LUT item (PS3.3 C.11.1.1.1)."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 65536
    if signed and first > 32767:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) == count else np.uint16)
    table = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(table) < count:
        raise _DamageError(f"a LUT of {count} entries holds {len(table)}")
    return first, table[:count], bits


def _modality(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Modality LUT or rescale (PS3.3 C.11.1); infinite or zero slopes count as damage."""
    signed = _number(dataset, "PixelRepresentation", 0) == 1
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        first, table, _ = _table(sequence[0], signed)
        return rendering.lookup(stored.astype(np.float64), first, table)
    stated = [dataset.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept")]
    slope, intercept = (float(d if v in (None, "") else v) for v, d in zip(stated, (1, 0), strict=True))
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope == 0:
        raise _DamageError("rescale slope or intercept is zero or not finite")
    return stored.astype(np.float64) * slope + intercept


Voi = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _voi(dataset: Dataset, notes: list[str]) -> tuple[Voi | None, Any]:
    """The file's presentation, and what to call it. Of several, the first (PS3.3 C.11.2.1)."""
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        # The LUT's input is the modality LUT's output, signed if that can be.
        signed = (
            _number(dataset, "PixelRepresentation", 0) == 1 or float(dataset.get("RescaleIntercept") or 0) < 0
        )
        first, table, bits = _table(sequence[0], signed)
        top = float(2**bits - 1)
        return (lambda values: rendering.lookup(values, first, table) / top * 255.0), "VOI LUT"
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None, "min to max"
    function = _text(dataset, "VOILUTFunction").upper() or "LINEAR"
    try:
        rendering.window(np.zeros(1), center, width, function)
    except ValueError as error:
        notes.append(f"{error}; the window is left out and the values are stretched")
        return None, "min to max"
    voi = partial(rendering.window, center=center, width=width, function=function)
    return voi, {"center": center, "width": width, "function": function}


def _first(value: Any) -> float | None:
    """First of one or several decimal strings; `None` where there is none or it is no finite number."""
    if value is None or value == "":
        return None
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres between (rows, columns); values that are not positive mean unknown."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(value) for value in dataset.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if all(math.isfinite(v) and v > 0 for v in (row, column)):
            return row, column
    return None


def _orientation(dataset: Dataset) -> tuple[str, str] | None:
    value = dataset.get("PatientOrientation")
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) and len(value) == 2:
        return str(value[0]), str(value[1])
    return None


def _provenance(dataset: Dataset, photometric: str, frame: int) -> dict[str, Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    return {
        "format": "DICOM",
        "sop_instance_uid": _text(dataset, "SOPInstanceUID"),
        "transfer_syntax": str(syntax.name),
        "modality": _text(dataset, "Modality"),
        "body_part": _text(dataset, "BodyPartExamined"),
        "photometric": photometric,
        "bits_stored": _number(dataset, "BitsStored", 0),
        "frame": frame,
    }
