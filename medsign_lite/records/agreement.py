"""Do fresh figures of a few images agree with recorded ones of many?

A lesson or a gate measures a few images live, and has figures beside them that took hours. The two
should be of one truth: `agrees` says so of figures {"value", "low", "high"}, `agreement_rows` of
rows. The rule is one, in `_allowed`: so many standard errors of the difference, and a rounding.
"""

import math
from collections.abc import Mapping, Sequence

from medsign_lite.rows import with_interval

ERRORS = 4.0  # standard errors of the difference: among hundreds of figures none passes by chance
NORMAL = 2 * 1.96  # standard errors in the width of a 95 % interval
PRINTED = 5e-3  # half of the last place that figures are printed with


def agrees(fresh: Mapping, recorded: Mapping, *, tolerance: float = 0.0) -> bool:
    """Whether two figures {"value", "low", "high"} could be of one truth.

    Args:
        fresh, recorded: the ends are None, or the value, where there is no interval.
        tolerance: a share of the recorded figure that is allowed in any case, as is `PRINTED`.
    """
    values = [fresh["value"], recorded["value"]]
    if None in values:
        return values[0] is values[1]
    allowed = _allowed(recorded, fresh, rounding=PRINTED + tolerance * abs(values[1]))
    return abs(values[0] - values[1]) <= allowed


def allowed_difference(recorded: Mapping, fresh: Mapping, name: str, *, rounding: float) -> float:
    """How far a fresh mean may be from a recorded one if both are of one truth.

    Args:
        recorded, fresh: rows with the figure, "images", and in the recorded one its interval.
        name: of the figure.
        rounding: what is allowed in any case; where all of many images agreed there is no spread.

    Returns:
        `ERRORS` standard errors of the difference, and the rounding.
    """
    many, few = (with_interval(row, name) | {"images": row["images"]} for row in (recorded, fresh))
    return _allowed(many, few, rounding=rounding)


def _allowed(recorded: Mapping, fresh: Mapping, *, rounding: float) -> float:
    """`ERRORS` standard errors of the difference of two figures, and the rounding.

    The standard error of a mean over n images falls with the root of n. Where both figures say of
    how many "images" they are, that of the fresh one is told from the recorded interval: a few
    images that all say yes have an interval of width 0, or one that says little.
    """
    error, own = _standard_error(recorded), _standard_error(fresh)
    if "images" in recorded and "images" in fresh:
        own = error * math.sqrt(recorded["images"] / fresh["images"])
    return ERRORS * math.hypot(error, own) + rounding


def _standard_error(figure: Mapping) -> float:
    return 0.0 if figure["low"] is None else (figure["high"] - figure["low"]) / NORMAL


def agreement_rows(
    fresh: Sequence[Mapping],
    recorded: Sequence[Mapping],
    name: str,
    *,
    by: Sequence[str],
    rounding: float = 0.02,
) -> list[dict]:
    """Each fresh figure beside the recorded one of the same attack, strength and so on.

    Args:
        fresh, recorded: rows as `record_result` keeps them.
        name: of the figure to compare, such as "bit_accuracy".
        by: keys that tell rows apart; one that a row lacks counts as None.
        rounding: as in `allowed_difference`; 0.02 is one bit of 48.

    Returns:
        One dict per fresh row that has a recorded one: the keys of `by`, images, fresh, recorded,
        allowed (the largest difference), and agrees.

    Raises:
        ValueError: if two recorded rows are told apart by nothing, or no fresh row has a recorded
            one: nothing would be compared.
    """

    def key(row: Mapping) -> tuple:
        return tuple(row.get(part) for part in by)

    known = {key(row): row for row in recorded}
    if len(known) < len(recorded):
        raise ValueError(f"{len(recorded)} recorded rows are not told apart by {', '.join(by)}")
    rows = []
    for row in fresh:
        other = known.get(key(row))
        if other is None or row[name] is None or other[name] is None:
            continue
        allowed = allowed_difference(other, row, name, rounding=rounding)
        rows.append(
            {part: row.get(part) for part in by}
            | {"images": row["images"], "fresh": row[name], "recorded": other[name]}
            | {"allowed": allowed, "agrees": abs(row[name] - other[name]) <= allowed}
        )
    if not rows:
        raise ValueError(f"no fresh row has a recorded one by {', '.join(by)}: nothing to compare")
    return rows
