"""The recorded figures of the gates, and other tables, as Markdown: for README and model card.

    python -m medsign_lite.records.gate_tables                     # print
    python -m medsign_lite.records.gate_tables --write README.md   # and put them between the marks

A figure in prose grows old unnoticed. So these stand there whole, and a test compares them with
`results/`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsign_lite import published
from medsign_lite.data import MODALITIES
from medsign_lite.files import whole_file
from medsign_lite.records import table1_gates, table2_gates
from medsign_lite.records.gates import GATES, RECORDED_GATES, RESULTS, Gate
from medsign_lite.records.result_tables import (
    attacker_table,
    claims_table,
    markdown,
    recipe_table,
    table1_tables,
    table2_tables,
    trade_tables,
)
from medsign_lite.records.table1_gates import TABLE1_GATES
from medsign_lite.records.table2_gates import TABLE2_GATES
from medsign_lite.results import read_result
from medsign_lite.rows import with_interval
from medsign_lite.tables.table1_record import table1_values
from medsign_lite.tables.table2_record import recorded_table

BEGIN, END = "<!-- recorded figures: begin -->", "<!-- recorded figures: end -->"


def goals_table(folder: Path) -> str:
    """What Tables 1 and 2 are asked to show of our own decoders, beside the paper's own figures.

    A figure that falls short is bold; a dash is not recorded.
    """
    folder, rows = Path(folder), {}
    for modality in MODALITIES:
        figures = {
            f"table1_{modality}": table1_gates.gate_figures(table1_values(modality, folder)),
            f"table2_{modality}": table2_gates.gate_figures(recorded_table(modality, folder)),
        }
        paper = next(row for row in published.table1(modality) if row["method"] == "MedSign")
        if modality == "chest":  # the paper has no Table 2 of photographs
            paper = paper | {"change": published.table2()["medsign"]["mean"]}
        for gate in (*TABLE1_GATES, *TABLE2_GATES):
            if gate.measurement not in figures or gate.figure == "missing":
                continue
            theirs = f"{paper[gate.figure]:g}" if gate.figure in paper else ""
            ours = _figure(gate, figures[gate.measurement].get(gate.figure))
            row = rows.setdefault(gate.name.split(": ", 1)[1], [])
            row += [theirs, _required(gate), ours]
    header = [name for modality in MODALITIES for name in ("the paper", "required", modality)]
    return "\n".join(markdown(["", *header], [[name, *row] for name, row in rows.items()]))


# Further tables, which a page may have or not.
MORE = {
    "goals": goals_table,
    "Table 1": table1_tables,
    "Table 2": table2_tables,
    "claims": claims_table,
    "an attacker": attacker_table,
    "recipe": recipe_table,
    "trade": trade_tables,
}


def recorded(gate: Gate, folder: Path) -> Mapping | None:
    """{"value", "low", "high"} that `folder` holds of a gate's figure, or None."""
    path = folder / f"{gate.measurement}.json"
    if not path.is_file():
        return None
    values = read_result(path)["values"]
    if gate in RECORDED_GATES:
        trained = values["trained"]
        return with_interval(trained["quality"] | trained["attacks"][0], gate.figure)
    return values.get(gate.figure)


