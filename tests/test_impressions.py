"""Reports laid out as MIMIC-CXR lays them out, with made-up content."""

import pytest

from data_prep.impressions import impression, sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with cough  // infection?
 
 COMPARISON:  Radiograph of ___.
 
 FINDINGS: 
 
 The lungs are clear.  There is a small right
 effusion.
 
 IMPRESSION: 
 
 Small right pleural effusion.  No
 pneumonia.
"""  # noqa: W293


def test_sections_worked_by_hand():
    assert sections(REPORT) == [
        ("examination", "CHEST (PA AND LAT)"),
        ("indication", "___F with cough // infection?"),
        ("comparison", "Radiograph of ___."),
        ("findings", "The lungs are clear. There is a small right effusion."),
        ("impression", "Small right pleural effusion. No pneumonia."),
    ]
    assert impression(REPORT) == "Small right pleural effusion. No pneumonia."


@pytest.mark.parametrize(
    "header",
    ["IMPRESSION", "CONCLUSION", "CONCLUSIONS", "IMPRESSON", "IMPRESSSION", "IMPRSSION",
     "IMPERSSION", "INPRESSION", "IMPRESSION AND RECOMMENDATION", "FINDINGS/IMPRESSION",
     "IMPRESSION (PRELIMINARY)", "FINDINGS AND IMPRESSION"],
)  # fmt: skip
def test_impression_knows_its_synonyms_and_misspellings(header):
    assert impression(f" FINAL REPORT\n HISTORY: Cough.\n \n {header}: Clear.\n") == "Clear."


@pytest.mark.parametrize("header", ["COMPRESSION", "COMPARISON", "EXPRESSION", "INDICATION"])
def test_impression_is_no_other_section(header):
    assert impression(f" FINDINGS: Clear lungs.\n {header}: Something else.\n") == ""


def test_impression_takes_the_last_of_several_that_is_not_empty():
    report = " IMPRESSION: First.\n ADDENDUM: None.\n IMPRESSION: Second.\n IMPRESSION:\n \n"
    assert impression(report) == "Second."


def test_impression_is_missing_where_there_are_findings_only():
    assert impression(" FINAL REPORT\n FINDINGS: Clear lungs.\n \n Unchanged.\n") == ""


def test_impression_falls_back_on_the_last_paragraph():
    report = (
        " FINAL REPORT\n HISTORY: Cough.\n \n Two views.\n \n Clear: no change,\n as of ___.\n \n"
    )
    assert impression(report) == "Clear: no change, as of ___."
    assert impression(" FINAL REPORT\n Clear.\n") == "Clear."


@pytest.mark.parametrize(
    "report",
    ["", "\n \n", " FINAL REPORT\n", " FINAL REPORT\n \n COMPARISON: None.\n",
     " FINAL REPORT\n COMPARISON: None.\n"],
    ids=["empty", "white", "title", "header", "title and header"],
)  # fmt: skip
def test_impression_is_empty_where_nothing_is_said(report):
    assert impression(report) == ""


def test_impression_takes_line_ends_of_windows():
    assert impression(REPORT.replace("\n", "\r\n")) == impression(REPORT)
