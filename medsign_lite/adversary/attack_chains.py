"""Chains of attacks: an image that travels meets several, each of them mild.

A screenshot, for example, is scaled, cropped, shown at another brightness and compressed. A chain
has one strength, 0 for no effect to 1, that moves the parameters of all its steps together.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from medsign_lite.attacks import Attack, sweep
from medsign_lite.distortions import require

# Steps in the order in which they happen: attack, parameter without effect, parameter at 1.
CHAINS = {
    "chain": (
        ("rotation", 0.0, 10.0),
        ("brightness", 1.0, 1.5),
        ("contrast", 1.0, 1.5),
        ("blur", 0.0, 1.0),
        ("noise", 0.0, 0.05),
        ("jpeg", 100.0, 50.0),
    ),
    "screenshot": (
        ("resize", 1.0, 0.5),
        ("crop", 1.0, 0.7),
        ("brightness", 1.0, 1.25),
        ("jpeg", 100.0, 60.0),
    ),
}


def in_turn(image: Tensor, steps: Sequence[Attack]) -> Tensor:
    """Attack (B, 3, H, W) in [0, 1] with each step, one after the other: (B, 3, h, w)."""
    for step in steps:
        image = step(image)
    return image


def chain(name: str, strength: float) -> Attack:
    """One chain at one strength, as an attack.

    Args:
        name: a key of `CHAINS`.
        strength: in [0, 1]; the parameter of each step grows in proportion from no effect, where
            the step is left out, to that of `CHAINS`.

    Returns:
        The attack; its parameter "steps" holds the attacks it consists of, with their conventions.

    Raises:
        ValueError: if the name or the strength is not as above.
    """
    if name not in CHAINS:
        raise ValueError(f"expected a chain among {', '.join(CHAINS)}, got {name!r}")
    require(0 <= strength <= 1, f"{name} of a strength in [0, 1]", strength)
    steps = []
    for attack, neutral, severe in CHAINS[name]:
        value = neutral + strength * (severe - neutral)
        value = round(value) if attack == "jpeg" else value
        if not math.isclose(value, neutral):
            steps += sweep(attack, (value,)).values()
    return Attack(
        name=f"{name} {strength:g}",
        title=f"{name.capitalize()} {strength:g}",
        function=in_turn,
        parameters={"steps": tuple(steps)},
        clamps=any(step.clamps for step in steps),
        quantises=bool(steps) and steps[-1].quantises,
    )
