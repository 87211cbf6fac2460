"""Boxes → Grayscale Softcopy Presentation State: the same boxes as graphics over the film."""

from __future__ import annotations

import numpy as np
from highdicom import PresentationLUTShapeValues, PresentationLUTTransformation, pr
from pydicom import Dataset

from radvlm_edge.node.heading import Heading, quietly
from radvlm_edge.node.reading import Reading
from radvlm_edge.node.sr import corners

LAYER = "RADVLM"
LABEL = "AI BOXES"


def overlay(heading: Heading, reading: Reading) -> Dataset | None:
    """The film in its own window with the boxes of every answer; `None` without boxes, or for colour."""
    film = heading.film
    if not reading.boxes or film.get("SamplesPerPixel", 1) != 1:
        return None
    with quietly():
        layer = pr.GraphicLayer(LAYER, order=1, description=heading.notice[:64])
        pixel = pr.AnnotationUnitsValues.PIXEL
        graphics, texts = [], []
        for box in reading.boxes:
            outline = np.clip(corners(box), 0.0, (film.Columns, film.Rows))
            graphics.append(pr.GraphicObject(pr.GraphicTypeValues.POLYLINE, outline, pixel))
            left, top, _, _ = box.xyxy_pixels
            texts.append(
                pr.TextObject(
                    f"AI: {box.label or 'here'}",
                    pixel,
                    anchor_point=(float(left), float(top)),
                    anchor_point_visible=False,
                )
            )
        annotation = pr.GraphicAnnotation(
            [film], graphic_layer=layer, graphic_objects=graphics, text_objects=texts
        )
        state = pr.GrayscaleSoftcopyPresentationState(
            referenced_images=[film],
            content_label=LABEL,
            content_description=heading.notice[:64],
            graphic_annotations=[annotation],
            graphic_layers=[layer],
            presentation_lut_transformation=PresentationLUTTransformation(_shape(film)),
            **heading.common("gsps"),
        )
        for keyword in ("ContentDate", "ContentTime"):  # highdicom's, not of this object
            state.pop(keyword, None)
        _aspect(film, state.DisplayedAreaSelectionSequence[0])
        return heading.finish(state)


def _aspect(film: Dataset, area: Dataset) -> None:
    """Pixels as far apart as the film's are; highdicom says they are square."""
    spacing = film.get("PixelSpacing") or film.get("ImagerPixelSpacing")
    if spacing is not None and len(spacing) == 2 and all(float(mm) > 0 for mm in spacing):
        area.PresentationPixelSpacing = list(spacing)
        del area.PresentationPixelAspectRatio


def _shape(film: Dataset) -> PresentationLUTShapeValues:
    """A presentation state ignores the photometric interpretation, so it must say itself what is white."""
    inverted = film.get("PhotometricInterpretation") == "MONOCHROME1"
    return PresentationLUTShapeValues.INVERSE if inverted else PresentationLUTShapeValues.IDENTITY
