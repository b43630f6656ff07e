"""A text-to-image pipeline small enough for tests: random weights, every part as in a real one."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Enough byte-pair merges for "effusion" to be `ef` + `fusion</w>`, and "edema" one token.
MERGES = [
    ("e", "f"),
    ("f", "u"),
    ("fu", "s"),
    ("fus", "i"),
    ("fusi", "o"),
    ("fusio", "n</w>"),
    ("e", "d"),
    ("ed", "e"),
    ("ede", "m"),
    ("edem", "a</w>"),
    ("n", "o</w>"),
]


def tiny_tokenizer(length: int = 16) -> CLIPTokenizer:
    """CLIP byte-pair tokenizer with the merges above; every other word is spelt in letters."""
    letters = list(bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(merge) for merge in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=length)


def tiny_unet(**changes) -> UNet2DConditionModel:
    """Two resolutions, two heads; cross-attention in 2 down, 1 mid and 4 up layers."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    unet = UNet2DConditionModel(**(settings | changes)).eval()
    for name, module in unet.named_modules():  # sharp enough attention to tell maps apart
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.weight.data *= 4
    return unet


def tiny_autoencoder() -> AutoencoderTiny:
    """Latents of a quarter of an image's side, as they are: their factor is one."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    return AutoencoderTiny(**widths, **blocks, latent_channels=4).eval()


def tiny_pipeline(
    *, text_width: int = 16, tokenizer=None, vae=None, scheduler=None, **changes
) -> StableDiffusionPipeline:
    """Latents 4 x 16 x 16, images 32 x 32, prompts of 16 tokens; other parts where given."""
    tokenizer = tokenizer or tiny_tokenizer()
    unet = tiny_unet(**{"cross_attention_dim": text_width} | changes)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(text).eval()
    vae = vae or AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler or DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
