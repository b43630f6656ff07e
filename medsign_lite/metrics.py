"""Metrics of bits, image quality and localisation: one value per image.

Averaging is left to the caller, where it can be seen: the mean of the images' PSNRs is not the
PSNR of the pooled batch. Each metric says which way is better. `bootstrap_interval` says how far
a mean of them can be trusted.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

# PSNR of identical images is infinite and would swallow any mean. The floor below makes it 100 dB;
# one channel of one pixel off by 1/255 in a 128 px image is 95 dB.
_SMALLEST_ERROR = 1e-10
_SSIM_WINDOW = 11
# Of rounding to 8 bits alone. A region that the rounded mark leaves as it was has no error at all;
# counted as more than this, a few such findings would decide a mean.
ROUNDING_PSNR = 10 * math.log10(12 * 255**2)  # 58.9 dB


def bit_accuracy(logits: Tensor, message: Tensor) -> Tensor:
    """Fraction of message bits recovered, per image. Higher is better.

    Args:
        logits: (B, K) raw extractor outputs; a logit > 0 reads as bit 1.
        message: (B, K) or (K,) bits in {0, 1}; (K,) is shared by the batch.

    Returns:
        (B,) float in [0, 1]; 0.5 is chance for random messages.

    Raises:
        ValueError: if the shapes do not match.
    """
    if logits.ndim != 2 or message.shape not in (logits.shape, logits.shape[1:]):
        raise ValueError(
            f"expected logits (B, K) and message (B, K) or (K,), "
            f"got {tuple(logits.shape)} and {tuple(message.shape)}"
        )
    return ((logits > 0) == message.bool()).float().mean(dim=1)


def psnr(image: Tensor, reference: Tensor, *, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, per image, over all channels. Higher is better.

    10 log10(data_range^2 / mean squared difference); 100 dB at most, which identical images get.

    Args:
        image: (B, C, H, W).
        reference: (B, C, H, W), what the image is compared with.
        data_range: largest minus smallest possible value: 1.0 for images in [0, 1].

    Returns:
        (B,) float.
    """
    _check_pair(image, reference, data_range)
    error = (image - reference).double().square().mean(dim=(1, 2, 3))
    return _decibels(error, data_range)


