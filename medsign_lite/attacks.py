"""Attacks: what happens to an image between the hospital and the detector.

Six attacks are the paper's (Table 1). Their conventions follow Stable Signature's validation code:
crop and resize factors are areas, nothing is resized back, rotation keeps the canvas. Published
toolkits differ in just these points, and a figure means little without them, so each attack says
what it does in explicit fields, and `CONVENTIONS` holds the other readings for comparison. The
functions behind the names are in `distortions.py`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from medsign_lite.distortions import (
    brightness,
    centre_crop,
    contrast,
    crop_at,
    gaussian_blur,
    gaussian_noise,
    identity,
    jpeg,
    require,
    resize_area,
    rotate,
    scaled_size,
)
from medsign_lite.images import check_image


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack with its parameters; call it on (B, 3, H, W) in [0, 1].

    The fields after `parameters` state the conventions that published toolkits differ in.
    """

    name: str
    title: str  # for tables and figures
    function: Callable[..., Tensor]
    parameters: dict[str, object] = field(default_factory=dict)
    measure: str = ""  # what a crop or resize factor is a fraction of: "area", "side" or ""
    resized_back: bool = False  # to the size it had
    fill: float | None = None  # grey value of pixels that come into view
    interpolation: str = ""  # "nearest", "bilinear" or "" where nothing is interpolated
    clamps: bool = False  # is the result in [0, 1] whatever came?
    quantises: bool = False  # is the result rounded to 8 bits?

    def __call__(self, image: Tensor) -> Tensor:
        return self.function(image, **self.parameters)


def _table(*attacks: Attack) -> dict[str, Attack]:
    return {attack.name: attack for attack in attacks}


PAPER_ATTACKS = _table(
    Attack(name="none", title="No attack", function=identity),
    Attack(name="brightness", title="Brightness x 2", function=brightness,
           parameters={"factor": 2.0}, clamps=True),
    Attack(name="crop", title="Crop 50 %", function=centre_crop,
           parameters={"area": 0.5}, measure="area"),
    Attack(name="jpeg", title="JPEG 50", function=jpeg,
           parameters={"quality": 50}, clamps=True, quantises=True),
    Attack(name="rotation", title="Rotation 25°", function=rotate,
           parameters={"degrees": 25.0, "fill": 0.0}, fill=0.0, interpolation="nearest"),
    Attack(name="resize", title="Resize 70 %", function=resize_area,
           parameters={"area": 0.7}, measure="area", interpolation="bilinear"),
)  # fmt: skip

FURTHER_ATTACKS = _table(
    Attack(name="contrast", title="Contrast x 2", function=contrast,
           parameters={"factor": 2.0}, clamps=True),
    Attack(name="blur", title="Gaussian blur, 1 px", function=gaussian_blur,
           parameters={"sigma": 1.0}),
    Attack(name="noise", title="Gaussian noise, 0.05", function=gaussian_noise,
           parameters={"deviation": 0.05}, clamps=True),
)  # fmt: skip

# The paper's attacks as other toolkits understand the same words.
CONVENTIONS = _table(
    Attack(name="crop side", title="Crop, 50 % of the side", function=centre_crop,
           parameters={"area": 0.5**2}, measure="side"),
    Attack(name="crop back", title="Crop 50 %, resized back", function=centre_crop,
           parameters={"area": 0.5, "resize_back": True}, measure="area", resized_back=True,
           interpolation="bilinear"),
    Attack(name="resize side", title="Resize, 70 % of the side", function=resize_area,
           parameters={"area": 0.7**2}, measure="side", interpolation="bilinear"),
    Attack(name="resize back", title="Resize 70 %, resized back", function=resize_area,
           parameters={"area": 0.7, "resize_back": True}, measure="area", resized_back=True,
           interpolation="bilinear"),
    Attack(name="rotation grey", title="Rotation 25°, grey corners", function=rotate,
           parameters={"degrees": 25.0, "fill": 0.5}, fill=0.5, interpolation="nearest"),
    Attack(name="rotation bilinear", title="Rotation 25°, bilinear", function=rotate,
           parameters={"degrees": 25.0, "fill": 0.0, "interpolation": "bilinear"}, fill=0.0,
           interpolation="bilinear"),
    Attack(name="jpeg 4:4:4", title="JPEG 50, 4:4:4", function=jpeg,
           parameters={"quality": 50, "subsampling": 0}, clamps=True, quantises=True),
)  # fmt: skip

ATTACK_TABLE = PAPER_ATTACKS | FURTHER_ATTACKS | CONVENTIONS


def specification(attacks: Iterable[Attack]) -> str:
    """Names what attacks do, in twelve characters: figures after others are not comparable."""
    told = json.dumps([_told(attack) for attack in attacks], sort_keys=True, default=_told)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _told(attack: Attack) -> dict:
    return {f.name: getattr(attack, f.name) for f in fields(attack) if f.name != "function"}


# Ranges of training: (parameter without effect, lowest, highest). JPEG 100 is as near as it gets.
TRAINING_RANGES = {
    "brightness": (1.0, 0.5, 2.5),
    "crop": (1.0, 0.3, 1.0),
    "jpeg": (100.0, 40.0, 85.0),
    "rotation": (0.0, -45.0, 45.0),
    "resize": (1.0, 0.3, 1.2),
    "contrast": (1.0, 0.5, 2.0),
    "blur": (0.0, 0.0, 1.5),
    "noise": (0.0, 0.0, 0.1),
}

