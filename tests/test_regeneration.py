from types import SimpleNamespace

import pytest
import torch
from grid_extractor import GridExtractor, grid_image
from tiny_pipeline import tiny_autoencoder, tiny_pipeline
from torch import nn

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.regeneration import (
    load_autoencoder,
    regeneration_rows,
    through_autoencoder,
    through_diffusion,
)
from medsign_lite.latent_diffusion import decode, encode
from medsign_lite.messages import message_from_string

MESSAGE = "1011" * 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photographs(count=3):
    return torch.rand(count, 3, 32, 32, generator=generator())


class Identity(nn.Module):
    """An autoencoder whose latents are the image itself."""

    config = SimpleNamespace(block_out_channels=(3,), scaling_factor=1.0, shift_factor=None)

    def __init__(self):
        super().__init__()
        self.decoder = nn.Conv2d(3, 3, 1)
        nn.init.dirac_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def encode(self, image):
        return SimpleNamespace(latents=image)


def test_through_autoencoder_that_changes_nothing_returns_the_image():
    images = photographs()
    torch.testing.assert_close(through_autoencoder(Identity(), images), images)


def test_through_autoencoder_is_encode_and_decode_clamped():
    vae, images = tiny_autoencoder(), photographs()
    expected = decode(vae, encode(vae, images)).clamp(0, 1)
    torch.testing.assert_close(through_autoencoder(vae, images, batch=2), expected)


def test_through_autoencoder_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="sides divisible by 4"):
        through_autoencoder(tiny_autoencoder(), torch.rand(1, 3, 30, 32))


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    return tiny_pipeline()


def all_knowing(pipeline, clean):
    """A U-Net that knows the clean latents, and so the noise that was added to them."""
    alphas = pipeline.scheduler.alphas_cumprod
    seen = []

    def forward(noisy, step, encoder_hidden_states):
        alpha = alphas[int(step)]
        seen.append((int(step), encoder_hidden_states))
        return SimpleNamespace(sample=(noisy - alpha**0.5 * clean) / (1 - alpha) ** 0.5)

    pipeline.unet.forward = forward
    return seen


def test_through_diffusion_with_a_perfect_unet_returns_the_autoencoders_image(pipeline):
    images = photographs(2)
    seen = all_knowing(pipeline, encode(pipeline.vae, images))
    again = through_diffusion(pipeline, images, timestep=300, steps=10, generator=generator())
    torch.testing.assert_close(again, through_autoencoder(pipeline.vae, images), atol=1e-4, rtol=0)
    assert [step for step, _ in seen] == [201, 101, 1]  # the sampler's, from 300 down
    empty, _ = pipeline.encode_prompt(["", ""], "cpu", 1, False)
    assert all(torch.equal(text, empty) for _, text in seen)


def test_through_diffusion_changes_more_the_more_noise(pipeline):
    images = photographs(2)
    plain = through_autoencoder(pipeline.vae, images)
    changes = [
        float((through_diffusion(pipeline, images, timestep=timestep, steps=10,
                                 generator=generator()) - plain).abs().mean())
        for timestep in (1, 201, 701)
    ]  # fmt: skip
    assert changes[0] < changes[1] < changes[2]


def test_through_diffusion_repeats_with_its_seed_whatever_the_batch(pipeline):
    images, options = photographs(3), {"timestep": 300, "steps": 10}
    first = through_diffusion(pipeline, images, generator=generator(), **options)
    second = through_diffusion(pipeline, images, generator=generator(), batch=2, **options)
    other = through_diffusion(pipeline, images, generator=generator(1), **options)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, other)
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"timestep": 1000}, r"timestep in \[0, 1000\).*got 1000 and 50"),
        ({"timestep": -1}, "got -1 and 50"),
        ({"timestep": 10, "steps": 0}, "got 10 and 0"),
        ({"timestep": 0, "steps": 10}, "the last of 10 steps is at timestep 1, above 0"),
    ],
)
def test_through_diffusion_refuses(pipeline, options, match):
    with pytest.raises(ValueError, match=match):
        through_diffusion(pipeline, photographs(1), generator=generator(), **options)


@pytest.mark.parametrize("make", [tiny_autoencoder, lambda: tiny_pipeline().vae])
def test_load_autoencoder_reads_either_kind(make, tmp_path):
    vae, images = make(), photographs(1)
    vae.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    torch.testing.assert_close(
        through_autoencoder(loaded, images), through_autoencoder(vae, images)
    )
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_load_autoencoder_refuses_other_folders(tmp_path, pipeline):
    with pytest.raises(FileNotFoundError, match="found no .*config.json"):
        load_autoencoder(tmp_path)
    pipeline.unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoencoderKL, AutoencoderTiny, got 'UNet2DCond"):
        load_autoencoder(tmp_path)


def test_regeneration_rows_of_every_model(pipeline):
    images = torch.stack([grid_image(MESSAGE)] * 2)
    detector = Detector(
        extractor=GridExtractor(), message=message_from_string(MESSAGE), resamples=20
    )
    rows = regeneration_rows(
        images, detector, autoencoders={"nothing": Identity(), "tiny": tiny_autoencoder()},
        pipeline=pipeline, timesteps=(500,), steps=4, generator=generator(),
    )  # fmt: skip
    assert [(row["attack"], row["model"], row["strength"]) for row in rows] == [
        ("autoencoder", "nothing", None), ("autoencoder", "tiny", None),
        ("diffusion", "original", 500),
    ]  # fmt: skip
    assert rows[0]["bit_accuracy"] == 1 and rows[0]["psnr"] == 100
    for row in rows[1:]:
        assert row["psnr"] < 40 and row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
