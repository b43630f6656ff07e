"""Detection: from an image to a decision that can be defended.

An unmarked image matches each bit of the message with probability 1/2, so the number of matching
bits is binomial. Bits are not equally sure, though: the further a logit is from 0, the less likely
it is read wrongly. So each bit weighs as much as its logit, and an image counts as marked if fair
coins with these weights would speak for the message as clearly at most as often as a chosen
false-positive rate (`soft_p_values`). Which bits are the sure ones is known before they are
compared with the message, so the rate is kept as strictly as by counting. The theory needs the bits
of unmarked images unbiased and independent; `empirical_false_positive_rate` measures whether they
are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.extractor import MINIMUM_SIDE
from medsign_lite.images import check_image, load_image
from medsign_lite.messages import check_message, message_from_string, message_to_string
from medsign_lite.training.evaluation_mode import evaluation_mode


def p_value(matching: int, bits: int) -> float:
    """Probability that at least `matching` of `bits` fair coins agree with a message.

    Args:
        matching: 0 to bits.
        bits: K, at least 1.

    Returns:
        In (0, 1], exact to rounding.

    Example:
        >>> p_value(48, 48) == 2.0**-48
        True
    """
    if not (bits >= 1 and 0 <= matching <= bits):
        raise ValueError(f"expected 0 to {bits} matching bits, got {matching}")
    return _tails(bits)[matching]


def threshold(bits: int, false_positive_rate: float) -> int:
    """Fewest matching bits whose p-value is at most the false-positive rate.

    Args:
        bits: K, at least 1.
        false_positive_rate: in (0, 1), the share of unmarked images that may be called marked.

    Returns:
        For 48 bits: 33 at 1e-2, 36 at 1e-3, 41 at 1e-6, 44 at 1e-9.

    Raises:
        ValueError: if even all bits matching comes up more often by chance.
    """
    if bits < 1 or not 0 < false_positive_rate < 1:
        raise ValueError(
            f"expected at least 1 bit and a false-positive rate in (0, 1), "
            f"got {bits} and {false_positive_rate}"
        )
    for matching, tail in enumerate(_tails(bits)):
        if tail <= false_positive_rate:
            return matching
    raise ValueError(
        f"{bits} bits cannot reach a false-positive rate of {false_positive_rate:g}: "
        f"all of them match by chance with probability {0.5**bits:.2g}"
    )


@cache
def _tails(bits: int) -> tuple[float, ...]:
    """P(X >= matching) for matching = 0 ... bits, summed as integers, divided once."""
    counts = [math.comb(bits, matching) for matching in range(bits + 1)]
    tails, above = [], 0
    for count in reversed(counts):
        above += count
        tails.append(above / 2**bits)
    return tuple(reversed(tails))


LEVELS = 63  # that the weights of an image's bits are rounded to


def soft_p_values(logits: Tensor, message: Tensor) -> Tensor:
    """How likely it is by chance that bits so sure agree so well with a message.

    Each bit counts as much as the size of its logit, against fair coins that count as much
    (soft-decision detection). Where all logits are equally large, that is `p_value` of the number
    of matching bits.

    Args:
        logits: (B, K).
        message: (K,) or (B, K) in {0, 1}.

    Returns:
        (B,) float64 in (0, 1]: the probability that K fair coins, each with the weight of its bit,
        agree with the message with at least as much weight. Exact to rounding for weights rounded
        to `LEVELS` steps of the largest one in the image, by which the bits are weighed as well. 1
        where all logits are 0.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, -1.0]])
        >>> soft_p_values(logits, torch.tensor([1.0, 1.0, 1.0]))  # 3 + 1 of 5: the first must agree
        tensor([0.3750], dtype=torch.float64)
    """
    agree, weights = _weighed(logits, message)
    evidence = (weights * agree).sum(dim=1)
    return _coins(weights).gather(1, evidence[:, None])[:, 0]


def _weighed(logits: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
    """Whether bits agree (B, K), bool, and what they weigh (B, K), int64, on the CPU."""
    agree = matches(logits, message).cpu()
    size = logits.detach().double().abs().cpu()
    largest = size.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return agree, (LEVELS * size / largest).round().long()


def _coins(weights: Tensor, heads: Tensor | None = None) -> Tensor:
    """Probability (B, W + 1) that coins of weights (B, K) give at least 0 ... W in all.

    heads: (K,), the coins' probabilities; fair ones by default. W is the largest sum of weights.
    """
    count, bits = weights.shape
    shares = [0.5] * bits if heads is None else heads.tolist()
    chances = np.zeros((count, 1 + int(weights.sum(dim=1).max()) if count else 1))
    for chance, row in zip(chances, weights.tolist(), strict=True):
        chance[0] = 1.0
        for weight, share in zip(row, shares, strict=True):
            added = share * chance[: len(chance) - weight]
            chance *= 1 - share
            chance[weight:] += added
    return torch.from_numpy(chances[:, ::-1].cumsum(axis=1)[:, ::-1].copy())


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A decision about one image; printed, it is a sentence."""

    matching: int  # bits that agree with the message
    bits: int
    p_value: float  # chance of speaking as clearly for the message in an unmarked image
    false_positive_rate: float  # largest p-value that counts as marked
    detected: bool
    decoded: str  # the bits read from the image

    def __str__(self) -> str:
        decision = "watermark detected" if self.detected else "no watermark detected"
        return (
            f"{decision}: {self.matching} of {self.bits} bits match (p = {self.p_value:.2g}, at "
            f"most {self.false_positive_rate:.0e} is needed); read {self.decoded}"
        )


