import math

import pytest
import torch

from medsign_lite.records.agreement import agreement_rows, agrees, allowed_difference
from medsign_lite.rows import mean_row

BY = ("attack", "strength")


def row(attack, value, images, *, error=0.0, strength=1.0):
    """A row whose interval is that of a standard error."""
    ends = {"accuracy_low": value - 1.96 * error, "accuracy_high": value + 1.96 * error}
    return {"attack": attack, "strength": strength, "images": images, "accuracy": value} | ends


def interval(value, low=None, high=None):
    return {"value": value, "low": value if low is None else low,
            "high": value if high is None else high}  # fmt: skip


def test_agrees_within_four_standard_errors_of_the_difference():
    # Intervals of 3.92 have a standard error of 1 each; of the difference it is 1.414.
    recorded = interval(0.0, -1.96, 1.96)
    assert agrees(interval(5.6, 3.64, 7.56), recorded)
    assert not agrees(interval(5.7, 3.74, 7.66), recorded)


def test_agrees_without_intervals_needs_the_same_figure():
    assert agrees(interval(12.0), interval(12.004))
    assert not agrees(interval(12.0), interval(12.1))
    assert agrees(interval(12.0), interval(12.5), tolerance=0.05)
    assert not agrees(interval(12.0), interval(12.7), tolerance=0.05)
    nothing = {"value": None, "low": None, "high": None}
    assert agrees(nothing, nothing) and not agrees(nothing, interval(1.0))


def test_agrees_is_the_rule_of_rows_where_figures_say_of_how_many_images_they_are():
    # 100 images have a standard error of 0.01, so 25 have 0.02: 4 times root 5 of 0.01 is 0.0894.
    many = interval(0.9, 0.9 - 0.0196, 0.9 + 0.0196) | {"images": 100}
    assert agrees(interval(0.81) | {"images": 25}, many)
    assert not agrees(interval(0.80) | {"images": 25}, many)
    assert not agrees(interval(0.81), many)  # an interval of no width, taken at its word


def test_allowed_difference_worked_by_hand():
    # 100 images have a standard error of 0.01, so 25 have 0.02, and the difference root 5 of 0.01.
    many, few = row("jpeg", 0.9, 100, error=0.01), row("jpeg", 0.9, 25)
    got = allowed_difference(many, few, "accuracy", rounding=0.5)
    assert got == pytest.approx(4 * 0.01 * math.sqrt(5) + 0.5)


def test_rows_pair_what_is_of_one_attack_and_strength():
    recorded = [row("jpeg", 0.9, 100, error=0.01), row("blur", 0.5, 100, strength=2.0)]
    fresh = [row("blur", 0.52, 25, strength=2.0), row("jpeg", 0.7, 25), row("noise", 0.1, 25)]
    blur, jpeg = agreement_rows(fresh, recorded, "accuracy", by=BY, rounding=0.03)
    assert (blur["attack"], blur["strength"], blur["agrees"]) == ("blur", 2.0, True)
    assert blur["allowed"] == pytest.approx(0.03)  # all recorded images agreed: rounding alone
    assert (jpeg["fresh"], jpeg["recorded"], jpeg["agrees"]) == (0.7, 0.9, False)


def test_samples_of_one_truth_agree_and_others_do_not():
    stream, missed, found = torch.Generator().manual_seed(0), 0, 0
    for _ in range(50):
        draws = (torch.rand(520, generator=stream) * 48).floor() / 48
        many = mean_row("accuracy", draws[:500], resamples=200, generator=stream)
        recorded = [{"attack": "jpeg", "images": 500} | many]
        same = {"attack": "jpeg", "images": 20, "accuracy": float(draws[500:].mean())}
        other = same | {"accuracy": same["accuracy"] + 0.5}
        for fresh, expected in ((same, True), (other, False)):
            (result,) = agreement_rows([fresh], recorded, "accuracy", by=BY)
            missed += expected and not result["agrees"]
            found += not expected and not result["agrees"]
    assert missed == 0 and found == 50


def test_figures_that_nobody_has_are_left_out_and_nothing_at_all_is_refused():
    recorded = [row("jpeg", 0.9, 100), row("crop", 0.9, 100) | {"accuracy": None}]
    fresh = [row("jpeg", 0.9, 10), row("crop", 0.9, 10)]
    assert len(agreement_rows(fresh, recorded, "accuracy", by=BY)) == 1
    with pytest.raises(ValueError, match="no fresh row has a recorded one by attack, strength"):
        agreement_rows(fresh[1:], recorded, "accuracy", by=BY)
    with pytest.raises(ValueError, match="2 recorded rows are not told apart by attack"):
        agreement_rows(fresh, [row("jpeg", 0.9, 9), row("jpeg", 0.8, 9)], "accuracy", by=BY)
