"""Regeneration: the marked image goes through a generative model, and what comes out is new pixels.

An autoencoder keeps what it needs to draw the image again, and a watermark need not be among that.
Diffusion adds noise to the latents first, which drowns what is faint, and lets the U-Net imagine
what was lost (Zhao et al., Invisible image watermarks are provably removable, NeurIPS 2024). The
attacker needs neither extractor nor message, only a model, and Stable Diffusion's are public.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from torch import Tensor

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.generators import AUTOENCODERS
from medsign_lite.latent_diffusion import Autoencoder, decode, encode, freeze


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """Read an autoencoder of either kind from a diffusers folder, frozen.

    Raises:
        FileNotFoundError: if the folder has no config.json.
        ValueError: if it is another kind of model.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected an autoencoder in diffusers' format, found no {path}")
    kind = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    if kind not in AUTOENCODERS:
        raise ValueError(f"{path}: expected one of {', '.join(AUTOENCODERS)}, got {kind!r}")
    network = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[kind]
    return freeze(network.from_pretrained(folder, local_files_only=True))


def through_autoencoder(vae: Autoencoder, images: Tensor, *, batch: int = 16) -> Tensor:
    """Encode and decode (N, 3, H, W) in [0, 1], sides divisible by its factor: the same shape."""
    parts = [decode(vae, encode(vae, part, batch=batch)) for part in images.split(batch)]
    return torch.cat(parts).clamp(0, 1).to(images.device)


@torch.no_grad()
def through_diffusion(
    pipeline,
    images: Tensor,
    *,
    timestep: int,
    steps: int = 50,
    generator: torch.Generator,
    batch: int = 16,
) -> Tensor:
    """Encode, add the noise of a timestep, denoise without a prompt (DDIM), decode.

    Args:
        pipeline: a `StableDiffusionPipeline`; its scheduler is left as it is.
        images: (N, 3, H, W) in [0, 1], sides divisible by the autoencoder's factor.
        timestep: of training, in [0, T): how much is drowned. The sampler's nearest one below it.
        steps: of the sampler over all T timesteps; the few from `timestep` down are taken.
        generator: CPU, draws the noise.
        batch: images at a time; it does not change the result.

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: if the timestep is out of range, or below the sampler's last one.
    """
    # A configuration that does not say would clip latents, which are not within [-1, 1].
    scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, thresholding=False
    )
    total = scheduler.config.num_train_timesteps
    if not 0 <= timestep < total or not 1 <= steps <= total:
        raise ValueError(
            f"diffusion: expected a timestep in [0, {total}) and steps in [1, {total}], got "
            f"{timestep} and {steps}"
        )
    scheduler.set_timesteps(steps)
    path = [step for step in scheduler.timesteps if step <= timestep]
    if not path:
        raise ValueError(
            f"diffusion: the last of {steps} steps is at timestep {int(scheduler.timesteps[-1])}, "
            f"above {timestep}: take more steps"
        )
    unet = pipeline.unet
    clean = torch.cat([encode(pipeline.vae, part, batch=batch) for part in images.split(batch)])
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    parts = []
    for latents in scheduler.add_noise(clean, noise, path[0].expand(len(clean))).split(batch):
        text, _ = pipeline.encode_prompt([""] * len(latents), unet.device, 1, False)
        for step in path:
            noisy = latents.to(unet.device, unet.dtype)
            predicted = unet(noisy, step.to(unet.device), encoder_hidden_states=text).sample
            latents = scheduler.step(predicted.float(), step, latents.float()).prev_sample
        parts.append(decode(pipeline.vae, latents))
    return torch.cat(parts).clamp(0, 1).to(images.device)


def regeneration_rows(
    images: Tensor,
    detector: Detector,
    *,
    autoencoders: Mapping[str, Autoencoder],
    pipeline=None,
    timesteps: Sequence[int] = (),
    steps: int = 50,
    generator: torch.Generator,
) -> list[dict]:
    """Marked images through each autoencoder, and through the diffusion model from each timestep.

    Args:
        images: (N, 3, H, W) in [0, 1], marked.
        autoencoders: by name.
        pipeline, timesteps, steps: of `through_diffusion`.
        generator: CPU, for the noise and the intervals.

    Returns:
        One dict per autoencoder and per timestep: attack ("autoencoder" or "diffusion"), model
        (the autoencoder's name), strength (the timestep), and the figures of `Detector.score`.
    """
    rows = []
    for name, vae in autoencoders.items():
        again = through_autoencoder(vae, images)
        row = {"attack": "autoencoder", "model": name, "strength": None}
        rows.append(row | detector.score(again, images, generator=generator))
    for timestep in timesteps:
        again = through_diffusion(
            pipeline, images, timestep=timestep, steps=steps, generator=generator
        )
        row = {"attack": "diffusion", "model": "original", "strength": timestep}
        rows.append(row | detector.score(again, images, generator=generator))
    return rows
