"""Splits in which a patient's images stay together."""

import random
from collections.abc import Sequence

from medsign_lite.data import SPLITS


def check_shares(shares: Sequence[float]) -> None:
    """Refuse anything but three shares, of train, validation and test, that sum to one.

    Raises:
        ValueError: saying what came.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"expected three shares that sum to 1, got {tuple(shares)}")


def split_patients(patients: Sequence[str], shares: Sequence[float], *, seed: int) -> list[str]:
    """A split for each image, drawn by its patient.

    Args:
        patients: (N,) the patient of each image; any name that tells them apart.
        shares: of the patients that go to train, validation and test.
        seed: draws who goes where.

    Returns:
        (N,) splits. From three patients on, no split whose share is above 0 goes empty; one whose
        share is 0 always does.

    Raises:
        ValueError: for other than three shares that sum to one.
    """
    check_shares(shares)
    names = sorted(set(patients))
    random.Random(seed).shuffle(names)
    counts = [round(share * len(names)) for share in shares]
    if len(names) >= 3:
        counts = [max(count, share > 0) for count, share in zip(counts, shares, strict=True)]
        # Each rounded up, they may be more than there are: the larger one gives way.
        while counts[1] + counts[2] > len(names) - (shares[0] > 0):
            counts[1 if counts[1] >= counts[2] else 2] -= 1
    if shares[0] == 0:  # each rounded down, they may be fewer
        counts[1 if shares[1] >= shares[2] else 2] += len(names) - counts[1] - counts[2]
    test, held_out = counts[2], counts[2] + counts[1]  # the rest, mostly all, is for training
    chosen = {
        name: "test" if i < test else "validation" if i < held_out else "train"
        for i, name in enumerate(names)
    }
    return [chosen[patient] for patient in patients]


def check_patients(patients: Sequence[str | None], splits: Sequence[str]) -> None:
    """Refuse splits between which a patient's images are divided.

    Raises:
        ValueError: saying how many patients are in which splits, not who they are.
    """
    of: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if patient is not None:
            of.setdefault(patient, set()).add(split)
    divided = [found for found in of.values() if len(found) > 1]
    if divided:
        names = " and ".join(split for split in SPLITS if split in divided[0])
        raise ValueError(
            f"the images of {len(divided)} patients are in more than one split, for example in "
            f"{names}"
        )