def region_psnr(image: Tensor, reference: Tensor, mask: Tensor, *, data_range: float) -> Tensor:
    """PSNR over the pixels of a mask alone, per image. Higher is better.

    Args:
        image: (B, C, H, W).
        reference: (B, C, H, W).
        mask: (B, 1, H, W) bool, at least one pixel in every image.
        data_range: as in `psnr`.

    Returns:
        (B,) float, 100 dB at most.
    """
    _check_pair(image, reference, data_range)
    batch, channels, height, width = image.shape
    if mask.dtype != torch.bool or mask.shape != (batch, 1, height, width):
        raise ValueError(
            f"expected a bool mask ({batch}, 1, {height}, {width}), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    pixels = mask.sum(dim=(1, 2, 3))
    if (pixels == 0).any():
        raise ValueError(f"mask {int((pixels == 0).nonzero()[0])} of the batch has no pixel")
    error = ((image - reference).double().square() * mask).sum(dim=(1, 2, 3))
    return _decibels(error / (pixels * channels), data_range)


def worst_window(image: Tensor, reference: Tensor, *, side: int = 8) -> Tensor:
    """How much of a change gathers in one place: 1 where it is spread evenly, more for a speckle.

    The mean squared error of the worst window of `side` x `side` pixels, every half a window and
    along the lower and right edge, over that of the whole image. PSNR is blind to it and SSIM
    nearly so; an eye is not.

    Args:
        image: (B, C, H, W), the range does not matter.
        reference: (B, C, H, W).
        side: in pixels; of a smaller image, its shorter side.

    Returns:
        (B,) float, 1 where nothing has changed.
    """
    _check_pair(image, reference, 1.0)
    squared = (image - reference).double().square().mean(dim=1, keepdim=True)
    side = min(side, *squared.shape[-2:])
    # Half windows may end short of an edge: the windows flush with it, and with the corner, too.
    low, right = squared[..., -side:, :], squared[..., -side:]
    windows = [
        F.avg_pool2d(part, side, stride=max(side // 2, 1)).flatten(1)
        for part in (squared, low, right, low[..., -side:])
    ]
    worst, every = torch.cat(windows, dim=1).amax(dim=1), squared.mean(dim=(1, 2, 3))
    return torch.where(every > 0, worst / every.clamp(min=1e-30), 1.0).float()


def _decibels(error: Tensor, data_range: float) -> Tensor:
    return -10 * torch.log10((error / data_range**2).clamp(min=_SMALLEST_ERROR)).float()


def ssim(image: Tensor, reference: Tensor, *, data_range: float) -> Tensor:
    """Structural similarity, per image. Higher is better; 1 for identical images.

    Wang et al. 2004: Gaussian window of 11 x 11 with sigma 1.5, k1 = .01, k2 = .03, per channel,
    then the mean over channels and pixels. By torchmetrics.

    Args:
        image: (B, C, H, W), sides of at least 11.
        reference: (B, C, H, W).
        data_range: as in `psnr`.

    Returns:
        (B,) float in [-1, 1].
    """
    _check_pair(image, reference, data_range)
    if min(image.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(f"expected sides of at least {_SSIM_WINDOW}, got {tuple(image.shape)}")
    return structural_similarity_index_measure(
        image.float(), reference.float(), sigma=1.5, data_range=data_range, reduction="none"
    ).reshape(-1)


def _check_pair(image: Tensor, reference: Tensor, data_range: float) -> None:
    if image.ndim != 4 or image.shape != reference.shape:
        raise ValueError(
            f"expected image and reference of one shape (B, C, H, W), "
            f"got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"expected data_range above 0, got {data_range}")


def contrast_to_noise(map: Tensor, mask: Tensor) -> Tensor:
    """Contrast-to-noise ratio of a map inside against outside a mask. Higher is better.

    (mean inside - mean outside) / sqrt(variance inside + variance outside). Signed: a map that
    avoids the mask is negative, where the literature's absolute value would praise it.

    Args:
        map: (B, H, W) float in [0, 1].
        mask: (B, H, W) bool, neither empty nor full.

    Returns:
        (B,) float; 0 for a constant map.
    """
    values, inside = _flat(map, mask)
    means, variances = [], []
    for region in (inside, ~inside):
        count = region.sum(dim=1)
        mean = (values * region).sum(dim=1) / count
        means.append(mean)
        variances.append((((values - mean[:, None]) ** 2) * region).sum(dim=1) / count)
    noise = (variances[0] + variances[1]).sqrt()
    contrast = means[0] - means[1]
    return torch.where(contrast.abs() < 1e-12, 0.0, contrast / noise.clamp(min=1e-12)).float()


def roc_auc(map: Tensor, mask: Tensor) -> Tensor:
    """Probability that a pixel inside the mask has a higher value than one outside.

    Equal values count one half. Higher is better; 0.5 is chance. Shapes as `contrast_to_noise`.
    """
    values, inside = _flat(map, mask)
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)  # how many are lower
    upto = torch.searchsorted(ordered, values, right=True)  # how many are lower or equal
    ranks = (below + upto + 1).double() / 2  # 1 is lowest; ties share their mean rank
    positives = inside.sum(dim=1).double()
    negatives = inside.shape[1] - positives
    wins = (ranks * inside).sum(dim=1) - positives * (positives + 1) / 2
    return (wins / (positives * negatives)).float()


def iou_at(map: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Intersection over union of the mask and the pixels of at least `threshold`.

    Higher is better. Shapes as `contrast_to_noise`; returns (B,) float in [0, 1].
    """
    values, inside = _flat(map, mask)
    found = values >= threshold
    return (found & inside).sum(dim=1).float() / (found | inside).sum(dim=1)


def best_iou(map: Tensor, mask: Tensor) -> Tensor:
    """The highest `iou_at` over all thresholds, chosen per image with the mask in view.

    An upper bound of what thresholding can reach. Never below the mask's share of the image,
    which finding every pixel gives. Higher is better. Shapes as `contrast_to_noise`.
    """
    values, inside = _flat(map, mask)
    ordered, order = values.sort(dim=1, descending=True)
    hits = inside.gather(1, order).cumsum(dim=1).double()  # inside, among the k highest
    found = torch.arange(1, values.shape[1] + 1, device=values.device)
    union = found + inside.sum(dim=1, keepdim=True) - hits
    last = torch.ones_like(inside)  # a threshold cannot part equal values
    last[:, :-1] = ordered[:, :-1] > ordered[:, 1:]
    return torch.where(last, hits / union, 0.0).amax(dim=1).float()


def pointing_game(map: Tensor, mask: Tensor) -> Tensor:
    """Does the highest value lie in the mask? Higher is better. Shapes as `contrast_to_noise`.

    Returns:
        (B,) float: 1 for a hit, 0 for a miss; where several pixels share the highest value, the
        fraction of them in the mask, so that a constant map scores no better than chance.
    """
    values, inside = _flat(map, mask)
    highest = values == values.amax(dim=1, keepdim=True)
    return (highest & inside).sum(dim=1).float() / highest.sum(dim=1)


def _flat(map: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Checked map and mask as (B, H*W), the map in double precision."""
    if map.ndim != 3 or map.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected map and bool mask of one shape (B, H, W), "
            f"got {tuple(map.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if not torch.isfinite(map).all():
        raise ValueError("expected a finite map, got NaN or infinite values")
    inside = mask.flatten(1)
    for row, share in enumerate(inside.double().mean(dim=1).tolist()):
        if share in (0.0, 1.0):
            raise ValueError(f"mask {row} of the batch is {'full' if share else 'empty'}: "
                             "localisation needs pixels inside and outside")  # fmt: skip
    return map.flatten(1).double(), inside


def side_attention(map: Tensor, side: str = "left") -> Tensor:
    """Share of the map's mass in one half of the image.

    Args:
        map: (B, H, W) float in [0, 1].
        side: of the image as displayed: "left", "right", "upper" or "lower". The patient's right
            is the left half of a chest radiograph.

    Returns:
        (B,) float in [0, 1]; the middle line of an odd size counts half to each side; 0.5 where
        the map is zero everywhere.
    """
    if map.ndim != 3:
        raise ValueError(f"expected a map (B, H, W), got {tuple(map.shape)}")
    if side not in ("left", "right", "upper", "lower"):
        raise ValueError(f"expected side 'left', 'right', 'upper' or 'lower', got {side!r}")
    profile = map.double().sum(dim=1 if side in ("left", "right") else 2)  # (B, W) or (B, H)
    if side in ("right", "lower"):
        profile = profile.flip(1)
    half, odd = divmod(profile.shape[1], 2)
    mass = profile[:, :half].sum(dim=1) + odd * profile[:, half] / 2
    total = profile.sum(dim=1)
    return torch.where(total > 0, mass / total.clamp(min=1e-12), 0.5).float()


def bootstrap_means(values: Tensor, resamples: int, *, generator: torch.Generator) -> Tensor:
    """Means of `resamples` samples drawn from values (N,) with replacement: (resamples,)."""
    if values.ndim != 1 or len(values) == 0 or not torch.isfinite(values).all():
        raise ValueError(f"expected finite values (N,), N at least 1, got {tuple(values.shape)}")
    values = values.detach().cpu().double()
    means = []
    rows = max(1, 2**22 // len(values))  # at once, to bound the memory
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = torch.randint(len(values), (count, len(values)), generator=generator)
        means.append(values[drawn].mean(dim=1))
    return torch.cat(means)


def bootstrap_interval(
    values: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-image values.

    Args:
        values: (N,) finite.
        level: in (0, 1), the chance that the interval holds the true mean.
        resamples: how many samples are drawn.
        generator: a CPU generator.

    Returns:
        (low, high).
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"expected level in (0, 1) and resamples >= 1, got {level}, {resamples}")
    return interval_of(bootstrap_means(values, resamples, generator=generator), level)


def interval_of(means: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrapped means (resamples,): (low, high)."""
    low, high = np.quantile(means.numpy(), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
