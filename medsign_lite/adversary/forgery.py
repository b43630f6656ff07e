"""Averaging and forging: what many marked images have in common, pasted elsewhere.

The attacker subtracts from each marked image an estimate of it without watermark. What is left is
watermark and image detail; in the average over many images the details cancel and what is the same
in all remains. Added to an unmarked image it may pass for the mark (forgery), subtracted from a
marked one it may take the mark away. It needs marked images only (the copy attack of Kutter et
al., 2000; on averaging see Yang et al., Can simple averaging defeat modern watermarks?, 2024).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.distortions import require
from medsign_lite.images import check_image

COUNTS = (1, 10, 50, 200)
DECIBELS = (45.0, 40.0, 35.0)
Estimate = Callable[[Tensor], Tensor]


def mean_residuals(
    images: Tensor, estimate: Estimate, counts: Sequence[int] = COUNTS, *, batch_size: int = 64
) -> dict[int, Tensor]:
    """What is left of marked images without their estimate, averaged over the first few.

    Args:
        images: (N, 3, H, W) in [0, 1], marked and of one size.
        estimate: marked images (B, 3, H, W) to what they might be without watermark: blurred,
            or given back by the original autoencoder.
        counts: how many to average, each in [1, N].

    Returns:
        By count the mean residual (1, 3, H, W).

    Raises:
        ValueError: if a count is out of range.
    """
    check_image(images, name="images")
    for count in counts:
        if not 1 <= count <= len(images):
            raise ValueError(
                f"averaging: expected 1 to {len(images)} images, all that there are, got {count}"
            )
    used = images[: max(counts)]
    parts = [part - estimate(part).to(part) for part in used.split(batch_size)]
    residuals = torch.cat(parts)
    return {count: residuals[:count].mean(dim=0, keepdim=True) for count in counts}


def scale_to_psnr(residual: Tensor, decibels: float) -> Tensor:
    """A residual (1, 3, H, W) at the strength that costs an image this PSNR, before clamping.

    Raises:
        ValueError: if the PSNR is not in [10, 60] dB or the residual is zero everywhere.
    """
    require(10 <= decibels <= 60, "residual: a PSNR in [10, 60] dB", decibels)
    size = residual.double().square().mean().sqrt()
    require(float(size) > 0, "a residual that is not zero everywhere", float(size))
    return residual * float(10 ** (-decibels / 20) / size)


def forgery_rows(
    collected: Tensor,
    marked: Tensor,
    unmarked: Tensor,
    detector: Detector,
    *,
    estimates: Mapping[str, Estimate],
    counts: Sequence[int] = COUNTS,
    decibels: Sequence[float] = DECIBELS,
    generator: torch.Generator,
) -> list[dict]:
    """Average residuals, and add them to unmarked images or subtract them from marked ones.

    Args:
        collected: (N, 3, H, W) in [0, 1], the marked images that the attacker averages.
        marked, unmarked: (M, 3, H, W) in [0, 1], others, to attack.
        estimates: by name.
        counts: how many images to average.
        decibels: PSNR that the residual costs.
        generator: CPU, for the intervals.

    Returns:
        Per estimate, count and PSNR two dicts: attack ("forge" or "remove"), estimate, averaged
        (the count), strength (the PSNR asked for), images, bit_accuracy, called_marked, log10_p,
        psnr (as it came out, after clamping and rounding) and ssim, each with its interval.
        called_marked is the share in which the message is detected: a forger wants it high, a
        remover low.
    """
    rows = []
    for name, estimate in estimates.items():
        means = mean_residuals(collected, estimate, counts, batch_size=detector.batch_size)
        for count, mean in means.items():
            for cost in decibels:
                residual = scale_to_psnr(mean, cost)
                for attack, images, sign in (("forge", unmarked, 1), ("remove", marked, -1)):
                    attacked = (images + sign * residual).clamp(0, 1)
                    score = detector.score(attacked, images, generator=generator)
                    about = {"attack": attack, "estimate": name, "averaged": count}
                    rows.append(about | {"strength": cost} | _neutral(score))
    return rows


def _neutral(score: dict) -> dict:
    """A detection in a forged image is no true positive: the share gets a name for both."""
    return {key.replace("true_positive_rate", "called_marked"): x for key, x in score.items()}
