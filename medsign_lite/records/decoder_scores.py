"""Everything that is said of one watermarking decoder: what it survives, costs and changes.

Notebook 06 takes the three scores apart; the gates and the notebook's Table 1 share this function.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from medsign_lite.attacks import PAPER_ATTACKS, Attack
from medsign_lite.evaluation import diagnostic_change, evaluate_attacks, quality_row
from medsign_lite.images import to_bytes
from medsign_lite.judges.judge_networks import FindingClassifier, FindingSegmenter
from medsign_lite.latent_diffusion import Autoencoder, LatentDecoder, decode
from medsign_lite.rows import with_interval


class _Drawn:
    """Images of latents, drawn once and kept as bytes; iterated in batches (B, 3, H, W)."""

    def __init__(self, model: Autoencoder | LatentDecoder, latents: Tensor, batch_size: int):
        self.parts = [
            to_bytes(decode(model, part, batch=batch_size)) for part in latents.split(batch_size)
        ]

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield part.permute(0, 3, 1, 2).float() / 255


def score_decoder(
    decoder: LatentDecoder,
    original: Autoencoder | LatentDecoder,
    latents: Tensor,
    message: Tensor,
    extractor: nn.Module,
    *,
    classifier: FindingClassifier,
    segmenter: FindingSegmenter,
    findings: Sequence[str],
    attacks: Mapping[str, Attack] = PAPER_ATTACKS,
    false_positive_rate: float = 1e-6,
    generator: torch.Generator,
    resamples: int = 1000,
    batch_size: int = 50,
) -> dict:
    """Attacks, quality and diagnosis of the images that a decoder makes of these latents.

    The reference is the original decoder's image of the same latents. Both are rounded to 8 bits.
    Where the findings are is said by the segmenter in the unmarked image.

    Args:
        latents: (N, C, h, w), scaled.
        message: (K,) in {0, 1}, the decoder's own.
        findings: of the modality.
        attacks, false_positive_rate: as in `evaluate_attacks`.
        generator, resamples: of the bootstrap intervals.

    Returns:
        "attacks": rows of `evaluate_attacks`; "quality": a `quality_row` with PSNR inside and
        outside the findings; "diagnosis": rows of `diagnostic_change`.
    """

    marked, plain = (_Drawn(model, latents, batch_size) for model in (decoder, original))

    def masks() -> Iterator[Tensor]:
        for image in plain:
            with torch.no_grad():
                yield segmenter.mask(image, findings).any(dim=1)

    options = {"generator": generator, "resamples": resamples}
    return {
        "attacks": evaluate_attacks(
            marked, plain, extractor, message, attacks=attacks,
            false_positive_rate=false_positive_rate, **options,
        ),
        "quality": quality_row(marked, plain, masks=masks(), **options),
        "diagnosis": diagnostic_change(
            lambda image: classifier.probability(image, findings),
            marked, plain, findings=findings, **options,
        ),
    }  # fmt: skip


def table1_row(modality: str, method: str, scores: Mapping) -> dict:
    """A row of the paper's Table 1 from `score_decoder`: each figure {"value", "low", "high"}."""
    quality = {name: with_interval(scores["quality"], name) for name in ("psnr", "ssim")}
    accuracy = {row["attack"]: with_interval(row, "bit_accuracy") for row in scores["attacks"]}
    images = scores["quality"]["images"]
    return {"modality": modality, "method": method, "images": images} | quality | accuracy
