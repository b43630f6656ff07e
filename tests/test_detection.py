import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from torch import nn

from medsign_lite import detection
from medsign_lite.images import save_image
from medsign_lite.messages import message_to_string, random_message, random_messages


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate, expected", [(1e-2, 33), (1e-3, 36), (1e-6, 41), (1e-9, 44)])
def test_threshold_of_48_bits(rate, expected):
    assert detection.threshold(48, rate) == expected
    assert detection.p_value(expected, 48) <= rate < detection.p_value(expected - 1, 48)


@pytest.mark.parametrize("bits", [1, 32, 48, 256])
def test_p_value_agrees_with_scipy(bits):
    for matching in range(bits + 1):
        expected = binom.sf(matching - 1, bits, 0.5)
        assert detection.p_value(matching, bits) == pytest.approx(expected, rel=1e-9)


def test_p_value_by_hand():
    assert detection.p_value(0, 4) == 1
    assert detection.p_value(3, 4) == 5 / 16
    assert detection.p_value(48, 48) == 2.0**-48


def test_threshold_and_p_value_refuse():
    with pytest.raises(ValueError, match="8 bits cannot reach a false-positive rate of 0.001"):
        detection.threshold(8, 1e-3)
    for rate in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"false-positive rate in \(0, 1\)"):
            detection.threshold(48, rate)
    with pytest.raises(ValueError, match="expected 0 to 48 matching bits, got 49"):
        detection.p_value(49, 48)


