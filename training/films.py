"""Phantoms → cached crops and dense targets; real films → augmented crops and what is known of them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.errors import RecipeError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.instructions import Labels, labels_of
from radvlm_edge.training.nih_labels import ABSENCE, BOXES, PICK, radvlm_labels
from radvlm_edge.training.phantom import Box, Finding, make_phantom
from radvlm_edge.training.targets import Targets, film_targets

REAL_PX = 448
"""Longest side in pixels at which a real film is kept."""


@dataclass(frozen=True)
class PhantomSet:
    """Phantoms as the model sees them; index i belongs to seed `first + i`."""

    crops: npt.NDArray[np.uint8]
    """`[N, V, S, S]` grey: base view, then tiles."""
    sizes: npt.NDArray[np.int64]
    """`[N, 2]` height and width of the films in pixels."""
    targets: Targets
    labels: list[Labels]


def _draw(job: tuple[int, tuple[int, int], Geometry]) -> tuple[npt.NDArray[np.uint8], Any, Targets, Labels]:
    seed, short_px, geometry = job
    phantom = make_phantom(seed, short_px)
    crops, layout = cut(phantom.pixels, geometry)
    return crops[:, 0], (layout.height, layout.width), film_targets(phantom, geometry), labels_of(phantom)


def draw_phantoms(
    first: int, count: int, short_px: tuple[int, int], geometry: Geometry, workers: int = 2
) -> PhantomSet:
    """Draw and cut phantoms of seeds `first` onwards, in as many processes as `workers`.

    Raises RecipeError if films of this size do not all give the same number of crops.
    """
    jobs = [(first + index, short_px, geometry) for index in range(count)]
    if workers > 1 and count > 64:
        with ProcessPoolExecutor(workers) as pool:
            drawn = list(pool.map(_draw, jobs, chunksize=32))
    else:
        drawn = [_draw(job) for job in jobs]
    crops, sizes, targets, labels = zip(*drawn, strict=True)
    if len({one.shape for one in crops}) > 1:
        raise RecipeError(f"films of {short_px} px give different numbers of crops; use larger ones")
    return PhantomSet(np.stack(crops), np.array(sizes), Targets.stack(list(targets)), list(labels))


def kept_phantoms(
    folder: Path, first: int, count: int, short_px: tuple[int, int], geometry: Geometry, workers: int = 2
) -> PhantomSet:
    """The same, drawn once: kept under `folder`, where a resumed run finds them."""
    kept = folder / f"phantoms-{cache_key(first, count, short_px, geometry)}"
    if not kept.is_dir():
        partial = folder / f"{kept.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        films = draw_phantoms(first, count, short_px, geometry, workers)
        drawn: dict[str, Any] = {"crops": films.crops, "sizes": films.sizes} | vars(films.targets)
        for name, array in drawn.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "labels.pickle").write_bytes(pickle.dumps(films.labels))
        partial.rename(kept)
    arrays: dict[str, Any] = {path.stem: np.load(path, mmap_mode="r") for path in kept.glob("*.npy")}
    targets = Targets(arrays["areas"], arrays["presence"], arrays["boxes"])
    labels: list[Labels] = pickle.loads((kept / "labels.pickle").read_bytes())
    return PhantomSet(arrays["crops"], arrays["sizes"], targets, labels)


@dataclass(frozen=True)
class RealFilm:
    """One NIH film; labels are text-mined from its report."""

    name: str
    patient: str
    pixels: npt.NDArray[np.uint8]
    """`[H, W]`, at most REAL_PX a side."""
    present: frozenset[str]
    """RadVLM's labels."""
    normal: bool
    """The report mentions no finding at all."""
    drawn: tuple[Finding, ...] = ()
    """What radiologists drew boxes around."""

    @property
    def labels(self) -> Labels:
        return Labels(self.present, self.drawn, localised=False)

    def known(self, name: str) -> bool:
        """Whether the label says enough: it is there, or its silence may count as absence."""
        return name in self.present or self.normal or name in ABSENCE


