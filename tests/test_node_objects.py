"""Findings → SR, GSPS and secondary capture: read back by highdicom, dcmtk and dciodvfy."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes as standard

pytest.importorskip("pynetdicom", reason="needs the extra `node`")
highdicom = pytest.importorskip("highdicom", reason="needs the extra `node`")
from tests.dicom_node import content, dciodvfy_errors, film, tool  # noqa: E402

from radvlm_edge.node import capture, codes, gsps, sr  # noqa: E402
from radvlm_edge.node.heading import (  # noqa: E402
    DATES,
    KEPT,
    NAMES,
    TEXTS,
    Heading,
    encoded,
    identity_of,
    quietly,
)
from radvlm_edge.node.identity import Maker  # noqa: E402
from radvlm_edge.node.reading import (  # noqa: E402
    ABSENT,
    PRESENT,
    UNDETERMINED,
    Failure,
    Finding,
    Reading,
    Spoken,
    presence,
    unfit,
)
from radvlm_edge.runtime.answers import LABELS, Box  # noqa: E402
from radvlm_edge.runtime.confidence import Confidence  # noqa: E402

MAKER = Maker("0.1.0", "nano", "ab" * 32, "fp16", "Q8_0", "exact", "voi", 256, "cd" * 32, demonstration=True)
EFFUSION = Box("pleural effusion", (0.1, 0.5, 0.4, 0.9), (51, 256, 205, 461))
LUNG = Box("left lung", (0.5, 0.1, 1.0, 0.9), (256, 51, 512, 461))
READING = Reading(
    findings=(
        Finding("pleural effusion", PRESENT, "Is there pleural effusion?", Confidence(0.91, "half of x")),
        Finding("pneumothorax", ABSENT, "Is there pneumothorax?"),
        Finding("lung lesion", UNDETERMINED, "Is there lung lesion?"),
    ),
    answers=(
        Spoken("Where?", "An effusion [0.1, 0.5, 0.4, 0.9], größer", (EFFUSION, LUNG)),
        Spoken("Why?", "", ()),
    ),
    notes=("a colour picture; its brightness is used",),
    pixels=np.zeros((512, 512), np.uint8),
)
RECEIVED_S = 1_700_000_000.0


def heading(**changes: Any) -> Heading:
    return Heading.of(content(film(1, **changes)), MAKER, RECEIVED_S)


def read_back(result: bytes) -> Any:
    return pydicom.dcmread(io.BytesIO(result))


def texts(document: Any) -> list[str]:
    """Every text of a report."""
    return [str(element.value) for element in document.iterall() if element.keyword == "TextValue"]


@pytest.fixture(scope="module")
def report() -> bytes:
    return encoded(sr.report(heading(), READING))


@pytest.fixture(scope="module")
def overlay() -> bytes:
    state = gsps.overlay(heading(), READING)
    assert state is not None
    return encoded(state)


@pytest.fixture(scope="module")
def failure() -> bytes:
    return encoded(sr.report(heading(), Failure("pixels cannot be decoded: truncated")))


def test_findings_are_read_back_with_codes_and_certainty(report: bytes) -> None:
    document = highdicom.sr.srread(io.BytesIO(report))
    assert isinstance(document, highdicom.sr.Comprehensive3DSR)
    said = {
        group.finding_type.value: group.get_qualitative_evaluations(codes.PRESENCE)[0].value.meaning
        for group in document.content.get_image_measurement_groups()
        if group.finding_type is not None
    }
    assert said == {"60046008": "Present", "36118008": "Absent", "F07": "Presence Undetermined"}
    (effusion,) = document.content.get_image_measurement_groups(
        finding_type=codes.FINDINGS["pleural effusion"]
    )
    (certainty,) = effusion.get_measurements()
    assert (certainty.name, certainty.value) == (codes.CERTAINTY, 91.0)
    others = document.content.get_image_measurement_groups(finding_type=codes.FINDINGS["pneumothorax"])
    assert others[0].get_measurements() == [], "what was not calibrated has no number"


def test_boxes_are_closed_outlines_in_pixels_of_the_film(report: bytes) -> None:
    document = highdicom.sr.srread(io.BytesIO(report))
    groups = document.content.get_planar_roi_measurement_groups()
    assert [group.finding_type.value for group in groups] == ["60046008", "R01"]
    assert [group.tracking_identifier for group in groups] == ["box 1: pleural effusion", "box 2: left lung"]
    outline = groups[0].roi.value
    assert outline.tolist() == [[51, 256], [205, 256], [205, 461], [51, 461], [51, 256]]


def test_the_report_is_a_new_series_of_the_study_unverified_and_says_who_made_it(report: bytes) -> None:
    source, document = film(1), read_back(report)
    assert document.StudyInstanceUID == source.StudyInstanceUID
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert document.PatientID == source.PatientID and document.PatientName == source.PatientName
    assert (document.VerificationFlag, document.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    (equipment,) = document.ContributingEquipmentSequence
    assert equipment.DeviceUID == MAKER.device_uid
    assert equipment.SoftwareVersions[0] == "radvlm-edge 0.1.0"
    text = " ".join(texts(document))
    assert "not for diagnosis" in text and "größer" in text and "Where?" in text


def test_the_same_work_is_the_same_bytes(report: bytes, overlay: bytes) -> None:
    again = gsps.overlay(heading(), READING)
    assert again is not None and encoded(again) == overlay
    assert encoded(sr.report(heading(), READING)) == report


def test_a_failure_is_a_report_that_says_so(failure: bytes) -> None:
    document = highdicom.sr.srread(io.BytesIO(failure))
    assert document.CompletionFlag == "PARTIAL"
    (group,) = document.content.get_image_measurement_groups()
    assert group.get_qualitative_evaluations(codes.ANALYSIS)[0].value == codes.FAILED
    assert "pixels cannot be decoded: truncated" in texts(document)
    other = highdicom.sr.srread(io.BytesIO(encoded(sr.report(heading(), Failure("LL", attempted=False)))))
    (group,) = other.content.get_image_measurement_groups()
    assert group.get_qualitative_evaluations(codes.ANALYSIS)[0].value == codes.NOT_ATTEMPTED


def test_the_overlay_draws_the_boxes_where_the_report_has_them(overlay: bytes) -> None:
    source, state = film(1), read_back(overlay)
    graphics = state.GraphicAnnotationSequence[0].GraphicObjectSequence
    assert [len(graphic.GraphicData) for graphic in graphics] == [10, 10]
    assert graphics[0].GraphicData[:4] == [51, 256, 205, 256]
    (series,) = state.ReferencedSeriesSequence
    assert series.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert source.PhotometricInterpretation == "MONOCHROME1" and state.PresentationLUTShape == "INVERSE"
    voi = state.SoftcopyVOILUTSequence[0]
    assert (voi.WindowCenter, voi.WindowWidth) == (source.WindowCenter, source.WindowWidth)
    nothing = Reading((), (), (), READING.pixels)
    assert gsps.overlay(heading(), nothing) is None


def test_the_capture_shows_boxes_under_a_line_that_says_what_it_is() -> None:
    result = read_back(encoded(capture.captured(heading(), READING)))
    pixels = result.pixel_array
    assert pixels.shape == (512 + capture.BAND, 512, 3)
    assert pixels[: capture.BAND].any(), "the notice"
    assert pixels[capture.BAND + 300, 51].any(), "the left edge of the first box"
    assert not pixels[capture.BAND + 10, 200].any()


@pytest.mark.skipif(tool("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_dciodvfy_finds_no_error(report: bytes, overlay: bytes, failure: bytes, tmp_path: Path) -> None:
    shot = encoded(capture.captured(heading(), READING))
    for result in (report, overlay, failure, shot):
        assert dciodvfy_errors(result, tmp_path) == []


@pytest.mark.skipif(tool("dsrdump") is None, reason="dsrdump is not installed (Debian: dcmtk)")
def test_dcmtk_reads_the_report(report: bytes, failure: bytes, tmp_path: Path) -> None:
    for name, result in (("report", report), ("failure", failure)):
        path = tmp_path / name
        path.write_bytes(result)
        done = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=True)
        assert "Comprehensive 3D SR Document" in done.stdout and "UNVERIFIED" in done.stdout
        assert ("SCOORD" in done.stdout) == (name == "report")


ODD = {
    "no patient": {"PatientID": None, "PatientName": None, "PatientBirthDate": None, "PatientSex": None},
    "wrong dates": {"StudyDate": "2020.1.1", "StudyTime": "noon", "PatientBirthDate": "unknown"},
    "wrong sex": {"PatientSex": "X"},
    "long texts": {"AccessionNumber": "A" * 40, "PatientID": "P" * 100, "StudyID": "S" * 40},
    "another script": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Buc^Jérôme"},
    "no window": {
        "WindowCenter": None,
        "WindowWidth": None,
        "ImagerPixelSpacing": None,
        "PixelSpacing": None,
    },
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_headers_do_not_cost_a_film_its_report(odd: str) -> None:
    with pydicom.config.disable_value_validation():
        head = heading(**ODD[odd])
        document = read_back(encoded(sr.report(head, Failure("x"))))
    state = gsps.overlay(head, READING)
    assert state is not None and encoded(state)
    assert document.StudyInstanceUID == film(1).StudyInstanceUID
    if odd == "another script":
        assert str(document.PatientName) == "Buc^Jérôme"


def bare(text: str) -> str:
    """A text without blanks and padding, which DICOM gives no meaning to at its ends."""
    return "".join(text.replace("\0", "").split())


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.dictionaries(
        st.sampled_from(
            [*NAMES, *TEXTS, *DATES, *KEPT, "PatientAge", "WindowCenter", "WindowWidth", "VOILUTFunction"]
        ),
        st.text(max_size=70),
    )
)
@example({"PatientBirthDate": "\v"})
@example({"PatientID": "A\\B", "StudyID": "S\0", "PatientAge": "Ā"})
def test_no_header_text_stops_a_film_and_none_is_made_up(texts: dict[str, str]) -> None:
    with quietly():
        header = pydicom.Dataset()
        header.SpecificCharacterSet = "ISO_IR 192"
        for keyword, text in texts.items():
            header.add(pydicom.DataElement(keyword, "LO", text))  # as a damaged sender may write it
        found = identity_of(header)
        found.file_meta = film(1).file_meta
        found.SpecificCharacterSet = "ISO_IR 192"
        again = read_back(encoded(found))
    for keyword in TEXTS:
        value = again.get(keyword) or ""
        text = value if isinstance(value, str) else "\\".join(value)
        if keyword != "PatientSex" or text:
            assert bare(text) == bare(texts.get(keyword, ""))
    for keyword, kind in DATES.items():
        assert found.get(keyword) == "" or kind(str(found.get(keyword)))
    assert found.PatientSex in ("", "M", "F", "O")


def test_every_finding_has_a_code_and_standard_ones_are_the_standards() -> None:
    assert tuple(codes.FINDINGS) == LABELS
    assert len({code[:2] for code in codes.FINDINGS.values()}) == len(LABELS)
    for ours, theirs in {
        codes.FINDINGS["edema"]: standard.SCT.PulmonaryEdema,
        codes.FINDINGS["pleural effusion"]: standard.SCT.PleuralEffusion,
        codes.FINDINGS["pneumothorax"]: standard.SCT.Pneumothorax,
        codes.PRESENCE: standard.DCM.PresenceOfProperty,
        codes.PRESENCES[PRESENT]: standard.DCM.Present,
        codes.PRESENCES[ABSENT]: standard.DCM.Absent,
        codes.PRESENCES[UNDETERMINED]: standard.DCM.PresenceUndetermined,
        codes.CERTAINTY: standard.DCM.CertaintyOfFinding,
        codes.ANALYSIS: standard.DCM.SummaryOfAnalyses,
        codes.SUCCEEDED: standard.DCM.Succeeded,
        codes.FAILED: standard.DCM.Failed,
        codes.NOT_ATTEMPTED: standard.DCM.NotAttempted,
        codes.COMMENT: standard.DCM.Comment,
        codes.PROCESSING: standard.DCM.ProcessingEquipment,
    }.items():
        assert ours == theirs and ours.meaning == theirs.meaning


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes, there is.", PRESENT), ("No.", ABSENT), ("no", ABSENT), ("", UNDETERMINED),
     ("The heart", UNDETERMINED), ("Not sure", UNDETERMINED), ("Yesterday", UNDETERMINED)],
)  # fmt: skip
def test_presence_is_the_first_word(text: str, said: str) -> None:
    assert presence(text) == said


def test_films_the_model_does_not_know_are_told_by_their_header() -> None:
    assert unfit(content(film(1))) is None
    assert unfit(content(film(1, ViewPosition="LL"))) == "view LL: the model knows frontal films only"
    assert "body part HAND" in str(unfit(content(film(1, BodyPartExamined="HAND"))))
    assert unfit(content(film(1, BodyPartExamined="", ViewPosition=""))) is None
