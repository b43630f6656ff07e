"""Training of the bundled model's autoencoder, an ordinary diffusers ``AutoencoderKL``.

    python -m medsign_lite.generator.autoencoder_training --data MANIFEST --out FOLDER --minutes 30

The network is convolutional throughout (no attention in its middle block), so the first half of
the training runs on random crops, which cost a quarter of a whole image. The second half must not:
group normalisation sees other statistics in a whole image, which is worth a decibel. The loss is
the squared error with a very small Kullback-Leibler term that keeps the latents bounded: fidelity
is what the watermark is measured against, and phantoms have no texture to invent.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.curriculum import learning_rate_factor
from medsign_lite.generator.bundled_networks import build_autoencoder
from medsign_lite.image_stack import read_image_stack, stack_digest
from medsign_lite.training.averaging import update_average
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes, descend
from medsign_lite.training.processor import training_layout, tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

CROP = 64  # side of the training crops, half of the image's
SAVE_SECONDS = 120  # between saved states
SPIKE = 4.0  # a batch whose loss is this many times the usual one is not learnt from


def autoencoder_loss(
    vae: AutoencoderKL,
    image: Tensor,
    *,
    generator: torch.Generator,
    kl_weight: float = 1e-6,
    decoder_alone: bool = False,
    processes: Processes | None = None,
) -> dict:
    """Squared error of the reconstruction plus the latents' KL divergence.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        generator: draws the latents from their distribution, on the CPU.
        kl_weight: of the mean divergence per latent number.
        decoder_alone: the encoder gets no gradient, and the latents are their distribution's mean.
        processes: that a batch is shared by, of which all this is one's part.

    Returns:
        ``loss`` (scalar, differentiable) and ``psnr`` in dB, of the mean squared error.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_alone):
        posterior = vae.encode(image).latent_dist
        latents = posterior.mean
        if not decoder_alone:
            count = 1 if processes is None else processes.count
            noise = torch.randn(len(image) * count, *latents.shape[1:], generator=generator)
            noise = noise if processes is None else processes.part(noise)
            latents = latents + posterior.std * noise.to(latents)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
    reconstruction = vae.decode(latents).sample
    squared_error = F.mse_loss(reconstruction.float(), image)
    # Range 2, hence the 4: [-1, 1] against the [0, 1] of every reported figure.
    psnr = 10 * math.log10(4 / max(squared_error.item(), 1e-12))
    return {"loss": squared_error + kl_weight * divergence, "psnr": psnr}


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: Tensor, *, batch: int = 32) -> Tensor:
    """PSNR of each image's reconstruction, both rounded to 8 bits.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N,) in dB.
    """
    device = next(vae.parameters()).device
    values = []
    for part in images.split(batch):
        image = part.to(device).float() / 127.5 - 1
        decoded = vae.decode(vae.encode(image).latent_dist.mean).sample
        decoded = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
        error = (decoded - part.to(device).float()).square().mean(dim=(1, 2, 3))  # (B,)
        values.append(10 * torch.log10(255**2 / error.clamp_min(1e-6)))
    return torch.cat(values).cpu()


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: Tensor, *, batch: int = 32) -> float:
    """What the latents are multiplied by to have a standard deviation of one."""
    device = next(vae.parameters()).device
    latents = [
        vae.encode(part.to(device).float() / 127.5 - 1).latent_dist.mean
        for part in images.split(batch)
    ]
    return 1 / torch.cat(latents).std().item()


