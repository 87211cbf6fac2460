"""Every source by its name."""

from __future__ import annotations

from radvlm_edge.errors import RecipeError
from radvlm_edge.training import (
    source_chexpert,
    source_imagenome,
    source_mimic,
    source_mscxr,
    source_nih,
    source_openi,
    source_padchest,
    source_vindr,
)
from radvlm_edge.training.source import Source

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        source_mimic.SOURCE,
        source_chexpert.SOURCE,
        source_chexpert.PLUS_SOURCE,
        source_imagenome.SOURCE,
        source_vindr.SOURCE,
        source_mscxr.SOURCE,
        source_padchest.SOURCE,
        source_nih.SOURCE,
        source_openi.SOURCE,
    )
}


def source_named(name: str) -> Source:
    """Raises RecipeError listing the names there are."""
    if name not in SOURCES:
        raise RecipeError(f"source {name!r} is unknown; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
