"""The bundled model's networks fit together."""

import torch
from diffusers import StableDiffusionPipeline

from medsign_lite.generator.bundled_networks import build_scheduler, build_text_encoder, build_unet
from medsign_lite.generator.report_tokenizer import learn_tokenizer
from medsign_lite.latent_diffusion import BUNDLED


def test_schedule_ends_in_pure_noise():
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0.0
    assert scheduler.config.prediction_type == "v_prediction"


def test_text_encoder_and_unet_fit_together():
    tokenizer = learn_tokenizer(["No effusion, small pneumonia."] * 9)
    text_encoder, unet = build_text_encoder(tokenizer, layers=2), build_unet(channels=(16, 32))
    tokens = torch.tensor(tokenizer(["effusion"], padding="max_length").input_ids)
    states = text_encoder(tokens)[0]
    assert states.shape == (1, 77, 128)
    assert unet(torch.zeros(1, 4, 16, 16), 0, states).sample.shape == (1, 4, 16, 16)
    names = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert len(names) == 7  # 2 down, 1 mid, 4 up


def test_shipped_pipeline_runs_as_diffusers_loads_it():
    pipeline = StableDiffusionPipeline.from_pretrained(BUNDLED)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("Small left pleural effusion.", num_inference_steps=2, output_type="np")
    assert drawn.images.shape == (1, 128, 128, 3)
