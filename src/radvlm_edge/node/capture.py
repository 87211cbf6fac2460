"""Film and boxes → a secondary capture, for viewers that show neither reports nor presentation states."""

from __future__ import annotations

import numpy as np
from highdicom.sc import ConversionTypeValues, SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from radvlm_edge.node.heading import Heading, quietly
from radvlm_edge.node.reading import Reading
from radvlm_edge.runtime.overlay import draw_boxes

LONGEST = 1536
"""Pixels of its long side: it is a picture for people, not a film to measure on."""
BAND = 28
"""Height of the line that says what it is."""


def captured(heading: Heading, reading: Reading) -> Dataset:
    """The film as the model saw it, boxes and notice drawn in, 8-bit RGB."""
    film = heading.film
    picture = draw_boxes(reading.pixels, reading.boxes)
    scale = min(1.0, LONGEST / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (picture.width, picture.height + BAND))
    sheet.paste(picture, (0, BAND))
    ImageDraw.Draw(sheet).text((6, 6), heading.notice, fill="#ffb000", font=ImageFont.load_default(size=14))
    with quietly():
        common = heading.common("capture")
        result = SCImage(
            pixel_array=np.asarray(sheet),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            study_instance_uid=film.StudyInstanceUID,
            patient_id=film.PatientID,
            patient_name=film.PatientName,
            patient_birth_date=film.PatientBirthDate,
            patient_sex=film.PatientSex,
            accession_number=film.AccessionNumber,
            study_id=film.StudyID,
            study_date=film.StudyDate or None,
            study_time=film.StudyTime or None,
            referring_physician_name=film.ReferringPhysicianName,
            patient_orientation=("L", "F"),
            **common,
        )
        result.ConversionType = ConversionTypeValues.WSD.value
        # the film's own, or unknown: the one above is only what highdicom wants
        result.PatientOrientation = film.get("PatientOrientation", "")
        result.ImageType = ["DERIVED", "SECONDARY"]
        result.DerivationDescription = "boxes of an AI answer drawn in"
        return heading.finish(result)
