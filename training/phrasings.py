"""The wordings of questions about findings and regions, and of their answers.

Where a wording is RadVLM's (uzh-dqbm-cmi/RadVLM, radvlm/data/create_instructions.py) it is kept,
because the runtime's task presets use it.
"""

from __future__ import annotations

SPOKEN: dict[str, tuple[str, ...]] = {
    "pleural effusion": ("effusion", "pleural effusion", "pleural fluid", "effusions", "pleural effusions"),
    "pneumothorax": ("pneumothorax",),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "consolidation": ("consolidation", "airspace consolidation"),
    "lung lesion": ("lung lesion", "lung nodule", "nodule", "lung mass", "lung lesions", "nodules"),
    "edema": ("edema", "pulmonary edema"),
    "atelectasis": ("atelectasis", "collapse of the lung"),
    "support devices": ("support devices", "tubes or lines", "devices"),
    "fracture": ("fracture", "rib fracture", "rib fractures", "fractures"),
    "pneumonia": ("pneumonia",),
    "lung opacity": ("lung opacity", "lung opacities"),
    "pleural other": ("pleural other", "pleural thickening"),
    "enlarged cardiomediastinum": ("enlarged cardiomediastinum",),
}
"""How people say a finding; the first is the shortest."""

PLAIN = (
    "any {}?",
    "Any {}?",
    "{}?",
    "any {}",
    "any sign of {}?",
    "any signs of {}?",
    "any evidence of {}?",
    "Is there {}?",
    "is there {}?",
    "Is there any {}?",
    "is there any {}?",
    "Is there evidence of {}?",
    "Are there signs of {}?",
    "Do you see {}?",
    "Do you see any {}?",
    "Can you see {}?",
    "Does this film show {}?",
    "Does this chest X-ray show {}?",
    "Does this Chest X-ray show any {}?",
    "Does the patient have {}?",
    "Is {} present?",
    "Is {} visible on this image?",
    "{} present?",
    "{}, yes or no?",
    "Check for {}.",
    "Look for {}.",
)
ARTICLE = ("Is there {}?", "is there {}?", "Do you see {}?", "Does this film show {}?", "Is {} present?")
WITH_ARTICLE: dict[str, tuple[str, ...]] = {
    "pleural effusion": ("a pleural effusion", "an effusion"),
    "pneumothorax": ("a pneumothorax",),
    "lung lesion": ("a lung lesion", "a nodule", "a lung nodule", "a mass"),
    "fracture": ("a fracture", "a rib fracture", "a broken rib"),
    "support devices": ("a tube", "a tube or a line", "a support device"),
    "lung opacity": ("a lung opacity",),
}
ASIDE: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "Is the heart enlarged?",
        "is the heart enlarged?",
        "Is the heart too big?",
        "enlarged heart?",
        "any enlarged heart?",
        "Is the cardiac silhouette enlarged?",
        "Does this film show an enlarged heart?",
        "big heart?",
    ),
    "fracture": ("Is a rib broken?", "any broken rib?", "Are any ribs broken?"),
    "atelectasis": ("Is a part of the lung collapsed?",),
    "edema": ("Is there fluid in the lungs?",),
    "support devices": (
        "Are there any tubes, lines or devices?",
        "Does the patient have any tubes or lines?",
    ),
}
"""Questions about a finding that do not fit a form."""
NEGATED = (
    "no {}?",
    "No {}?",
    "Is the film free of {}?",
    "is the film free of {}?",
    "Is this chest X-ray free of {}?",
    "Is {} absent?",
    "There is no {}, right?",
    "Can {} be excluded?",
)
SIDED_NOUNS: dict[str, tuple[str, ...]] = {
    "pleural effusion": ("effusion", "pleural effusion"),
    "pneumothorax": ("pneumothorax",),
    "lung lesion": ("lung lesion", "lung nodule"),
    "fracture": ("rib fracture",),
}
"""What takes an article and a side."""
SIDED_FORMS = (
    "{} {}?",
    "any {} {}?",
    "Is there a {} {}?",
    "Is there {} {}?",
    "is there a {} {}?",
    "Do you see a {} {}?",
    "Does this film show a {} {}?",
    "Any sign of a {} {}?",
)
ON_SIDE = (
    "Is there {1} on the {0}?",
    "any {1} on the {0} side?",
    "{1} on the {0}?",
    "Is there {1} on the {0} side?",
    "any {1} on the {0}?",
)

CLASSIFY = (
    "Are there any abnormalities on this Chest X-ray?",
    "Please identify abnormalities on this X-ray.",
    "Identify abnormalities on this image",
    "What abnormalities do you see?",
    "Which findings are present?",
    "List the findings.",
    "What is wrong on this film?",
    "any abnormality?",
    "any findings?",
)
SEVERAL = (
    "The following abnormalities are identified:",
    "The analysis reveals these abnormalities:",
    "The Chest X-ray includes the following abnormalities:",
)
ONE = ("The following abnormality is present:", "The Chest X-ray includes the following finding:")
NONE = (
    "No abnormalities or lesions are detected on this Chest X-ray.",
    "There are no findings on this Chest X-ray.",
)

LOCATE = (
    "Where is the {} located in this Chest X-ray?",
    "Can you point out the {}'s position on the image?",
    "Show me the {}'s location on this CXR.",
    "Indicate the position of the {} on this image.",
    "Where is the {}?",
    "where is the {}?",
    "Locate the {}.",
    "Where exactly is the {} on this film?",
)
LOCATED = (
    "The {} is located at the coordinates {} on the image.",
    "You'll find the {} at {} in the X-ray.",
    "For the {}, the coordinates are {} on the X-ray.",
)
LOCATE_SEVERAL = (
    "Where are the {} located in this Chest X-ray?",
    "Indicate the positions of the {} on this image.",
    "Locate the {}.",
)
PHRASE = (
    "Please locate the following sentence: {}",
    "Find the region corresponding to: {}",
    "Please indicate where this finding is located: {}",
)
PHRASED = (
    "This sentence is located at the coordinates {} on the image.",
    "The bounding box for this observation is {}.",
    "Its location is given by {}.",
)
DETECT = (
    "Are abnormalities present on this Chest X-ray? Where exactly can they be found?",
    "Which abnormalities are there, and where?",
)
DETECTED = ("Sure! I can find", "Upon examination, I detect", "The findings include")
UNDETECTED = "I can't find any lesion on the image."
REPORT = (
    "Provide a radiology report for this Chest X-Ray.",
    "Write a radiology report for this Chest X-ray.",
    "Analyze this image and provide a report.",
    "Please provide a brief radiology report.",
    "Describe this film.",
    "report",
)

SCOPE = (
    "What is the patient's name?",
    "How old is the patient?",
    "Is the patient a smoker?",
    "Has it changed since last year?",
    "Is this better than the previous film?",
    "Which drug should be given?",
    "Does the patient need surgery?",
    "What is the blood pressure?",
    "Is there a brain tumor?",
    "Is the ankle broken?",
    "Is there a kidney stone?",
    "Is the patient in pain?",
    "Will the patient recover?",
    "What is the diagnosis of the liver?",
    "What is the weather?",
    "Is there a hip fracture?",
    "Does the patient have diabetes?",
    "What caused this?",
)
UNANSWERABLE = "This film cannot answer that."
