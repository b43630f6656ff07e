"""What a recorded table says: joined, flattened, compared, judged. All rows are made up."""

import copy

import pytest

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.records.gate_verdicts import Gate
from medsign_lite.records.table1_gates import TABLE1_GATES, judge_table1
from medsign_lite.results import record_result
from medsign_lite.rows import table
from medsign_lite.tables.table1_record import (
    COLUMNS,
    flat_row,
    gate_figures,
    missing_rows,
    nearest_rung,
    read_table1,
    recorded_table1,
    smallest_gain,
)
from medsign_lite.tables.table1_weights import ROWS

CONFIG = {"modality": "chest", "weights": "w", "images": 500, "seed": 0, "latents": "abc",
          "autoencoder": "def", "false_positive_rate": 1e-6, "empirical_rate": 0.01,
          "resamples": 1000, "attacks": "all", "ladder": [40, 42], "parts": {}}  # fmt: skip


def around(name, value, width=0.01):
    return {name: value, f"{name}_low": value - width, f"{name}_high": value + width}


def made_up(key, *, accuracy=0.99, psnr=41.4):
    attacks = [
        {"attack": name, "images": 500}
        | around("bit_accuracy", accuracy)
        | around("true_positive_rate", 0.995)
        | around("log10_p", -12.0)
        | around("unmarked_bit_accuracy", 0.5)
        for name in (*PAPER_ATTACKS, "mean")
    ]
    row = {"row": key, "method": key.title(), "bits": 48, "images": 500, "attacks": attacks}
    row["unmarked"] = [{"attack": name, "rate": 1e-6, "fitted_rate": share * 1e-6}
                       for share, name in enumerate(PAPER_ATTACKS)]  # fmt: skip
    return row | around("psnr", psnr, 0.1) | around("ssim", 0.985) | around("seconds", 0.02)


def made_up_table():
    curves = [
        {"row": key, "method": key, "rung": rung} | around("bit_accuracy", 0.9)
        for key in ROWS for rung in (40.0, 42.0)
    ]  # fmt: skip
    gains = [
        {"rung": rung, "against": key, "bound": ""} | around("gain", gain)
        for rung, shift in ((40.0, -2.0), (42.0, 0.0))
        for key, gain in (("stable-signature", 3.5 + shift), ("dct-dwt", 9.0 + shift))
    ]  # fmt: skip
    return {"rows": [made_up(key) for key in ROWS], "curves": curves, "gains": gains}


def test_flat_row_has_the_papers_columns_and_can_be_shown():
    flat = flat_row(made_up("dct-dwt", accuracy=0.9))
    assert flat["jpeg"] == 0.9 and flat["jpeg_low"] == pytest.approx(0.89)
    assert flat["mean"] == 0.9 and flat["true_positive_rate"] == 0.995
    assert flat["unmarked_bit_accuracy"] == 0.5 and flat["fitted_rate"] == pytest.approx(5e-6)
    shown = table([flat], ["method", *COLUMNS], decimals=2)
    assert shown["rotation"][0] == "0.90 [0.89, 0.91]" and shown["psnr"][0].startswith("41.40")


def test_recorded_table1_is_of_these_weights_or_says_why_not(tmp_path):
    assert recorded_table1("chest", "w", tmp_path) == ({}, "no Table 1 of chest is recorded yet")
    record_result(tmp_path / "table1_chest.json", made_up_table(), CONFIG)
    values, why = recorded_table1("chest", "w", tmp_path)
    assert len(values["rows"]) == len(ROWS) and why == "recorded: 500 images"
    for other in ("v", None):
        values, why = recorded_table1("chest", other, tmp_path)
        assert values == {} and "of other weights" in why
    partly = made_up_table() | {"rows": [made_up(key) for key in ROWS if key != "wam-kind"],
                                "missing": ["wam-kind"]}  # fmt: skip
    record_result(tmp_path / "table1_chest.json", partly, CONFIG)
    assert recorded_table1("chest", "w", tmp_path)[1] == "recorded: 500 images, without wam-kind"


def test_read_table1_joins_records_and_the_later_one_counts(tmp_path):
    values = made_up_table()
    record_result(tmp_path / "whole.json", values, CONFIG)
    newer = {"rows": [made_up("dct-dwt", psnr=30.0)]}
    record_result(tmp_path / "alone.json", newer, CONFIG | {"parts": {"dct-dwt": {"x": 1}}})
    document = read_table1(tmp_path / "whole.json", tmp_path / "alone.json")
    found = {row["row"]: row["psnr"] for row in document["values"]["rows"]}
    assert len(document["values"]["rows"]) == len(ROWS)
    assert found["dct-dwt"] == 30.0 and found["wam-kind"] == 41.4
    assert len(document["values"]["curves"]) == 2 * len(ROWS)
    assert document["config"]["modality"] == "chest"
    assert document["config"]["parts"] == {"dct-dwt": {"x": 1}}


def of_decoder(decoder, extractor="e"):
    return {"method": {"decoder": decoder, "extractor": extractor}}


