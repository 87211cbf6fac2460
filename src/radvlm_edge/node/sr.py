"""Findings → Comprehensive 3D SR with TID 1500: one film's answers, or why there are none."""

from __future__ import annotations

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.coding import Code

from radvlm_edge.node import codes
from radvlm_edge.node.heading import Heading, quietly
from radvlm_edge.node.identity import MANUFACTURER, derived_uid
from radvlm_edge.node.reading import Failure, Finding, Reading
from radvlm_edge.runtime.answers import Box

CONTAINS = sr.RelationshipTypeValues.CONTAINS
Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations


def report(heading: Heading, outcome: Reading | Failure) -> Dataset:
    """The film's structured report; of a `Failure` it says `Failed` or `Not Attempted`, and why."""
    with quietly():
        groups: list[Group] = [_summary(heading, outcome)]
        if isinstance(outcome, Reading):
            groups += [_finding(heading, finding) for finding in outcome.findings]
            groups += [_region(heading, index, box) for index, box in enumerate(outcome.boxes)]
        content = sr.MeasurementReport(
            observation_context=_observer(heading),
            procedure_reported=codes.CHEST_FILM,
            imaging_measurements=groups,
        )
        content[0].ContentSequence.append(_evaluations(heading, outcome))
        document = sr.Comprehensive3DSR(
            evidence=[heading.film],
            content=content[0],
            is_complete=isinstance(outcome, Reading),
            is_final=False,
            is_verified=False,
            coding_schemes=heading.schemes(),
            **heading.common("sr"),
        )
        return heading.finish(document)


def _summary(heading: Heading, outcome: Reading | Failure) -> Group:
    """Whether the analysis succeeded, as codes, and what made it: the first group of every report."""
    if isinstance(outcome, Reading):
        state = codes.SUCCEEDED
    else:
        state = codes.FAILED if outcome.attempted else codes.NOT_ATTEMPTED
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(heading, "analysis"),
        algorithm_id=_algorithm(heading),
        source_images=[_source(heading)],
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.ANALYSIS, state)],
    )


def _finding(heading: Heading, finding: Finding) -> Group:
    """TID 1501: present, absent or undetermined, with a certainty where one was calibrated."""
    measurements = None
    if finding.confidence is not None:
        percent = round(finding.confidence.value * 100, 1)
        measurements = [sr.Measurement(codes.CERTAINTY, percent, codes.PERCENT)]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(heading, f"finding: {finding.label}"),
        finding_type=codes.FINDINGS[finding.label],
        source_images=[_source(heading)],
        measurements=measurements,
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.PRESENCE, codes.PRESENCES[finding.presence])],
    )


def _region(heading: Heading, index: int, box: Box) -> Group:
    """TID 1410: a box as a closed polyline in pixels of the film, from its top left corner."""
    source = sr.SourceImageForRegion(heading.film.SOPClassUID, heading.film.SOPInstanceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(heading, f"box {index + 1}: {box.label or 'unnamed'}"),
        referenced_region=sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, corners(box), source),
        finding_type=codes.FINDINGS.get(box.label or "", codes.REGION),
    )


def corners(box: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """`[5, 2]` (column, row) of a box's outline, closed; 0, 0 is the top left of the film (PS3.3 C.18.6)."""
    left, top, right, bottom = box.xyxy_pixels
    outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return np.array(outline, dtype=np.float64)


def _evaluations(heading: Heading, outcome: Reading | Failure) -> sr.ContainerContentItem:
    """TID 1500 row 12: what was said in words."""
    container = sr.ContainerContentItem(codes.EVALUATIONS, relationship_type=CONTAINS)
    container.ContentSequence = sr.ContentSequence()
    lines: list[tuple[Code, str]] = [(codes.NOTICE, heading.notice)]
    if isinstance(outcome, Failure):
        lines.append((codes.REASON, outcome.reason))
    else:
        for answer in outcome.answers:
            lines += [(codes.QUESTION, answer.question), (codes.ANSWER, answer.text or "(no answer)")]
        lines += [(codes.COMMENT, note) for note in outcome.notes]
    for name, text in lines:
        container.ContentSequence.append(sr.TextContentItem(name, text, relationship_type=CONTAINS))
    return container


def _observer(heading: Heading) -> sr.ObservationContext:
    maker = heading.maker
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=maker.device_uid,
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=maker.model,
        serial_number=maker.bundle_sha256,
    )
    observer_type = sr.CodedConcept("121007", "DCM", "Device")
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(observer_type, device))


def _algorithm(heading: Heading) -> sr.AlgorithmIdentification:
    maker = heading.maker
    parameters = [f"{name}: {getattr(maker, name)}" for name in ("detail", "render", "questions")]
    version = f"{maker.bundle_sha256} {maker.vision}+{maker.language}"
    return sr.AlgorithmIdentification(f"radvlm-edge {maker.bundle}", version, parameters)


def _tracking(heading: Heading, name: str) -> sr.TrackingIdentifier:
    uid = derived_uid("tracking", heading.uid, heading.maker.digest, name)
    return sr.TrackingIdentifier(uid=uid, identifier=name)


def _source(heading: Heading) -> sr.SourceImageForMeasurementGroup:
    return sr.SourceImageForMeasurementGroup(heading.film.SOPClassUID, heading.film.SOPInstanceUID)
