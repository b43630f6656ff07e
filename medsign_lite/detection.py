"""Detection: from an image to a decision that can be defended.

An unmarked image matches each bit of the message with probability 1/2, so the number of matching
bits is binomial. An image counts as marked if that many matches would come up by chance at most
as often as a chosen false-positive rate. The theory needs the bits of unmarked images unbiased and
independent; `empirical_false_positive_rate` measures whether they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A decision about one image; printed, it is a sentence."""

    matching: int  # bits that agree with the message
    bits: int
    p_value: float  # chance of at least as many in an unmarked image
    threshold: int  # matching bits needed
    false_positive_rate: float  # that the threshold keeps
    detected: bool
    decoded: str  # the bits read from the image

    def __str__(self) -> str:
        decision = "watermark detected" if self.detected else "no watermark detected"
        return (
            f"{decision}: {self.matching} of {self.bits} bits match (p = {self.p_value:.2g}), "
            f"{self.threshold} are needed at a false-positive rate of "
            f"{self.false_positive_rate:.0e}; read {self.decoded}"
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


def matching_bits(logits: Tensor, message: Tensor) -> Tensor:
    """How many bits agree: logits (B, K), message (K,) or (B, K) in {0, 1}; returns (B,) int64."""
    check_message(message, _checked_logits(logits).shape[1])
    if message.ndim == 2 and len(message) != len(logits):
        raise ValueError(f"expected {len(logits)} messages, one per image, got {len(message)}")
    return ((logits > 0) == message.bool().to(logits.device)).sum(dim=1)


def detect_logits(
    logits: Tensor, message: Tensor, *, false_positive_rate: float = 1e-6
) -> list[Detection]:
    """Decide for a batch of logits (B, K) whether each carries the message (K,) or (B, K)."""
    bits = logits.shape[-1]
    needed = threshold(bits, false_positive_rate)
    return [
        Detection(
            matching=matching,
            bits=bits,
            p_value=p_value(matching, bits),
            threshold=needed,
            false_positive_rate=false_positive_rate,
            detected=matching >= needed,
            decoded=message_to_string((row > 0).float()),
        )
        for matching, row in zip(matching_bits(logits, message).tolist(), logits, strict=True)
    ]


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
    """What the threshold for a rate lets through if the bits lean as they do on these images.

    The theory's bits are fair coins. Here each is a coin that matches the message as often as it
    did on unmarked images, independently of the others: a Poisson binomial tail. It says something
    of rates that no number of images could be counted at, as far as bits are independent.

    Args:
        logits: (N, K) of unmarked images.
        message: (K,), the message in use.
        rate: nominal false-positive rate, in (0, 1).
    """
    check_message(message, _checked_logits(logits).shape[1])
    agrees = ((logits.cpu() > 0) == message.cpu().bool()).double().mean(dim=0)  # (K,)
    matches = torch.ones(1, dtype=torch.float64)  # of how many bits, with which probability
    for share in agrees:
        matches = F.pad(matches, (0, 1)) * (1 - share) + F.pad(matches, (1, 0)) * share
    return float(matches[threshold(len(message), rate) :].sum())


def empirical_false_positive_rate(
    logits: Tensor,
    message: Tensor,
    *,
    rates: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """How often unmarked images are called marked, beside what the theory promises.

    Args:
        logits: (N, K) of unmarked images.
        message: (K,), the message in use, which is the honest test; or (N, K), one per image.
            Messages drawn at random match every image like fair coins, however biased the
            extractor, and so prove nothing about it.
        rates: nominal false-positive rates that the images have to be enough for; by default
            `RATES`, of which the images may only fail to contradict some.

    Returns:
        One dict per rate: false_positive_rate (nominal), threshold, theory (what the threshold
        keeps exactly; below the nominal rate because bits are whole), measured, its exact 95 %
        binomial interval low and high (Clopper-Pearson), false_positives, images (N) and
        images_needed to test the rate.

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
    bits = logits.shape[-1]
    matching = matching_bits(logits, message)
    rows = []
    for rate in RATES if rates is None else rates:
        needed = threshold(bits, rate)
        found = int((matching >= needed).sum())
        interval = binomtest(found, len(logits)).proportion_ci(0.95)
        rows.append({
            "false_positive_rate": rate,
            "threshold": needed,
            "theory": p_value(needed, bits),
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
