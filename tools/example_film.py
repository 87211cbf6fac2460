"""Write an NIH ChestX-ray14 picture as the DICOM file a CR reader would have sent: examples/*.dcm.

    python tools/example_film.py PICTURE HEADERS.csv.gz LABELS.csv OUT.dcm

The pixels are the picture's, put behind the window of a 15-bit MONOCHROME1 film, so that the
file's own window gives them back exactly. The header values are those of one real film, picked by
seed from a table of real headers; identifiers, dates and device serials are invented or left out.
"""

from __future__ import annotations

import ast
import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

SEED = 20250203
KEPT = {
    "Bits Allocated": "BitsAllocated",
    "Bits Stored": "BitsStored",
    "High Bit": "HighBit",
    "Body Part Examined": "BodyPartExamined",
    "Burned In Annotation": "BurnedInAnnotation",
    "Image Type": "ImageType",
    "Lossy Image Compression": "LossyImageCompression",
    "Modality": "Modality",
    "Patient Orientation": "PatientOrientation",
    "Photometric Interpretation": "PhotometricInterpretation",
    "Pixel Representation": "PixelRepresentation",
    "Plate Type": "PlateType",
    "Presentation LUT Shape": "PresentationLUTShape",
    "Relative X-Ray Exposure": "RelativeXRayExposure",
    "Rescale Intercept": "RescaleIntercept",
    "Rescale Slope": "RescaleSlope",
    "Rescale Type": "RescaleType",
    "SOP Class UID": "SOPClassUID",
    "Samples per Pixel": "SamplesPerPixel",
    "Sensitivity": "Sensitivity",
    "Specific Character Set": "SpecificCharacterSet",
    "Window Center": "WindowCenter",
    "Window Width": "WindowWidth",
}
"""Column of the table → DICOM keyword."""


def real_header(table: Path, view: str) -> dict[str, str]:
    """A row of a 15-bit MONOCHROME1 film of this view with a window."""
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["Photometric Interpretation"] == "MONOCHROME1"
            and row["Bits Stored"] == "15"
            and row["View Position"] == view
            and row["Window Center"]
        ]
    return rows[int(np.random.default_rng(SEED).integers(len(rows)))]


def behind_window(grey: np.ndarray, center: float, width: float) -> np.ndarray:
    """Stored values `[H, W]` uint16 that a LINEAR window and inversion turn into `grey` uint8."""
    shown = (255.0 - grey.astype(np.float64)) / 255.0
    return np.rint((shown - 0.5) * (width - 1) + center - 0.5).astype(np.uint16)


def _value(keyword: str, text: str) -> object:
    if dictionary_VR(keyword) == "US":
        return int(text)
    return ast.literal_eval(text) if text.startswith("[") else text


def label_row(labels: Path, picture: str) -> dict[str, str]:
    with labels.open(encoding="utf-8", newline="") as file:
        return next(row for row in csv.DictReader(file) if Path(row["image"]).stem == picture)


def main() -> None:
    picture, table, labels, out = map(Path, sys.argv[1:])
    film = label_row(labels, picture.stem)
    grey = np.asarray(Image.open(picture).convert("L"))
    header = real_header(table, film["view"])

    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for column, keyword in KEPT.items():
        if text := header[column]:
            setattr(dataset, keyword, _value(keyword, text))
    dataset.ViewPosition = film["view"]
    dataset.PatientName, dataset.PatientID = "NIH^ChestX-ray14", film["patient"]
    dataset.PatientSex, dataset.PatientAge = film["sex"], f"{int(film['age']):03}Y"
    dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = dataset.StudyID = dataset.Manufacturer = dataset.Laterality = ""
    dataset.SeriesNumber, dataset.InstanceNumber = header["Series Number"], header["Instance Number"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
        generate_uid(entropy_srcs=["radvlm-edge example", level, film["image"]])
        for level in ("study", "series", "image")
    )
    dataset.Rows, dataset.Columns = grey.shape
    # NIH squeezed every film into a square: rows and columns are not equally far apart.
    millimetres = (int(film[f"orig_{side}"]) * float(film["orig_spacing"]) for side in ("h", "w"))
    spacing = [f"{length / pixels:.4f}" for length, pixels in zip(millimetres, grey.shape, strict=True)]
    dataset.ImagerPixelSpacing = dataset.PixelSpacing = spacing
    if picture.suffix in (".jpg", ".jpeg"):
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    dataset.ImageComments = (
        "NIH ChestX-ray14, NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC"
    )
    stored = behind_window(grey, float(dataset.WindowCenter), float(dataset.WindowWidth))
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    dataset.save_as(out, enforce_file_format=True)


if __name__ == "__main__":
    main()
