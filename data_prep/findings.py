"""How chest data sets name findings, in this project's words, and how they become a prompt.

The label tables of MIMIC-CXR, CheXpert and ChestX-ray14 differ in order, spelling and number. A
label that means one of `medsign_lite.data.CHEST_FINDINGS` takes that name ("Pleural Effusion" is
"effusion"); any other keeps its own, in lower case with spaces.
"""

import re
from collections.abc import Iterable, Sequence

NO_FINDING = "no finding"
# Labels of CheXpert's labeller, which MIMIC-CXR-JPG and CheXpert share, in whatever order.
CHEXPERT_LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
RENAMED = {"pleural effusion": "effusion", "infiltrate": "infiltration"}
# Other words by which a report may call a finding.
WORDS = {
    "pneumonia": ("pneumonia", "pneumonias"),
    "pneumothorax": ("pneumothorax", "pneumothoraces"),
    "atelectasis": ("atelectasis", "atelectases", "atelectatic"),
    "edema": ("edema", "oedema", "congestion"),
    "cardiomegaly": ("cardiomegaly",),
    "effusion": ("effusion", "effusions"),
    "consolidation": ("consolidation", "consolidations"),
    "fracture": ("fracture", "fractures"),
    "nodule": ("nodule", "nodules"),
    "mass": ("mass", "masses"),
}
PHRASES = {
    "effusion": "pleural effusion",
    "edema": "pulmonary edema",
    "pleural other": "another pleural finding",
}


def finding_of(label: str) -> str:
    """The name of a data set's label here: "Pleural Effusion" gives "effusion"."""
    name = " ".join(label.replace("_", " ").lower().split())
    return RENAMED.get(name, name)


def positive_findings(cells: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Findings that CheXpert's labeller found.

    Args:
        cells: label and cell; 1.0 is present, 0.0 absent, -1.0 uncertain, blank not mentioned.

    Returns:
        Names of those present, "no finding" among them where that is the label.

    Raises:
        ValueError: for a cell that is none of these, naming the label only.
    """
    found = []
    for label, cell in cells:
        if cell not in ("", "1.0", "0.0", "-1.0", "1", "0", "-1"):
            raise ValueError(f"{label!r} is not 1.0, 0.0, -1.0 or blank")
        if cell in ("1.0", "1"):
            found.append(finding_of(label))
    return tuple(found)


def chest_prompt(findings: Sequence[str]) -> str:
    """A sentence for a radiograph that has labels and no report.

    Examples:
        >>> chest_prompt(["cardiomegaly", "edema", "effusion"])
        'Chest radiograph with cardiomegaly, pulmonary edema and pleural effusion.'
        >>> chest_prompt([])
        'Normal chest radiograph.'
    """
    if not findings:
        return "Normal chest radiograph."
    *first, last = (PHRASES.get(name, name) for name in findings)
    return f"Chest radiograph with {', '.join(first)}{' and ' * bool(first)}{last}."


def words_of(findings: Sequence[str], report: str) -> tuple[str, ...]:
    """The word of the report that names each finding, or nothing (see `word_in`)."""
    return tuple(word_in(report, WORDS.get(name, (name,))) for name in findings)


def word_in(report: str, names: Sequence[str]) -> str:
    """The one place where a report has one of the names, as a whole word.

    Returns:
        The word as the report writes it; "" where there is none, or more than one: which of two
        is meant cannot be known.
    """
    either = "|".join(re.escape(name) for name in names)
    found = re.findall(rf"\b(?:{either})\b", report, re.IGNORECASE)
    return found[0] if len(found) == 1 else ""
