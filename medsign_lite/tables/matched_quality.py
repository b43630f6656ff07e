"""Watermarks at one image quality: their strength is scaled until every image has the same PSNR.

A stronger mark is read better, so bit accuracies at different PSNR prove nothing. Each method's
residual is scaled to each rung of a ladder of PSNRs, rounded to 8 bits, attacked and read; that is
its curve. Read across, it compares accuracy at equal PSNR; read down, PSNR at equal accuracy.

Bit accuracy does not know how many bits there are: of 32, all are found by chance once in 4e9
images, of 48, once in 3e14. Where payloads differ, log10 of the p-value is compared in its place:
it says how sure a detection is, whatever the number of bits.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.attacks import PAPER_ATTACKS, Attack
from medsign_lite.detection import extract_logits, matching_bits, soft_p_values
from medsign_lite.images import quantise
from medsign_lite.metrics import interval_of, psnr
from medsign_lite.rows import mean_row

LADDER = (32.0, 34.0, 36.0, 38.0, 40.0, 42.0, 44.0, 46.0)  # dB


def check_ladder(ladder: Sequence[float]) -> None:
    """Raise a ValueError unless a ladder has at least two rungs, rising, from 20 to 50 dB."""
    rising = list(ladder) == sorted(set(ladder)) and len(ladder) > 1
    if not rising or not all(20 <= rung <= 50 for rung in ladder):
        raise ValueError(
            f"expected a ladder of at least two rising PSNRs from 20 to 50 dB, got {list(ladder)}"
        )


def match_psnr(marked: Tensor, originals: Tensor, decibels: float | Tensor) -> Tensor:
    """Scale each image's residual so that, rounded to 8 bits, it has a PSNR of `decibels`.

    Args:
        marked: (N, 3, H, W) around [0, 1], best not rounded yet.
        originals: (N, 3, H, W) in [0, 1].
        decibels: one for all, or (N,). Rounding moves in steps, so what is reached can be a little
            higher: measure it.

    Returns:
        (N, 3, H, W), every value one of 0, 1/255, ..., 1.

    Raises:
        ValueError: if an image is not marked at all.
    """
    residual = marked - originals
    size = residual.double().square().mean(dim=(1, 2, 3)).sqrt()  # (N,)
    if not (size > 0).all():
        raise ValueError(f"image {int((size == 0).nonzero()[0])} has no residual to scale")
    wanted = torch.as_tensor(decibels, dtype=torch.float64).expand(len(marked))
    scaled = []
    for image, change, least, expected in zip(
        originals.split(64), residual.split(64), wanted.split(64),
        (10 ** (-wanted / 20) / size).split(64), strict=True,
    ):  # fmt: skip
        # What is cut off at black and white is made up for by more elsewhere.
        low, high = torch.zeros_like(expected), 4 * expected
        for _ in range(18):
            middle = (low + high) / 2
            trial = quantise(image + middle.to(image)[:, None, None, None] * change)
            above = psnr(trial, image, data_range=1.0) >= least
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        scaled.append(quantise(image + low.to(image)[:, None, None, None] * change))
    return torch.cat(scaled)


def read_attacked(
    images: Tensor,
    read: Callable[[Tensor], Tensor],
    message: Tensor,
    *,
    attacks: Mapping[str, Attack] = PAPER_ATTACKS,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Matching bits, int64, and p-values, float64, each (N, attacks), of images (N, 3, H, W) as
    they are, after each attack."""
    matching, chances = [], []
    for batch in images.split(batch_size):
        logits = [extract_logits(read, attack(batch)) for attack in attacks.values()]
        matching.append(torch.stack([matching_bits(part, message) for part in logits], dim=1))
        chances.append(torch.stack([soft_p_values(part, message) for part in logits], dim=1))
    return torch.cat(matching), torch.cat(chances)


def curve_row(
    images: Tensor,
    originals: Tensor,
    read: Callable[[Tensor], Tensor],
    message: Tensor,
    *,
    rung: float,
    generator: torch.Generator,
    resamples: int = 1000,
) -> dict:
    """A point of a curve: images (N, 3, H, W) as scaled for a rung, after the paper's attacks.

    Returns:
        rung and psnr (measured) in dB, bits, images, bit accuracy per attack and as
        "bit_accuracy" over all of them, log10_p, each with its interval; and, of each image, the
        means over its attacked versions: N numbers "accuracy_per_image" and "log10_p_per_image".
    """
    (counts, chances), bits = read_attacked(images, read, message), len(message)
    options = {"generator": generator, "resamples": resamples}
    row = {"rung": rung, "images": len(images), "bits": bits}
    row |= mean_row("psnr", psnr(images, originals, data_range=1.0), **options)
    for name, column in zip(PAPER_ATTACKS, counts.T, strict=True):
        row |= mean_row(name, column.double() / bits, **options)
    accuracy, sureness = counts.double().mean(dim=1) / bits, chances.log10().mean(dim=1)
    row |= mean_row("bit_accuracy", accuracy, **options)
    row |= mean_row("log10_p", sureness, **options)
    return row | {"accuracy_per_image": accuracy.tolist(), "log10_p_per_image": sureness.tolist()}


def _crossing(decibels: Tensor, accuracy: Tensor, level: Tensor) -> Tensor:
    """Highest PSNR (B,) at which curves (B, R) over rising decibels (R,) still read `level` (B,).

    Linear between rungs. A curve that is below the level everywhere gives the first rung, one that
    still reads it at the last rung the last.
    """
    reached = accuracy >= level[:, None]
    last = torch.where(reached, torch.arange(len(decibels)), -1).amax(dim=1)  # (B,)
    here = last.clamp(0, len(decibels) - 2)
    above, below = (accuracy.gather(1, (here + i)[:, None])[:, 0] for i in (0, 1))
    share = ((above - level) / (above - below).clamp(min=1e-12)).clamp(0, 1)
    between = decibels[here] + share * (decibels[here + 1] - decibels[here])
    between = torch.where(last < 0, decibels[0], between)
    return torch.where(last == len(decibels) - 1, decibels[-1], between)


