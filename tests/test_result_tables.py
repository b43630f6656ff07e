"""Table 1 and an attacker's table as Markdown."""

from test_gate_tables import row_of
from test_table1_record import CONFIG, made_up_table

from medsign_lite.records.result_tables import attacker_table, table1_tables
from medsign_lite.results import record_result
from medsign_lite.tables.table1_weights import ROWS


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