def detect(
    image: str | Path | Tensor,
    extractor: nn.Module,
    message: str | Tensor,
    *,
    false_positive_rate: float = 1e-6,
) -> Detection:
    """Decide whether one image carries a message.

    Args:
        image: a file, 8-bit grey or RGB, or a tensor (3, H, W) or (1, 3, H, W) in [0, 1]; sides
            of at least 32.
        extractor: (B, 3, H, W) in [0, 1] to logits (B, K).
        message: (K,) bits in {0, 1}, or the same as text.
        false_positive_rate: in (0, 1).

    Returns:
        The decision with its grounds; print it.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if image, message or rate are not as above.
    """
    name = "image"
    if not isinstance(image, Tensor):
        name, image = f"image {image}", load_image(image)
    batch = image[None] if image.ndim == 3 else image
    check_image(batch, name=name, minimum=MINIMUM_SIDE)
    if len(batch) != 1:
        raise ValueError(
            f"expected one image, got {len(batch)}; extract_logits and detect_logits take batches"
        )
    logits = extract_logits(extractor, batch)
    if isinstance(message, str):
        message = message_from_string(message, bits=logits.shape[1])
    return detect_logits(logits, message, false_positive_rate=false_positive_rate)[0]


@torch.no_grad()
def extract_logits(extractor: nn.Module | Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Read a batch (B, 3, H, W) in [0, 1] in evaluation mode: logits (B, K) on the CPU.

    The image moves to the extractor's device. A network left in training mode would normalise by
    the batch and read another message for every batch; it is as it was afterwards.
    """
    if not isinstance(extractor, nn.Module):
        return _checked_logits(extractor(image)).float().cpu()
    parameter = next(extractor.parameters(), image)
    with evaluation_mode(extractor):
        return _checked_logits(extractor(image.to(parameter.device))).float().cpu()


def _checked_logits(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"expected logits (B, K) float, got {logits.dtype} {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ValueError("expected finite logits, got NaN or infinite values: they read as nothing")
    return logits


def matches(logits: Tensor, message: Tensor) -> Tensor:
    """Which bits agree: logits (B, K), message (K,) or (B, K) in {0, 1}; returns (B, K) bool."""
    check_message(message, _checked_logits(logits).shape[1])
    if message.ndim == 2 and len(message) != len(logits):
        raise ValueError(f"expected {len(logits)} messages, one per image, got {len(message)}")
    return (logits > 0) == message.bool().to(logits.device)


def matching_bits(logits: Tensor, message: Tensor) -> Tensor:
    """How many bits agree: logits (B, K), message (K,) or (B, K) in {0, 1}; returns (B,) int64."""
    return matches(logits, message).sum(dim=1)


def detect_logits(
    logits: Tensor, message: Tensor, *, false_positive_rate: float = 1e-6
) -> list[Detection]:
    """Decide for a batch of logits (B, K) whether each carries the message (K,) or (B, K)."""
    bits = logits.shape[-1]
    check_rate(false_positive_rate, bits)
    matching, chances = matching_bits(logits, message), soft_p_values(logits, message)
    return [
        Detection(
            matching=count,
            bits=bits,
            p_value=chance,
            false_positive_rate=false_positive_rate,
            detected=chance <= false_positive_rate,
            decoded=message_to_string((row > 0).float()),
        )
        for count, chance, row in zip(matching.tolist(), chances.tolist(), logits, strict=True)
    ]


def check_rate(false_positive_rate: float, bits: int) -> None:
    """Raise ValueError unless the rate is in (0, 1) and so many bits can reach it."""
    threshold(bits, false_positive_rate)


RATES = (1e-1, 1e-2, 1e-3, 1e-6)  # nominal false-positive rates to compare with


def images_needed(false_positive_rate: float) -> int:
    """Fewest unmarked images with which a false-positive rate in (0, 1) can be tested.

    Among that many a detector of this rate calls at least one marked with a probability of 95 %;
    among fewer, seeing none called marked says little. About 3 / rate: 299 for 1e-2.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"expected a false-positive rate in (0, 1), got {false_positive_rate}")
    return math.ceil(math.log(0.05) / math.log1p(-false_positive_rate))