def psnr_at_accuracy(
    decibels: Sequence[float], accuracy: Sequence[float], level: float
) -> float | None:
    """PSNR in dB at which a curve falls to an accuracy, by linear interpolation.

    Args:
        decibels: of the rungs, rising.
        accuracy: there.
        level: what shall still be read.

    Returns:
        None where the curve does not reach it: it is below the level at every rung, or never falls
        to it.
    """
    reached = [value >= level for value in accuracy]
    if not any(reached) or (reached[-1] and accuracy[-1] > level):
        return None
    sources = (torch.tensor(v, dtype=torch.float64) for v in (decibels, [accuracy], [level]))
    return float(_crossing(*sources))


def _decibels(rows: Sequence[Mapping]) -> Tensor:
    """(R,) as measured."""
    return torch.tensor([row["psnr"] for row in rows], dtype=torch.float64)


def _scores(rows: Sequence[Mapping], score: str) -> Tensor | None:
    """A score per image (N, R), higher is better; None of a curve that keeps only the means."""
    name = {"bit_accuracy": "accuracy_per_image", "log10_p": "log10_p_per_image"}[score]
    if any(name not in row for row in rows):
        return None
    scores = torch.tensor([row[name] for row in rows], dtype=torch.float64).T
    return -scores if score == "log10_p" else scores


def _resampled(scores: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Means (R,) of scores (N, R), and (B, R) of the images (B, n) that were drawn."""
    means = torch.stack([column[drawn].mean(dim=1) for column in scores.T], dim=1)
    return scores.mean(dim=0), means


def _drawn_means(
    rows: Sequence[Mapping], score: str, resamples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Means (R,), higher is better, of a curve that keeps no single image, and (B, R) drawn around
    them: normal, as wide as their intervals say, all rungs by the same of their deviations."""
    ends = torch.tensor(
        [[row[f"{score}{end}"] for end in ("", "_low", "_high")] for row in rows],
        dtype=torch.float64,
    )
    mean = -ends[:, 0] if score == "log10_p" else ends[:, 0]
    deviation = (ends[:, 2] - ends[:, 1]) / (2 * 1.96)
    drawn = torch.randn(resamples, 1, generator=generator, dtype=torch.float64)
    return mean, mean + drawn * deviation


def gain_rows(
    own: Sequence[Mapping],
    others: Mapping[str, Sequence[Mapping]],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
) -> list[dict]:
    """How many dB a method is ahead of others where they are read as well, rung by rung.

    "As well" is an equal mean bit accuracy, or, where the payloads differ, an equal mean log10 of
    the p-value.

    Args:
        own: its curve, rows of `curve_row`.
        others: theirs by name, on the same images or the first of them, which both are compared on
            then: the bootstrap draws images once for both. A curve that was recorded earlier keeps
            no single image: there its means are drawn from their own intervals, which does not
            know what makes an image hard for both, and the interval is the wider for it.

    Returns:
        For each other method and each rung of its own: rung, against, images (that both are
        compared on), bit_accuracy (its own there, of these), compared ("bit_accuracy" or "log10_p",
        whose mean at the rung is the level), psnr_against (None where the other curve does not
        reach the level), gain with its interval, and bound: "at least" if the other is worse than
        the level at every rung, and the gain is counted from the lowest; "at most" if it is better
        at every rung; else "".

    Raises:
        ValueError: if a curve is of more images than its own.
    """
    own = sorted(own, key=lambda row: row["rung"])
    every, decibels = own[0]["images"], _decibels(own)
    drawn_of_all = torch.randint(every, (resamples, every), generator=generator)
    rows = []
    for name, curve in others.items():
        curve = sorted(curve, key=lambda row: row["rung"])
        score = "bit_accuracy" if curve[0]["bits"] == own[0]["bits"] else "log10_p"
        theirs = _decibels(curve)
        if (images := curve[0]["images"]) > every:
            raise ValueError(
                f"expected curves of the same images, got {every} and, of {name}, {images}"
            )
        drawn = drawn_of_all
        if images < every:
            drawn = torch.randint(images, (resamples, images), generator=generator)
        mean, means = _resampled(_scores(own, score)[:images], drawn)
        if (scores := _scores(curve, score)) is None:
            mean_there, means_there = _drawn_means(curve, score, resamples, generator)
        else:
            mean_there, means_there = _resampled(scores, drawn)
        for index, row in enumerate(own):
            level = mean[index]
            at = psnr_at_accuracy(theirs.tolist(), mean_there.tolist(), float(level))
            gain = _crossing(decibels, mean[None], level[None])
            gain = gain - _crossing(theirs, mean_there[None], level[None])
            gains = _crossing(decibels, means, means[:, index])
            gains = gains - _crossing(theirs, means_there, means[:, index])
            low, high = interval_of(gains)
            bound = "" if at is not None else "at most" if mean_there[-1] > level else "at least"
            read = sum(row["accuracy_per_image"][:images]) / images
            rows.append({"rung": row["rung"], "against": name, "images": images,
                         "compared": score, "bit_accuracy": read, "psnr_against": at,
                         "gain": float(gain), "gain_low": low, "gain_high": high, "bound": bound}
                        )  # fmt: skip
    return rows
