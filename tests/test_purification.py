import copy

import pytest
import torch
from tiny_pipeline import tiny_pipeline
from torch import nn
from torch.nn import functional as F

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.purification import purification_row, purify
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import copy_decoder, decode
from medsign_lite.metrics import psnr
from medsign_lite.perceptual import MaskedPyramid


@pytest.fixture(scope="module")
def parts():
    """A decoder that is brighter than the original, latents, and the original's images of them."""
    torch.manual_seed(0)
    vae = tiny_pipeline().vae
    decoder = copy_decoder(vae)
    with torch.no_grad():
        decoder.decoder.conv_out.bias += 0.2
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return decoder.requires_grad_(False).eval(), latents, decode(vae, latents).clamp(0, 1)


def error(decoder, latents, images):
    return float(F.mse_loss(decode(decoder, latents), images))


@pytest.mark.parametrize("loss", [F.mse_loss, MaskedPyramid()], ids=["mse", "pyramid"])
def test_purify_moves_the_decoder_towards_the_clean_images(parts, loss):
    decoder, latents, images = parts
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    errors = [
        error(purify(decoder, latents, images, steps=steps, loss=loss, learning_rate=5e-3),
              latents, images)
        for steps in (0, 5, 20)
    ]  # fmt: skip
    assert errors[0] == error(decoder, latents, images)
    assert errors[1] < 0.95 * errors[0] and errors[2] < 0.8 * errors[0]
    for name, weight in decoder.state_dict().items():
        assert torch.equal(weight, before[name]), f"{name} of the decoder itself moved"


def weights(decoder):
    return torch.cat([weight.flatten() for weight in decoder.state_dict().values()])


def test_purify_goes_on_where_it_was(parts, tmp_path):
    decoder, latents, images = parts
    whole = purify(decoder, latents, images, steps=4)
    purify(decoder, latents, images, steps=2, folder=tmp_path)
    further = purify(decoder, latents, images, steps=4, folder=tmp_path)
    assert torch.equal(weights(whole), weights(further))
    again = purify(decoder, latents, images, steps=2, folder=tmp_path)  # the state is beyond
    assert torch.equal(weights(again), weights(purify(decoder, latents, images, steps=2)))


def test_purify_does_not_go_on_with_other_images(parts, tmp_path):
    decoder, latents, images = parts
    purify(decoder, latents, images, steps=1, folder=tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        purify(decoder, latents, 1 - images, steps=1, folder=tmp_path)


def test_purify_that_was_killed_goes_on(parts, tmp_path):
    decoder, latents, images = parts
    calls = []

    def loss(image, clean):
        calls.append(len(image))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return F.mse_loss(image, clean)

    options = {"steps": 4, "loss": loss, "folder": tmp_path, "save_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        purify(decoder, latents, images, **options)
    purified = purify(decoder, latents, images, **options)
    assert len(calls) == 5  # the third one again
    assert torch.equal(weights(purified), weights(purify(decoder, latents, images, steps=4)))
    assert not any(weight.requires_grad for weight in purified.parameters())


def test_purify_refuses(parts, tmp_path):
    decoder, latents, images = parts
    with pytest.raises(ValueError, match="at least one, and 0 or more steps, got 6, 5 and 1"):
        purify(decoder, latents, images[:5], steps=1)
    with pytest.raises(ValueError, match="got 0, 0 and 1"):
        purify(decoder, latents[:0], images[:0], steps=1)
    with pytest.raises(ValueError, match="got 6, 6 and -1"):
        purify(decoder, latents, images, steps=-1)
    purify(decoder, latents, images, steps=1, folder=tmp_path)
    with pytest.raises(ValueError, match="other settings: seed was 0, is 1"):
        purify(decoder, latents, images, steps=2, folder=tmp_path, seed=1)


class Brightness(nn.Module):
    """Reads ones from an image that is brighter than a level, zeros from others."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, image):
        return (image.mean(dim=(1, 2, 3)) - self.level)[:, None].expand(-1, 48)


def test_purification_row_by_hand(parts):
    decoder, latents, images = parts
    marked = quantise(decode(decoder, latents))
    level = float((marked.mean() + images.mean()) / 2)
    purified = copy.deepcopy(decoder)
    with torch.no_grad():
        purified.decoder.conv_out.bias -= 0.2
    detector = Detector(extractor=Brightness(level), message=torch.ones(48), resamples=20)
    row = purification_row(
        purified, latents, marked, detector, steps=7, own_latents=latents[:2],
        own_images=images[:2], generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (row["attack"], row["strength"], row["images"]) == ("purification", 7, 6)
    assert row["bit_accuracy"] < 0.5
    again = quantise(decode(purified, latents))
    expected = psnr(again, marked, data_range=1.0).mean()
    assert row["psnr"] == pytest.approx(float(expected), abs=1e-3)
    assert row["own_psnr"] > 60 and row["own_psnr_low"] <= row["own_psnr"]
