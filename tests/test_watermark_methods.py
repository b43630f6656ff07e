"""The methods of Table 1: each marks what it is given, is read again, and says what it is."""

import math

import numpy as np
import pytest
import torch
from grid_extractor import GridExtractor
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.baselines import watermark_methods
from medsign_lite.baselines.backbone import SmallBackbone, SmallBackboneConfig, whiten_backbone
from medsign_lite.baselines.localised_watermark import LocalisedConfig, LocalisedWatermark
from medsign_lite.baselines.ssl_watermark import SSLWatermark
from medsign_lite.baselines.watermark_methods import (
    TIMED,
    WatermarkMethod,
    as_grey_file,
    dct_dwt,
    of_decoder,
    own_message,
    ssl_watermark,
    wam_kind,
)
from medsign_lite.images import quantise, save_image
from medsign_lite.latent_diffusion import copy_decoder, decode
from medsign_lite.metrics import psnr

LATENTS = torch.zeros(2, 4, 8, 8)


def textured(count=2, side=96):
    return quantise(0.2 + 0.6 * torch.rand(count, 3, side, side))


def accuracy(method, image):
    return float(((method.read(image) > 0) == method.message.bool()).double().mean())


@pytest.mark.parametrize("plane", ["luma", "chroma"])
def test_dct_dwt_has_the_psnr_it_is_given_and_is_read(plane):
    image, smooth = textured(), torch.full((2, 3, 96, 96), 0.5)
    for decibels in (36.0, 42.0):
        method = dct_dwt(psnr=33.0, plane=plane).at_psnr(decibels)
        marked = method.mark(image, LATENTS)
        assert psnr(marked, image, data_range=1.0).mean() == pytest.approx(decibels, abs=0.8)
        # Even over a step is its square over 12; half a step, for the share of ones, over 4.
        drawn, _ = method.draw(smooth, LATENTS)
        less = decibels - 10 * math.log10(12 / 4 * float(method.message.mean()))
        assert psnr(drawn, smooth, data_range=1.0).mean() == pytest.approx(less, abs=0.2)
        assert accuracy(method, marked) > 0.97
        assert method.settings["psnr"] == decibels and method.settings["plane"] == plane


def test_chroma_is_lost_in_a_grey_file_and_luma_is_not():
    image = textured()
    kept = {}
    for plane in ("luma", "chroma"):
        method = dct_dwt(psnr=33.0, plane=plane)
        kept[plane] = accuracy(method, as_grey_file(method.mark(image, LATENTS)))
    assert kept["luma"] > 0.97 and kept["chroma"] < 0.75


def test_as_grey_file_is_what_a_grey_png_holds(tmp_path):
    image = textured(1, 16)
    save_image(image[0], tmp_path / "colour.png")
    with Image.open(tmp_path / "colour.png") as file:
        expected = np.array(file.convert("L"), dtype=float) / 255
    got = as_grey_file(image)[0].numpy()
    assert np.abs(got - expected).max() < 1.01 / 255  # the codec's weights are whole numbers
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


def test_wam_kind_embeds_at_the_psnr_it_is_given():
    watermark = LocalisedWatermark(LocalisedConfig(bits=8, channels=16), psnr=50.0).eval()
    method, image = wam_kind(watermark, psnr=36.0), textured()
    drawn, _ = method.draw(image, LATENTS)
    assert psnr(drawn, image, data_range=1.0).tolist() == pytest.approx([36.0, 36.0], abs=0.05)
    watermark.psnr = 36.0
    with torch.no_grad():
        torch.testing.assert_close(drawn, watermark.embed(image, method.message))
        torch.testing.assert_close(method.read(drawn), watermark.extract(drawn))
    assert method.bits == 8 and "8 bits" in method.title and not drawn.requires_grad


def test_ssl_watermark_is_optimised_the_same_way_every_time():
    network = SmallBackbone(SmallBackboneConfig(channels=(16, 32)))
    backbone = whiten_backbone(network, [torch.rand(40, 3, 32, 32)])
    method = ssl_watermark(SSLWatermark(backbone=backbone, bits=8, psnr=30.0, steps=5,
                                        attacks=("none",)))  # fmt: skip
    image = textured(side=64)
    marked = method.mark(image, LATENTS)
    assert torch.equal(marked, method.mark(image, LATENTS))
    assert psnr(marked, image, data_range=1.0).tolist() == pytest.approx([30.0, 30.0], abs=0.1)
    assert accuracy(method, marked) > accuracy(method, image)
    assert method.settings["psnr"] == 30 and method.settings["attacks"] == ["none"]


def test_of_decoder_draws_the_latents_and_tells_decoders_apart():
    vae = tiny_pipeline().vae
    latents, message = torch.randn(3, 4, 16, 16), own_message(48)
    decoder, other = copy_decoder(vae).eval(), copy_decoder(vae).eval()
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.1
    methods = [of_decoder("key", "title", d, message, GridExtractor()) for d in (decoder, other)]
    images = quantise(decode(vae, latents))
    assert torch.equal(methods[0].mark(images, latents), images)
    assert torch.equal(methods[1].mark(images, latents), quantise(decode(other, latents)))
    first, second = (method.settings for method in methods)
    assert {name for name in first if first[name] != second[name]} == {"decoder"}
    assert "".join(str(int(bit)) for bit in message) not in str(first)


def plain(**changes):
    fields = {"key": "key", "title": "title", "message": own_message(4), "settings": {},
              "write": lambda images, latents, generator: images + 0.001,
              "read": lambda images: images.flatten(1)[:, :4]}  # fmt: skip
    return WatermarkMethod(**fields | changes)


def test_draw_times_a_few_images_together(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(watermark_methods.time, "perf_counter", lambda: next(clock))
    images = torch.full((TIMED + 4, 3, 8, 8), 0.5)
    drawn, seconds = plain().draw(images, torch.zeros(TIMED + 4, 4, 2, 2))
    assert torch.equal(drawn, images + 0.001)
    assert seconds.tolist() == pytest.approx([1 / TIMED, 1 / 4])
    assert torch.equal(plain().mark(images, torch.zeros(TIMED + 4, 1)), quantise(images))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected latents of 3 images, got 2"):
        plain().draw(torch.zeros(3, 3, 8, 8), LATENTS)
    with pytest.raises(ValueError, match=r"key: expected one message \(K,\), got .*2, 4"):
        plain(message=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="bits 0 and 1"):
        plain(message=torch.full((4,), 2.0))
