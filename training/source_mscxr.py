"""MS-CXR: sentences with their places on MIMIC-CXR films, drawn by radiologists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from radvlm_edge.training import source_mimic
from radvlm_edge.training.scores import Box
from radvlm_edge.training.source import Boxed, Expected, FilmRecord, Folders, Source
from radvlm_edge.training.source_tables import must_find, number, rows

NAME = "ms-cxr"
TABLE = Expected(
    (
        "MS_CXR_Local_Alignment_v1.1.0.csv",
        "MS_CXR_Local_Alignment_v1.0.0.csv",
        "MS_CXR_Local_Alignment_v0.1.csv",
    ),
    "sentences and boxes, a row a box",
    ("dicom_id", "category_name", "label_text", "x", "y", "w", "h", "image_width", "image_height"),
)


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Annotated films in MIMIC-CXR's order, split and joined as MIMIC-CXR's own.

    Boxes of the same sentence belong together. The table's own `split` column (1.1.0) is not used:
    it cuts across MIMIC-CXR's splits, so that training films would be test films of another task.
    """
    table = must_find(folders[NAME], TABLE.paths)
    found: dict[str, dict[str, tuple[Box, ...]]] = {}
    for row in rows(table, TABLE.columns):
        x, y, w, h, width, height = (number(row, name, table) for name in TABLE.columns[3:])
        box = (x / width, y / height, min((x + w) / width, 1.0), min((y + h) / height, 1.0))
        sentences = found.setdefault(row["dicom_id"], {})
        text = " ".join(row["label_text"].split())
        sentences[text] = (*sentences.get(text, ()), box)
    for record in source_mimic.records(folders, splits):
        if record.film in found:
            phrases = tuple(Boxed(text, boxes) for text, boxes in found[record.film].items())
            yield dataclasses.replace(record, source=NAME, phrases=phrases)


SOURCE = Source(
    NAME,
    "MS-CXR",
    "mimic",
    (TABLE,),
    "PhysioNet ms-cxr 0.1 to 1.1.0: credentialed account, CITI training, DUA; films from MIMIC-CXR-JPG",
    "PhysioNet Credentialed Health Data License 1.5.0: no redistribution",
    records,
    needs=(source_mimic.NAME,),
    images_in=source_mimic.NAME,
)
