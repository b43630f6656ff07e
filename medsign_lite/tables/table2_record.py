"""Reading Table 2 as `medsign_lite.tables.table2` recorded it: lines to show."""

from collections.abc import Mapping
from pathlib import Path

from medsign_lite.results import ROOT, read_result

IN_MEAN = ("change", "log_odds", "flipped")
BY_FINDING = ("change", "tail", "flipped", "auc_change")


def recorded_table(modality: str, folder: str | Path = ROOT / "results") -> dict | None:
    """The values of the recorded table: "rows", "claims", "missing"; None where there is none."""
    path = Path(folder) / f"table2_{modality}.json"
    return read_result(path)["values"] if path.is_file() else None


def mean_lines(values: Mapping) -> list[dict]:
    """The means over all findings: a line per row and classifier of a recorded table.

    Returns:
        decoder (the row's title), judge, images, seeds, and change, log_odds and flipped, each with
        its interval, as `rows.table` shows them.
    """
    return [
        {"decoder": row["title"], "judge": judge, "images": row["images"]}
        | {"seeds": len(row["seeds"])} | _columns(scores["mean"], IN_MEAN)
        for row in values["rows"] for judge, scores in row["classifiers"].items()
    ]  # fmt: skip


def finding_lines(row: Mapping, judge: str) -> list[dict]:
    """What one classifier says of a row of a recorded table: a line per finding and, last, "mean".

    Returns:
        decoder, finding, change, tail, flipped and auc_change with their intervals, and largest,
        the worst image of all seeds.
    """
    return [
        {"decoder": row["title"], "finding": finding, "largest": figures["largest"]["most"]}
        | _columns(figures, BY_FINDING)
        for finding, figures in row["classifiers"][judge].items()
    ]


def _columns(figures: Mapping[str, Mapping], names: tuple[str, ...]) -> dict:
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {f"{name}{end}": figures[name][part] for name in names for end, part in ends}
