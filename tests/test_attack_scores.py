import pytest
import torch
from grid_extractor import GridExtractor, grid_image

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.evaluation import evaluate_attacks
from medsign_lite.images import quantise
from medsign_lite.messages import message_from_string

MESSAGE = "1011" * 12


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def detector():
    return Detector(extractor=GridExtractor(), message=message_from_string(MESSAGE), resamples=50)


@pytest.fixture
def images():
    return quantise(torch.stack([grid_image(MESSAGE)] * 3))


def test_score_by_hand(detector, images):
    attacked = torch.stack([grid_image(MESSAGE, wrong=wrong) for wrong in (0, 4, 12)])
    attacked = quantise(attacked) + 0.4 / 255  # rounds away
    row = detector.score(attacked, images, generator=generator())
    assert row["images"] == 3
    assert row["bit_accuracy"] == pytest.approx(1 - 16 / 144)
    assert row["true_positive_rate"] == pytest.approx(2 / 3)  # p-values of 4e-15, 1e-7 and 3e-3
    # In 4 and 12 of 48 cells 179 of 255 levels are 76, or the reverse.
    errors = torch.tensor([4 / 48, 12 / 48]) * (103 / 255) ** 2
    expected = (100 + float((-10 * torch.log10(errors)).sum())) / 3
    assert row["psnr"] == pytest.approx(expected, abs=0.01)
    assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"] and "ssim_low" in row


def test_score_of_untouched_images_costs_nothing(detector, images):
    row = detector.score(images, images, generator=generator())
    assert (row["psnr"], row["bit_accuracy"], row["true_positive_rate"]) == (100, 1, 1)
    assert row["ssim"] == pytest.approx(1, abs=1e-3) and "attack" not in row


def test_rows_are_those_of_evaluate_attacks_without_the_mean(detector, images):
    rows = detector.rows(images, PAPER_ATTACKS, generator=generator())
    expected = evaluate_attacks(
        images, None, detector.extractor, detector.message, generator=generator(), resamples=50
    )
    assert rows == expected[:-1] and [row["attack"] for row in rows] == [*PAPER_ATTACKS]


def test_rows_hold_the_false_positive_rate_that_was_asked_for(images):
    damaged = torch.stack([grid_image(MESSAGE, wrong=8)])
    rates = []
    for rate in (1e-3, 1e-6):
        detector = Detector(
            extractor=GridExtractor(), message=message_from_string(MESSAGE), resamples=2,
            false_positive_rate=rate,
        )  # fmt: skip
        rates.append(detector.score(damaged, damaged, generator=generator())["true_positive_rate"])
    assert rates == [1, 0]  # a p-value of 1e-4


def test_a_rate_that_the_bits_cannot_reach_is_refused(images):
    detector = Detector(
        extractor=GridExtractor(), message=message_from_string(MESSAGE), false_positive_rate=1e-15
    )
    with pytest.raises(ValueError, match="48 bits cannot reach a false-positive rate of 1e-15"):
        detector.score(images, images, generator=generator())
