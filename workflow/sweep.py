"""The points of a sweep over the weights of the decoder's losses (Eq. 2)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AXES = ("modality", "message", "total_variation", "preservation")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of the sweep.

    modality: "chest" or "fundus", whose published weights are the starting point.
    message, total_variation, preservation: factors of those weights; 1 is the paper's own, 0
        leaves the loss out.
    """

    modality: str
    message: float
    total_variation: float
    preservation: float

    def __post_init__(self) -> None:
        for name in AXES[1:]:
            if not getattr(self, name) >= 0:
                raise ValueError(f"the factor of {name} must be 0 or more, got {vars(self)[name]}")

    @property
    def name(self) -> str:
        """The point as a file name, such as "chest_message-1_total-variation-0_preservation-4"."""
        factors = (f"{name.replace('_', '-')}-{getattr(self, name):g}" for name in AXES[1:])
        return "_".join([self.modality, *factors])


def grid_points(grid: Mapping[str, Sequence]) -> list[Point]:
    """Every combination of the axes' values, in their order.

    Raises:
        ValueError: if two points have the same name, as a value named twice would make them.
    """
    points = [
        Point(**dict(zip(AXES, values, strict=True)))
        for values in itertools.product(*(grid[axis] for axis in AXES))
    ]
    names = [point.name for point in points]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a sweep names each point once, got {', '.join(twice)} more than once")
    return points
