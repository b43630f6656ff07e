"""Names of findings in labels, prompts and reports."""

import pytest

from data_prep.findings import (
    CHEXPERT_LABELS,
    chest_prompt,
    finding_of,
    positive_findings,
    word_in,
    words_of,
)
from medsign_lite.data import CHEST_FINDINGS


def test_finding_of_takes_the_projects_names():
    assert finding_of("Pleural Effusion") == finding_of("Effusion") == "effusion"
    assert finding_of("Pleural_Thickening") == "pleural thickening"
    assert finding_of("Infiltrate") == finding_of("Infiltration") == "infiltration"


def test_positive_findings_counts_certain_ones_only():
    cells = [("Edema", "1"), ("Pneumonia", "-1.0"), ("Fracture", "0.0"), ("Lung Lesion", "")]
    assert positive_findings(cells) == ("edema",)
    for cell in ("2.0", "yes"):
        with pytest.raises(ValueError, match="^'Edema' is not 1.0, 0.0, -1.0 or blank$"):
            positive_findings([("Edema", cell)])


def test_chest_prompt_joins_one_two_and_three():
    assert chest_prompt(["edema"]) == "Chest radiograph with pulmonary edema."
    assert chest_prompt(["mass", "edema"]) == "Chest radiograph with mass and pulmonary edema."
    assert chest_prompt(["a", "b", "c"]) == "Chest radiograph with a, b and c."


def test_every_finding_of_the_project_is_a_label_and_has_a_word_in_its_prompt():
    findings = [finding_of(label) for label in CHEXPERT_LABELS]
    assert set(CHEST_FINDINGS) < set(findings)
    assert words_of(CHEST_FINDINGS, chest_prompt(CHEST_FINDINGS)) == CHEST_FINDINGS


def test_words_of_finds_other_forms_of_a_word():
    report = "Small bilateral Effusions, and atelectatic change. Oedema is mild."
    words = words_of(("effusion", "atelectasis", "edema", "pneumonia"), report)
    assert words == ("Effusions", "atelectatic", "Oedema", "")


def test_word_in_wants_one_whole_word():
    assert word_in("No mass. Massive heart.", ("mass",)) == "mass"
    assert word_in("A mass beside a mass.", ("mass",)) == ""
    assert word_in("A mass; masses elsewhere.", ("mass", "masses")) == ""