def tables(folder: str | Path = RESULTS) -> str:
    """Two Markdown tables: what both modalities are asked for, side by side, then all else.

    Measured figures come with their 95 % interval. One that falls short is bold; what is not
    recorded is a dash. Of what nothing is asked, the second column is empty.
    """
    folder = Path(folder)
    gates = {gate.name: gate for gate in (*GATES, *RECORDED_GATES)}
    shared = {name.split(": ", 1)[1]: gate for name, gate in gates.items()
              if name.startswith(f"{MODALITIES[0]}: ")}  # fmt: skip
    of_both = {f"{modality}: {name}" for modality in MODALITIES for name in shared}
    pairs = [
        [name, _required(gate),
         *(_cell(gates[f"{modality}: {name}"], folder) for modality in MODALITIES)]
        for name, gate in shared.items()
    ]  # fmt: skip
    pairs.append([
        "detected at 1e-6, hardest attack", "",
        *(_detected(folder / f"watermark_{modality}.json") for modality in MODALITIES),
    ])  # fmt: skip
    for title, figure in (("classifier's AUC", "auc"), ("segmenter's Dice", "dice")):
        pairs.append([
            f"{title}, phantoms", "",
            *(_judged(folder / f"judges_{modality}.json", figure) for modality in MODALITIES),
        ])  # fmt: skip
    others = [[name, _required(gate), _cell(gate, folder)]
              for name, gate in gates.items() if name not in of_both]  # fmt: skip
    for name in dict.fromkeys(gate.measurement for gate in RECORDED_GATES):
        kind = name.rsplit("_", 1)[1]
        others.append([
            f"real decoder, {kind}: bits, mean of attacks", "", _attacked(folder / f"{name}.json"),
        ])  # fmt: skip
    return "\n".join([
        *markdown(["", "required", *MODALITIES], pairs),
        "",
        *markdown(["", "required", "recorded"], others),
    ])  # fmt: skip


def _required(gate: Gate) -> str:
    return f"{'≥' if gate.direction == 'at least' else '≤'} {gate.required:g}"


def _cell(gate: Gate, folder: Path) -> str:
    return _figure(gate, recorded(gate, folder))


def _figure(gate: Gate, measured: Mapping | None) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    size = abs(measured["value"])
    large = size >= 2 or gate.name.endswith("dB")
    text = _shown(measured, 1 if large else 3 if size >= 0.01 or size == 0 else 4)
    return text if gate.passes(measured) else f"**{text}**"


def _detected(path: Path) -> str:
    """The lowest rate, over the attacks, of marked images that are told at 1e-6."""
    if not path.is_file():
        return "-"
    rates = [with_interval(row, "true_positive_rate")
             for row in read_result(path)["values"].get("attacks", ())
             if row["attack"] != "mean"]  # fmt: skip
    return _shown(min(rates, key=lambda rate: rate["value"])) if rates else "-"


def _judged(path: Path, figure: str) -> str:
    """How well a judge does on the phantoms themselves."""
    return _shown(read_result(path)["values"][figure]) if path.is_file() else "-"


def _attacked(path: Path) -> str:
    """Bits of a real decoder's images after the attacks, on average."""
    if not path.is_file():
        return "-"
    rows = read_result(path)["values"]["trained"]["attacks"]
    means = [with_interval(row, "bit_accuracy") for row in rows if row.get("attack") == "mean"]
    return _shown(means[0]) if means else "-"


def _shown(measured: Mapping, digits: int = 3) -> str:
    text, *ends = (f"{measured[key]:.{digits}f}" for key in ("value", "low", "high"))
    return text if measured["low"] == measured["high"] else f"{text} [{', '.join(ends)}]"


def with_tables(text: str, folder: str | Path = RESULTS) -> str:
    """The text with every table between its marks: the gates', or of `MORE`, where it has marks.

    Raises:
        ValueError: if it has marks of no table, or a table's are not there once each, in order.
    """
    ways = {(BEGIN, END): tables} | {
        (f"<!-- {name}: begin -->", f"<!-- {name}: end -->"): make for name, make in MORE.items()
    }
    here = [marks for marks in ways if any(mark in text for mark in marks)]
    for marks in here or [(BEGIN, END)]:
        text = _between(text, *marks, ways[marks](folder))
    return text


def _between(text: str, begin: str, end: str, new: str) -> str:
    parts = text.split(begin)
    if len(parts) != 2 or parts[1].count(end) != 1 or end in parts[0]:
        raise ValueError(f"expected one {begin} and after it one {end}")
    rest = parts[1].split(end)[1]
    return f"{parts[0]}{begin}\n{new}\n{end}{rest}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.records.gate_tables", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables into")
    options = parser.parse_args(arguments)
    if options.write:
        text = with_tables(options.write.read_text(encoding="utf-8"), options.results)
        with whole_file(options.write) as file:
            file.write(text.encode())
    else:
        print(*(make(options.results) for make in (tables, *MORE.values())), sep="\n\n")


if __name__ == "__main__":
    main()
