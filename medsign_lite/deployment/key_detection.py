"""Detection against a registry: whether an image is marked, and with whose key.

With n keys, chance has n attempts. Each key is therefore tested at 1/n of the false-positive rate
asked for, and the reported p-value is n times the best key's, at most 1 (Bonferroni). By the union
bound an unmarked image is then called marked at most as often as the rate says, whatever the
messages have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsign_lite.deployment.keys import Key, Registry
from medsign_lite.detection import check_rate, matching_bits, soft_p_values
from medsign_lite.messages import message_from_string


@dataclass(frozen=True, kw_only=True)
class KeyDetection:
    """A decision about one image against a registry; printed, it is a sentence."""

    keys: tuple[str, ...]  # ids of the best match; several if they tie, none if not detected
    matching: int  # bits that agree with the best match
    bits: int
    compared: int  # n, the keys in the registry
    p_value: float  # min(1, n * p): chance that any of n keys fits an unmarked image as well
    false_positive_rate: float  # over all keys together
    detected: bool

    @property
    def key(self) -> str | None:
        """The id, if the image carries one key's message and no other fits as well."""
        return self.keys[0] if len(self.keys) == 1 else None

    def __str__(self) -> str:
        decision = "no watermark detected"
        if self.detected:
            whose = f"of key {self.keys[0]}" if self.key else f"tie of keys {', '.join(self.keys)}"
            decision = f"watermark detected, {whose}"
        return (
            f"{decision}: {self.matching} of {self.bits} bits match the best of {self.compared} "
            f"keys (p = {self.p_value:.2g} over all keys, at most {self.false_positive_rate:.0e} "
            "is needed)"
        )


def detect_keys(
    logits: Tensor, registry: Registry, *, false_positive_rate: float = 1e-6
) -> list[KeyDetection]:
    """Decide for a batch of logits which of a registry's keys each image carries, if any.

    Args:
        logits: (B, K) raw extractor outputs.
        registry: n keys of K bits.
        false_positive_rate: in (0, 1), the share of unmarked images that may be called marked by
            any of the keys: each is tested at a rate n times smaller.

    Returns:
        B decisions. Of several detected keys the one of the smallest p-value counts; equal ones are
        a tie, which names them all: of messages that are `keys.minimum_distance` apart only where
        the image is next to silent on all the bits that they differ in.

    Raises:
        ValueError: if the registry is empty or of another number of bits, if the rate is not in
            (0, 1), or if so few bits cannot reach it.
    """
    if not registry.keys:
        raise ValueError("expected a registry with at least one key, got an empty one")
    if logits.shape[-1] != registry.bits:
        raise ValueError(
            f"the registry's keys have {registry.bits} bits, the extractor reads {logits.shape[-1]}"
        )
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"expected a false-positive rate in (0, 1), got {false_positive_rate}")
    number, bits = len(registry.keys), registry.bits
    check_rate(false_positive_rate / number, bits)
    messages = [message_from_string(key.message, bits=bits) for key in registry.keys]
    matching = torch.stack([matching_bits(logits, message) for message in messages])  # (n, B)
    chances = torch.stack([soft_p_values(logits, message) for message in messages])
    return [
        _decision(registry.keys, counts, chances, bits, false_positive_rate)
        for counts, chances in zip(matching.T.tolist(), chances.T.tolist(), strict=True)
    ]


def _decision(
    keys: Sequence[Key], counts: Sequence[int], chances: Sequence[float], bits: int, rate: float
) -> KeyDetection:
    """From matching bits and p-value of every key in turn."""
    least = min(chances)
    corrected = min(1.0, len(keys) * least)
    best = [place for place, chance in enumerate(chances) if chance == least]
    return KeyDetection(
        keys=tuple(keys[place].id for place in best) if corrected <= rate else (),
        matching=max(counts[place] for place in best),
        bits=bits,
        compared=len(keys),
        p_value=corrected,
        false_positive_rate=rate,
        detected=corrected <= rate,
    )
