"""Reports of chest radiographs in the style of a radiologist's impression.

Each finding is named once, by one word of the report that stands for it (`Finding.word`), beside
its severity and place. Negatives name absent findings only. A third of the reports are bare
phrases, so that short prompts such as "Severe right lower lobe pneumonia." are in distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_prep.phantom import Finding

MAXIMUM_WORDS = 45

# finding -> (word, share); the shares of a finding sum to one
WORDS = {
    "pneumonia": (("pneumonia", 0.7), ("consolidation", 0.3)),
    "pneumothorax": (("pneumothorax", 0.8), ("ptx", 0.2)),
    "atelectasis": (("atelectasis", 0.7), ("collapse", 0.3)),
    "edema": (("edema", 0.7), ("congestion", 0.3)),
    "cardiomegaly": (("cardiomegaly", 0.7), ("enlargement", 0.3)),
    "effusion": (("effusion", 0.75), ("fluid", 0.25)),
}
# finding -> adjectives for mild, moderate and severe
SEVERITIES = {
    "pneumonia": (("mild", "subtle"), ("moderate", "patchy"), ("severe", "dense", "extensive")),
    "pneumothorax": (("small", "mild"), ("moderate",), ("large", "severe")),
    "atelectasis": (("mild", "minor"), ("moderate",), ("severe", "marked")),
    "edema": (("mild", "early"), ("moderate",), ("severe", "marked")),
    "cardiomegaly": (("mild",), ("moderate",), ("severe", "marked")),
    "effusion": (("small", "mild"), ("moderate",), ("large", "severe")),
}
NEGATIVES = {
    "pneumonia": ("focal consolidation", "evidence of pneumonia", "lobar pneumonia"),
    "pneumothorax": ("pneumothorax", "visible pneumothorax"),
    "atelectasis": ("atelectasis", "lobar collapse"),
    "edema": ("pulmonary edema", "vascular congestion"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "effusion": ("pleural effusion", "pleural fluid"),
}
OPENINGS = (
    "{}.",
    "{}.",
    "{}.",
    "There is {}.",
    "Findings consistent with {}.",
    "New {}.",
    "Stable {}.",
    "Persistent {}.",
    "Interval development of {}.",
    "Again seen is {}.",
    "Impression: {}.",
)
NORMAL_REPORTS = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "Clear lungs.",
    "No acute findings.",
    "The lungs are clear.",
)
NORMAL_HEART = (
    "Heart size is normal.",
    "The cardiac silhouette is within normal limits.",
    "Normal heart size.",
    "The cardiomediastinal silhouette is unremarkable.",
)
NORMAL_REST = (
    "Mediastinal contours are unremarkable.",
    "No acute osseous abnormality.",
    "The bony thorax is intact.",
    "The trachea is midline.",
    "Visualised bones are intact.",
)


def _choose(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]


def _place(finding: Finding, word: str, generator: np.random.Generator) -> str:
    """Side, zone and word, for example "right lower lobe pneumonia"."""
    side, zone = finding.side, finding.zone
    if finding.name == "cardiomegaly":
        noun = _choose(generator, ("cardiac {}", "{} of the cardiac silhouette"))
        return word if word == "cardiomegaly" else noun.format(word)
    if finding.name == "edema":
        if word == "congestion":
            return _choose(generator, ("pulmonary vascular congestion", "perihilar congestion"))
        kinds = (
            "pulmonary edema",
            "bilateral perihilar edema",
            "interstitial edema",
            "perihilar pulmonary edema",
            "bilateral pulmonary edema",
        )
        return _choose(generator, kinds)
    if finding.name == "effusion":
        if side == "bilateral" and word == "effusion" and generator.random() < 0.3:
            word = "effusions"
        sided = side if side == "bilateral" else _choose(generator, (side, side, f"{side}-sided"))
        return f"{sided} pleural {word}"
    if finding.name == "pneumothorax":
        sided = _choose(generator, (side, f"{side}-sided")) if zone != "apical" else side
        return f"{sided} {'apical ' if zone == 'apical' else ''}{word}"
    if finding.name == "atelectasis":
        if side == "bilateral":
            kinds = ("bibasilar", "bilateral lower lobe", "bilateral basilar")
            return f"{_choose(generator, kinds)} {word}"
        if zone == "lower":
            kinds = ("basilar", "lower lobe", "basal", "lower lobe plate-like")
            return f"{side} {_choose(generator, kinds)} {word}"
        return f"{side} {_choose(generator, ('mid lung', 'mid lung plate-like'))} {word}"
    lobe = "middle lobe" if (side, zone) == ("right", "mid") else f"{zone} lobe"
    if zone == "mid" and side != "right":
        lobe = "lingular" if side == "left" and generator.random() < 0.5 else "mid lung"
    if generator.random() < 0.2 and lobe.endswith("lobe"):
        plural = "both" if side == "bilateral" else f"the {side}"
        return f"{word} in {plural} {lobe}{'s' if side == 'bilateral' else ''}"
    return f"{side} {lobe} {word}"


def _phrase(finding: Finding, generator: np.random.Generator) -> tuple[str, str]:
    """Phrase that names the finding, and the word of it that does."""
    words, shares = zip(*WORDS[finding.name], strict=True)
    word = words[int(generator.choice(len(words), p=shares))]
    phrase = _place(finding, word, generator)
    grade = 0 if finding.severity < 0.5 else 1 if finding.severity < 0.75 else 2
    adjective = _choose(generator, SEVERITIES[finding.name][grade])
    if generator.random() < 0.8:
        phrase = f"{adjective} {phrase}"
    return phrase, "effusions" if "effusions" in phrase else word


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _negative(absent: Sequence[str], generator: np.random.Generator) -> str:
    names = [absent[i] for i in generator.permutation(len(absent))[: generator.integers(1, 3)]]
    return f"No {' or '.join(_choose(generator, NEGATIVES[name]) for name in names)}."


def chest_report(
    findings: Sequence[Finding], generator: np.random.Generator
) -> tuple[str, tuple[Finding, ...]]:
    """Write a report that names every finding once.

    Args:
        findings: the findings, each name at most once; `word` is ignored.
        generator: chooses words, templates, negatives and the order of the sentences.

    Returns:
        The report (at most 45 words) and the findings, in their order, with `word` filled in.

    Raises:
        ValueError: if a finding is unknown or named twice.
    """
    names = [finding.name for finding in findings]
    unknown = [name for name in names if name not in WORDS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"expected distinct findings among {tuple(WORDS)}, got {tuple(names)}")
    phrases, named = [], []
    for finding in findings:
        phrase, word = _phrase(finding, generator)
        phrases.append(phrase)
        named.append(replace(finding, word=word))
    phrases = [phrases[i] for i in generator.permutation(len(phrases))]
    bare = generator.random() < 1 / 3
    if not phrases and bare:
        return _choose(generator, NORMAL_REPORTS), ()
    if bare:
        joint = _choose(generator, (". ", ", ", " and "))
        if joint == ", " and len(phrases) > 2:
            phrases = [", ".join(phrases[:-1]), phrases[-1]]
            joint = " and "
        parts = [_capitalise(phrase) for phrase in phrases] if joint == ". " else phrases
        return _capitalise(joint.join(parts)) + ".", tuple(named)

    sentences = []
    for phrase in phrases:
        opening = _choose(generator, OPENINGS)
        if opening.startswith("There is"):
            counted = phrase.split()[-1] in ("pneumothorax", "ptx", "effusion", "consolidation")
            if counted and "bilateral" not in phrase:
                phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
            elif phrase.endswith("effusions"):
                opening = "There are {}."
        sentences.append(_capitalise(opening.format(phrase)))
    if not phrases:
        sentences.append(_choose(generator, NORMAL_REPORTS))
    absent = [name for name in WORDS if name not in names]
    extras = [_negative(absent, generator)]
    if "cardiomegaly" not in names and "cardi" not in extras[0] and generator.random() < 0.4:
        extras.append(_choose(generator, NORMAL_HEART))
    if generator.random() < 0.3:
        extras.append(_choose(generator, NORMAL_REST))
    for extra in extras:
        if sum(len(s.split()) for s in [*sentences, extra]) <= MAXIMUM_WORDS:
            sentences.append(extra)
    if generator.random() < 0.5:  # negatives usually close a report, but not always
        sentences = [sentences[i] for i in generator.permutation(len(sentences))]
    return " ".join(sentences), tuple(named)
