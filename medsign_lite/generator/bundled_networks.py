"""The bundled text-to-image model: its four networks, untrained, and how they become a pipeline.

All are ordinary diffusers and transformers classes; only their sizes are ours.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def build_autoencoder(*, channels: tuple[int, ...] = (32, 64, 96, 128)) -> AutoencoderKL:
    """An autoencoder from (B, 3, H, W) in [-1, 1] to latents (B, 4, H/8, W/8)."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def build_text_encoder(
    tokenizer: CLIPTokenizer, *, width: int = 128, layers: int = 1
) -> CLIPTextModel:
    """A shallow CLIP text encoder, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(
    *, channels: tuple[int, ...] = (64, 128), text_width: int = 128, sample_size: int = 16
) -> UNet2DConditionModel:
    """A small U-Net with cross-attention at every resolution, untrained."""
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM on velocities, ending in pure noise.

    Stable Diffusion's own schedule keeps some signal at its last step, from which a small model
    would read the brightness that it should choose (Lin et al., WACV 2024).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def save_pipeline(
    folder: str | Path, model: torch.nn.ModuleDict, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    """Assemble an ordinary pipeline and write it in half precision."""
    vae.register_to_config(_name_or_path="")  # a path of this machine is nobody else's business
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"].cpu().eval(),
        tokenizer=tokenizer,
        unet=model["unet"].cpu().eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    read_as_float32(folder)
    return pipeline.to(torch.float32)


def read_as_float32(folder: str | Path) -> None:
    """Have the text encoder of a written pipeline read into float32, as the other networks are.

    transformers reads weights in the precision that the configuration names, diffusers in float32:
    a pipeline written in half precision would come back in both, and could not run.
    """
    path = Path(folder) / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
