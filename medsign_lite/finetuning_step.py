"""One step of a decoder's fine-tuning (Eq. 2), and what a decoder reaches."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.extractor import AnyExtractor
from medsign_lite.images import quantise
from medsign_lite.latent_cache import LatentCache
from medsign_lite.losses import (
    LossWeights,
    message_loss,
    preservation_loss,
    total_variation_loss,
    weighted_sum,
)
from medsign_lite.metrics import bit_accuracy, psnr, ssim
from medsign_lite.pretraining import read_under_attack
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes, descend


def as_seen(image: Tensor, original: Tensor) -> Tensor:
    """An image whose excess over [0, 1] is gone where the original is at that end of the range.

    A bright lesion is often drawn beyond 1 and cut off there. To hold a decoder to the cut value
    would be to draw the lesion anew; elsewhere the excess keeps its gradient.

    Args:
        image: (B, 3, H, W) around [0, 1]. original: the same shape, in [0, 1].
    """
    lost = ((image > 1) & (original >= 1)) | ((image < 0) & (original <= 0))
    return torch.where(lost, original, image)


def finetune_step(
    decoder: nn.Module,
    original: Tensor,
    latents: Tensor,
    maps: Tensor,
    message: Tensor,
    extractor: AnyExtractor,
    weights: LossWeights,
    *,
    optimiser: torch.optim.Optimizer,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    quality: float = 1.0,
    attack_strength: float = 0.0,
    attacks: int = 4,
    reads: int = 1,
    attack_names: Sequence[str] = tuple(PAPER_ATTACKS),
    temperature: float = 1.0,
    precision: str = "auto",
    generator: torch.Generator,
    processes: Processes | None = None,
) -> dict[str, float]:
    """One optimiser step of Eq. 2.

    Args:
        decoder: trained; latents (B, C, h, w) to images (B, 3, H, W) around [0, 1].
        original: (B, 3, H, W) in [0, 1], the original decoder's images of these latents.
        maps: (B, H, W) in [0, 1], 1 where the pathology is.
        message: (K,) in {0, 1}, the decoder's own.
        extractor: frozen, in evaluation mode.
        quality: factor of the three losses that are not the message's.
        attack_strength: 0 reads the image as it is; above, each of `attacks` parts of the batch
            meets one random attack.
        reads: how often each image is read, under an attack of its own each time. An extractor's
            pass costs little beside a decoder's, and which attacks were drawn matters less.
        attack_names: what to draw from (see `random_attack`); one named twice is drawn twice as
            often.
        processes: that the batch is shared by; this one gets its rows of it and of the results.

    Returns:
        the four losses, "loss", "bit_accuracy" as read in this step, and the batch's "psnr".
    """
    with mixed_precision(latents.device, precision):
        # With gradients to the latents: torch's backward pass of a norm in channels_last crashes
        # where nothing in front of it is trained.
        image = decoder(latents.detach().requires_grad_()).float()
        logits = torch.cat([  # (reads * B, K)
            read_under_attack(
                extractor, image, strength=attack_strength, parts=attacks, names=attack_names,
                generator=generator, processes=processes,
            )
            for _ in range(reads if attack_strength else 1)  # else they are all the same
        ])  # fmt: skip
    seen = as_seen(image, original)
    losses = {
        "image": perceptual(seen, original),
        "message": message_loss(logits, message, temperature=temperature),
        "total_variation": total_variation_loss(seen - original),
        "preservation": preservation_loss(seen, original, maps),
    }
    losses["loss"] = weighted_sum(losses, weights, quality=quality)
    descend(losses["loss"], optimiser, processes)
    values = {name: float(value.detach()) for name, value in losses.items()}
    error = float((image.detach() - original).square().mean())
    return values | {
        "bit_accuracy": float(bit_accuracy(logits.detach(), message).mean()),
        "psnr": -10 * math.log10(max(error, 1e-10)),
    }


@torch.no_grad()
def evaluate(
    decoder: nn.Module,
    cache: LatentCache,
    message: Tensor,
    extractor: AnyExtractor,
    *,
    batch_size: int = 32,
    precision: str = "auto",
) -> dict[str, float]:
    """PSNR, SSIM and bit accuracy per attack of the paper, means over the cache's images.

    Images are rounded to 8 bits before anything is scored, as a saved PNG would be. "finding_psnr"
    weighs the error with the location map, "elsewhere_psnr" with one minus it; both are over
    our own map, not an independent one, over the images that have a map, and absent if none has.
    """
    rows = []
    device = next(decoder.parameters()).device
    for indices in torch.arange(len(cache)).split(batch_size):
        original, latents, maps = cache.batch(indices, device)
        with mixed_precision(device, precision):
            image = decoder(latents).float()
        image = quantise(image)
        row = {
            "psnr": psnr(image, original, data_range=1.0),
            "ssim": ssim(image, original, data_range=1.0),
        }
        squared = (image - original).square().mean(dim=1)  # (B, H, W)
        for name, share in (("finding_psnr", maps), ("elsewhere_psnr", 1 - maps)):
            total = share.sum(dim=(1, 2)).clamp(min=1e-6)
            error = (squared * share).sum(dim=(1, 2)) / total
            decibels = -10 * torch.log10(error.clamp(min=1e-10))
            row[name] = decibels[maps.amax(dim=(1, 2)) > 0]
        for name, attack in PAPER_ATTACKS.items():
            row[name] = bit_accuracy(extractor(attack(image)), message)
        rows.append(row)
    scores = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: float(values.mean()) for name, values in scores.items() if len(values)}
