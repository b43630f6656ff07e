"""The boundary to diffusers: sample, encode, decode, copy the decoder.

Everything else in the library sees images in [0, 1] and latents scaled to unit variance, as the
U-Net does. The conversion to [-1, 1], the scaling and shifting of latents and the size of an
image are read from the model's own configuration here, and nowhere else.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor, nn

from medsign_lite.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from medsign_lite.generators import BUNDLED, freeze, load_pipeline
from medsign_lite.images import from_signed, to_signed

__all__ = [
    "BUNDLED",
    "Autoencoder",
    "LatentDecoder",
    "check_prompts",
    "copy_decoder",
    "decode",
    "encode",
    "freeze",
    "image_size",
    "install",
    "load_decoder",
    "load_pipeline",
    "sample",
    "save_decoder",
    "scale_factor",
]

Autoencoder = AutoencoderKL | AutoencoderTiny
ORIGIN_TOLERANCE = 0.01  # half precision stays within a tenth of it, another training does not


def scale_factor(vae: Autoencoder) -> int:
    """Image pixels per latent, along one side."""
    if isinstance(vae, AutoencoderTiny):
        return 2 ** (len(vae.config.encoder_block_out_channels) - 1)
    return 2 ** (len(vae.config.block_out_channels) - 1)


def image_size(pipeline: StableDiffusionPipeline) -> tuple[int, int]:
    """(H, W) in pixels of what the pipeline was trained to make.

    Raises:
        ValueError: if its U-Net's configuration does not say.
    """
    size = pipeline.unet.config.sample_size
    if size is None:
        raise ValueError("the U-Net's configuration has no sample_size: give the image's size")
    height, width = (size, size) if isinstance(size, int) else size
    factor = scale_factor(pipeline.vae)
    return height * factor, width * factor


class LatentDecoder(nn.Module):
    """The decoding half of an autoencoder, from scaled latents to an image.

    This is what carries a watermark: a copy of it is trained, and put back with ``install``.
    """

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        quantised = getattr(vae, "post_quant_conv", None)
        self.post_quant_conv = quantised if quantised is not None else nn.Identity()
        self.decoder = vae.decoder
        # Stable Diffusion 1 and 2 have a factor only; a tiny autoencoder has a factor of one.
        self.scaling_factor = vae.config.scaling_factor
        self.shift_factor = getattr(vae.config, "shift_factor", None) or 0.0
        self.origin: list[float] | None = None  # of a copy: see `copy_decoder`

    def forward(self, latents: Tensor) -> Tensor:
        """Decode.

        Args:
            latents: (B, C, h, w), scaled as the U-Net sees them.

        Returns:
            (B, 3, H, W) around [0, 1], not clamped: clamping would stop gradients.
        """
        unscaled = latents / self.scaling_factor + self.shift_factor
        return from_signed(self.decoder(self.post_quant_conv(unscaled)))


def copy_decoder(vae: Autoencoder) -> LatentDecoder:
    """A trainable copy of the autoencoder's decoder; the autoencoder stays as it is.

    Its `origin`, which is saved with it, says which autoencoder that was: mean and standard
    deviation of each colour of what the original decoder draws of latents that are always the same.
    """
    decoder = copy.deepcopy(LatentDecoder(vae)).requires_grad_(True)
    size = (1, vae.config.latent_channels, 4, 4)
    drawn = decode(vae, torch.randn(size, generator=torch.Generator().manual_seed(0)))
    decoder.origin = [*drawn.mean(dim=(0, 2, 3)).tolist(), *drawn.std(dim=(0, 2, 3)).tolist()]
    return decoder


def install(decoder: LatentDecoder, pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline that shares all parts but decodes with this decoder.

    The pipeline handed in is left as it is, so original and watermarked can be used side by side.
    """
    vae = copy.deepcopy(pipeline.vae)
    vae.decoder = decoder.decoder
    if getattr(vae, "post_quant_conv", None) is not None:
        vae.post_quant_conv = decoder.post_quant_conv
    marked = StableDiffusionPipeline(
        **{**pipeline.components, "vae": vae}, requires_safety_checker=False
    )
    marked.set_progress_bar_config(disable=True)
    return marked


def save_decoder(
    folder: str | Path,
    decoder: LatentDecoder,
    config: dict,
    *,
    dtype: torch.dtype | None = torch.float16,
) -> Path:
    """Write a decoder's weights with the configuration of the run that made it."""
    config = {**config, "kind": "decoder", "origin": getattr(decoder, "origin", None)}
    return save_checkpoint(folder, decoder.state_dict(), config, dtype=dtype)


