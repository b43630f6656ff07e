"""Scaling to one PSNR, and what curves say of each other: answers by hand."""

import pytest
import torch

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.metrics import psnr
from medsign_lite.tables.matched_quality import (
    LADDER,
    check_ladder,
    curve_row,
    gain_rows,
    match_psnr,
    psnr_at_accuracy,
    read_attacked,
)


def generator():
    return torch.Generator().manual_seed(0)


def rows(points, *, bits=10, images=4):
    """A curve of images that are all read alike: {rung: accuracy}, measured PSNR the rung's."""
    return [
        {"rung": rung, "psnr": rung, "bits": bits,
         "images": images, "bit_accuracy": accuracy, "accuracy_per_image": [accuracy] * images,
         "log10_p_per_image": [-20 * accuracy] * images}
        for rung, accuracy in points.items()
    ]  # fmt: skip


@pytest.mark.parametrize("decibels", [30.0, 38.0, 46.0])
def test_match_psnr_meets_it_on_every_image(decibels):
    image = 0.2 + 0.6 * torch.rand(3, 3, 32, 32, generator=generator())
    image = (image * 255).round() / 255
    strengths = torch.tensor([0.002, 0.01, 0.05])[:, None, None, None]
    marked = image + strengths * torch.randn(image.shape, generator=generator())
    scaled = match_psnr(marked, image, decibels)
    assert psnr(scaled, image, data_range=1.0).tolist() == pytest.approx([decibels] * 3, abs=0.1)
    assert torch.equal(scaled, (scaled * 255).round() / 255)
    cosine = torch.cosine_similarity((scaled - image).flatten(1), (marked - image).flatten(1))
    assert cosine.min() > 0.85  # the same pattern, but for the rounding


def test_match_psnr_makes_up_for_what_white_cuts_off():
    image = torch.ones(1, 3, 32, 32)
    image[..., :8] = 0.5  # a quarter can change both ways, the rest only down
    marked = image + 0.01 * torch.randn(image.shape, generator=generator())
    scaled = match_psnr(marked, image, 36.0)
    assert psnr(scaled, image, data_range=1.0).item() == pytest.approx(36.0, abs=0.1)


def test_match_psnr_refuses_an_image_without_a_mark():
    image = torch.full((2, 3, 8, 8), 0.5)
    marked = image.clone()
    marked[0] += 0.1
    with pytest.raises(ValueError, match="image 1 has no residual"):
        match_psnr(marked, image, 40.0)


@pytest.mark.parametrize("ladder", [[40.0], [40.0, 40.0], [42.0, 40.0], [10.0, 40.0], [40.0, 51.0]])
def test_check_ladder_refuses_what_is_no_ladder(ladder):
    check_ladder(LADDER)
    with pytest.raises(ValueError, match="at least two rising PSNRs from 20 to 50 dB, got"):
        check_ladder(ladder)


class First:
    """Reads two bits from the first two pixels; is blind in smaller images."""

    def __call__(self, image):
        if image.shape[-1] < 32:
            return torch.full((len(image), 2), -1.0)
        return image[:, 0, 16, 15:17] - 0.5


def test_read_attacked_and_curve_row_by_hand():
    images = torch.full((2, 3, 32, 32), 0.25)
    images[0, :, 16, 15] = 0.75  # reads 1 0, the other image 0 0
    message = torch.tensor([1.0, 0.0])
    chosen = {name: PAPER_ATTACKS[name] for name in ("none", "crop")}
    counts, chances = read_attacked(images, First(), message, attacks=chosen, batch_size=1)
    assert counts.tolist() == [[2, 1], [1, 1]]
    assert chances.tolist() == [[0.25, 0.75], [0.75, 0.75]]  # all bits are equally sure
    row = curve_row(
        images, images - 0.01, First(), message, rung=40.0, generator=generator(), resamples=20
    )
    assert row["rung"] == 40 and row["psnr"] == pytest.approx(40, abs=1e-3) and row["bits"] == 2
    assert row["none"] == 0.75 and row["crop"] == 0.5 and row["none_low"] <= row["none"]
    assert len(row["accuracy_per_image"]) == len(row["log10_p_per_image"]) == 2
    assert row["bit_accuracy"] == pytest.approx(sum(row["accuracy_per_image"]) / 2)
    assert row["log10_p"] == pytest.approx(sum(row["log10_p_per_image"]) / 2, abs=1e-6)
    _, every = read_attacked(images, First(), message)
    assert row["log10_p"] == pytest.approx(float(every.log10().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.9, 38.0), (0.95, 37.0), (0.8, 40.0), (1.0, 36.0), (0.7, None), (1.01, None)],
    ids=["rung", "between", "last", "first", "never falls to it", "never reaches it"],
)
def test_psnr_at_accuracy_by_hand(level, expected):
    found = psnr_at_accuracy([36, 38, 40], [1.0, 0.9, 0.8], level)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_psnr_at_accuracy_takes_the_last_place_where_a_curve_still_reads():
    assert psnr_at_accuracy([36, 38, 40], [0.9, 0.95, 0.85], 0.9) == pytest.approx(39)


