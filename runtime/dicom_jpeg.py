"""JPEG Lossless frames through GDCM's codec itself, and which decoder reads each transfer syntax.

pydicom's own way into GDCM (`Image.GetBuffer`) lets a C++ exception out where a stream does not fit the
header, which ends the process. The codec below says so instead, and a stream is only given to it if its own
frame header claims what the DICOM header does.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset, uid
from pydicom.pixels.decoders.base import get_decoder

PLUGIN = "radvlm"
PLUGINS = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: PLUGIN,
    uid.JPEGLosslessSV1: PLUGIN,
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
}
"""The one decoder of each syntax: pydicom would try GDCM first, and after every failure."""
NO_LENGTH = (0x01, *range(0xD0, 0xD9))
"""Markers that no length follows (ITU-T T.81, B.1.1.3)."""
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers (T.81, table B.1)."""
DECODER_DEPENDENCIES = {uid.JPEGLossless: ("python-gdcm",), uid.JPEGLosslessSV1: ("python-gdcm",)}
"""For pydicom's own error where GDCM is missing."""


class StreamError(ValueError):
    """A compressed stream that is damaged, or is not what its header says; its text quotes neither."""


def choose_decoder(dataset: Dataset) -> None:
    """Have `dataset.pixel_array` use the decoder of its transfer syntax."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if PLUGINS.get(syntax) == PLUGIN:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))
    dataset.pixel_array_options(decoding_plugin=PLUGINS.get(syntax, ""))


def is_available(syntax: str) -> bool:
    """For pydicom: whether frames of a syntax can be decoded here."""
    try:
        import gdcm  # noqa: F401
    except ImportError:
        return False
    return syntax in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: Any) -> bytes:
    """A frame's pixels from its JPEG Lossless stream; `runner` is pydicom's DecodeRunner.

    Raises StreamError for a stream that cannot be decoded or does not fit the header.
    """
    import gdcm

    height, width, components, precision = frame_header(src)
    if (height, width, components) != (runner.rows, runner.columns, runner.samples_per_pixel):
        raise StreamError("the stream has another size than the header says")
    if not 2 <= precision <= runner.bits_allocated or runner.bits_allocated not in (8, 16):
        raise StreamError("the stream has another depth than the header says")
    codec, result = gdcm.JPEGCodec(), gdcm.DataElement()
    codec.SetDimensions((width, height, 1))
    codec.SetPhotometricInterpretation(_photometric(gdcm, runner.photometric_interpretation))
    codec.SetPlanarConfiguration(0)
    sign = runner.pixel_representation
    codec.SetPixelFormat(gdcm.PixelFormat(components, runner.bits_allocated, precision, precision - 1, sign))
    if not codec.Decode(_element(gdcm, src), result) or result.GetByteValue() is None:
        raise StreamError("the stream is damaged")
    if components > 1:
        runner.set_option("planar_configuration", 0)
    frame: bytes = result.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
    if len(frame) < height * width * components * runner.bits_allocated // 8:
        raise StreamError("the stream ends early")
    return frame


def frame_header(stream: bytes) -> tuple[int, int, int, int]:
    """(height, width, components, bits) of a JPEG stream (T.81, B.2.2). Raises StreamError."""
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in NO_LENGTH:
            at += 2
            continue
        if marker in FRAMES and at + 10 <= len(stream):
            height, width = (int.from_bytes(stream[p : p + 2], "big") for p in (at + 5, at + 7))
            return height, width, stream[at + 9], stream[at + 4]
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    raise StreamError("the stream is no JPEG")


def _element(gdcm: Any, src: bytes) -> Any:
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    return element


def _photometric(gdcm: Any, name: str) -> Any:
    kind = gdcm.PhotometricInterpretation.GetPIType(str(name))
    if kind in (gdcm.PhotometricInterpretation.UNKNOWN, gdcm.PhotometricInterpretation.PI_END):
        raise StreamError("its photometric interpretation is not known")
    return gdcm.PhotometricInterpretation(kind)
