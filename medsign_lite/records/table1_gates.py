"""Better than the paper: what the recorded Table 1 must show of our own row, on both modalities."""

from collections.abc import Sequence
from pathlib import Path

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.records.gate_verdicts import Gate, judge
from medsign_lite.tables.table1_record import gate_figures, missing_rows, table1_values

PSNR = {"chest": 41, "fundus": 42}  # the paper: 39.7 and 40.8


def _of_modality(modality: str) -> list[Gate]:
    def gate(name: str, figure: str, required: float, **options: str) -> Gate:
        return Gate(name=f"Table 1, {modality}: {name}", measurement=f"table1_{modality}",
                    figure=figure, required=required, **options)  # fmt: skip

    return [
        gate("PSNR, dB", "psnr", PSNR[modality]),
        gate("SSIM", "ssim", 0.98),
        *(gate(f"bits, {name}", name, 0.95 if name == "jpeg" else 0.98) for name in PAPER_ATTACKS),
        *(gate(f"detected, {name}", f"detected_{name}", 0.99) for name in PAPER_ATTACKS),
        gate("ahead at equal bits, dB", "gain", 3),
        gate("rows missing", "missing", 0, direction="at most"),
    ]


TABLE1_GATES = [*_of_modality("chest"), *_of_modality("fundus")]


def judge_table1(gates: Sequence[Gate], folder: Path) -> bool:
    """Print one line per gate; True if all pass. A table that is not recorded falls short."""
    passed = True
    for name in dict.fromkeys(gate.measurement for gate in gates):
        values = table1_values(name.removeprefix("table1_"), folder)
        own = [gate for gate in gates if gate.measurement == name]
        passed &= judge(own, {name: gate_figures(values)})
        if missing := missing_rows(values):
            print(f"{name}: without {', '.join(missing)}")
    return passed