def test_gain_is_the_distance_between_curves_at_equal_accuracy():
    own = rows({36.0: 1.0, 40.0: 0.9, 44.0: 0.8})
    others = {"shifted": rows({32.0: 1.0, 36.0: 0.9, 40.0: 0.8}), "itself": own,
              "worse": rows({32.0: 0.7, 36.0: 0.6, 40.0: 0.5}),
              "better": rows({32.0: 1.0, 36.0: 1.0, 40.0: 0.95})}  # fmt: skip
    found = {(row["against"], row["rung"]): row
             for row in gain_rows(own, others, generator=generator(), resamples=10)}  # fmt: skip
    for rung in (36.0, 40.0, 44.0):
        assert found["shifted", rung]["gain"] == pytest.approx(4)
        assert found["itself", rung]["gain"] == pytest.approx(0)
    middle = found["shifted", 40.0]
    assert middle["psnr_against"] == pytest.approx(36) and middle["bound"] == ""
    assert middle["bit_accuracy"] == pytest.approx(0.9)
    assert middle["gain_low"] == pytest.approx(4) and middle["gain_high"] == pytest.approx(4)
    worse, better = found["worse", 40.0], found["better", 40.0]
    assert (worse["bound"], worse["psnr_against"]) == ("at least", None)
    assert worse["gain"] == pytest.approx(8)  # from the lowest rung, where it reads too little
    assert (better["bound"], better["gain"]) == ("at most", pytest.approx(0))


def test_gain_has_an_interval_over_images_drawn_for_both_at_once():
    own = rows({36.0: 1.0, 40.0: 0.9, 44.0: 0.8})
    for row in own:
        row["accuracy_per_image"] = [share + 0.02 * i for i, share in
                                     enumerate(row["accuracy_per_image"])]  # fmt: skip
    other = [row | {"psnr": row["psnr"] - 3} for row in own]
    drawn = gain_rows(own, {"lower": other}, generator=generator(), resamples=50)
    # The images differ, the distance between the curves does not.
    assert all(row["gain_low"] == pytest.approx(3) for row in drawn)
    assert all(row["gain_high"] == pytest.approx(3) for row in drawn)


def test_gain_over_another_payload_is_at_equal_sureness():
    own = rows({36.0: 1.0, 40.0: 0.9, 44.0: 0.8})
    fewer = rows({33.0: 1.0, 37.0: 0.9, 41.0: 0.8}, bits=8)
    for row in fewer:  # read as well, but of fewer bits: as sure only where it is stronger
        row["log10_p_per_image"] = [p + 2 for p in row["log10_p_per_image"]]
    found = {row["rung"]: row for row in
             gain_rows(own, {"fewer": fewer}, generator=generator(), resamples=10)}  # fmt: skip
    assert found[40.0]["compared"] == "log10_p" and found[40.0]["bit_accuracy"] == 0.9
    assert found[40.0]["gain"] == pytest.approx(7)


def test_match_psnr_takes_one_for_each_image():
    image = torch.full((2, 3, 32, 32), 0.5)
    marked = image + 0.05 * torch.randn(image.shape, generator=generator())
    scaled = match_psnr(marked, image, torch.tensor([34.0, 42.0]))
    assert psnr(scaled, image, data_range=1.0).tolist() == pytest.approx([34, 42], abs=0.1)


def test_gain_over_a_curve_of_fewer_images_is_of_these_alone():
    own = rows({36.0: 1.0, 40.0: 0.9, 44.0: 0.8})
    for row in own:  # the last two, which the other's curve is without, are read worse
        row["accuracy_per_image"] = [row["bit_accuracy"]] * 2 + [0.5] * 2
    fewer = rows({33.0: 1.0, 37.0: 0.9, 41.0: 0.8}, images=2)
    found = gain_rows(own, {"fewer": fewer, "itself": own}, generator=generator(), resamples=20)
    of_two, of_all = (
        {row["rung"]: row for row in found if row["against"] == name}
        for name in ("fewer", "itself")
    )
    assert of_two[40.0]["images"] == 2 and of_two[40.0]["bit_accuracy"] == pytest.approx(0.9)
    assert of_two[40.0]["gain"] == pytest.approx(3)
    assert of_all[40.0]["images"] == 4 and of_all[40.0]["bit_accuracy"] == pytest.approx(0.7)


def test_gain_over_a_curve_without_single_images_is_drawn_from_its_intervals():
    own = rows({36.0: 1.0, 40.0: 0.9, 44.0: 0.8})
    shifted = rows({32.0: 1.0, 36.0: 0.9, 40.0: 0.8})
    kept = [{key: value for key, value in row.items() if "per_image" not in key}
            | {"bit_accuracy_low": row["bit_accuracy"] - 0.01,
               "bit_accuracy_high": row["bit_accuracy"] + 0.01} for row in shifted]  # fmt: skip
    found = {row["rung"]: row for row in
             gain_rows(own, {"kept": kept}, generator=generator(), resamples=4000)}  # fmt: skip
    row = found[40.0]
    assert row["gain"] == pytest.approx(4) and row["psnr_against"] == pytest.approx(36)
    # .01 of accuracy is .4 dB of a curve that falls by .1 in 4 dB.
    assert row["gain_low"] == pytest.approx(3.6, abs=0.04)
    assert row["gain_high"] == pytest.approx(4.4, abs=0.04)


def test_gain_refuses_curves_of_other_images():
    with pytest.raises(ValueError, match="the same images, got 4 and, of other, 5"):
        gain_rows(rows({36.0: 1.0, 40.0: 0.9}), {"other": rows({36.0: 1.0, 40.0: 0.9}, images=5)},
                  generator=generator())  # fmt: skip
