"""A gate, and the verdict on a figure: passed or short."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A requirement on one figure.

    measurement and figure name it: `gates.MEASUREMENTS[measurement](sample)[figure]`. direction is
    "at least" or "at most"; with `whole` the interval's unfavourable end must pass too. tolerance:
    the share by which the figure differs from run to run without a seed, as memory does.
    """

    name: str
    measurement: str
    figure: str
    required: float
    direction: str = "at least"
    whole: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in ("at least", "at most"):
            raise ValueError(f"direction must be 'at least' or 'at most', got {self.direction!r}")

    def passes(self, measured: Mapping) -> bool:
        """Whether a figure {"value", "low", "high"} meets the requirement; NaN never does."""
        lower = self.direction == "at least"
        value = measured["low" if lower else "high"] if self.whole else measured["value"]
        if value is None:
            return False
        return value >= self.required if lower else value <= self.required


def line(gate: Gate, measured: Mapping) -> str:
    """One line: name, required, measured with its interval, pass or short."""
    sign = ">=" if gate.direction == "at least" else "<="
    verdict = "pass" if gate.passes(measured) else "short"
    return f"{gate.name:40} {sign} {gate.required:<6g} {shown(measured):28} {verdict}"


def shown(measured: Mapping) -> str:
    """A figure {"value", "low", "high"} as text, with its interval where there is one."""
    if measured["value"] is None:
        return "not measured"
    text = f"{measured['value']:.3f}"
    if measured["low"] is not None and measured["low"] != measured["high"]:
        text += f" [{measured['low']:.3f}, {measured['high']:.3f}]"
    return text


def judge(gates: Sequence[Gate], figures: Mapping[str, Mapping]) -> bool:
    """Print one line per gate; True if all pass."""
    missing = {"value": None, "low": None, "high": None}
    pairs = [(gate, figures[gate.measurement].get(gate.figure, missing)) for gate in gates]
    for gate, measured in pairs:
        print(line(gate, measured))
    return all(gate.passes(measured) for gate, measured in pairs)
