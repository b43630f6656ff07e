"""SSL Watermark: the directions, what can be noticed, and messages in a backbone's features."""

import numpy as np
import pytest
import torch

from data_prep.phantoms import phantom
from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.baselines.backbone import (
    SmallBackbone,
    SmallBackboneConfig,
    WhitenedBackbone,
    whiten_backbone,
)
from medsign_lite.baselines.ssl_watermark import SSLWatermark, carriers
from medsign_lite.images import quantise
from medsign_lite.messages import random_message, random_messages
from medsign_lite.metrics import bit_accuracy, psnr

BITS = 16
MESSAGE = random_message(BITS, generator=torch.Generator().manual_seed(0))


def draw(split, count, size=64):
    drawn = [phantom(m, split, i, size=size).image for i in range(count) for m in
             ("chest", "fundus")]  # fmt: skip
    drawn = [np.repeat(a[..., None], 3, axis=2) if a.ndim == 2 else a for a in drawn]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def backbone():
    """Untrained: SSL Watermark can write into any network that looks at the whole image."""
    torch.manual_seed(0)
    network = SmallBackbone(SmallBackboneConfig(channels=(32, 64)))
    return whiten_backbone(network, draw("train", 48).split(48))


@pytest.fixture(scope="module")
def images():
    return draw("test", 2)


def method(backbone, **options):
    settings = {"bits": BITS, "steps": 40, "attacks": ("none",), "precision": "float32"}
    return SSLWatermark(backbone=backbone, **settings | options)


@pytest.fixture(scope="module")
def marked(backbone, images):
    return method(backbone).embed(images, MESSAGE, generator=generator())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_carriers_are_orthonormal_and_drawn_from_the_seed():
    columns = carriers(20, 8, seed=3)
    torch.testing.assert_close(columns.T @ columns, torch.eye(8), atol=1e-6, rtol=0)
    assert torch.equal(columns, carriers(20, 8, seed=3))
    assert (columns - carriers(20, 8, seed=4)).abs().max() > 0.1


def test_extract_is_the_whitened_features_along_the_carriers(backbone, images):
    logits = method(backbone, seed=5).extract(images)
    expected = backbone(images) @ carriers(backbone.dimensions, BITS, seed=5)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("target", [30.0, 40.0, 48.0])
def test_embed_reaches_the_psnr_in_the_rounded_image(backbone, images, target):
    marked = method(backbone, psnr=target, steps=3).embed(images, MESSAGE, generator=generator())
    assert torch.equal(marked, quantise(marked))
    reached = psnr(marked, images, data_range=1.0)
    assert (reached - target).abs().max() < 0.1


@pytest.mark.parametrize("perceptual", [True, False])
def test_an_untrained_backbone_reads_what_was_embedded(backbone, images, perceptual):
    ours = method(backbone, perceptual=perceptual, psnr=36.0)
    before = bit_accuracy(ours.extract(images), MESSAGE)
    after = bit_accuracy(ours.extract(ours.embed(images, MESSAGE, generator=generator())), MESSAGE)
    assert before.mean() < 0.8 and after.min() == 1.0


def test_another_key_reads_nothing(backbone, marked):
    assert bit_accuracy(method(backbone).extract(marked), MESSAGE).mean() == 1.0
    assert bit_accuracy(method(backbone, seed=1).extract(marked), MESSAGE).mean() < 0.8


def test_a_message_for_each_image_and_a_batch_at_a_time(backbone, images):
    messages = random_messages(len(images), BITS, generator=generator(4))
    ours = method(backbone, batch_size=3, steps=10)
    marked = ours.embed(images, messages, generator=generator())
    assert torch.equal(ours.extract(marked) > 0, messages.bool())
    alone = method(backbone, batch_size=1, steps=10).embed(
        images[3:], messages[3:], generator=generator()
    )
    torch.testing.assert_close(alone, marked[3:], atol=1.5 / 255, rtol=0)


def test_embedding_through_an_attack_makes_it_readable_after_that_attack(backbone, images):
    accuracy = {}
    for names in (("none",), ("none", "rotation")):
        ours = method(backbone, attacks=names, steps=40, psnr=34.0)
        marked = ours.embed(images, MESSAGE, generator=generator())
        attacked = PAPER_ATTACKS["rotation"](marked)
        accuracy[names] = float(bit_accuracy(ours.extract(attacked), MESSAGE).mean())
    assert accuracy["none", "rotation"] > accuracy[("none",)] + 0.05


def test_embed_repeats_with_the_same_generator(backbone, images):
    ours = method(backbone, attacks=("crop", "jpeg", "blur"), steps=4)
    first, again, other = (ours.embed(images, MESSAGE, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_grey_image_stays_grey_and_a_coloured_one_need_not(images, marked):
    chest, fundus = marked[::2], marked[1::2]
    assert torch.equal(chest[:, 0], chest[:, 1]) and torch.equal(chest[:, 0], chest[:, 2])
    change = fundus - images[1::2]
    assert (change[:, 0] - change[:, 2]).abs().max() > 1 / 255


def test_a_radiograph_that_was_generated_counts_as_grey(backbone, images):
    drawn = images[:1].clone()
    drawn[:, 1] += 2 / 255  # as a decoder's channels are
    change = method(backbone, steps=2).embed(
        drawn.clamp(0, 1), MESSAGE, generator=generator()
    ) - drawn.clamp(0, 1)
    assert (change[:, 0] - change[:, 2]).abs().max() <= 1.01 / 255  # but for the rounding


def test_perceptual_weight_spares_flat_grey(backbone):
    """On the left nothing hides a change, on the right a texture does."""
    image = torch.full((1, 3, 64, 64), 0.5)
    image[..., 32:] = torch.rand(1, 1, 64, 32, generator=generator()).round() * 0.6 + 0.2
    share = {}
    for perceptual in (True, False):
        ours = method(backbone, perceptual=perceptual, steps=10)
        change = ours.embed(image, MESSAGE, generator=generator()) - image
        squares = change.square().mean(dim=(0, 1, 2))
        share[perceptual] = float(squares[:28].sum() / squares.sum())
    assert share[True] < 0.5 * share[False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"margin": 0.0}, "margin: expected a positive number"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"psnr": 60.0}, "psnr: expected 20 to 50 dB, got 60"),
        ({"bits": 65}, "65 bits need as many dimensions of whitened features, got"),
    ],
)
def test_bad_settings_are_named(backbone, settings, message):
    with pytest.raises(ValueError, match=message):
        method(backbone, **settings)


def test_bad_input_is_named(backbone, images):
    ours = method(backbone)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        ours.embed(images[..., :12, :], MESSAGE, generator=generator())
    with pytest.raises(ValueError, match="16 bits"):
        ours.embed(images, MESSAGE[:5], generator=generator())
    with pytest.raises(ValueError, match=r"expected a message \(4, 16\)"):
        ours.embed(images, MESSAGE[None].expand(3, -1), generator=generator())
    with pytest.raises(ValueError, match="expected names among .*got 'blurr'"):
        method(backbone, attacks=("blurr",)).embed(images, MESSAGE, generator=generator())
    with pytest.raises(ValueError, match="at least 16 pixels"):
        ours.extract(images[..., :12, :])


def test_a_backbone_that_does_not_look_at_the_image_is_named(backbone, images):
    blind = WhitenedBackbone(backbone.network, backbone.mean, torch.zeros_like(backbone.matrix))
    with pytest.raises(RuntimeError, match="4 of 4 images cannot be changed down to 40 dB"):
        method(blind, steps=2).embed(images, MESSAGE, generator=generator())