@dataclass(frozen=True)
class RealSet:
    """Real films of one split."""

    films: tuple[RealFilm, ...]

    def pick(self, rng: np.random.Generator) -> tuple[RealFilm, str]:
        """A film and the label to ask about, as PICK weighs them; present as often as absent.

        Raises RecipeError where no film fits any label.
        """
        for _ in range(64):
            name = list(PICK)[int(rng.choice(len(PICK), p=list(PICK.values())))]
            here = bool(rng.random() < 0.5)
            fitting = [film for film in self.films if (name in film.present) == here and film.known(name)]
            if fitting:
                return fitting[int(rng.integers(len(fitting)))], name
        raise RecipeError(f"none of {len(self.films)} real films has one of the labels {', '.join(PICK)}")


def data_folder() -> Path | None:
    """The folder with nih_cxr14/ that RADVLM_EDGE_DATA names; None where there is none."""
    named = os.environ.get("RADVLM_EDGE_DATA")
    if not named or not (Path(named) / "nih_cxr14" / "labels.csv").is_file():
        return None
    return Path(named)


def load_real(folder: Path, split: str) -> RealSet:
    """Read the NIH films of a patient-wise split (`train` or `val`)."""
    root = folder / "nih_cxr14"
    films, drawn = [], _drawn(root / "boxes.csv")
    with (root / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] != split:
                continue
            said = set(row["labels"].split("|"))
            image = Image.open(root / "images" / row["image"]).convert("L")
            image.thumbnail((REAL_PX, REAL_PX), Image.Resampling.BICUBIC)
            own = drawn.get(row["image"], ())
            present = radvlm_labels(said) | {one.name for one in own}
            normal = "No Finding" in said and not present
            films.append(RealFilm(row["image"], row["patient"], np.asarray(image), present, normal, own))
    if not films:
        raise RecipeError(f"{root / 'labels.csv'}: no film of split {split!r}")
    return RealSet(tuple(films))


def _drawn(path: Path) -> dict[str, tuple[Finding, ...]]:
    """Film → what radiologists drew on it."""
    found: dict[str, tuple[Finding, ...]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            name = BOXES[row["label"]]
            if name is not None:
                box = (float(row["x0"]), float(row["y0"]), float(row["x1"]), float(row["y1"]))
                found[row["image"]] = (*found.get(row["image"], ()), Finding(name, "", box))
    return found


def augment(rng: np.random.Generator, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shift, turn, scale and re-expose a film `[H, W]`; never mirrored: the heart lies on the left."""
    return augment_film(rng, pixels, ())[0]


def augment_film(
    rng: np.random.Generator, pixels: npt.NDArray[np.uint8], drawn: tuple[Finding, ...]
) -> tuple[npt.NDArray[np.uint8], tuple[Finding, ...]]:
    """The same, boxes moving with the film; a box is then the tightest around the turned one."""
    height, width = pixels.shape
    angle, scale = rng.normal(0, 0.05), np.exp(rng.normal(0, 0.06))
    stretch = np.exp(rng.normal(0, 0.04))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    cx, cy = width * (0.5 + rng.normal(0, 0.03)), height * (0.5 + rng.normal(0, 0.03))
    turn = (
        cos * stretch, sin, width / 2 - cos * stretch * cx - sin * cy,
        -sin, cos / stretch, height / 2 + sin * cx - cos / stretch * cy,
    )  # fmt: skip
    moved = Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR
    )
    level = np.asarray(moved, np.float32) / 255
    level = level ** np.float32(np.exp(rng.normal(0, 0.25)))
    level = (level - 0.5) * np.float32(np.exp(rng.normal(0, 0.15))) + 0.5 + np.float32(rng.normal(0, 0.05))
    level = level + rng.standard_normal(level.shape, np.float32) * np.float32(rng.uniform(0, 0.02))
    moved_boxes = tuple(dataclasses.replace(one, box=_moved(one.box, turn, (width, height))) for one in drawn)
    return np.clip(level * 255, 0, 255).astype(np.uint8), moved_boxes


def _moved(box: Box, turn: tuple[float, ...], size: tuple[int, int]) -> Box:
    """A box under the inverse of Pillow's affine map, which leads from new pixels to old ones."""
    a, b, c, d, e, f = turn
    corners = np.array([(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]) * size
    new = np.linalg.solve(np.array([[a, b], [d, e]]), (corners - [c, f]).T).T / size
    low, high = np.clip(new.min(0), 0, 1), np.clip(new.max(0), 0, 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def cache_key(*parts: object) -> str:
    """Short digest that tells one cache from another."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
