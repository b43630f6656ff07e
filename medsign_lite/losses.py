"""Losses of the decoder's fine-tuning (Sec. 2.2, Eq. 2), each a mean, each said in full.

The paper does not state its norms, means and value range. Here every loss is a mean over images,
channels and pixels of values in [0, 1], so that a weight means the same at every batch and image
size. `chest_weights` and `fundus_weights` carry the paper's weights over to these units. The
fourth loss, the perceptual one, is in `perceptual.py`.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def message_loss(logits: Tensor, message: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy of `logits / temperature`, in nats, averaged over images and bits.

    Args:
        logits: (B, K).
        message: (B, K) or (K,) bits in {0, 1}; (K,) is shared by the batch.
        temperature: below 1, smaller logits satisfy it (the published fine-tuning multiplies its
            small whitened logits by 10, a temperature of .1).

    Raises:
        ValueError: if the shapes do not match or the temperature is not positive.
    """
    if logits.ndim != 2 or message.shape not in (logits.shape, logits.shape[1:]):
        raise ValueError(
            "expected logits (B, K) and message (B, K) or (K,), got "
            f"{tuple(logits.shape)} and {tuple(message.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    target = message.to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits / temperature, target)


def total_variation_loss(residual: Tensor) -> Tensor:
    """Total variation of |residual|: anisotropic, a mean (Eq. 2 applies it to |I_w - I_o|).

    Mean over images, channels and horizontal neighbours of the absolute difference between
    neighbours' |residual|, plus the same over vertical neighbours.

    Args:
        residual: (B, C, H, W), I_w - I_o in [0, 1] units, H and W at least 2.
    """
    if residual.ndim != 4 or min(residual.shape[-2:]) < 2:
        raise ValueError(
            f"expected a residual (B, C, H, W) of at least 2 x 2, got {tuple(residual.shape)}"
        )
    size = residual.abs()
    across = (size[..., :, 1:] - size[..., :, :-1]).abs().mean()
    down = (size[..., 1:, :] - size[..., :-1, :]).abs().mean()
    return across + down


def preservation_loss(image: Tensor, reference: Tensor, location_map: Tensor) -> Tensor:
    """Mean over images, channels and pixels of ((I_w - I_o) * A_loc)^2 (Eq. 2).

    The norm of Eq. 2 is divided by the number of values, 3 H W; A_loc multiplies before squaring,
    so a map of .5 counts a quarter.

    Args:
        image, reference: (B, 3, H, W) around [0, 1].
        location_map: (B, H, W) in [0, 1], 1 where the pathology is.
    """
    expected = (len(image), *image.shape[-2:])
    if image.shape != reference.shape or location_map.shape != expected:
        raise ValueError(
            "expected images (B, 3, H, W) and a map (B, H, W), got "
            f"{tuple(image.shape)}, {tuple(reference.shape)} and {tuple(location_map.shape)}"
        )
    return ((image - reference) * location_map[:, None]).square().mean()


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the four losses, in the units of this module; none may be negative."""

    image: float
    message: float
    total_variation: float
    preservation: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (0 <= value < math.inf):
                raise ValueError(f"the weight of {name} must be 0 or more, got {value}")


def weights_from_paper(
    *, image: float, message: float, total_variation: float, preservation: float
) -> LossWeights:
    """The paper's weights, carried over to the units of this module.

    Assumed of the paper, because its code builds on Stable Signature's and because sums over
    pixels would make weights of this size absurd: images in [-1, 1], and means over bits, pixels
    and channels. A difference in [-1, 1] is twice that in [0, 1], therefore
        total variation, linear in the difference:     weight x 2
        preservation, quadratic in the difference:     weight x 4
        message, perceptual (both map to [0, 1]):      weight x 1
    """
    return LossWeights(
        image=image,
        message=message,
        total_variation=2 * total_variation,
        preservation=4 * preservation,
    )


def chest_weights() -> LossWeights:
    """Chest radiographs (Sec. 3): 2.1, 7.5, 3.0 and 975 in the paper's units."""
    return weights_from_paper(image=2.1, message=7.5, total_variation=3.0, preservation=975.0)


def fundus_weights() -> LossWeights:
    """Fundus photographs (Sec. 3): 1.9, 6.0, 10.0 and 800 in the paper's units."""
    return weights_from_paper(image=1.9, message=6.0, total_variation=10.0, preservation=800.0)


def weighted_sum(
    losses: dict[str, Tensor], weights: LossWeights, *, quality: float = 1.0
) -> Tensor:
    """Eq. 2: message loss plus `quality` times the three losses that keep the image as it was.

    losses: scalars "image", "message", "total_variation", "preservation". A quality of 1 is the
    weights as they stand; fine-tuning starts below, so that the message gets in first.
    """
    kept = (
        weights.image * losses["image"]
        + weights.total_variation * losses["total_variation"]
        + weights.preservation * losses["preservation"]
    )
    return weights.message * losses["message"] + quality * kept
