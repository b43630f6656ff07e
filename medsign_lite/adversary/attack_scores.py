"""What an attack on marked images does to the watermark, and what it costs the attacker.

The cost is the image quality between the attacked image and the one that the attacker had, the
marked one. The original without watermark is what an attacker never sees, so it is no measure here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medsign_lite.attacks import PAPER_ATTACKS, Attack
from medsign_lite.evaluation import evaluate_attacks, quality_row
from medsign_lite.rows import Batches


@dataclass(frozen=True, kw_only=True)
class Detector:
    """What attacked images are read with, the same in every row.

    Attributes:
        extractor: (B, 3, h, w) in [0, 1] to logits (B, K).
        message: (K,) in {0, 1}.
        false_positive_rate: at which an image is called marked.
        resamples: of the bootstrap intervals.
        batch_size: images read at a time.
    """

    extractor: Callable[[Tensor], Tensor]
    message: Tensor
    false_positive_rate: float = 1e-6
    resamples: int = 1000
    batch_size: int = 64

    def rows(
        self, images: Batches, attacks: Mapping[str, Attack], *, generator: torch.Generator
    ) -> list[dict]:
        """Rows of `evaluate_attacks`, one per attack, without their mean."""
        return evaluate_attacks(
            images, None, self.extractor, self.message, attacks=attacks,
            false_positive_rate=self.false_positive_rate, generator=generator,
            resamples=self.resamples, batch_size=self.batch_size,
        )[:-1]  # fmt: skip

    def quality(self, attacked: Batches, images: Batches, *, generator: torch.Generator) -> dict:
        """psnr and ssim of attacked images (N, 3, H, W) against `images`, with their intervals."""
        row = quality_row(
            attacked, images, generator=generator, resamples=self.resamples,
            batch_size=self.batch_size,
        )  # fmt: skip
        return {name: value for name, value in row.items() if name != "images"}

    def score(self, attacked: Tensor, images: Tensor, *, generator: torch.Generator) -> dict:
        """How attacked images are read and what that cost.

        Args:
            attacked: (N, 3, H, W) around [0, 1].
            images: (N, 3, H, W) around [0, 1], before the attack.
            generator: CPU, for the intervals.

        Returns:
            images, bit_accuracy, true_positive_rate, log10_p, psnr and ssim, each with its
            interval.
        """
        (row,) = self.rows(attacked, {"none": PAPER_ATTACKS["none"]}, generator=generator)
        row.pop("attack")
        return row | self.quality(attacked, images, generator=generator)
