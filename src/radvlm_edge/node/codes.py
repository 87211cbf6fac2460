"""Findings and words of a report → codes that other systems know.

SNOMED CT where DICOM's subset or a well-known concept has the finding, else RadLex, else a code of our own:
a near miss in a public scheme would say something the model did not.
"""

from __future__ import annotations

from pydicom.sr.coding import Code

from radvlm_edge.node.reading import ABSENT, PRESENT, UNDETERMINED

OWN = "99RADVLM"
OWN_NAME = "radvlm-edge findings (CheXpert's names)"

FINDINGS = {
    "atelectasis": Code("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": Code("8186001", "SCT", "Cardiomegaly"),
    "consolidation": Code("95436008", "SCT", "Lung consolidation"),
    "edema": Code("19242006", "SCT", "Pulmonary edema"),
    "enlarged cardiomediastinum": Code("F05", OWN, "Enlarged cardiomediastinum"),
    "fracture": Code("125605004", "SCT", "Fracture of bone"),
    "lung lesion": Code("F07", OWN, "Lung lesion"),
    "lung opacity": Code("RID28530", "RADLEX", "opacity"),
    "pleural effusion": Code("60046008", "SCT", "Pleural effusion"),
    "pleural other": Code("F10", OWN, "Pleural abnormality other than effusion"),
    "pneumonia": Code("233604007", "SCT", "Pneumonia"),
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "support devices": Code("F13", OWN, "Support devices"),
}
"""Of each of `answers.LABELS`."""
REGION = Code("R01", OWN, "Region named in an answer")
"""What a box is of that no finding's name was given to; its name is in the tracking identifier."""

PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENCES = {
    PRESENT: Code("121053", "DCM", "Present"),
    ABSENT: Code("121054", "DCM", "Absent"),
    UNDETERMINED: Code("121059", "DCM", "Presence Undetermined"),
}
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PERCENT = Code("%", "UCUM", "Percent")

ANALYSIS = Code("111065", "DCM", "Summary of Analyses")
SUCCEEDED = Code("111222", "DCM", "Succeeded")
FAILED = Code("111224", "DCM", "Failed")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")

CHEST_FILM = Code("399208008", "SCT", "Plain X-ray of chest")
EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = Code("121106", "DCM", "Comment")
QUESTION = Code("Q01", OWN, "Question")
ANSWER = Code("Q02", OWN, "Answer")
REASON = Code("Q03", OWN, "Reason of failure")
NOTICE = Code("Q04", OWN, "Notice")
PROCESSING = Code("109102", "DCM", "Processing Equipment")
