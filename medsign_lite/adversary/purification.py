"""Purification: whoever has the watermarking decoder trains the watermark out of it.

The attacker needs a few images of the kind, without watermark, and the public encoder: the decoder
is fine-tuned to give these images back from their latents, and forgets what it adds to them. It
needs neither extractor nor message. The authors of Stable Signature report it of theirs.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.checkpoints import digest
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import LatentDecoder, decode, freeze
from medsign_lite.metrics import psnr
from medsign_lite.rows import mean_row
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)


def purify(
    decoder: LatentDecoder,
    latents: Tensor,
    images: Tensor,
    *,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    learning_rate: float = 1e-4,
    batch_size: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
    save_seconds: float = 120.0,
) -> LatentDecoder:
    """Fine-tune a copy of a decoder on clean images.

    Args:
        decoder: the watermarking decoder; left as it is.
        latents: (N, C, h, w), the clean images' own, as `encode` gives them.
        images: (N, 3, H, W) in [0, 1], clean.
        steps: of AdamW in all; 0 returns an unchanged copy.
        loss: (image, clean image) to a scalar: plain squared error, or a perceptual loss.
        folder: where the state is kept, so that a killed run goes on, and more steps go on from
            fewer; None keeps nothing.

    Returns:
        The purified decoder, frozen.

    Raises:
        ValueError: if there are not as many latents as images, or none, steps are below 0, or the
            folder holds a run with other settings.
    """
    if len(latents) != len(images) or not len(images) or steps < 0:
        raise ValueError(
            "purification: expected latents of each clean image, at least one, and 0 or more "
            f"steps, got {len(latents)}, {len(images)} and {steps}"
        )
    purified = copy.deepcopy(decoder).requires_grad_(True)
    device = next(purified.parameters()).device
    optimiser = torch.optim.AdamW(purified.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    name = getattr(loss, "name", getattr(loss, "__name__", type(loss).__name__))
    settings = plain_settings(
        loss=name, learning_rate=learning_rate, batch_size=batch_size, seed=seed,
        data=digest([latents, images]),
    )  # fmt: skip
    path = Path(folder) / "purification.pt" if folder is not None else None
    saved = load_training_state(path, settings=settings) if path else None
    done = 0
    if saved and saved["done"] <= steps:  # a state beyond what is asked for is of no use
        purified.load_state_dict(saved["decoder"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        done = saved["done"]

    def save() -> None:
        if path is not None:
            save_training_state(path, {
                "settings": settings, "decoder": purified.state_dict(), "done": done,
                "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
            })  # fmt: skip

    last_save = time.monotonic()
    while done < steps:
        done += 1
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        value = loss(purified(latents[rows].to(device).float()), images[rows].to(device))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        if time.monotonic() - last_save > save_seconds or done == steps:
            save()
            last_save = time.monotonic()
    return freeze(purified)


def purification_row(
    purified: LatentDecoder,
    latents: Tensor,
    images: Tensor,
    detector: Detector,
    *,
    steps: int,
    own_latents: Tensor,
    own_images: Tensor,
    generator: torch.Generator,
) -> dict:
    """How a purified decoder's images are read, and what the purification cost.

    Args:
        latents: (N, C, h, w) of generated images.
        images: (N, 3, H, W) in [0, 1], what the watermarking decoder made of them.
        steps: that the decoder was purified for.
        own_latents, own_images: clean images of the attacker that were not trained on.
        generator: CPU, for the intervals.

    Returns:
        attack, strength (the steps), the figures of `Detector.score` (PSNR and SSIM against what
        the watermarking decoder drew), and own_psnr, that of the attacker's own images given back,
        by which an attacker sees when to stop.
    """
    attacked = decode(purified, latents).cpu()
    again = quantise(decode(purified, own_latents).cpu())
    own = psnr(again, quantise(own_images), data_range=1.0)
    row = {"attack": "purification", "strength": steps}
    row |= detector.score(attacked, images, generator=generator)
    return row | mean_row("own_psnr", own, resamples=detector.resamples, generator=generator)
