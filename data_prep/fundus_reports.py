"""Report sentences for fundus phantoms, in the style of an ophthalmologist's note.

Each finding present is named by one word that occurs once in the report; findings that are absent
may be denied by name. The eye, the side and the zone that the words give are those that are drawn.
Side and zone stand before the finding they belong to ("few inferior temporal exudates"): CLIP's
text encoder is causal, so a word's tokens know what was said before them and nothing that follows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_prep.phantom import Finding

WORDS = {
    "microaneurysms": ("microaneurysms",),
    "haemorrhages": ("haemorrhages", "hemorrhages"),
    "exudates": ("exudates",),
    "drusen": ("drusen",),
    "cupping": ("cupping",),
}
GRADES = (("mild", 0.5), ("moderate", 0.75), ("severe", 1.01))  # up to this severity
AMOUNTS = {
    "mild": ("few", "mild"),
    "moderate": ("several", "moderate"),
    "severe": ("many", "severe", "extensive"),
}
KINDS = {
    "microaneurysms": ("", "", "scattered ", "clustered "),
    "haemorrhages": ("", "", "intraretinal ", "blot and flame "),
    "exudates": ("", "", "hard ", "yellow hard "),
    "drusen": ("", "", "soft ", "pale "),
}
PLACES = (  # between amount and finding
    "{side}",
    "{side} {zone}",
    "{side} {zone}",
    "{side} hemifield",
    "{side} {zone} quadrant",
    "{side} {zone} arcade",
)
LEADS = (  # at the beginning of a sentence
    "in the {side} {zone} quadrant, ",
    "in the {side} {zone} retina, ",
    "in the {side} retina, ",
    "along the {side} {zone} arcade, ",
    "{side} to the macula, ",
)
DRUSEN_PLACES = (
    "in the macula",
    "about the fovea",
    "at the posterior pole",
    "within the macular area",
)
CUPPINGS = (
    "{grade} {word} of the optic disc",
    "{grade} optic disc {word}",
    "{grade} glaucomatous {word}",
    "{grade} {word} with a cup-to-disc ratio of {ratio}",
)
DENIALS = {
    "microaneurysms": ("No {word}.", "No {word} seen."),
    "haemorrhages": ("No {word}.", "No retinal {word}."),
    "exudates": ("No {word}.", "No hard {word}."),
    "drusen": ("No {word}.", "No macular {word}."),
    "cupping": ("No disc {word}.", "No {word} of the disc."),
}
OPENINGS = (
    "{Eye} eye.",
    "Fundus photograph of the {eye} eye.",
    "{Eye} eye fundus.",
    "Colour fundus, {eye} eye.",
)
SHORT_OPENINGS = ("{Eye} eye", "Fundus, {eye} eye", "{Eye} eye retina")
NORMAL = (
    "Normal fundus.",
    "Normal optic disc, macula and vessels.",
    "No diabetic retinopathy.",
    "Healthy retina with a normal optic disc.",
    "Disc, macula and vessels within normal limits.",
)
SHORT_NORMAL = ("{Eye} eye, normal fundus.", "Normal {eye} eye.", "Normal retina, {eye} eye.")
REMARKS = {  # normal remarks, each with the findings it would contradict
    "Optic disc of normal appearance.": {"cupping"},
    "Healthy neuroretinal rim.": {"cupping"},
    "Macula flat and clear.": {"drusen"},
    "Normal foveal reflex.": {"drusen"},
    "Vessels of normal calibre.": set(),
    "Media clear.": set(),
}
RETINOPATHY = ("microaneurysms", "haemorrhages", "exudates")


def fundus_report(
    findings: tuple[Finding, ...], eye: str, generator: np.random.Generator
) -> tuple[str, tuple[Finding, ...]]:
    """Write the report of one fundus photograph.

    Args:
        findings: what is drawn; their words are ignored.
        eye: "right" or "left".
        generator: the choice of words is drawn from it.

    Returns:
        The report, and the findings with `word` set to the word that names them there.

    Raises:
        ValueError: for another eye or a finding without words.
    """
    if eye not in ("right", "left"):
        raise ValueError(f'expected eye "right" or "left", got {eye!r}')
    unknown = [finding.name for finding in findings if finding.name not in WORDS]
    if unknown:
        raise ValueError(f"expected findings among {tuple(WORDS)}, got {unknown}")
    named = tuple(replace(f, word=_pick(WORDS[f.name], generator)) for f in findings)
    order = [named[i] for i in generator.permutation(len(named))]
    short = generator.random() < 1 / 3
    report = _short(order, generator) if short else _full(order, generator)
    return report.format(eye=eye, Eye=eye.capitalize()), named


def _short(findings: list[Finding], generator) -> str:
    """One phrase, such as "Left eye, severe inferior exudates."."""
    if not findings:
        return _pick(SHORT_NORMAL, generator)
    phrases = []
    for finding in findings:
        grade = _grade(finding.severity)
        if finding.name == "cupping":
            place = _pick(("", "disc "), generator)
        elif finding.name == "drusen":
            place = _pick(("", "macular "), generator)
        else:
            place = f"{finding.side} " + _pick(("", f"{finding.zone} "), generator)
        amount = grade if finding.name == "cupping" else _pick(AMOUNTS[grade], generator)
        phrases.append(f"{amount} {place}{finding.word}")
    return _pick(SHORT_OPENINGS, generator) + _pick((", ", ": "), generator) + _join(phrases) + "."


def _full(findings: list[Finding], generator) -> str:
    """Opening, findings, then normal remarks and denials of what is absent."""
    sentences = [_pick(OPENINGS, generator)]
    present = {finding.name for finding in findings}
    if findings:
        apart, diagnosis = generator.random() < 0.5, _diagnosis(findings)
        phrases = [_phrase(finding, generator, leads=apart) for finding in findings]
        if apart:
            sentences.extend(f"{phrase[0].upper()}{phrase[1:]}." for phrase in phrases)
        elif diagnosis and generator.random() < 0.5:
            sentences.append(f"{diagnosis} with {_join(phrases)}.")
        else:
            text = _pick(("Shows ", "Findings: ", ""), generator) + _join(phrases)
            sentences.append(f"{text[0].upper()}{text[1:]}.")
    else:
        sentences.append(_pick(NORMAL, generator))
    if findings and generator.random() < 0.4:
        fitting = [text for text, against in REMARKS.items() if not present & against]
        sentences.append(_pick(fitting, generator))
    absent = [name for name in WORDS if name not in present]
    denials = min(generator.integers(0, 3), 2 if len(findings) < 2 else 1)
    for i in generator.permutation(len(absent))[:denials]:
        word = _pick(WORDS[absent[i]], generator)
        sentences.append(_pick(DENIALS[absent[i]], generator).replace("{word}", word))
    return " ".join(sentences)


def _phrase(finding: Finding, generator, *, leads: bool) -> str:
    grade = _grade(finding.severity)
    if finding.name == "cupping":
        ratio = f"{0.66 + 0.20 * finding.severity:.1f}"
        return _pick(CUPPINGS, generator).format(grade=grade, word=finding.word, ratio=ratio)
    amount, kind = _pick(AMOUNTS[grade], generator), _pick(KINDS[finding.name], generator)
    if finding.name == "drusen":
        return f"{amount} {kind}{finding.word} {_pick(DRUSEN_PLACES, generator)}"
    where = {"side": finding.side, "zone": finding.zone}
    if leads and generator.random() < 0.5:
        return f"{_pick(LEADS, generator).format(**where)}{amount} {kind}{finding.word}"
    return f"{amount} {_pick(PLACES, generator).format(**where)} {kind}{finding.word}"


def _diagnosis(findings: list[Finding]) -> str:
    """A disease that all of the findings may belong to, or an empty string."""
    names = {finding.name for finding in findings}
    grade = _grade(max(finding.severity for finding in findings))
    if names <= set(RETINOPATHY):
        return f"{grade.capitalize()} nonproliferative diabetic retinopathy"
    if names == {"drusen"}:
        return "Dry age-related macular degeneration"
    if names == {"cupping"}:
        return "Glaucoma suspect"
    return ""


def _grade(severity: float) -> str:
    return next(grade for grade, limit in GRADES if severity < limit)


def _join(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _pick(choices, generator) -> str:
    return choices[generator.integers(len(choices))]
