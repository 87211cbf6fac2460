"""Films from files: every kind that is read, and one clear line for every kind that is not."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from radvlm_edge.errors import FilmError
from radvlm_edge.runtime import dicom
from radvlm_edge.runtime.film import Film, load_film

CR = "1.2.840.10008.5.1.4.1.1.1"
RAMP = np.linspace(0, 4095, 80 * 70).reshape(80, 70).astype(np.uint16)


def make(
    stored: np.ndarray[Any, Any] = RAMP, *, syntax: str = ExplicitVRLittleEndian, bits: int = 12, **tags: Any
) -> bytes:
    """A CR chest film holding `stored`, every tag replaceable (`None` removes it)."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        syntax
        if syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
        else ExplicitVRLittleEndian
    )
    dataset.SOPClassUID, dataset.SOPInstanceUID = CR, "2.25.1"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-ID"
    dataset.Rows, dataset.Columns = stored.shape[:2] if stored.ndim < 4 else stored.shape[1:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.add_new(0x7FE00010, "OW" if stored.dtype.itemsize > 1 else "OB", stored.tobytes())
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        dataset.compress(syntax)
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def lut(first: int, entries: list[int], bits: int) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return pydicom.Sequence([item])


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
)
def test_every_lossless_syntax_gives_the_same_film(syntax: str) -> None:
    assert np.array_equal(load_film(make(syntax=syntax)).pixels, load_film(make()).pixels)


