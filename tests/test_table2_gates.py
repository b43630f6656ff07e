"""Table 2's gates: the shipped decoder's change by the strictest classifier, and missing rows."""

from medsign_lite.records.table2_gates import TABLE2_GATES, gate_figures, judge_table2
from medsign_lite.results import record_result
from medsign_lite.tables.table2_measurements import TITLES


def values(*changes, missing=()):
    def row(name, scale):
        return {"row": name, "classifiers": {
            str(i): {"mean": {"change": {"value": scale * change, "low": 0.0, "high": change}}}
            for i, change in enumerate(changes)
        }}  # fmt: skip

    return {"rows": [row("medsign", 9.0), row("shipped", 1.0)], "claims": [],
            "missing": list(missing)}  # fmt: skip


def test_figures_are_of_the_shipped_decoder_and_the_classifier_that_moves_most():
    figures = gate_figures(values(0.1, 0.25, missing=["without_tv"]))
    assert figures["change"]["value"] == 0.25 and figures["missing"]["value"] == 1
    nothing = gate_figures(None)
    assert nothing["missing"]["value"] == len(TITLES) and "change" not in nothing


def test_judge_table2_falls_short_of_a_change_a_row_or_a_table(tmp_path, capsys):
    for modality in ("chest", "fundus"):
        record_result(tmp_path / f"table2_{modality}.json", values(0.1, 0.29), {})
    assert judge_table2(TABLE2_GATES, tmp_path)
    record_result(tmp_path / "table2_chest.json", values(0.1, 0.31), {})
    assert not judge_table2(TABLE2_GATES, tmp_path)
    record_result(tmp_path / "table2_chest.json", values(0.1, 0.2, missing=["shipped"]), {})
    assert not judge_table2(TABLE2_GATES, tmp_path)
    record_result(tmp_path / "table2_chest.json", values(0.1, 0.2), {})
    (tmp_path / "table2_fundus.json").unlink()
    capsys.readouterr()
    assert not judge_table2(TABLE2_GATES, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["pass", "pass", "short", "short"]
    assert "not measured" in lines[2]
