"""What is shown of a recorded Table 2."""

from medsign_lite.results import record_result
from medsign_lite.rows import table
from medsign_lite.tables.table2_record import finding_lines, mean_lines, recorded_table


def figure(value, most=None):
    ends = {"low": None, "high": None} if value is None else {"low": value - 1, "high": value + 1}
    return {"value": value, "least": value, "most": value if most is None else most} | ends


def row(*judges):
    scores = {
        finding: {"change": figure(float(number)), "log_odds": figure(0.5), "tail": figure(6.0),
                  "largest": figure(8.0, most=9.5), "flipped": figure(0.0),
                  "auc_change": figure(None)}
        for number, finding in enumerate(("edema", "effusion", "mean"))
    }  # fmt: skip
    return {"row": "medsign", "title": "MedSign", "images": 5, "seeds": ["0", "1"],
            "classifiers": {judge: scores for judge in judges}}  # fmt: skip


def test_recorded_table_is_read_or_absent(tmp_path):
    assert recorded_table("chest", tmp_path) is None
    values = {"rows": [row("a")], "claims": [], "missing": []}
    record_result(tmp_path / "table2_chest.json", values, {})
    assert recorded_table("chest", tmp_path) == values


def test_mean_lines_are_one_per_row_and_judge():
    lines = mean_lines({"rows": [row("a", "b")]})
    assert [(line["decoder"], line["judge"], line["seeds"]) for line in lines] == [
        ("MedSign", "a", 2), ("MedSign", "b", 2)
    ]  # fmt: skip
    shown = table(lines, columns=["judge", "images", "change", "log_odds", "flipped"], decimals=1)
    assert shown.loc[1].tolist() == [
        "b", "5", "2.0 [1.0, 3.0]", "0.5 [-0.5, 1.5]", "0.0 [-1.0, 1.0]"
    ]  # fmt: skip


def test_finding_lines_show_the_worst_image_of_all_seeds():
    lines = finding_lines(row("a"), "a")
    assert [line["finding"] for line in lines] == ["edema", "effusion", "mean"]
    assert {line["largest"] for line in lines} == {9.5}
    shown = table(lines, columns=["change", "tail", "largest", "auc_change"], decimals=1)
    assert shown.loc[0].tolist() == ["0.0 [-1.0, 1.0]", "6.0 [5.0, 7.0]", "9.5", ""]
