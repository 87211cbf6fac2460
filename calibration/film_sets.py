"""Where calibration films come from: a folder of the user's, or the definition that ships."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from radvlm_edge.errors import FilmError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import plan
from radvlm_edge.runtime.film import Film, load_film
from radvlm_edge.training.films import data_folder
from radvlm_edge.training.phantom import make_phantom

OPEN_SET = Path(__file__).with_name("sets") / "open.yaml"
MOST_FILMS = 2000
"""Films of a folder that are looked at."""

VIEWS = ("PA", "AP", "LL", "RL", "LAT", "LATERAL", "LLD", "RLD")
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR")
EXPOSURES = 8
"""Classes of mean brightness."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What is kept of a film between looking at it and cutting it."""

    load: Callable[[], Film]
    digest: str
    """Of its pixels: the order films are taken in, and what the salted hash is made of."""
    height: int
    width: int
    view: str
    exposure: int
    photometric: str

    @property
    def stratum(self) -> tuple[str, int, str]:
        return self.view, self.exposure, self.photometric

    def salted(self, salt: str) -> str:
        """16 hex digits that say nothing without the salt."""
        return hashlib.sha256(f"{salt} {self.digest}".encode()).hexdigest()[:16]


def of_folder(folder: Path, render: str, geometry: Geometry, say: Say) -> list[Seen]:
    """Films below a folder, at most MOST_FILMS; files that are none are passed over aloud.

    Raises FilmError if there are not two: some must be held out.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if len(files) > MOST_FILMS:  # a fixed shuffle: the first names of an archive are one day's films
        files.sort(key=lambda p: hashlib.sha256(p.relative_to(folder).as_posix().encode()).digest())
    found: list[Seen] = []
    for path in files:
        if len(found) == MOST_FILMS:
            say(f"{MOST_FILMS} films were looked at; {len(files)} files are there")
            break
        try:
            seen = look(partial(load_film, path, render=render))
            plan(seen.height, seen.width, geometry)  # refuses what cannot be cut
            found.append(seen)
        except FilmError as error:
            say(f"passed over: {error}")
    if len(found) < 2:
        raise FilmError(
            f"{folder}: {len(found)} films there that can be read, at least 2 are needed (one is held out); "
            "give a folder of DICOM, PNG, JPEG or TIFF films"
        )
    return found


def of_definition(path: Path, geometry: Geometry, say: Say) -> list[Seen]:
    """Films of a set definition (calibration/sets/open.yaml describes the form).

    NIH films are left out, aloud, where RADVLM_EDGE_DATA does not name them. Raises FilmError.
    """
    try:
        wanted: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        drawn, nih = wanted["phantoms"], wanted["nih_chestxray14"]
        seeds = range(int(drawn["first_seed"]), int(drawn["first_seed"]) + int(drawn["count"]))
        sides = [float(one) * geometry.crop_px for one in drawn["short_side_crops"]]
        names = [str(name) for name in nih]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise FilmError(f"{path}: no calibration set ({error!r}); see calibration/sets/open.yaml") from error
    found = [look(partial(_phantom, seed, (int(sides[0]), int(sides[1])))) for seed in seeds]
    data = data_folder()
    if data is None:
        say(f"RADVLM_EDGE_DATA names no NIH films: {len(found)} phantoms alone")
        return found
    images = data / "nih_cxr14" / "images"
    return found + [look(partial(load_film, images / name)) for name in names]


def look(load: Callable[[], Film]) -> Seen:
    """Load a film once and keep what choosing needs; never free text of its header."""
    film = load()
    provenance = film.provenance or {}
    view = (film.view or "").upper()
    photometric = str(provenance.get("photometric", "")) or "picture"
    if photometric not in (*PHOTOMETRIC, "picture"):
        photometric = "other"
    return Seen(
        load,
        hashlib.sha256(np.ascontiguousarray(film.pixels).tobytes()).hexdigest(),
        film.pixels.shape[0],
        film.pixels.shape[1],
        view if view in VIEWS else ("other" if view else "not stated"),
        min(int(film.pixels.mean() * EXPOSURES / 256), EXPOSURES - 1),
        photometric,
    )


def in_turn(films: list[Seen]) -> Iterator[Seen]:
    """One film of every kind (view, exposure, photometric interpretation) after another, rare ones too."""
    kinds: dict[tuple[str, int, str], list[Seen]] = {}
    for film in sorted(films, key=lambda one: one.digest):
        kinds.setdefault(film.stratum, []).append(film)
    order = sorted(kinds)
    for turn in range(max((len(of_kind) for of_kind in kinds.values()), default=0)):
        for kind in order:
            if turn < len(kinds[kind]):
                yield kinds[kind][turn]


def _phantom(seed: int, short_px: tuple[int, int]) -> Film:
    return Film(make_phantom(seed, short_px).pixels, f"phantom {seed}", "voi", view="PA")
