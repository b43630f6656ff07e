"""Better than the paper: how little our decoders change a diagnosis, in the recorded Table 2."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medsign_lite.data import MODALITIES
from medsign_lite.records.gate_verdicts import Gate, judge
from medsign_lite.tables.table2_measurements import SHIPPED, TITLES
from medsign_lite.tables.table2_record import recorded_table

CHANGE = 0.3  # mean |change of a probability| x 100; the paper: .59, of radiographs

TABLE2_GATES = [
    Gate(name=f"Table 2, {modality}: {name}", measurement=f"table2_{modality}", figure=figure,
         required=required, direction="at most")
    for modality in MODALITIES
    for name, figure, required in (
        ("change x 100, any classifier", "change", CHANGE), ("rows missing", "missing", 0),
    )
]  # fmt: skip


def gate_figures(values: Mapping | None) -> dict[str, dict]:
    """Figures {"value", "low", "high"} that the gates ask for.

    "missing": how many rows are not there, or of too few seeds; "change": of the shipped decoder,
    by the classifier that it moves most.

    Args:
        values: of a recorded table; None where there is none, and every row is missing.
    """
    count = float(len(TITLES if values is None else values["missing"]))
    figures = {"missing": {"value": count, "low": count, "high": count}}
    for row in () if values is None else values["rows"]:
        if row["row"] == SHIPPED:
            changes = [scores["mean"]["change"] for scores in row["classifiers"].values()]
            figures["change"] = max(changes, key=lambda change: change["value"])
    return figures


def judge_table2(gates: Sequence[Gate], folder: Path) -> bool:
    """Print one line per gate; True if all pass. A table that is not recorded falls short."""
    figures = {
        f"table2_{modality}": gate_figures(recorded_table(modality, folder))
        for modality in MODALITIES
    }
    return judge(gates, figures)
