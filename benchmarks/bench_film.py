"""The film that is timed where none is named: drawn, and as large as a detector's."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from radvlm_edge.training.phantom import make_phantom

SEED = 61_000_000
HEIGHT, WIDTH = 3056, 2544
"""In pixels; the commonest size in MIMIC-CXR."""
BITS = 12
NAME = f"a drawn film of {WIDTH}x{HEIGHT} pixels, {BITS} bits, uncompressed DICOM"


def drawn_film(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A phantom enlarged to this size, as a DX DICOM file of 12 bits, uncompressed; the same every time."""
    small = Image.fromarray(make_phantom(SEED).pixels)
    grey = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.uint16) << (BITS - 8)
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
        generate_uid(entropy_srcs=["radvlm-edge bench", level]) for level in ("study", "series", "image")
    )
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "DX", "PA", "CHEST"
    dataset.PatientName, dataset.PatientID = "drawn", "drawn"
    dataset.Rows, dataset.Columns = grey.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, BITS, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 1 << (BITS - 1), 1 << BITS
    dataset.PixelData = grey.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()
