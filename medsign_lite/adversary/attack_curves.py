"""Strength curves: how much of every attack the watermark survives, and what that much costs.

What an attack costs is the PSNR and SSIM between the image before it and after it, both rounded to
8 bits. They compare pixels, so the places of the pixels have to agree:

- brightness, contrast, noise, blur and JPEG leave every pixel where it was: compared as they are;
- a resized image is resized back first;
- a crop or a rotation changes no pixel that it keeps: no figure (None), but `kept` says which share
  of the image is still shown;
- of a chain, the image before it gets the chain's geometry alone (crop, resize, rotation), and the
  figures are what the other steps do to the pixels that are left.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.adversary.attack_chains import CHAINS, chain, in_turn
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.attacks import RANGES as STRENGTHS
from medsign_lite.attacks import Attack, check_strengths, sweep
from medsign_lite.distortions import centre_crop, resize_area, rotate
from medsign_lite.images import quantise, resize

CURVES: dict[str, tuple[float, ...]] = {
    "jpeg": (100, 90, 80, 70, 60, 50, 40, 30, 20, 10),
    "rotation": (0, 5, 10, 15, 20, 25, 30, 35, 40, 45),
    "crop": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    "resize": (4.0, 2.0, 1.5, 1.0, 0.85, 0.7, 0.5, 0.35, 0.2, 0.1),
    "brightness": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "contrast": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "noise": (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2),
    "blur": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    "chain": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "screenshot": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
}
UNITS = {  # of these strengths
    "jpeg": "quality", "rotation": "degrees", "crop": "share of the area",
    "resize": "share of the area", "brightness": "factor", "contrast": "factor",
    "noise": "standard deviation", "blur": "sigma, pixels", "chain": "strength",
    "screenshot": "strength",
}  # fmt: skip

RANGES = STRENGTHS | dict.fromkeys(CHAINS, (0, 1))
GEOMETRY = (centre_crop, resize_area, rotate)


def curve(name: str, values: Sequence[float] | None = None) -> dict[str, Attack]:
    """One attack at several strengths.

    Args:
        name: a key of `CURVES`.
        values: of its parameter, within `RANGES`; default `CURVES[name]`.

    Returns:
        {"jpeg 100": Attack, ...} in the order of the values.

    Raises:
        ValueError: if the name is unknown, or a value out of the attack's range, missing or given
            twice.
    """
    if name not in CURVES:
        raise ValueError(f"expected an attack among {', '.join(CURVES)}, got {name!r}")
    values = CURVES[name] if values is None else tuple(values)
    check_strengths(name, values, *RANGES[name])
    if name in CHAINS:
        attacks = {attack.name: attack for attack in (chain(name, value) for value in values)}
    else:
        attacks = sweep(name, values)
    if not values or len(attacks) < len(values):
        raise ValueError(f"{name}: expected strengths that differ, at least one, got {values}")
    return attacks


def attack_curve_rows(
    images: Tensor,
    detector: Detector,
    *,
    curves: Mapping[str, Sequence[float]] = CURVES,
    generator: torch.Generator,
) -> list[dict]:
    """Every attack at every strength.

    Args:
        images: (N, 3, H, W) around [0, 1], marked.
        curves: strengths by attack.
        generator: CPU, for the intervals.

    Returns:
        One dict per attack and strength: attack, strength, images, bit_accuracy,
        true_positive_rate, log10_p, kept (share of the image's area that is still shown), and psnr
        and ssim as the module describes, or None. Each mean with its interval.
    """
    # All are checked before the first is computed.
    tables = {name: curve(name, values) for name, values in curves.items()}
    rows = []
    for name, attacks in tables.items():
        read = detector.rows(images, attacks, generator=generator)
        for value, attack, row in zip(curves[name], attacks.values(), read, strict=True):
            row |= {"attack": name, "strength": float(value), "kept": kept(attack, images)}
            rows.append(row | _cost(attack, images, detector, generator))
    return rows


def kept(attack: Attack, images: Tensor) -> float:
    """Share, in [0, 1], of the area of images (N, 3, H, W) that the attack still shows."""
    shown = torch.ones_like(images[:1])
    losing = [step for step in _moves(attack) if step.function is not resize_area]
    return float(in_turn(shown, losing).sum() / shown.sum())


def aligned(attack: Attack, image: Tensor) -> tuple[Tensor, Tensor] | None:
    """The image after and before an attack with every pixel in the same place.

    Args:
        image: (B, 3, H, W) in [0, 1].

    Returns:
        attacked and reference, both (B, 3, h, w); None where the attack only moves pixels.
    """
    moves = _moves(attack)
    if attack.function is resize_area:
        return resize(attack(image), tuple(image.shape[-2:])), image
    if moves and len(moves) == len(_steps(attack)):
        return None
    return attack(image), in_turn(image, moves)


def _steps(attack: Attack) -> tuple[Attack, ...]:
    return attack.parameters["steps"] if attack.function is in_turn else (attack,)


def _moves(attack: Attack) -> list[Attack]:
    return [step for step in _steps(attack) if step.function in GEOMETRY]


def _cost(attack: Attack, images: Tensor, detector: Detector, generator: torch.Generator) -> dict:
    if aligned(attack, images[:1]) is None:
        return {"psnr": None, "ssim": None}
    batches = [quantise(batch) for batch in images.split(detector.batch_size)]
    pairs = [aligned(attack, batch) for batch in batches]
    attacked, reference = zip(*pairs, strict=True)
    return detector.quality(attacked, reference, generator=generator)