def load_decoder(folder: str | Path, vae: Autoencoder) -> tuple[LatentDecoder, dict]:
    """Read a decoder that was made from this autoencoder, and its configuration.

    Raises:
        ValueError: if the weights are of another architecture, or were made from the decoder of
            another autoencoder: they would draw something else of this one's latents.
    """
    state, config = load_checkpoint(folder, kind="decoder")
    decoder = copy_decoder(vae)
    load_strictly(decoder, state, name=f"decoder {folder}")
    if origin := config.get("origin"):
        pairs = zip(origin, decoder.origin, strict=True)
        apart = max(abs(then - now) for then, now in pairs)
        if not apart <= ORIGIN_TOLERANCE:
            raise ValueError(
                f"decoder {folder} was made from another autoencoder than this pipeline's: their "
                f"original decoders differ by {apart:.2g} in what they draw of the same latents"
            )
    return freeze(decoder), config


def decode(model: Autoencoder | LatentDecoder, latents: Tensor, *, batch: int = 16) -> Tensor:
    """Decode latents a few at a time, without gradients.

    Args:
        latents: (B, C, h, w), scaled.

    Returns:
        (B, 3, H, W) around [0, 1], not clamped.
    """
    decoder = model if isinstance(model, LatentDecoder) else LatentDecoder(model)
    parameter = next(decoder.decoder.parameters())
    with torch.no_grad():
        parts = [
            decoder(part.to(parameter.device, parameter.dtype)) for part in latents.split(batch)
        ]
    return torch.cat(parts).float()


def encode(vae: Autoencoder, image: Tensor, *, batch: int = 16) -> Tensor:
    """Encode images to the mean of their latent distribution, without gradients.

    Args:
        image: (B, 3, H, W) in [0, 1], sides divisible by the autoencoder's factor.

    Returns:
        (B, C, h, w), scaled.

    Raises:
        ValueError: if a side is not divisible.
    """
    factor = scale_factor(vae)
    if image.shape[-2] % factor or image.shape[-1] % factor:
        raise ValueError(
            f"image: expected sides divisible by {factor}, got {tuple(image.shape[-2:])} (H, W)"
        )
    parameter = next(vae.parameters())
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    parts = []
    with torch.no_grad():
        for part in image.split(batch):
            encoded = vae.encode(to_signed(part.to(parameter.device, parameter.dtype)))
            # A tiny autoencoder gives latents, a variational one their distribution.
            latents = (
                encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            )
            parts.append((latents - shift) * vae.config.scaling_factor)
    return torch.cat(parts).float()


def check_prompts(tokenizer, prompts: Sequence[str]) -> None:
    """Refuse prompts of which the text encoder would read only the beginning.

    Raises:
        ValueError: saying how many there are, which is the first, and the limit.
    """
    limit = tokenizer.model_max_length
    lengths = [len(tokens) for tokens in tokenizer(list(prompts), verbose=False).input_ids]
    long = [number for number, length in enumerate(lengths) if length > limit]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} prompts are longer than the {limit} tokens that the "
            f"text encoder reads, the first is number {long[0]} (from 0) with {lengths[long[0]]}"
        )


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float = 3.0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Generate latents, one image for each prompt, each from a seed of its own.

    An image depends on its prompt and its seed, not on what else is in the batch, also where the
    scheduler draws noise at every step.

    Args:
        prompts: B descriptions; `check_prompts` says whether they are read to their end.
        seeds: B numbers.
        steps: of the pipeline's scheduler.
        guidance: classifier-free guidance scale; 1 is none.
        size: (H, W) in pixels; by default the size the model was trained for.

    Returns:
        (B, C, h, w), scaled; ``decode`` makes images of them.

    Raises:
        ValueError: if there are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(
            f"expected a seed for each prompt, got {len(prompts)} prompts, {len(seeds)} seeds"
        )
    height, width = size or image_size(pipeline)
    factor = scale_factor(pipeline.vae)
    channels = pipeline.unet.config.in_channels
    shape = (1, channels, height // factor, width // factor)
    # Drawn on the CPU, so that a seed means the same image on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    with torch.no_grad():
        return pipeline(
            list(prompts),
            # Not the U-Net's device: an offloaded one waits in main memory.
            latents=noise.to(pipeline._execution_device, pipeline.unet.dtype),
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            output_type="latent",
        ).images.float()
