"""The classical watermark: what it writes, what it survives, and where it is lost."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from data_prep.phantoms import phantom
from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.baselines.dct_dwt import DctDwt
from medsign_lite.evaluation import evaluate_attacks
from medsign_lite.images import quantise
from medsign_lite.messages import random_message
from medsign_lite.metrics import psnr

MESSAGE = random_message(48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images():
    drawn = [phantom(m, "test", i, size=128).image for m in ("chest", "fundus") for i in range(4)]
    drawn = [np.repeat(a[..., None], 3, axis=2) if a.ndim == 2 else a for a in drawn]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def accuracy(method, image):
    return ((method.extract(image) > 0) == MESSAGE.bool()).double().mean().item()


def test_message_is_read_from_the_file_and_the_error_is_that_of_the_lattice(images):
    # One of the 4 * 16 numbers that 64 pixels become moves by up to half a step, evenly.
    textured = torch.rand(8, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    for step in (0.25, 0.5):
        method = DctDwt(step=step)
        assert accuracy(method, quantise(method.embed(images, MESSAGE))) > 0.99
        change = method.embed(textured, MESSAGE) - textured
        assert change.square().mean().item() == pytest.approx(step**2 / 12 / 64, rel=0.1)


def test_two_by_two_means_of_a_block_carry_the_bit():
    method = DctDwt(bits=2, step=0.3)
    marked = method.embed(torch.full((1, 3, 8, 16), 0.5), torch.tensor([1, 0]))
    grey = marked[0].mean(dim=0).numpy()  # luma: all channels move together
    assert np.allclose(marked[0, 0], grey, atol=1e-6)
    halves = grey.reshape(4, 2, 8, 2).sum(axis=(1, 3)) / 2  # Haar's coarse band
    first, second = (dctn(halves[:, i : i + 4], norm="ortho")[0, 1] for i in (0, 4))
    assert abs(abs(first) - 0.15) < 1e-6 and abs(second) < 1e-6


def test_a_message_for_each_image(images):
    messages = torch.stack([MESSAGE, 1 - MESSAGE])
    marked = DctDwt().embed(images[:2], messages)
    assert torch.equal(DctDwt().extract(marked) > 0, messages.bool())


def test_jpeg_is_survived_and_whatever_moves_the_grid_is_not(images):
    method = DctDwt()
    marked = method.embed(images, MESSAGE)
    assert psnr(quantise(marked), images, data_range=1.0).mean() > 39
    rows = evaluate_attacks(
        marked, images, method.extract, MESSAGE, generator=torch.Generator(), resamples=20
    )
    read = {row["attack"]: row["bit_accuracy"] for row in rows}
    assert read["none"] > 0.99 and read["jpeg"] > 0.9
    for name in set(PAPER_ATTACKS) & {"crop", "rotation", "resize"}:
        assert 0.35 < read[name] < 0.65, name


def test_chroma_is_lost_in_a_grey_file_and_luma_is_not(images):
    chest = images[:4]
    for plane, lost in (("chroma", True), ("luma", False)):
        method = DctDwt(plane=plane)
        marked = quantise(method.embed(chest, MESSAGE))
        assert accuracy(method, marked) > 0.95
        luma = (marked * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        grey = quantise(luma).expand(-1, 3, -1, -1)
        assert (accuracy(method, grey) < 0.7) == lost


@pytest.mark.parametrize("size", [(129, 131), (64, 100)])
def test_sizes_that_are_no_multiple_of_eight(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    marked = DctDwt().embed(image, MESSAGE)
    assert marked.shape == image.shape and accuracy(DctDwt(), marked) > 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bits": 0}, "bits"), ({"step": 0.0}, "step"), ({"plane": "red"}, "plane.*'red'")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DctDwt(**settings)


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match="48"):
        DctDwt().embed(images, MESSAGE[:20])
    with pytest.raises(ValueError, match="48 bits need as many blocks of 8 x 8 pixels.*40, 40"):
        DctDwt().extract(images[..., :40, :40])