def test_rows_stay_when_the_shipped_decoder_is_another_but_not_half_of_a_row(tmp_path):
    old = {part: of_decoder("old") for part in ("medsign-sharp", "curve-medsign-sharp")}
    old |= {"medsign-literal": of_decoder("literal"),
            "stable-signature-published": of_decoder("published", "another")}  # fmt: skip
    record_result(tmp_path / "old.json", made_up_table(), CONFIG | {"parts": old})

    def joined_with(**parts):
        values = {"rows": [made_up("medsign-sharp", psnr=42.0)]}
        parts = {name.replace("_", "-"): settings for name, settings in parts.items()}
        record_result(tmp_path / "new.json", values, CONFIG | {"weights": "v", "parts": parts})
        return read_table1(tmp_path / "old.json", tmp_path / "new.json")

    new = of_decoder("new")
    document = joined_with(medsign_sharp=new, curve_medsign_sharp=new)
    found = {row["row"]: row["psnr"] for row in document["values"]["rows"]}
    assert found["medsign-sharp"] == 42.0 and found["wam-kind"] == 41.4
    assert document["config"]["weights"] == "v"
    assert document["config"]["parts"]["medsign-literal"] == of_decoder("literal")
    with pytest.raises(ValueError, match="medsign-sharp is of .*'new'.*, curve-medsign-sharp of"):
        joined_with(medsign_sharp=new)
    new = of_decoder("new", "another")
    with pytest.raises(ValueError, match="different extractors: medsign-literal by e, medsign-sha"):
        joined_with(medsign_sharp=new, curve_medsign_sharp=new)


def test_read_table1_refuses_to_mix_configurations_and_names_both(tmp_path):
    record_result(tmp_path / "one.json", made_up_table(), CONFIG)
    record_result(tmp_path / "two.json", made_up_table(), CONFIG | {"latents": "xyz", "seed": 1})
    with pytest.raises(ValueError, match="one.json and two.json are of different") as error:
        read_table1(tmp_path / "one.json", tmp_path / "two.json")
    assert "seed is 0 and 1; latents is 'abc' and 'xyz'" in str(error.value)
    record_result(tmp_path / "other.json", {"x": 1}, {"images": 3})
    with pytest.raises(ValueError, match="other.json is no record of Table 1"):
        read_table1(tmp_path / "other.json")
    with pytest.raises(ValueError, match="at least one record"):
        read_table1()
    with pytest.raises(FileNotFoundError):
        read_table1(tmp_path / "absent.json")


def test_gain_is_that_over_the_best_rival_where_our_own_row_is():
    values = made_up_table()
    assert nearest_rung(values) == 42.0
    assert smallest_gain(values)["against"] == "stable-signature"
    assert gate_figures(values)["gain"]["value"] == 3.5
    assert smallest_gain(values | {"gains": []}) is None


def test_missing_rows_are_named_also_those_without_an_interval():
    values = made_up_table()
    assert missing_rows(values) == []
    assert missing_rows({}) == [*ROWS, *(f"curve-{key}" for key in ROWS)]
    del values["rows"][1]["attacks"][2]["bit_accuracy_low"]
    values["rows"][2]["ssim_high"] = None
    del values["rows"][0]
    assert missing_rows(values) == ["dct-dwt", "ssl-watermark", "wam-kind"]
    assert gate_figures(values)["missing"]["value"] == 3


def test_a_record_without_our_own_row_or_without_gains_at_its_rung_has_no_smallest_gain():
    values = made_up_table()
    others = [row for row in values["rows"] if row["row"] != "medsign-sharp"]
    assert smallest_gain(values | {"rows": others}) is None
    assert "gain" not in gate_figures(values | {"rows": others})
    far = [row | {"rung": 99} for row in values["gains"]]
    assert smallest_gain(values | {"gains": far}) is None


def test_gates_ask_for_the_figures_that_were_promised():
    chest = {g.figure: g.required for g in TABLE1_GATES if g.measurement == "table1_chest"}
    assert chest["psnr"] == 41 and chest["ssim"] == 0.98 and chest["gain"] == 3
    assert chest["jpeg"] == 0.95 and chest["rotation"] == 0.98
    assert {chest[f"detected_{name}"] for name in PAPER_ATTACKS} == {0.99}
    fundus = {g.figure: g.required for g in TABLE1_GATES if g.measurement == "table1_fundus"}
    assert fundus == chest | {"psnr": 42}
    assert set(chest) <= set(gate_figures(made_up_table()))
    assert all(isinstance(gate, Gate) for gate in TABLE1_GATES)


def test_judge_table1_passes_or_falls_short(tmp_path, capsys):
    chest = [gate for gate in TABLE1_GATES if gate.measurement == "table1_chest"]
    assert not judge_table1(chest, tmp_path)  # not recorded: no figure passes
    text = capsys.readouterr().out
    assert text.count("short") == len(chest) and "table1_chest: without dct-dwt" in text
    record_result(tmp_path / "table1_chest.json", made_up_table(), CONFIG)
    assert judge_table1(chest, tmp_path)
    assert not judge_table1(TABLE1_GATES, tmp_path)  # fundus is not
    capsys.readouterr()
    assert judge_table1(chest, tmp_path)
    text = capsys.readouterr().out
    assert "41.400 [41.300, 41.500]" in text and "short" not in text
    worse = copy.deepcopy(made_up_table())
    own = next(row for row in worse["rows"] if row["row"] == "medsign-sharp")
    own["attacks"][4] |= around("bit_accuracy", 0.97)
    worse["rows"] = [row for row in worse["rows"] if row["row"] != "wam-kind"]
    record_result(tmp_path / "table1_chest.json", worse, CONFIG)
    assert not judge_table1(chest, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    short = [line.split(" >=")[0].split(" <=")[0].strip() for line in lines if "short" in line]
    assert short == ["Table 1, chest: bits, rotation", "Table 1, chest: rows missing"]
    assert "table1_chest: without wam-kind" in lines
