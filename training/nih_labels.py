"""NIH ChestX-ray14's labels → RadVLM's, one line each with its reason. Data, not code.

The labels were mined from reports by text (Wang et al., CVPR 2017); the authors put their precision
above 0.9, others found less. A label that is not listed was not mentioned, which is not the same
as absent: `ABSENCE` says for which labels the difference is taken to be small.
"""

from __future__ import annotations

NIH_TO_RADVLM: dict[str, tuple[str | None, str]] = {
    "Atelectasis": ("atelectasis", "same term"),
    "Cardiomegaly": ("cardiomegaly", "same term"),
    "Consolidation": ("consolidation", "same term"),
    "Edema": ("edema", "pulmonary edema in both vocabularies"),
    "Effusion": ("pleural effusion", "pleural in a chest report unless said otherwise"),
    "Infiltration": ("lung opacity", "CheXpert files 'infiltrate' under lung opacity"),
    "Mass": ("lung lesion", "CheXpert's lung lesion is mass or nodule"),
    "Nodule": ("lung lesion", "CheXpert's lung lesion is mass or nodule"),
    "Pleural_Thickening": ("pleural other", "CheXpert's pleural other is thickening and the like"),
    "Pneumonia": ("pneumonia", "same term"),
    "Pneumothorax": ("pneumothorax", "same term"),
    "Emphysema": (None, "CheXpert has no such label"),
    "Fibrosis": (None, "CheXpert has no such label; interstitial scarring is not its lung opacity"),
    "Hernia": (None, "CheXpert has no such label"),
    "No Finding": (None, "no label at all"),
}
"""NIH label → (RadVLM label or None, why)."""

ABSENCE: dict[str, str] = {
    "pleural effusion": "reports mention effusions as a rule",
    "pneumothorax": "reports mention pneumothoraces as a rule",
    "edema": "reports of films with edema name it as a rule",
}
"""Labels whose silence counts as absence on any film; all others only on films with `No Finding`."""

PICK: dict[str, float] = {
    "pleural effusion": 0.24,
    "pneumonia": 0.18,
    "edema": 0.14,
    "atelectasis": 0.14,
    "lung opacity": 0.10,
    "consolidation": 0.06,
    "lung lesion": 0.06,
    "cardiomegaly": 0.05,
    "pneumothorax": 0.03,
}
"""How often a real film is asked about a label: roughly the square root of its positive films, the
ones with fewer than ten positives least, as they would be learned by heart."""

BOXES: dict[str, str | None] = {
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Infiltrate": "lung opacity",
}
"""Labels of boxes.csv, drawn by radiologists → RadVLM's."""


def radvlm_labels(said: set[str]) -> frozenset[str]:
    """RadVLM's labels for a film's NIH labels. Raises KeyError for a label the table lacks."""
    return frozenset(name for label in said if (name := NIH_TO_RADVLM[label][0]) is not None)