class Stripes(nn.Module):
    """Reads bit k from the mean of column k: a watermark that a test can write by hand."""

    def __init__(self):
        super().__init__()
        self.normalise = nn.BatchNorm1d(48, affine=False)  # goes wrong in training mode
        self.normalise.running_mean.fill_(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return self.normalise(image.mean(dim=(1, 2))[:, :48]) * self.scale


@pytest.fixture
def extractor():
    return Stripes()


@pytest.fixture
def message():
    return random_message(48, generator=generator())


def marked(message, wrong=0):
    """An image that carries the message with `wrong` bits turned over."""
    bits = message.clone()
    bits[:wrong] = 1 - bits[:wrong]
    image = torch.full((3, 40, 64), 0.5)
    image[..., :48] = 0.3 + 0.4 * bits
    return image


@pytest.mark.parametrize("wrong, detected", [(0, True), (7, True), (8, False), (24, False)])
def test_detect_decides_at_the_threshold(extractor, message, wrong, detected):
    got = detection.detect(marked(message, wrong), extractor, message)
    assert (got.matching, got.bits) == (48 - wrong, 48)
    assert got.detected == detected  # all bits are equally sure, so their number decides
    assert got.p_value == pytest.approx(detection.p_value(48 - wrong, 48), rel=1e-9)
    flipped = [1 - int(bit) if i < wrong else int(bit) for i, bit in enumerate(message)]
    assert got.decoded == "".join(map(str, flipped))


def test_detect_reads_a_file_and_a_message_as_text(extractor, message, tmp_path):
    path = save_image(marked(message), tmp_path / "scan.png")
    got = detection.detect(path, extractor, message_to_string(message), false_positive_rate=1e-9)
    assert got.detected and got.false_positive_rate == 1e-9
    jpeg = tmp_path / "scan.jpg"
    Image.open(path).save(jpeg, quality=90)
    assert detection.detect(str(jpeg), extractor, message).detected
    grey = tmp_path / "grey.png"
    Image.open(path).convert("L").save(grey)
    assert detection.detect(grey, extractor, message).detected


def test_detection_prints_as_a_sentence(extractor, message):
    text = str(detection.detect(marked(message, 1), extractor, message))
    assert text.startswith("watermark detected: 47 of 48 bits match (p = 1.7e-13, at most ")
    assert "at most 1e-06 is needed); read " in text
    text = str(detection.detect(marked(message, 20), extractor, message))
    assert text.startswith("no watermark detected: 28 of 48")


def test_detect_does_not_depend_on_the_networks_mode_and_restores_it(extractor, message):
    extractor.train()
    assert detection.detect(marked(message), extractor, message).matching == 48
    assert extractor.training
    assert not extractor.eval() or detection.detect(marked(message), extractor, message).detected
    assert not extractor.training and extractor.normalise.running_mean.eq(0.5).all()


def test_extract_logits_restores_the_mode_of_each_module(extractor, message):
    extractor.train().normalise.eval()  # as when it is kept frozen
    detection.extract_logits(extractor, marked(message)[None])
    assert extractor.training and not extractor.normalise.training
    extractor.eval().normalise.train()
    with pytest.raises(RuntimeError):
        detection.extract_logits(extractor, torch.rand(1, 3, 40, 20))  # too few columns
    assert not extractor.training and extractor.normalise.training


@pytest.mark.parametrize("mode, match", [("RGBA", "four channels"), ("LA", "two channels")])
def test_detect_refuses_files_of_other_channels(extractor, message, tmp_path, mode, match):
    Image.new(mode, (64, 64)).save(tmp_path / "scan.png")
    with pytest.raises(ValueError, match=f"scan.png: expected 8-bit grey .* got {match}"):
        detection.detect(tmp_path / "scan.png", extractor, message)


def test_detect_refuses_16_bit_missing_and_small_files(extractor, message, tmp_path):
    Image.fromarray(np.full((64, 64), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png: .* got 16 bits"):
        detection.detect(tmp_path / "deep.png", extractor, message)
    with pytest.raises(FileNotFoundError, match="none.png"):
        detection.detect(tmp_path / "none.png", extractor, message)
    path = save_image(torch.rand(3, 31, 64), tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png: expected at least 32 pixels .* \(31, 64\)"):
        detection.detect(path, extractor, message)


@pytest.mark.parametrize(
    "image, match",
    [
        (torch.rand(1, 64, 64), "expected 3 channels .* got 1"),
        (torch.rand(2, 64, 64), "expected 3 channels .* got 2"),
        (torch.rand(4, 64, 64), "expected 3 channels .* got 4"),
        (torch.rand(64, 64), r"expected \(B, 3, H, W\), got \(64, 64\)"),
        (torch.rand(2, 3, 64, 64), "expected one image, got 2; extract_logits"),
        (torch.rand(3, 64, 64) * 255, r"expected values in \[0, 1\]"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_detect_refuses_other_tensors(extractor, message, image, match):
    with pytest.raises(ValueError, match=match):
        detection.detect(image, extractor, message)


@pytest.mark.parametrize(
    "message, match",
    [
        (torch.zeros(32), r"a message of 48 bits, .* got \(32,\)"),
        (torch.full((48,), 0.5), "bits 0 and 1 in the message, got 0.5"),
        ("0101", "a message of 48 bits, got 4"),
        ("x" * 48, "only 0 and 1 in the message, got 'x'"),
    ],
)
def test_detect_refuses_other_messages(extractor, message, match):
    with pytest.raises(ValueError, match=match):
        detection.detect(torch.rand(3, 64, 64), extractor, message)


def test_detect_logits_takes_one_message_each():
    messages = random_messages(3, 48, generator=generator())
    logits = messages * 2 - 1
    assert [d.matching for d in detection.detect_logits(logits, messages)] == [48, 48, 48]
    assert [d.detected for d in detection.detect_logits(logits, messages[1])].count(True) == 1
    with pytest.raises(ValueError, match="expected 3 messages, one per image, got 2"):
        detection.detect_logits(logits, messages[:2])


def test_logits_that_are_not_finite_are_refused():
    logits = torch.zeros(2, 48)
    logits[1, 3] = math.nan
    with pytest.raises(ValueError, match="finite logits"):
        detection.detect_logits(logits, torch.zeros(48))
    with pytest.raises(ValueError, match=r"logits \(B, K\)"):
        detection.extract_logits(lambda image: image, torch.rand(1, 3, 32, 32))


def test_soft_p_values_are_the_tail_of_weighted_coins():
    logits = torch.randn(5, 10, generator=generator(2))
    logits[0] = 0.0
    message = random_message(10, generator=generator(3))
    weights = (detection.LEVELS * logits.abs() / logits.abs().amax(dim=1, keepdim=True)).round()
    weights = weights.nan_to_num().long()
    flips = torch.tensor(list(itertools.product((0, 1), repeat=10)))  # every fall of the coins
    evidence = (weights * ((logits > 0) == message.bool())).sum(dim=1)
    expected = (weights @ flips.T >= evidence[:, None]).double().mean(dim=1)
    found = detection.soft_p_values(logits, message)
    assert found.dtype == torch.float64 and torch.allclose(found, expected, atol=1e-12)
    assert found[0] == 1
    assert torch.allclose(detection.soft_p_values(logits[1:] * 7, message), expected[1:])


@pytest.mark.parametrize("wrong", [0, 5, 7, 8, 24, 48])
def test_soft_p_values_count_where_all_bits_are_equally_sure(message, wrong):
    bits = message.clone()
    bits[:wrong] = 1 - bits[:wrong]
    found = detection.soft_p_values(0.3 * (2 * bits - 1)[None], message)
    assert found.item() == pytest.approx(detection.p_value(48 - wrong, 48), rel=1e-9)


def test_an_unsure_wrong_bit_costs_less_than_a_sure_one(message):
    sure = (2 * message - 1).repeat(2, 1)
    sure[:, :8] *= -1  # wrong: one too many, if only their number counted
    sure[1, :8] *= 0.2
    counted, weighed = detection.detect_logits(sure, message)
    assert counted.matching == weighed.matching == 40
    assert not counted.detected and weighed.detected and weighed.p_value < counted.p_value / 100


def test_soft_p_values_take_a_message_per_image_and_no_images(message):
    logits = torch.randn(3, 48, generator=generator())
    messages = random_messages(3, 48, generator=generator())
    found = detection.soft_p_values(logits, messages)
    for place in range(3):
        alone = detection.soft_p_values(logits[place : place + 1], messages[place])
        assert torch.allclose(alone, found[place : place + 1])
    assert detection.soft_p_values(logits[:0], message).shape == (0,)


def test_empirical_false_positive_rate_is_the_nominal_one_for_fair_bits(message):
    logits = torch.randn(20_000, 48, generator=generator(1))
    rows = detection.empirical_false_positive_rate(logits, message)
    assert [row["false_positive_rate"] for row in rows] == list(detection.RATES)
    for row in rows:
        assert row["low"] <= row["false_positive_rate"] <= row["high"]
        assert row["measured"] == row["false_positives"] / 20_000
        assert row["images"] == 20_000


def test_empirical_false_positive_rate_shows_bias_that_random_messages_hide():
    stream = generator()
    biased = (torch.rand(20_000, 48, generator=stream) < 0.7).float() - 0.5
    assert detection.bit_bias(biased).mean() == pytest.approx(0.7, abs=0.01)
    ones = detection.empirical_false_positive_rate(biased, torch.ones(48), rates=[1e-2])[0]
    assert ones["low"] > 10 * 1e-2
    random = random_messages(20_000, 48, generator=stream)
    hidden = detection.empirical_false_positive_rate(biased, random, rates=[1e-2])[0]
    exact = detection.p_value(33, 48)  # of bits that are all as sure
    assert hidden["low"] <= exact <= hidden["high"]


def test_fitted_false_positive_rate_is_the_tail_of_coins_that_lean(message):
    stream = generator()
    right = torch.rand(4000, 48, generator=stream) < 0.7
    logits = torch.where(right, 2 * message - 1, 1 - 2 * message)
    fitted = detection.fitted_false_positive_rate(logits, message, 1e-3)  # 36 of 48 are needed
    assert fitted == pytest.approx(binom.sf(35, 48, 0.7), rel=0.1)
    fair = torch.randn(5_000, 48, generator=stream)
    fitted = detection.fitted_false_positive_rate(fair, message, 1e-3)
    assert fitted == pytest.approx(1e-3, rel=0.1)
    stuck = torch.ones(5, 48)  # and known bits are no coins at all
    assert detection.fitted_false_positive_rate(stuck, torch.ones(48), 1e-6) == 1
    half = torch.tensor([1.0, 0.0]).repeat(24)
    assert detection.fitted_false_positive_rate(stuck, half, 1e-6) == 0
    with pytest.raises(ValueError, match="48 bits"):
        detection.fitted_false_positive_rate(stuck, torch.ones(2), 1e-6)


def test_fitted_false_positive_rate_counts_a_leaning_bit_as_it_weighs(message):
    # One bit is always right, and lets the more through the more it weighs.
    logits = torch.randn(400, 48, generator=generator())
    rates = []
    for weight in (1e-3, 1.0, 5.0):
        logits[:, 0] = weight * (2 * message[0] - 1)
        rates.append(detection.fitted_false_positive_rate(logits, message, 0.1))
    assert rates[0] == pytest.approx(0.1, rel=0.1)
    assert rates[0] + 0.01 < rates[1] < rates[2] - 0.05


@pytest.mark.parametrize(("rate", "images"), [(0.5, 5), (1e-2, 299), (1e-3, 2995)])
def test_images_needed_show_a_false_alarm_with_95_percent(rate, images):
    assert detection.images_needed(rate) == images
    assert (1 - rate) ** images <= 0.05 < (1 - rate) ** (images - 1)


def test_images_needed_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match=r"a false-positive rate in \(0, 1\), got 0"):
        detection.images_needed(0)


def test_empirical_false_positive_rate_refuses_too_few_images_for_a_rate_asked_for(message):
    logits = torch.randn(300, 48, generator=generator())
    (row,) = detection.empirical_false_positive_rate(logits, message, rates=[1e-2])
    assert row["images"] == 300 and row["images_needed"] == 299
    with pytest.raises(ValueError, match="of 0.001 takes at least 2995 unmarked .*, got 300"):
        detection.empirical_false_positive_rate(logits, message, rates=[1e-2, 1e-3])
    rows = detection.empirical_false_positive_rate(logits, message)  # nobody asked for one
    assert [r["images_needed"] <= r["images"] for r in rows] == [True, True, False, False]
    with pytest.raises(ValueError, match="at least one unmarked image, got none"):
        detection.empirical_false_positive_rate(logits[:0], message)