def test_monochrome1_is_the_inverse() -> None:
    plain = load_film(make(WindowCenter=2048, WindowWidth=4096)).pixels
    flipped = load_film(
        make(4095 - RAMP, WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1")
    )
    assert np.abs(plain.astype(int) - flipped.pixels).max() <= 1
    dark = load_film(make(PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")).pixels
    assert np.array_equal(dark, load_film(make(PhotometricInterpretation="MONOCHROME1")).pixels)
    assert np.array_equal(dark, load_film(make(PresentationLUTShape="INVERSE")).pixels)


def test_rescale_comes_before_the_window_and_signed_values_work() -> None:
    signed = RAMP.astype(np.int16) - 1024
    film = load_film(
        make(signed, bits=16, RescaleSlope=2, RescaleIntercept=2048, WindowCenter=4096, WindowWidth=8192)
    )
    assert (
        np.abs(film.pixels.astype(int) - load_film(make(WindowCenter=2048, WindowWidth=4096)).pixels).max()
        <= 1
    )
    assert film.provenance is not None
    assert film.provenance["window"] == {"center": 4096.0, "width": 8192.0, "function": "LINEAR"}


def test_the_first_of_several_windows_is_used_and_an_impossible_one_said() -> None:
    film = load_film(make(WindowCenter=[2048, 100], WindowWidth=[4096, 10]))
    assert np.array_equal(film.pixels, load_film(make(WindowCenter=2048, WindowWidth=4096)).pixels)
    film = load_film(make(WindowCenter=2048, WindowWidth=0))
    assert np.array_equal(film.pixels, load_film(make()).pixels) and "window width 0" in film.warnings[0]


def test_luts() -> None:
    stored = np.array([[0, 1, 2, 3]], np.uint16)
    film = load_film(make(stored, VOILUTSequence=lut(1, [0, 128, 255], 8)))
    assert film.pixels.tolist() == [[0, 0, 128, 255]]
    film = load_film(make(stored, ModalityLUTSequence=lut(0, [40, 30, 20, 10], 8)))
    assert film.pixels.tolist() == [[255, 170, 85, 0]]


def test_padding_is_black_and_does_not_stretch_the_film() -> None:
    stored = RAMP.astype(np.int16) + 100
    stored[:5] = -2000
    film = load_film(make(stored, bits=16, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"))
    assert (film.pixels[:5] == 0).all() and film.pixels[5:].max() == 255 and film.pixels[5:].min() == 0


def test_planar_colour_and_palette_become_grey() -> None:
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[..., 1] = 200
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "bits": 8}
    interleaved = load_film(make(rgb, PlanarConfiguration=0, **tags))
    planes = make(rgb.transpose(2, 0, 1).copy(), PlanarConfiguration=1, Rows=4, Columns=5, **tags)
    assert (interleaved.pixels == 117).all() and np.array_equal(load_film(planes).pixels, interleaved.pixels)
    assert "colour" in interleaved.warnings[0]


def test_frames_are_chosen_not_guessed() -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP // 2])
    content = make(frames[:, :, :, None][..., 0], NumberOfFrames=3, Rows=80, Columns=70)
    with pytest.raises(FilmError, match="3 frames; pick one with --frame 0 to 2"):
        load_film(content)
    with pytest.raises(FilmError, match="no frame 3"):
        load_film(content, frame=3)
    assert np.array_equal(load_film(content, frame=1).pixels, load_film(make(RAMP[::-1].copy())).pixels)


def test_renders_differ_and_are_recorded() -> None:
    content = make(PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=500)
    films = {render: load_film(content, render=render) for render in ("voi", "minmax", "mimic")}
    assert [film.render for film in films.values()] == list(films)
    assert films["minmax"].pixels[0, 0] == 0 and films["mimic"].pixels[0, 0] == 255
    with pytest.raises(FilmError, match="render 'x' is unknown; choose one of voi"):
        load_film(content, render="x")


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [([0.2, 0.3], (0.2, 0.3)), ([0, 0], None), ([-1, 0.2], None), (None, None)],
)
def test_spacing_zero_is_unknown(spacing: list[float] | None, expected: tuple[float, float] | None) -> None:
    tags = {} if spacing is None else {"PixelSpacing": spacing}
    assert load_film(make(**tags)).spacing_mm == expected
    assert load_film(make(ImagerPixelSpacing=[0.1, 0.1], PixelSpacing=[0, 0])).spacing_mm == (0.1, 0.1)


def test_nothing_of_the_patient_is_kept() -> None:
    film = load_film(make(PatientOrientation=["L", "F"]))
    assert "Secret" not in repr(film) and "SECRET" not in repr(film)
    assert (film.orientation, film.view) == (("L", "F"), "PA")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "neither DICOM nor a picture"),
        (b"\x00" * 200, "neither DICOM nor a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "not a picture|damaged or truncated"),
        (make(Modality="CT"), "modality CT is no chest radiograph"),
        (make(PixelData=None), "without pixels"),
        (make(Rows=0), "nothing to see"),
        (make(Rows=60000, Columns=60000), "more than the"),
        (make(PixelData=RAMP.tobytes()[:500]), "cannot be decoded"),
        (make(RescaleSlope="0", RescaleIntercept="0"), "damaged|rescale"),
    ],
    ids=range(10),
)
def test_what_is_no_film_is_one_clear_line(content: bytes, complaint: str) -> None:
    with pytest.raises(FilmError, match=complaint) as error:
        load_film(content, name="xray.dcm")
    assert str(error.value).startswith("xray.dcm: ") and "\n" not in str(error.value)


def test_other_films_are_read_with_a_warning() -> None:
    assert "body part HIP" in load_film(make(BodyPartExamined="HIP")).warnings[0]
    assert "frontal" in load_film(make(ViewPosition="LL")).warnings[0]
    assert "modality CT" in load_film(make(Modality="CT"), any_modality=True).warnings[0]
    assert not load_film(make()).warnings


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FilmError, match="no such file"):
        load_film(tmp_path / "none.dcm")
    with pytest.raises(FilmError, match="cannot be read: Is a directory"):
        load_film(tmp_path)


def picture(mode: str, form: str, size: tuple[int, int] = (30, 40), **options: Any) -> bytes:
    out = io.BytesIO()
    values = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    Image.fromarray(values).convert(mode).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_pictures_of_every_mode_become_grey(mode: str) -> None:
    if mode == "I;16":
        out = io.BytesIO()
        Image.fromarray(RAMP).save(out, "PNG")
        film, shape = load_film(out.getvalue()), RAMP.shape
        assert film.pixels.max() == 255
    else:
        film, shape = load_film(picture(mode, "PNG")), (40, 30)
    assert film.pixels.shape == shape and film.pixels.dtype == np.uint8 and not film.warnings


