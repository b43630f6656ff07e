"""The sweep's records as one table (CSV) and one figure (PNG)."""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.files import whole_file
from medsign_lite.plotting import line_style
from medsign_lite.results import read_result
from workflow.sweep import AXES

COLUMNS = (
    *AXES, "accuracy", *PAPER_ATTACKS, "psnr", "ssim", "finding_psnr", "elsewhere_psnr", "spared",
    "with_finding", "steps", "entries", "last_quality", "seconds",
)  # fmt: skip
# Column, what its axis says.
PANELS = {
    "accuracy": "bit accuracy,\nmean over attacks",
    "psnr": "PSNR (dB)",
    "spared": "PSNR in the finding\nminus elsewhere (dB)",
}
_WORDS = {"total_variation": "total variation"}


def table_row(document: Mapping) -> dict:
    """One point as a row: its factors, its scores, and two figures made of these.

    "accuracy" is the mean bit accuracy over the paper's attacks, the unattacked image among them.
    "spared" is the PSNR weighted with the location map minus that weighted with one minus it, in
    dB, over the images that have a finding: above 0 it is changed less than the rest.
    """
    values, config = document["values"], document["config"]
    row = {**config["point"], **values, "entries": config["entries"]}
    row["accuracy"] = sum(values[name] for name in PAPER_ATTACKS) / len(PAPER_ATTACKS)
    row["spared"] = values["finding_psnr"] - values["elsewhere_psnr"]
    return {name: row[name] for name in COLUMNS}


def write_table(rows: Sequence[Mapping], path: Path) -> None:
    """Write rows as CSV, four decimals, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def draw(rows: Sequence[Mapping]) -> Figure:
    """One column of panels for each modality, one row for each score.

    Along each panel runs the weight with the most values (the last of those that tie); each
    combination of the other weights is a line with a dash and a marker of its own.
    """
    values = {axis: sorted({row[axis] for row in rows}) for axis in AXES}
    along = max(AXES[1:], key=lambda axis: (len(values[axis]), AXES.index(axis)))
    others = [axis for axis in AXES[1:] if axis != along and len(values[axis]) > 1]
    lines = sorted({tuple(row[axis] for axis in others) for row in rows})
    modalities = values["modality"]
    size = (3.4 * len(modalities) + 0.6, 2.1 * len(PANELS) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(PANELS), len(modalities), sharex=True, sharey="row", squeeze=False)
    for column, modality in enumerate(modalities):
        for (score, label), axes in zip(PANELS.items(), panels[:, column], strict=True):
            for number, line in enumerate(lines):
                own = [r for r in rows if r["modality"] == modality]
                own = [r for r in own if tuple(r[axis] for axis in others) == line]
                own.sort(key=lambda row: row[along])
                places = [values[along].index(row[along]) for row in own]
                name = ", ".join(f"{_word(a)} x{v:g}" for a, v in zip(others, line, strict=True))
                axes.plot(places, [row[score] for row in own], **line_style(number), label=name)
            if score == "spared":
                axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
            if column == 0:
                axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        panels[0, column].set_title(modality)
        ticks = [f"x{value:g}" for value in values[along]]
        panels[-1, column].set_xticks(range(len(ticks)), ticks)
        panels[-1, column].set_xlabel(f"weight of {_word(along)}")
    if others:
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False,
                      handlelength=3.5)  # fmt: skip
    return figure


def _word(axis: str) -> str:
    return _WORDS.get(axis, axis)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, nargs="+", required=True, help="records (JSON)")
    parser.add_argument("--table", type=Path, required=True, help="CSV to write")
    parser.add_argument("--figure", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    rows = [table_row(read_result(path)) for path in options.points]
    write_table(rows, options.table)
    with whole_file(options.figure) as file:
        draw(rows).savefig(file, format="png", dpi=120, facecolor="white")


if __name__ == "__main__":
    main()
