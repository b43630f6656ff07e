"""What a weaker mark costs, and at which wavelengths a mark lies."""

import math

import pytest
import torch

from benchmarks.mark_trade import WAVELENGTHS, main, trade, wavelengths
from medsign_lite.latent_diffusion import copy_decoder
from tests.test_finetuning import tiny_cache, tiny_extractor, tiny_vae


def test_a_waves_power_lies_at_its_length():
    columns = torch.arange(96.0)
    wave = 0.5 + 0.1 * torch.sin(2 * math.pi * columns / 24).expand(2, 3, 96, 96)
    marked = wave + 0.05 * torch.sin(2 * math.pi * columns / 4.8)
    rows = wavelengths(marked, wave)
    assert [row["shortest"] for row in rows] == list(WAVELENGTHS[:-1])
    by = {row["shortest"]: row for row in rows}
    assert by[4]["mark"] > 0.99 and by[21]["image"] > 0.99
    assert sum(row["mark"] for row in rows) == pytest.approx(1, abs=0.02)


def test_no_mark_has_no_wavelength():
    image = torch.full((1, 3, 64, 64), 0.5)
    assert {row["mark"] for row in wavelengths(image, image)} == {0.0}


def test_a_weaker_mark_costs_bits_and_brings_decibels():
    vae = tiny_vae()
    decoder = copy_decoder(vae).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
        values = trade(
            decoder, vae, tiny_cache(vae).latents, tiny_extractor(), torch.tensor([1.0, 0, 1, 0]),
            {"judge": lambda image: image.mean(dim=(2, 3))[:, :2]}, ["a", "b"], factors=(1.0, 0.5),
            false_positive_rate=0.1,
        )  # fmt: skip
    full, half = values["strengths"]
    assert (full["factor"], half["factor"]) == (1.0, 0.5)
    assert half["psnr"] > full["psnr"] + 3 and half["ssim"] > full["ssim"]
    assert 0 < half["changes"]["judge"]["change"] < full["changes"]["judge"]["change"]
    assert half["changes"]["judge"]["finding"] == "mean" and len(values["wavelengths"]) == 7


@pytest.mark.parametrize("count", ["0", "501"])
def test_only_kept_samples_are_measured(count, capsys):
    with pytest.raises(SystemExit):
        main(["--modality", "chest", "--images", count])
    assert f"--images: 500 samples are kept, got {count}" in capsys.readouterr().err