def fit_autoencoder(
    images: Tensor,
    held_out: Tensor,
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 16,
    learning_rate: float = 5e-4,
    whole_images_from: float = 0.5,
    decoder_alone_from: float = 0.75,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log_every: int = 200,
) -> AutoencoderKL:
    """Train until minutes or steps are spent; a killed run resumes where it saved last.

    Args:
        images: (N, 3, H, W) uint8, to train on.
        held_out: (M, 3, H, W) uint8, to measure on.
        folder: gets ``state.pt`` while running, ``log.jsonl``, and the finished ``vae/``.
        minutes, steps: one of the two, over all resumptions.
        whole_images_from: share of the budget after which crops give way to whole images.
        decoder_alone_from: share after which the encoder, and so what latents mean, is final.

    Returns:
        The weights' moving average, its ``scaling_factor`` set from the training images.

    Raises:
        ValueError: for a batch that cannot be halved and shared, too small images, not exactly one
            of minutes and steps, or a folder that holds another run.
    """
    processes = Processes(device)
    device = processes.device
    if batch % (2 * processes.count) or batch < 1:  # whole images come in half as large batches
        raise ValueError(
            f"batch: expected a multiple of {2 * processes.count}, whose half {processes.count} "
            f"process(es) share evenly, got {batch}"
        )
    if images.shape[-1] < CROP or images.shape[-2] != images.shape[-1]:
        raise ValueError(
            f"expected square images of at least {CROP} pixels, got {tuple(images.shape)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    layout = {"memory_format": training_layout(device)}
    vae = build_autoencoder().to(device, **layout).train()
    average = copy.deepcopy(vae).requires_grad_(False)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4)
    spent, typical, skipped = {}, None, 0
    settings = plain_settings(
        images=len(images), stack=stack_digest(images), batch=batch, learning_rate=learning_rate,
        whole_images_from=whole_images_from, decoder_alone_from=decoder_alone_from, seed=seed,
    )  # fmt: skip
    if state := load_training_state(folder / "state.pt", settings=settings):
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        spent, typical, skipped = (state[name] for name in ("budget", "typical", "skipped"))
    budget = Budget(minutes=minutes, steps=steps, **spent)

    def save() -> None:
        if not processes.is_main:
            return
        state = {"vae": vae.state_dict(), "average": average.state_dict()}
        state |= {"optimiser": optimiser.state_dict(), "budget": budget.state()}
        state |= {"typical": typical, "skipped": skipped, "settings": settings}
        save_training_state(folder / "state.pt", state)

    last_save, decoder_alone = time.monotonic(), False
    while (progress := processes.agree(budget.progress)) < 1:
        if not decoder_alone and progress >= decoder_alone_from:
            decoder_alone = True
            for part in ("encoder", "quant_conv"):
                getattr(vae, part).load_state_dict(getattr(average, part).state_dict())
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + budget.step)
        crop = CROP if progress < whole_images_from else images.shape[-1]
        image = _crops(images, batch if crop == CROP else batch // 2, crop, generator)
        image = processes.part(image)
        with mixed_precision(device):
            result = autoencoder_loss(
                vae, image.to(device, **layout), generator=generator, decoder_alone=decoder_alone,
                processes=processes,
            )  # fmt: skip
        loss = processes.mean({"loss": result["loss"].item()})["loss"]
        typical = loss if typical is None else typical
        # One batch far off can undo hours: with so small a divergence term, nothing but the loss
        # itself keeps the latents' variance from exploding.
        if loss < SPIKE * typical:
            typical += 0.02 * (loss - typical)
            descend(result["loss"], optimiser, processes)
        else:
            typical *= 1.05  # a lasting change is accepted in the end
            skipped += 1
        budget.tick()
        update_average(average, vae, step=budget.step)
        if processes.is_main and budget.step % log_every == 0:
            every = max(1, len(held_out) // 16)  # of all modalities
            psnr = reconstruction_psnr(average, held_out[::every]).mean().item()
            row = {"psnr": result["psnr"], "held_out_psnr": psnr, "crop": crop, "skipped": skipped}
            log_row(folder, budget, row)
        if time.monotonic() - last_save > SAVE_SECONDS:
            save()
            last_save = time.monotonic()
    save()
    vae = average.eval()
    some = images[:: max(1, len(images) // 512)]  # of all modalities: a manifest lists one by one
    vae.register_to_config(scaling_factor=latent_scale(vae, some))
    if processes.is_main:
        vae.save_pretrained(folder / "vae")
    processes.wait()
    return vae


def _crops(images: Tensor, batch: int, side: int, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(images), (batch,), generator=generator)
    limit = images.shape[-1] - side + 1
    corners = torch.randint(limit, (batch, 2), generator=generator).tolist()
    crops = [
        images[i, :, y : y + side, x : x + side] for i, (y, x) in zip(rows, corners, strict=True)
    ]
    return torch.stack(crops).float() / 127.5 - 1  # (B, 3, side, side)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="manifest")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, help="training time in all")
    parser.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    tune_processor()
    held_out = read_image_stack(options.data, split="validation")
    vae = fit_autoencoder(
        read_image_stack(options.data, split="train"),
        held_out,
        options.out,
        minutes=options.minutes,
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
    )
    if Processes(options.device).is_main:
        print(f"held-out reconstruction {reconstruction_psnr(vae, held_out).mean():.2f} dB")


if __name__ == "__main__":
    main()
