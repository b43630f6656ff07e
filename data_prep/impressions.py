"""The impression of a MIMIC-CXR report.

A header is the beginning of a line: capitals, spaces, parentheses, commas, slashes and hyphens up
to a colon. What was dictated into it varies ("CONCLUSION", "IMPRESSON", "FINDINGS AND IMPRESSION"),
so that names are compared by likeness and not by a list.
"""

import difflib
import re

HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]*):", re.MULTILINE)
# 0.88 accepts any one letter missing, doubled, swapped or wrong, and refuses "compression".
LIKENESS = 0.88
SECTIONS = {
    "impression": ("impression", "conclusion"),
    "findings": ("findings",),
}


def impression(report: str) -> str:
    """The impression, on one line.

    Of several the last that is not empty counts. A report with findings and no impression has none;
    where there is neither, the last paragraph serves that stands under no header.

    Args:
        report: the whole text, as distributed.

    Returns:
        The text with runs of white space made one space; "" where there is none.
    """
    found = {name: text for name, text in sections(report) if text}
    if "impression" in found:
        return found["impression"]
    if "findings" in found:
        return ""
    paragraphs = [_without_title(text) for text in re.split(r"\n[ \t]*\n", report)]
    free = [" ".join(text.split()) for text in paragraphs if text and not HEADER.match(text)]
    return free[-1] if free else ""


def sections(report: str) -> list[tuple[str, str]]:
    """Name and text of each section, in order.

    Names are in lower case; those that mean them are "impression" and "findings".
    """
    headers = list(HEADER.finditer(report))
    ends = [header.start() for header in headers] + [len(report)]
    return [
        (_name(header[1]), " ".join(report[header.end() : end].split()))
        for header, end in zip(headers, ends[1:], strict=True)
    ]


def _name(header: str) -> str:
    name = " ".join(header.lower().split())
    words = re.findall(r"[a-z]+", name)
    for section, spellings in SECTIONS.items():  # "findings and impression" is an impression
        if any(difflib.get_close_matches(word, spellings, cutoff=LIKENESS) for word in words):
            return section
    return name


def _without_title(paragraph: str) -> str:
    """The paragraph without first lines in capitals, such as FINAL REPORT, that are no header."""
    lines = paragraph.splitlines()
    while lines and not HEADER.match(lines[0]) and not any(c.islower() for c in lines[0]):
        del lines[0]
    return "\n".join(lines)
