"""Patients stay whole."""

from itertools import product

import pytest

from data_prep.splits import check_patients, split_patients
from medsign_lite.data import SPLITS

SHARES = (0.6, 0.2, 0.2)


def test_split_patients_gives_shares_of_patients():
    patients = [f"p{number // 3}" for number in range(30)]  # ten patients of three images
    splits = split_patients(patients, SHARES, seed=0)
    assert [splits.count(s) for s in ("train", "validation", "test")] == [18, 6, 6]
    assert all(len(set(splits[n : n + 3])) == 1 for n in range(0, 30, 3))
    check_patients(patients, splits)


def test_split_patients_follows_the_seed_and_not_the_order():
    patients = [f"p{number}" for number in range(20)]
    first = dict(zip(patients, split_patients(patients, SHARES, seed=0), strict=True))
    turned = dict(zip(patients[::-1], split_patients(patients[::-1], SHARES, seed=0), strict=True))
    assert first == turned
    assert split_patients(patients, SHARES, seed=1) != list(first.values())


def test_split_patients_leaves_no_split_empty_that_has_a_share():
    assert sorted(split_patients(["a", "b", "c"], (0.98, 0.01, 0.01), seed=0)) == [
        "test",
        "train",
        "validation",
    ]
    assert set(split_patients(["a", "b", "c"], (1.0, 0.0, 0.0), seed=0)) == {"train"}


@pytest.mark.parametrize("parts", [5, 7, 10, 16])
def test_split_patients_fills_what_has_a_share_and_nothing_else(parts):
    whole = [
        (train / parts, validation / parts, (parts - train - validation) / parts)
        for train, validation in product(range(parts + 1), repeat=2)
        if train + validation <= parts
    ]
    for shares, count in product(whole, range(1, 25)):
        splits = split_patients([str(number) for number in range(count)], shares, seed=0)
        wanted = {name for name, share in zip(SPLITS, shares, strict=True) if share > 0}
        assert set(splits) <= wanted, (shares, count)
        assert count < 3 or set(splits) == wanted, (shares, count)
        for name, share in zip(SPLITS, shares, strict=True):  # and about as much as it says
            assert abs(splits.count(name) - share * count) <= 2, (shares, count)


def test_split_patients_of_four_patients_by_hand():
    splits = split_patients(list("abcd"), (0.2, 0.4, 0.4), seed=0)
    assert sorted(splits) == ["test", "test", "train", "validation"]


def test_split_patients_refuses_other_shares():
    for shares in ((0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0.0)):
        with pytest.raises(ValueError, match="three shares that sum to 1, got"):
            split_patients(["a"], shares, seed=0)


def test_check_patients_counts_without_naming():
    check_patients(["Doe", "Roe", None, None], ["train", "test", "train", "test"])
    expected = "images of 1 patients are in more than one split, for example in train and test"
    with pytest.raises(ValueError, match=expected) as caught:
        check_patients(["Doe", "Roe", "Doe"], ["train", "test", "test"])
    assert "Doe" not in str(caught.value)
