"""A film from any file: what it is told by its content, and read by the right reader."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from radvlm_edge.errors import FilmError
from radvlm_edge.runtime import render as rendering
from radvlm_edge.runtime.render import RENDERS

MAX_PIXELS = 200_000_000
"""Largest film read; a detector of 43 cm at 0.1 mm has 18 million."""
PICTURES = ("PNG", "JPEG", "TIFF")
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises over damaged files."""


@dataclass(frozen=True)
class Film:
    """A radiograph as the model will see it."""

    pixels: npt.NDArray[np.uint8]
    """`[H, W]` grey; dense tissue is bright."""
    name: str
    """As the caller named it; `-` for stdin."""
    render: str
    """`voi`, `minmax` or `mimic`: what was really done."""
    spacing_mm: tuple[float, float] | None = None
    """Distance of (rows, columns) in millimetres; `None` where the file does not say."""
    orientation: tuple[str, str] | None = None
    """Patient Orientation: directions of rows and columns, e.g. `("L", "F")`."""
    view: str | None = None
    """View Position, e.g. `PA`."""
    provenance: dict[str, Any] | None = None
    """What was read and applied; no patient's name, id or birth date."""
    warnings: tuple[str, ...] = ()
    """One line each."""


def load_film(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    render: str = "voi",
    any_modality: bool = False,
    frame: int | None = None,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Film:
    """Read DICOM, PNG, JPEG or TIFF (path, content, or open binary file) as a `Film`.

    Raises FilmError, one line, for whatever cannot be read or is no radiograph.
    """
    if render not in RENDERS:
        raise FilmError(f"render {render!r} is unknown; choose one of {', '.join(RENDERS)}")
    content, called = content_of(source)
    name = name or called
    if not content:
        raise FilmError(f"{name}: the file is empty")
    if _is_picture(content):
        return _picture(content, name, render, max_pixels)
    from radvlm_edge.runtime.dicom import read_dicom  # pydicom only where it is needed

    return read_dicom(
        content, name, render=render, any_modality=any_modality, frame=frame, max_pixels=max_pixels
    )


def content_of(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[bytes, str]:
    """Bytes of a film and what to call it."""
    if isinstance(source, bytes):
        return source, "-"
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes(), str(source)
        except FileNotFoundError:
            raise FilmError(f"{source}: no such file") from None
        except OSError as error:
            raise FilmError(f"{source}: cannot be read: {error.strerror}") from error
    return source.read(), str(getattr(source, "name", "-"))


def _is_picture(content: bytes) -> bool:
    signatures = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
    # A DICOM file may hold anything in its first 128 bytes, a TIFF header too.
    return content.startswith(signatures) and content[128:132] != b"DICM"


@contextlib.contextmanager
def _own_size_limit() -> Iterator[None]:
    """Put Pillow's limit out of force: ours is checked before any pixel is decoded, and names the size."""
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def _picture(content: bytes, name: str, render: str, max_pixels: int) -> Film:
    """PNG, JPEG or TIFF through Pillow."""
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _own_size_limit(), Image.open(io.BytesIO(content), formats=PICTURES) as opened:
                form, mode = str(opened.format), opened.mode
                _check_size(name, opened.height, opened.width, max_pixels)
                opened.load()
                picture = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise FilmError(
            f"{name}: not a picture Pillow can read; DICOM, PNG, JPEG and TIFF are accepted"
        ) from None
    except DAMAGE as error:  # its kind alone: Pillow's words may quote the file's own texts
        raise FilmError(
            f"{name}: damaged or truncated picture ({type(error).__name__}); copy it again"
        ) from error
    values = _grey(picture, notes)
    valid = np.ones(values.shape, np.bool_)
    if render == "mimic":
        pixels = rendering.render_mimic(values.astype(np.float64), valid, inverted=False)
    elif render == "minmax":
        pixels = rendering.render_minmax(values)
    else:
        pixels = values if values.dtype == np.uint8 else rendering.to_bytes(rendering.stretch(values))
    provenance = {
        "format": form,
        "mode": mode,
        "window": "as is" if values.dtype == np.uint8 else "min to max",
    }
    return Film(np.ascontiguousarray(pixels), name, render, provenance=provenance, warnings=tuple(notes))


def _grey(picture: Image.Image, notes: list[str]) -> npt.NDArray[Any]:
    """`[H, W]`: uint8 for 8-bit pictures, float64 for deeper ones."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture).astype(np.float64)
        return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if picture.mode not in ("L", "1"):
        colour = np.asarray(picture.convert("RGB"))
        if int((colour.max(axis=2).astype(np.int16) - colour.min(axis=2)).max()) > 12:
            notes.append("a colour picture; its brightness is used")
    return np.asarray(picture.convert("L"))


def _check_size(name: str, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise FilmError(f"{name}: {width}x{height} pixels; there is nothing to see")
    if height * width > max_pixels:
        raise FilmError(
            f"{name}: {width}x{height} pixels are more than the {max_pixels} that are read; scale it down"
        )
