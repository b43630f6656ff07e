"""Tables 1 and 2, the paper's claims and an attacker's table as Markdown."""

import pytest
from test_gate_tables import row_of
from test_table1_record import CONFIG, made_up_table

from medsign_lite.data import FINDINGS
from medsign_lite.published import table2
from medsign_lite.records.result_tables import (
    attacker_table,
    claims_table,
    table1_tables,
    table2_tables,
)
from medsign_lite.results import record_result
from medsign_lite.tables.claims import CLAIMS
from medsign_lite.tables.table1_weights import ROWS
from medsign_lite.tables.table2_measurements import TITLES


def test_table1_has_every_row_and_the_papers_measured_or_not(tmp_path):
    empty = table1_tables(tmp_path).splitlines()
    assert len(empty) == 2 * (len(ROWS) + 3) + 1 and empty[0].startswith("| chest | dB | SSIM |")
    assert row_of("\n".join(empty[: len(ROWS) + 3]), "DCT-DWT")[1:] == ["-"] * 11
    assert "| MedSign, the paper's | 40.8 | 0.940 |" in empty[-1]
    record_result(tmp_path / "table1_chest.json", made_up_table(), CONFIG)
    chest = "\n".join(table1_tables(tmp_path).splitlines()[: len(ROWS) + 3])
    ours, rival = row_of(chest, "**Medsign-Sharp**"), row_of(chest, "Dct-Dwt")
    assert ours[1:4] == ["41.4", "0.985", "0.990"] and ours[-2:] == ["0.995", ""]
    assert rival[-1] == "9.0" and row_of(chest, "Stable-Signature")[-1] == "3.5"
    bounded = made_up_table()
    for gain in bounded["gains"]:
        gain["bound"] = "at least" if gain["against"] == "dct-dwt" else "at most"
    record_result(tmp_path / "table1_chest.json", bounded, CONFIG)
    chest = "\n".join(table1_tables(tmp_path).splitlines()[: len(ROWS) + 3])
    assert row_of(chest, "Dct-Dwt")[-1] == "≥ 9.0"
    assert row_of(chest, "Stable-Signature")[-1] == "≤ 3.5"


def test_table2_has_every_row_the_papers_and_what_is_missing(tmp_path):
    def row(name, psnr, change):
        of_judge = {
            judge: {finding: {"change": {"value": change + number}} for number, finding in
                    enumerate((*FINDINGS["chest"], "mean"))}
            for judge, change in (("classifier", change), ("mixer", 10 * change))
        }  # fmt: skip
        return {"row": name, "psnr": {"value": psnr}, "bit_accuracy": {"value": 0.93},
                "psnr_gap": {"value": None}, "classifiers": of_judge}  # fmt: skip

    values = {"rows": [row("medsign", 41.26, 0.5), row("without_tv", 40, 0.25)], "claims": [
        {"key": claim.key, "verdict": "holds"} for claim in CLAIMS[:1]]}  # fmt: skip
    record_result(tmp_path / "table2_chest.json", values, {})
    text = table2_tables(tmp_path)
    assert text.endswith("\n\nTable 2 of fundus is not recorded yet.")
    assert row_of(text, "chest")[-3:] == ["effusion", "mean, classifier", "mean, mixer"]
    numbers = [f"{n + 0.5:.3f}" for n in range(7)]
    assert row_of(text, "**MedSign**")[1:] == ["41.3", "0.930", "-", *numbers, "11.000"]
    assert row_of(text, "without AAS")[1:] == ["-"] * 11
    assert row_of(text, "MedSign, the paper's")[1:5] == ["39.71", "0.95", "", "1.83"]
    assert row_of(text, "without preservation, the paper's")[-2:] == ["2.30", ""]
    assert len(text.splitlines()) == 2 + len(TITLES) + 6 + 2
    claims = claims_table(tmp_path)
    assert row_of(claims, CLAIMS[0].text)[1:] == ["5.08 against .59", "holds", "-"]
    assert row_of(claims, CLAIMS[1].text)[2:] == ["-", "-"]
    assert len(claims.splitlines()) == 2 + len(CLAIMS)


def test_the_papers_table2_has_the_findings_and_the_rows_of_ours():
    for name, row in table2().items():
        assert name in TITLES
        assert [*row] == [*FINDINGS["chest"], "mean", "bit_accuracy", "psnr"]
        of_findings = [row[finding] for finding in FINDINGS["chest"]]
        assert row["mean"] == pytest.approx(sum(of_findings) / 6, abs=0.01)


def test_attacker_table_names_the_best_quality_at_which_the_mark_is_gone(tmp_path):
    def row(attack, strength, detected, psnr, **more):
        return {"attack": attack, "strength": strength, "true_positive_rate": detected,
                "psnr": psnr} | more  # fmt: skip

    values = {
        "curves": [row("jpeg", 50, 0.9, 40.0), row("jpeg", 20, 0.1, 35.4), row("jpeg", 10, 0, 32),
                   row("rotation", 45, 0.5, None), row("crop", 0.2, 0.0, None),
                   row("crop", 0.1, 0.0, None)],
        "regeneration": [row("autoencoder", None, 0.0, 39.31, model="original"),
                         row("autoencoder", None, 0.5, 31.0, model="taesd"),
                         row("diffusion", 100, 0.0, 28.97, model="original")],
        "purification": [row("purification", 0, 1.0, 100.0), row("purification", 300, 0.05, 41.0)],
        "forgery": [{"attack": "forge", "estimate": name, "averaged": 1, "strength": 45.0,
                     "called_marked": share} for name, share in (("blurred", 0.9), ("redrawn", 1))]
        + [{"attack": "remove", "estimate": "blurred", "averaged": 1, "strength": 45.0,
            "called_marked": 0.2}],
    }  # fmt: skip
    record_result(tmp_path / "attacker_fundus.json", values, {})
    text = attacker_table(tmp_path)
    assert row_of(text, "jpeg, quality")[1:] == ["-", "20, 35.4 dB"]
    assert row_of(text, "rotation, degrees")[1:] == ["-", "never"]
    assert row_of(text, "crop, share of the area")[1:] == ["-", "0.2"]
    assert row_of(text, "autoencoder, the model's own")[1:] == ["-", "39.3 dB"]
    assert row_of(text, "autoencoder, taesd")[1:] == ["-", "never"]
    assert row_of(text, "diffusion, the model's own, timestep")[1:] == ["-", "100, 29.0 dB"]
    assert row_of(text, "purification, steps")[1:] == ["-", "300, 41.0 dB"]
    assert row_of(text, "forged from one image at 45 dB, pass for marked")[1:] == ["-", "1.000"]