def test_exif_orientation_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_film(picture("L", "JPEG", exif=exif)).pixels.shape == (30, 40)


def test_bombs_are_refused_before_decoding() -> None:
    out = io.BytesIO()
    Image.new("1", (20000, 20000)).save(out, "PNG")
    with pytest.raises(FilmError, match="20000x20000 pixels are more than"):
        load_film(out.getvalue())


@pytest.mark.parametrize(
    "content",
    [
        make(),
        make(syntax=JPEG2000Lossless),
        make(syntax=RLELossless),
        picture("L", "PNG"),
        picture("L", "TIFF"),
    ],
    ids=["plain", "j2k", "rle", "png", "tiff"],
)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damage_gives_a_film_or_one_clear_line(content: bytes, damage: str) -> None:
    rng = random.Random(5)
    for _ in range(60):
        at = rng.randrange(1, len(content))
        changed = bytearray(content[:at] if damage == "cut" else content)
        if damage == "flip":
            for _ in range(3):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            assert isinstance(load_film(bytes(changed), name="x", max_pixels=10**7), Film)
        except FilmError as error:
            assert "\n" not in str(error)


DATA = os.environ.get("RADVLM_EDGE_DATA", "")
LOSSY_BASELINE = {
    "chest_SIIM_jpegbaseline.dcm": "938432fbb18d79f48568dc5b1fb06ffd2ace4a4ded4bfc490c35981e58f053fb",
    "examples_ybr_color.dcm": "7275d2af634281c85c40fbcf718602d3fca910641c0502c003af015186875e36",
    "SC_rgb_jpeg.dcm": "be7aa556b206ac445bc4125d24213bfac8832980138d54ece2b90be6e3d63d74",
}
"""Lossy JPEG: the manifest's digests are those of a GPL decoder this project does not ship. GDCM's and
Pillow's agree with each other bit for bit and differ from it by at most 1 (3 in upsampled colour)."""


def manifest() -> list[dict[str, str]]:
    if not DATA:
        return []
    with (Path(DATA) / "dicom" / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.realdata
@pytest.mark.parametrize("row", manifest() or [{}], ids=lambda row: row.get("file", "none"))
def test_manifest_files_decode_to_their_digest_or_a_clean_error(
    row: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    path = Path(DATA) / "dicom" / row["file"]
    expected = LOSSY_BASELINE.get(row["file"], row["pixels_sha256"])
    with dicom._quiet():
        try:
            stored = dicom.decode_pixels(dicom._parse(path.read_bytes(), row["file"]))
            assert hashlib.sha256(stored.tobytes()).hexdigest() == expected
        except (FilmError, *dicom.DAMAGE):
            # JPEG Extended needs that same GPL decoder.
            assert not expected or row["file"] == "JPGExtended.dcm"
    try:
        film = load_film(path, any_modality=True, frame=0)
        assert film.pixels.dtype == np.uint8 and film.pixels.ndim == 2
    except FilmError as error:
        assert "\n" not in str(error) and row["file"] in str(error)
        assert row["decode"].startswith("ERR") or row["file"] == "JPGExtended.dcm"


@pytest.mark.realdata
@pytest.mark.parametrize("row", manifest() or [{}], ids=lambda row: row.get("file", "none"))
def test_lossy_copies_stay_within_their_stated_difference(row: dict[str, str]) -> None:
    if not row["reference_maxdiff"]:
        return
    name, limit = row["reference_maxdiff"].split(":")
    folder = Path(DATA) / "dicom"
    ours, reference = (pydicom.dcmread(folder / f).pixel_array.astype(int) for f in (row["file"], name))
    assert np.abs(ours - reference).max() <= int(limit)


@pytest.mark.realdata
def test_only_radiographs_are_read_without_asking() -> None:
    refused = {r["file"] for r in manifest() if r["modality"] in ("CT", "MR", "US", "NM", "SEG", "RTDOSE")}
    assert len(refused) > 10
    for name in refused:
        with pytest.raises(FilmError):
            load_film(Path(DATA) / "dicom" / name)
