import pytest

from medsign_lite.data import MODALITIES
from medsign_lite.records import table1_gates
from medsign_lite.records.gate_tables import (
    BEGIN,
    END,
    MORE,
    goals_table,
    main,
    recorded,
    tables,
    with_tables,
)
from medsign_lite.records.gates import GATES, RECORDED_GATES, RESULTS
from medsign_lite.records.result_tables import recipe_table, table1_tables, trade_tables
from medsign_lite.results import ROOT, record_result
from medsign_lite.tables.table1_record import read_table1


def record(folder, name, **values):
    figures = {key: {"value": value, "low": value, "high": value} for key, value in values.items()}
    record_result(folder / f"{name}.json", figures, {})


def row_of(text, name):
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_tables_show_every_gate_once(tmp_path):
    lines = [line for line in tables(tmp_path).splitlines() if line.startswith("| ")]
    both = sum(gate.name.startswith(("chest: ", "fundus: ")) for gate in GATES)
    asked = both // 2 + len(GATES) - both + len(RECORDED_GATES)
    assert len(lines) - 4 == asked + 5  # detection, two judges, bits under attack of real decoders
    assert all(
        line.endswith(" - |") for line in lines[2:] if "---" not in line and "req" not in line
    )


def test_tables_hold_what_is_recorded(tmp_path):
    record(tmp_path, "watermark_chest", psnr=39.31, none=0.9994, rotation=0.871)
    record(tmp_path, "watermark_fundus", psnr=37.2, psnr_gap=-1.006)
    record(tmp_path, "processes", difference=0.0003)
    text = tables(tmp_path)
    assert row_of(text, "watermark, dB") == ["watermark, dB", "≥ 38", "39.3", "**37.2**"]
    assert row_of(text, "bits, no attack") == ["bits, no attack", "≥ 0.99", "0.999", "-"]
    assert row_of(text, "finding spared, dB")[2:] == ["-", "**-1.0**"]
    assert row_of(text, "bits, rotation")[2:] == ["**0.871**", "-"]
    assert row_of(text, "two processes, share off")[1:] == ["≤ 0.001", "0.0003"]


def test_tables_show_intervals_the_hardest_attack_and_what_real_decoders_do_not_survive(tmp_path):
    def row(attack, name, value):
        return {"attack": attack, name: value, f"{name}_low": value - 0.1, f"{name}_high": 1.0}

    rates = {"none": 1.0, "jpeg": 0.8, "crop": 0.9, "mean": 0.1}
    attacks = [row(attack, "true_positive_rate", rate) for attack, rate in rates.items()]
    figures = {"psnr": {"value": 39.0, "low": 38.51, "high": 39.5}, "attacks": attacks}
    record_result(tmp_path / "watermark_chest.json", figures, {})
    bits = [row("none", "bit_accuracy", 0.99), row("mean", "bit_accuracy", 0.7)]
    trained = {"quality": {"psnr": 38.5, "psnr_gap": 5}, "attacks": bits}
    record_result(tmp_path / "real_decoder_own.json", {"trained": trained}, {})
    dice = {"value": 0.93, "low": 0.93, "high": 0.93}
    record_result(tmp_path / "judges_chest.json", {"dice": dice, "auc": dice | {"value": 0.99}}, {})
    text = tables(tmp_path)
    assert row_of(text, "watermark, dB")[2] == "39.0 [38.5, 39.5]"
    assert row_of(text, "segmenter's Dice, phantoms")[1:] == ["", "0.930", "-"]
    detected = row_of(text, "detected at 1e-6, hardest attack")
    assert detected[1:] == ["", "0.800 [0.700, 1.000]", "-"]
    attacked = row_of(text, "real decoder, own: bits, mean of attacks")
    assert attacked[1:] == ["", "0.700 [0.600, 1.000]"]


def test_recorded_reads_the_real_decoders_trained_images(tmp_path):
    gate = next(gate for gate in RECORDED_GATES if gate.figure == "bit_accuracy")
    values = {"trained": {"quality": {"psnr": 38.5}, "attacks": [{"bit_accuracy": 0.995}]}}
    record_result(tmp_path / f"{gate.measurement}.json", values, {})
    assert recorded(gate, tmp_path)["value"] == 0.995


def test_with_tables_replaces_what_is_between_the_marks(tmp_path):
    text = with_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n", tmp_path)
    assert text == f"before\n{BEGIN}\n{tables(tmp_path)}\n{END}\nafter\n"
    assert with_tables(text, tmp_path) == text


