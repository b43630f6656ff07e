import pytest
import torch
from scipy.stats import binomtest

from medsign_lite import rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_in_step_cuts_tensors_and_takes_iterables_as_they_come():
    images = torch.arange(5.0)
    walked = list(rows.in_step(images, (x for x in images.split(2)), batch_size=2))
    assert [len(a) for a, _ in walked] == [2, 2, 1]
    assert all(torch.equal(a, b) for a, b in walked)


def test_in_step_refuses_sources_out_of_step():
    images = torch.arange(5.0)
    with pytest.raises(ValueError, match=r"same number of images everywhere, got \[4, 5\]"):
        list(rows.in_step(images, images[:4], batch_size=2))
    with pytest.raises(ValueError, match=r"batches of one size in step, got \[2, 3\]"):
        list(rows.in_step(images, images.split(3), batch_size=2))
    with pytest.raises(ValueError, match="shorter"):
        list(rows.in_step(images, images.split(2)[:2], batch_size=2))


def test_with_interval_takes_a_rows_interval_or_the_value_alone():
    row = {"x": 2.0, "x_low": 1.0, "x_high": 3.0, "y": 4.0, "z": None}
    assert rows.with_interval(row, "x") == {"value": 2.0, "low": 1.0, "high": 3.0}
    assert rows.with_interval(row, "y") == {"value": 4.0, "low": 4.0, "high": 4.0}
    assert rows.with_interval(row, "z") == {"value": None, "low": None, "high": None}


def test_mean_row_holds_mean_and_interval():
    row = rows.mean_row("x", torch.tensor([0.0, 1.0] * 50), resamples=500, generator=generator())
    assert row["x"] == 0.5
    assert row["x_low"] == pytest.approx(0.4, abs=0.03)  # 1.96 * .05
    assert row["x_high"] == pytest.approx(0.6, abs=0.03)


def test_share_row_is_the_exact_interval_and_does_not_collapse():
    row = rows.share_row("hit", torch.arange(20) < 15)
    exact = binomtest(15, 20).proportion_ci(0.95)
    assert row["hit"] == 0.75
    assert (row["hit_low"], row["hit_high"]) == pytest.approx((exact.low, exact.high))
    # Two of each image: no more is known than of as many images.
    twice = rows.share_row("hit", torch.arange(40) < 30, images=20)
    assert twice == pytest.approx(row)
    everything = rows.share_row("hit", torch.ones(20, dtype=torch.bool))
    assert everything["hit_high"] == 1
    assert everything["hit_low"] == pytest.approx(0.025 ** (1 / 20))


def test_table_puts_intervals_beside_means_and_leaves_gaps_empty():
    shown = rows.table(
        [
            {"attack": "none", "x": 0.98765, "x_low": 0.9, "x_high": 1.0, "images": 7},
            {"attack": "jpeg", "y": 2.0},
        ],
        decimals=2,
    )
    assert list(shown.columns) == ["attack", "x", "images", "y"]
    assert shown.iloc[0].tolist() == ["none", "0.99 [0.90, 1.00]", "7", ""]
    assert shown.iloc[1].tolist() == ["jpeg", "", "", "2.00"]


def test_table_has_no_minus_zero():
    shown = rows.table({"x": -0.0001, "x_low": -0.0004, "x_high": -0.0006})
    assert shown["x"][0] == "0.000 [0.000, -0.001]"


def test_table_chooses_columns_and_takes_one_row():
    shown = rows.table({"a": 1.0, "b": 2.0}, ["b"], decimals=1)
    assert shown.to_dict("list") == {"b": ["2.0"]}
    with pytest.raises(ValueError, match="no column 'c' in the rows; there are a, b"):
        rows.table({"a": 1.0, "b": 2.0}, ["c"])
