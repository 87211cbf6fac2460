"""Films a checkpoint is tried on: seeded phantoms, the NIH films named by RADVLM_EDGE_DATA, or the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import FilmError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.film import load_film
from radvlm_edge.training.films import data_folder, load_real
from radvlm_edge.training.instructions import Labels, labels_of
from radvlm_edge.training.phantom import make_phantom

SHORT_SIDE = (1.8, 2.6)
"""Short sides of phantoms, in crops: two to three tiles a side."""


@dataclass(frozen=True)
class ProbeFilm:
    """One film, and what is known of it (`None`: nothing)."""

    pixels: npt.NDArray[np.uint8]
    """`[H, W]`."""
    labels: Labels | None


@dataclass(frozen=True)
class ProbeFilms:
    """Films and how to name them in public: never by file or content."""

    films: tuple[ProbeFilm, ...]
    described: dict[str, Any]
    """`kind`, `count`, and what makes phantoms reproducible."""


def phantoms(count: int, first_seed: int, geometry: Geometry) -> ProbeFilms:
    """Procedural films of known content, the same everywhere."""
    low, high = (int(side * geometry.crop_px) for side in SHORT_SIDE)
    drawn = [make_phantom(first_seed + index, (low, high)) for index in range(count)]
    films = tuple(ProbeFilm(one.pixels, labels_of(one)) for one in drawn)
    return ProbeFilms(films, {"kind": "phantoms", "count": count, "first_seed": first_seed})


def nih_films(count: int, split: str = "train") -> ProbeFilms | None:
    """The first films of the NIH sample RADVLM_EDGE_DATA names; `None` where there is none."""
    folder = data_folder()
    if folder is None:
        return None
    real = load_real(folder, split).films[:count]
    films = tuple(ProbeFilm(film.pixels, film.labels) for film in real)
    return ProbeFilms(films, {"kind": f"NIH ChestX-ray14 {split}", "count": len(films)})


def user_films(folder: Path, render: str, progress: Callable[[str], None] = lambda line: None) -> ProbeFilms:
    """Every film below a folder, in the order of their names; files that are none are passed over aloud.

    Raises FilmError if the folder holds no film.
    """
    films = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            films.append(ProbeFilm(load_film(path, render=render).pixels, None))
        except FilmError as error:
            progress(f"passed over: {error}")
    if not films:
        raise FilmError(
            f"{folder}: no film there that can be read; give a folder of DICOM, PNG, JPEG or TIFF films"
        )
    return ProbeFilms(tuple(films), {"kind": "the user's films", "count": len(films)})


def together(parts: list[ProbeFilms]) -> ProbeFilms:
    """Several sets as one."""
    films = tuple(film for part in parts for film in part.films)
    kinds = [f"{part.described['count']} {part.described['kind']}" for part in parts]
    return ProbeFilms(films, {"kind": " and ".join(kinds), "count": len(films)})