@pytest.mark.parametrize(
    "text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{END}", BEGIN * 2 + END]
)
def test_with_tables_refuses_other_marks(text, tmp_path):
    with pytest.raises(ValueError, match="expected one"):
        with_tables(text, tmp_path)


def test_main_prints_and_writes(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{BEGIN}\n{END}\n")
    main(["--results", str(tmp_path), "--write", str(page)])
    assert tables(tmp_path) in page.read_text()
    main(["--results", str(tmp_path)])
    printed = capsys.readouterr().out.strip()
    every = (tables, *MORE.values())
    assert printed == "\n\n".join(make(tmp_path) for make in every)


def test_more_tables_are_written_where_they_have_a_place(tmp_path):
    begin, end = "<!-- Table 1: begin -->", "<!-- Table 1: end -->"
    text = f"{BEGIN}\n{END}\n{begin}\nold\n{end}\nafter"
    new = with_tables(text, tmp_path)
    assert new.endswith(f"{begin}\n{table1_tables(tmp_path)}\n{end}\nafter")
    assert "an attacker" not in new
    with pytest.raises(ValueError, match="expected one <!-- Table 1: begin"):
        with_tables(f"{BEGIN}{END}{end}", tmp_path)
    alone = with_tables(f"{begin}{end}", tmp_path)
    assert alone == f"{begin}\n{table1_tables(tmp_path)}\n{end}"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", ["recorded figures", "Table 1", "Table 2", "claims", "an attacker"]),
        ("medsign_lite/weights/README.md", ["recorded figures"]),
        ("docs/beyond_the_paper.md", ["goals", "trade", "recipe"]),
    ],
)
def test_pages_hold_the_recorded_tables(page, names):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(f"<!-- {name}: begin -->" in text for name in names)
    assert text == with_tables(text, RESULTS), (
        f"python -m medsign_lite.records.gate_tables --write {page} brings it up to date"
    )


def test_recipe_and_trade_are_shown_as_recorded(tmp_path):
    assert "not compared yet" in recipe_table(tmp_path)
    assert trade_tables(tmp_path).count("not varied yet") == 2
    matched = {"jpeg": 0.81, "rotation": 0.92, "bit_accuracy": 0.93}
    run = {"run": "no JPEG", "psnr": 39.96, "ssim": 0.97, "finding_psnr": 42.0,
           "elsewhere_psnr": 39.5, "matched": matched}  # fmt: skip
    record_result(tmp_path / "decoder_recipe.json", {"runs": [run]}, {"psnr": 40.0})
    lines = recipe_table(tmp_path).splitlines()
    assert "at 40 dB: JPEG" in lines[0]
    assert lines[2] == "| no JPEG | 40.0 | 0.970 | 2.5 | 0.810 | 0.920 | 0.930 |"
    bits = {"none": 1.0, "crop": 0.975, "jpeg": 0.9, "mean": 0.5}
    strength = {"factor": 0.9, "psnr": 42.61, "ssim": 0.9713,
                "attacks": [{"attack": name, "bit_accuracy": at} for name, at in bits.items()],
                "changes": {"classifier": {"change": 0.3234}}}  # fmt: skip
    ring = {"shortest": 2, "longest": 3, "mark": 0.139, "image": 0.0}
    values = {"strengths": [strength], "wavelengths": [ring]}
    record_result(tmp_path / "mark_trade_fundus.json", values, {})
    text = trade_tables(tmp_path)
    assert "| 0.9 | 42.6 | 0.971 | 0.900 | 0.975 | 0.323 |" in text
    assert "| share of the mark | 0.139 |" in text and "wavelength in pixels | 2 to 3 |" in text


def test_goals_stand_beside_the_papers_figures():
    text = goals_table(RESULTS)
    chest, fundus = (
        table1_gates.gate_figures(read_table1(RESULTS / f"table1_{modality}.json")["values"])
        for modality in MODALITIES
    )
    row = row_of(text, "PSNR, dB")
    assert row[1:3] == ["39.71", "≥ 41"] and row[4:6] == ["40.81", "≥ 42"]
    assert row[3].startswith(f"{chest['psnr']['value']:.1f} [")
    assert row[6].strip("*").startswith(f"{fundus['psnr']['value']:.1f} [")
    assert row_of(text, "change x 100, any classifier")[1:3] == ["0.59", "≤ 0.3"]
    assert "missing" not in text


def test_goals_that_are_not_recorded_are_dashes(tmp_path):
    assert {line.split("|")[-2].strip() for line in goals_table(tmp_path).splitlines()[2:]} == {"-"}
