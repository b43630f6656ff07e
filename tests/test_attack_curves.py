import math

import pytest
import torch
from grid_extractor import GridExtractor, grid_image

from medsign_lite.adversary.attack_curves import (
    CURVES,
    RANGES,
    aligned,
    attack_curve_rows,
    curve,
    kept,
)
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.distortions import brightness, centre_crop, jpeg, resize_area, rotate
from medsign_lite.evaluation import evaluate_attacks, quality_row
from medsign_lite.images import quantise, resize
from medsign_lite.messages import message_from_string

MESSAGE = "1011" * 12


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def detector():
    return Detector(
        extractor=GridExtractor(), message=message_from_string(MESSAGE), resamples=20, batch_size=2
    )


@pytest.fixture
def images():
    """(3, 3, 48, 64) that `GridExtractor` reads, with some texture."""
    texture = torch.rand(3, 3, 48, 64, generator=generator()) - 0.5
    return quantise(torch.stack([grid_image(MESSAGE)] * 3) + 0.1 * texture)


def only(name, value):
    return next(iter(curve(name, (value,)).values()))


def test_every_attack_has_a_range_that_holds_its_curve():
    assert set(RANGES) == set(CURVES)
    for name, values in CURVES.items():
        assert len(curve(name)) == len(values)
    assert (min(CURVES["jpeg"]), max(CURVES["jpeg"])) == (10, 100)
    assert (min(CURVES["rotation"]), max(CURVES["rotation"])) == (0, 45)
    assert min(CURVES["brightness"]) < 1 < max(CURVES["brightness"])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("jpeg", 0, r"jpeg: expected a strength in \[1, 100\], got 0"),
        ("rotation", 181, r"rotation: expected a strength in \[-180, 180\], got 181"),
        ("crop", 1.5, r"crop: expected a strength in \[0.01, 1\], got 1.5"),
        ("resize", 0, r"resize: expected a strength in \[0.01, 4\], got 0"),
        ("brightness", -1, r"brightness: expected a strength in \[0, 10\], got -1"),
        ("contrast", math.nan, r"contrast: expected a strength in \[0, 10\], got nan"),
        ("noise", 2, r"noise: expected a strength in \[0, 1\], got 2"),
        ("blur", 0, r"blur: expected a strength in \[0.1, 10\], got 0"),
        ("chain", 2, r"chain: expected a strength in \[0, 1\], got 2"),
        ("screenshot", -1, r"screenshot: expected a strength in \[0, 1\], got -1"),
    ],
)
def test_curve_refuses_a_strength_out_of_range(name, value, match):
    with pytest.raises(ValueError, match=match):
        curve(name, (value,))


@pytest.mark.parametrize("values", [(), (50, 50)], ids=["none", "twice"])
def test_curve_refuses_strengths_that_make_no_curve(values):
    with pytest.raises(ValueError, match="jpeg: expected strengths that differ, at least one"):
        curve("jpeg", values)


def test_curve_refuses_an_unknown_attack():
    with pytest.raises(ValueError, match="an attack among jpeg, rotation, .*, got 'fog'"):
        curve("fog")


def test_rows_refuse_before_they_compute(detector):
    def never(image):
        raise AssertionError("read an image")

    unread = Detector(extractor=never, message=detector.message)
    with pytest.raises(ValueError, match="crop: expected a strength"):
        attack_curve_rows(
            torch.rand(1, 3, 48, 64), unread, curves={"jpeg": (50,), "crop": (0,)},
            generator=generator(),
        )  # fmt: skip


IDENTITY = {"rotation": 0, "crop": 1, "resize": 1, "brightness": 1, "contrast": 1, "noise": 0,
            "chain": 0, "screenshot": 0}  # fmt: skip


def test_rows_without_strength_leave_bits_and_pixels(detector, images):
    curves = {name: (value,) for name, value in IDENTITY.items()}
    rows = attack_curve_rows(images, detector, curves=curves, generator=generator())
    assert [row["attack"] for row in rows] == list(IDENTITY)
    for row in rows:
        assert row["bit_accuracy"] == row["true_positive_rate"] == row["kept"] == 1
        assert row["psnr"] == (None if row["attack"] in ("rotation", "crop") else 100)


def test_rows_read_as_table_1_does(detector, images):
    rows = attack_curve_rows(
        images, detector, curves={"jpeg": (90, 10), "crop": (0.5,)}, generator=generator()
    )
    attacks = curve("jpeg", (90, 10)) | curve("crop", (0.5,))
    table = evaluate_attacks(
        images, None, detector.extractor, detector.message, attacks=attacks, generator=generator(),
        resamples=20,
    )  # fmt: skip
    assert [(row["attack"], row["strength"]) for row in rows] == [
        ("jpeg", 90), ("jpeg", 10), ("crop", 0.5),
    ]  # fmt: skip
    for row, expected in zip(rows, table[:-1], strict=True):
        for name in ("bit_accuracy", "true_positive_rate", "log10_p"):
            assert row[name] == expected[name]
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_rows_of_stronger_attacks_are_read_no_better_and_cost_more(detector, images):
    rows = attack_curve_rows(
        images, detector, curves={"noise": (0.05, 0.5, 1.0), "crop": (1.0, 0.6, 0.3)},
        generator=generator(),
    )  # fmt: skip
    noise, crop = rows[:3], rows[3:]
    for some in (noise, crop):
        accuracy = [row["bit_accuracy"] for row in some]
        assert accuracy == sorted(accuracy, reverse=True) and accuracy[0] > accuracy[-1]
    psnr = [row["psnr"] for row in noise]
    assert psnr == sorted(psnr, reverse=True)
    assert [row["kept"] for row in crop] == sorted((row["kept"] for row in crop), reverse=True)


def test_cost_is_of_the_image_before_the_attack(detector, images):
    (row,) = attack_curve_rows(images, detector, curves={"jpeg": (30,)}, generator=generator())
    expected = quality_row(jpeg(images, 30), images, generator=generator(), resamples=2)
    assert row["psnr"] == pytest.approx(expected["psnr"])
    assert row["ssim"] == pytest.approx(expected["ssim"])


def test_aligned_brings_every_pixel_to_its_place(images):
    attacked, before = aligned(only("brightness", 1.5), images)
    assert torch.equal(attacked, brightness(images, 1.5)) and torch.equal(before, images)
    attacked, before = aligned(only("resize", 0.25), images)
    assert torch.equal(attacked, resize(resize_area(images, 0.25), (48, 64)))
    assert torch.equal(before, images)
    assert aligned(only("crop", 0.5), images) is None
    assert aligned(only("rotation", 10), images) is None


def test_aligned_gives_the_image_before_a_chain_its_geometry(images):
    attacked, before = aligned(only("screenshot", 1), images)
    assert torch.equal(before, centre_crop(resize_area(images, 0.5), 0.7))
    assert torch.equal(attacked, jpeg(brightness(before, 1.25), 60))


def test_kept_is_the_share_of_the_area(images):
    assert kept(only("jpeg", 10), images) == 1
    assert kept(only("resize", 0.1), images) == 1
    assert kept(only("crop", 0.25), images) == 0.25
    expected = float(rotate(torch.ones(1, 3, 48, 64), 10).mean())
    assert kept(only("rotation", 10), images) == pytest.approx(expected) and expected < 1
    screenshot = int(48 * math.sqrt(0.7)) * int(64 * math.sqrt(0.7)) / (48 * 64)
    assert kept(only("screenshot", 1), images) == pytest.approx(screenshot)