def fitted_false_positive_rate(logits: Tensor, message: Tensor, rate: float) -> float:
    """What a detector of this rate lets through if the bits lean as they do on these images.

    The theory's bits are fair coins. Here each is a coin that matches the message as often as it
    did on unmarked images, independently of the others, with the weights that it had there. It
    says something of rates that no number of images could be counted at, as far as bits are
    independent.

    Args:
        logits: (N, K) of unmarked images.
        message: (K,), the message in use.
        rate: nominal false-positive rate, in (0, 1).
    """
    check_message(message, _checked_logits(logits).shape[1])
    check_rate(rate, len(message))
    agree, weights = _weighed(logits, message)
    # Of each image: the least evidence that suffices, and how often leaning coins give as much.
    needed = (_coins(weights) > rate).sum(dim=1)
    leaning = F.pad(_coins(weights, agree.double().mean(dim=0)), (0, 1))
    return float(leaning.gather(1, needed[:, None]).mean())


def empirical_false_positive_rate(
    logits: Tensor,
    message: Tensor,
    *,
    rates: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """How often unmarked images are called marked, beside the rate that was asked for.

    Args:
        logits: (N, K) of unmarked images.
        message: (K,), the message in use, which is the honest test; or (N, K), one per image.
            Messages drawn at random match every image like fair coins, however biased the
            extractor, and so prove nothing about it.
        rates: nominal false-positive rates that the images have to be enough for; by default
            `RATES`, of which the images may only fail to contradict some.

    Returns:
        One dict per rate: false_positive_rate (nominal, which fair coins come just below, as their
        weights add up to whole steps), measured, its exact 95 % binomial interval low and high
        (Clopper-Pearson), false_positives, images (N) and images_needed to test the rate.

    Raises:
        ValueError: if there are too few images for a rate that was asked for, or none at all.
    """
    if not len(logits):
        raise ValueError("expected logits of at least one unmarked image, got none")
    for rate in rates or ():
        if len(logits) < images_needed(rate):
            raise ValueError(
                f"a false-positive rate of {rate:g} takes at least {images_needed(rate)} unmarked "
                f"images to test, got {len(logits)}: give more images, or ask for a larger rate"
            )
    messages = message.expand(logits.shape) if message.ndim == 1 else message
    chances = torch.cat([
        soft_p_values(*part)
        for part in zip(logits.split(500), messages.split(500), strict=True)  # of 12 MB each
    ])  # fmt: skip
    rows = []
    for rate in RATES if rates is None else rates:
        check_rate(rate, logits.shape[1])
        found = int((chances <= rate).sum())
        interval = binomtest(found, len(logits)).proportion_ci(0.95)
        rows.append({
            "false_positive_rate": rate,
            "measured": found / len(logits),
            "low": float(interval.low),
            "high": float(interval.high),
            "false_positives": found,
            "images": len(logits),
            "images_needed": images_needed(rate),
        })  # fmt: skip
    return rows


def bit_bias(logits: Tensor) -> Tensor:
    """Share of ones per bit: (K,) in [0, 1] for logits (N, K) of unmarked images; ideally 0.5."""
    return (_checked_logits(logits) > 0).float().mean(dim=0)