# What Stable Signature's extractor was pre-trained with, one drawn per batch: nothing, a flip, and
# two strengths each of crop, resize and JPEG, all eight as likely. No rotation, brightness or blur.
STABLE_SIGNATURE_ATTACKS = ("none", "flip", *["crop", "resize", "jpeg"] * 2)

# Values of robustness curves, from mild to severe.
SWEEPS = {
    "brightness": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "crop": (1.0, 0.8, 0.65, 0.5, 0.35, 0.2),
    "jpeg": (95, 80, 65, 50, 35, 20),
    "rotation": (0.0, 5.0, 10.0, 25.0, 35.0, 45.0),
    "resize": (1.0, 0.85, 0.7, 0.5, 0.35, 0.2),
    "contrast": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "blur": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "noise": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2),
}

# Lowest and highest value of the same parameter: beyond them an attack makes no sense.
RANGES = {
    "brightness": (0, 10),
    "crop": (0.01, 1),
    "jpeg": (1, 100),
    "rotation": (-180, 180),
    "resize": (0.01, 4),
    "contrast": (0, 10),
    "blur": (0.1, 10),
    "noise": (0, 1),
}


def check_strengths(name: str, values: Iterable[float], low: float, high: float) -> None:
    """Raise a ValueError that names attack, range and value if one is not in [low, high]."""
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"{name}: expected a strength in [{low}, {high}], got {value}")


def sweep(name: str, values: Iterable[float] | None = None) -> dict[str, Attack]:
    """One attack at several strengths, for a robustness curve.

    Args:
        name: a key of `SWEEPS`.
        values: of the attack's first parameter, within `RANGES`; default `SWEEPS[name]`.

    Returns:
        {"jpeg 95": Attack, "jpeg 80": Attack, ...} in the order of the values.

    Raises:
        ValueError: if the name is unknown or a value out of the attack's range.
    """
    if name not in SWEEPS:
        raise ValueError(f"expected one of {', '.join(SWEEPS)}, got {name!r}")
    values = SWEEPS[name] if values is None else tuple(values)
    check_strengths(name, values, *RANGES[name])
    attack = ATTACK_TABLE[name]
    parameter = next(iter(attack.parameters))
    fields = {key: value for key, value in vars(attack).items() if key not in ("name", "title")}
    return _table(*(
        Attack(name=f"{name} {value:g}", title=f"{name.capitalize()} {value:g}",
               **fields | {"parameters": attack.parameters | {parameter: value}})
        for value in values
    ))  # fmt: skip


def check_training_attacks(names: Sequence[str]) -> None:
    """Raise a ValueError unless `random_attack` can draw from these names."""
    known = ["none", "flip", *TRAINING_RANGES]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        expected, came = ", ".join(known), unknown[0] if unknown else "none"
        raise ValueError(f"attacks: expected names among {expected}, got {came!r}")


def random_attack(
    image: Tensor,
    *,
    names: tuple[str, ...] = tuple(PAPER_ATTACKS),
    generator: torch.Generator,
    strength: float = 1.0,
    minimum: int = 16,
) -> Tensor:
    """Draw one attack for the whole batch, and how strong it is, for training the extractor.

    Crops lie at random places, half of them in the centre; rotations are nearest or bilinear.

    Args:
        image: (B, 3, H, W) around [0, 1]; a decoder's output need not be clamped.
        names: what to draw from, each as likely: "none", "flip" (left and right) and keys of
            `TRAINING_RANGES`; one named twice is drawn twice as often.
        generator: a CPU generator.
        strength: in [0, 1]; the ranges grow in proportion, from no effect to `TRAINING_RANGES`,
            and the share of flips that happen.
        minimum: crops and resizes leave at least this many pixels a side (of images that have
            them): what the extractor reads.

    Returns:
        (B, 3, h, w), differentiable.

    Raises:
        ValueError: if a name or the strength is not as above.
    """
    check_training_attacks(names)
    require(0 <= strength <= 1, "a random attack's strength in [0, 1]", strength)
    check_image(image, in_range=False)
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    where, down, across, coin = torch.rand(4, generator=generator).tolist()
    if name == "none" or strength == 0:
        return image
    if name == "flip":
        return image.flip(-1) if where < strength else image
    neutral, lowest, highest = TRAINING_RANGES[name]
    low, high = (neutral + strength * (end - neutral) for end in (lowest, highest))
    value = low + where * (high - low)
    if name in ("crop", "resize"):
        value = max(value, min(1.0, ((minimum + 0.5) / min(image.shape[-2:])) ** 2))
    if name == "crop":
        size = scaled_size(image, value, name)
        down, across = (0.5, 0.5) if coin < 0.5 else (down, across)
        free = (image.shape[-2] - size[0], image.shape[-1] - size[1])
        return crop_at(image, round(down * free[0]), round(across * free[1]), size)
    if name == "rotation":
        return rotate(image, value, interpolation="nearest" if coin < 0.5 else "bilinear")
    if name == "jpeg":
        return jpeg(image, round(value))
    if name == "blur":
        return gaussian_blur(image, max(value, 1e-3))
    if name == "noise":
        return gaussian_noise(image, value, generator=generator)
    return ATTACK_TABLE[name].function(image, value)
