"""Films the fuzzing begins with: valid DICOM files and pictures; strange values put into their headers."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from radvlm_edge.benchmarks.fuzz_values import NUMBERS, TEXTS


@cache
def dicom_files() -> list[bytes]:
    """Small chest films in every transfer syntax that can be written here, with all headers may hold."""
    ramp = np.linspace(0, 4095, 48 * 40).reshape(48, 40).astype(np.uint16)
    files = [_dicom(ramp, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)]
    files += [_dicom(ramp, syntax) for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)]
    files += [_dicom(ramp, syntax) for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless)]
    files.append(_dicom(ramp, ExplicitVRLittleEndian, WindowCenter=[2048, 100], WindowWidth=[4096, 10]))
    files.append(_dicom(ramp, ExplicitVRLittleEndian, VOILUTSequence=_lut(0, list(range(0, 256, 4)), 8)))
    files.append(_dicom(ramp, ExplicitVRLittleEndian, ModalityLUTSequence=_lut(0, list(range(64)), 8)))
    signed = ramp.astype(np.int16) - 2048
    files.append(
        _dicom(
            signed, ExplicitVRLittleEndian, RescaleSlope="2", RescaleIntercept="-100", PixelPaddingValue=-2048
        )
    )
    files.append(_dicom(np.stack([ramp, ramp]), ExplicitVRLittleEndian, NumberOfFrames=2))
    grey = (ramp >> 4).astype(np.uint8)
    colour = np.stack([grey, grey[::-1], grey], -1)
    files.append(
        _dicom(colour, ExplicitVRLittleEndian, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    )
    files.append(_jpeg(grey))
    return files


def _dicom(stored: npt.NDArray[Any], syntax: UID, **tags: Any) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    compressed = syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "2.25.1"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID, dataset.PatientOrientation = "A^B", "1", ["L", "F"]
    dataset.PixelSpacing = ["0.14", "0.14"]
    frames = "NumberOfFrames" in tags
    dataset.Rows, dataset.Columns = stored.shape[frames : frames + 2]
    dataset.SamplesPerPixel = 3 if tags.get("PhotometricInterpretation") == "RGB" else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = dataset.BitsAllocated if stored.dtype != np.uint16 else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    raw = (stored.astype(stored.dtype.newbyteorder(">")) if big else stored).tobytes()
    dataset.add_new(0x7FE00010, "OW" if stored.dtype.itemsize > 1 else "OB", raw)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if compressed:
        dataset.compress(syntax, generate_instance_uid=False)  # a new one would be random
    return _written(dataset)


def _jpeg(grey: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "JPEG")
    dataset = pydicom.dcmread(io.BytesIO(_dicom(grey, ExplicitVRLittleEndian)))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([out.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return _written(dataset)


def _lut(first: int, entries: list[int], bits: int) -> pydicom.Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return pydicom.Sequence([item])


def _written(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def odd_header(content: bytes, rng: random.Random) -> bytes:
    """A DICOM file whose elements have strange values, at the right places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(content))
            elements = [*dataset, *dataset.file_meta]
            for element in rng.sample(elements, rng.choice((1, 1, 2, 3))):
                if element.tag == 0x7FE00010:
                    continue
                if element.VR in ("US", "SS", "UL", "SL", "OW", "OB"):
                    value: Any = rng.choice(NUMBERS) & 0xFFFF
                else:
                    value = rng.choice(TEXTS).encode("latin-1", "replace").decode("latin-1")
                element._value = value
            out = io.BytesIO()
            pydicom.dcmwrite(out, dataset, enforce_file_format=False)
        except Exception:  # noqa: BLE001 - the writer refuses some of them; those are damaged bytewise only
            return content
    return out.getvalue()


@cache
def pictures() -> list[bytes]:
    """PNG, JPEG and TIFF of every kind a film may come in."""
    grey = np.linspace(0, 255, 48 * 40).reshape(48, 40).astype(np.uint8)
    one = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    files = []
    for image, form, options in (
        (one, "PNG", {}),
        (deep, "PNG", {}),
        (one.convert("P"), "PNG", {}),
        (one.convert("RGBA"), "PNG", {}),
        (one.convert("1"), "PNG", {}),
        (one, "JPEG", {}),
        (one.convert("RGB"), "JPEG", {"progressive": True}),
        (one, "TIFF", {}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (one, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (one.convert("F"), "TIFF", {}),
    ):
        out = io.BytesIO()
        image.save(out, form, **options)
        files.append(out.getvalue())
    return files


def odd_png(content: bytes, rng: random.Random) -> bytes:
    """A PNG with one damaged chunk whose checksum is right again; other pictures as they are."""
    if not content.startswith(b"\x89PNG"):
        return content
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], bytearray(content[at + 8 : at + 8 + length])))
        at += length + 12
    name, data = rng.choice(chunks)
    if data:
        place = rng.randrange(len(data))
        data[place : place + 4] = struct.pack(">I", rng.choice(NUMBERS))[: len(data) - place]
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), (name, bytearray(data)))
    out = content[:8]
    for name, data in chunks:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out
