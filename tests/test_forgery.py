import pytest
import torch
from grid_extractor import GridExtractor, grid_image
from torch.nn import functional as F

from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.forgery import forgery_rows, mean_residuals, scale_to_psnr
from medsign_lite.distortions import gaussian_blur
from medsign_lite.images import quantise
from medsign_lite.messages import message_from_string
from medsign_lite.metrics import psnr

MESSAGE = "1011" * 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(count, seed):
    """(count, 3, 48, 64) in [0.3, 0.7]: patches of some pixels."""
    coarse = torch.rand(count, 3, 6, 8, generator=generator(seed))
    return 0.3 + 0.4 * F.interpolate(coarse, (48, 64), mode="bilinear")


@pytest.fixture
def pattern():
    """What the watermark adds, the same to every image: (1, 3, 48, 64)."""
    return 0.1 * (grid_image(MESSAGE)[None] - 0.5)


def test_mean_residuals_of_a_perfect_estimate_are_the_watermark(pattern):
    clean = smooth(5, 0)
    place = iter(clean.split(2))
    residuals = mean_residuals(clean + pattern, lambda _: next(place), (1, 5), batch_size=2)
    assert list(residuals) == [1, 5]
    for residual in residuals.values():
        torch.testing.assert_close(residual, pattern, atol=1e-6, rtol=0)


def test_mean_residuals_come_nearer_with_more_images(pattern):
    noisy = smooth(60, 0) + pattern + 0.05 * torch.randn(60, 3, 48, 64, generator=generator(1))

    def estimate(images):  # knows no image, only what images look like on average
        return images.new_full(images.shape, 0.5)

    residuals = mean_residuals(noisy, estimate, (1, 10, 60))
    errors = [float((residual - pattern).square().mean()) for residual in residuals.values()]
    assert errors[0] > 5 * errors[1] > 15 * errors[2]


def test_mean_residuals_are_of_the_first_images():
    images = smooth(4, 0)
    residuals = mean_residuals(images, lambda some: gaussian_blur(some, 1.0), (2, 3), batch_size=2)
    for count, residual in residuals.items():
        own = images[:count]
        expected = (own - gaussian_blur(own, 1.0)).mean(dim=0, keepdim=True)
        torch.testing.assert_close(residual, expected)


@pytest.mark.parametrize("count", [0, 5])
def test_mean_residuals_refuse_more_images_than_there_are(count):
    with pytest.raises(
        ValueError, match=f"expected 1 to 4 images, all that there are, got {count}"
    ):
        mean_residuals(smooth(4, 0), torch.zeros_like, (1, count))


@pytest.mark.parametrize("decibels", [30.0, 40.0])
def test_scale_to_psnr_costs_what_it_says(pattern, decibels):
    images = smooth(1, 0)
    residual = scale_to_psnr(pattern, decibels)
    assert float(psnr(images + residual, images, data_range=1.0)) == pytest.approx(decibels)
    assert (residual * pattern).min() >= 0  # only its size has changed


def test_scale_to_psnr_refuses(pattern):
    for decibels in (5, 61, float("nan")):
        with pytest.raises(ValueError, match=r"PSNR in \[10, 60\] dB, got"):
            scale_to_psnr(pattern, decibels)
    with pytest.raises(ValueError, match="a residual that is not zero everywhere"):
        scale_to_psnr(torch.zeros(1, 3, 8, 8), 40)


def test_forgery_rows_forge_and_remove(pattern):
    """Flat images: the mark is all that tells them from their mean, so averaging finds it."""
    levels = torch.linspace(0.4, 0.6, 6).view(6, 1, 1, 1)
    unmarked = quantise(levels.expand(-1, 3, 48, 64))
    marked = quantise(unmarked + pattern)
    detector = Detector(
        extractor=GridExtractor(), message=message_from_string(MESSAGE), resamples=20
    )

    def estimate(images):
        return images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)

    def poor(images):  # takes away nothing that the watermark adds
        return images - 0.1

    rows = forgery_rows(
        marked[:4], marked[4:], unmarked[4:], detector,
        estimates={"mean": estimate, "poor": poor}, counts=(1, 4), decibels=(40.0, 25.0),
        generator=generator(),
    )  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 2
    found = {(r["attack"], r["estimate"], r["averaged"], r["strength"]): r for r in rows}
    for count in (1, 4):
        assert found["forge", "mean", count, 40.0]["called_marked"] == 1
        removed = found["remove", "mean", count, 25.0]
        assert removed["called_marked"] == 0 and removed["bit_accuracy"] < 0.1
        # A constant added everywhere neither makes nor takes a mark.
        assert found["forge", "poor", count, 25.0]["called_marked"] == 0
        assert found["remove", "poor", count, 25.0]["called_marked"] == 1
    for row in rows:
        assert row["images"] == 2 and "true_positive_rate" not in row
        assert row["psnr"] == pytest.approx(row["strength"], abs=1.5)  # rounding to 8 bits
        assert row["called_marked_low"] <= row["called_marked"] <= row["called_marked_high"]
