"""Measurements on held-out phantoms and prompts."""

import pytest
import torch
from PIL import Image

from medsign_lite.data import Record
from medsign_lite.records.held_out import (
    generation_row,
    localisation_on_phantoms,
    mean_masks,
    readable,
)
from tests.tiny_pipeline import tiny_pipeline, tiny_tokenizer


def record(tmp_path, name="a", report="no effusion", findings=(), words=(), sides=(), masks=()):
    return Record(id=name, image=tmp_path / f"{name}.png", modality="chest", split="test",
                  report=report, findings=findings, words=words, sides=sides,
                  masks=masks)  # fmt: skip


class Reader:
    """Says what it is told: pixel 0 of an image is the row of `found` and `read` to answer."""

    def __init__(self, found, read):
        self.found, self.read = found, read

    def probability(self, image, names):
        rows = image[:, 0, 0, 0].long().tolist()
        return torch.tensor([[float(name in self.found[row]) for name in names] for row in rows])

    def sides(self, image, name):
        return [self.read[row] for row in image[:, 0, 0, 0].long().tolist()]


def test_generation_row_by_hand(tmp_path):
    def named(side):
        return record(tmp_path, report="effusion", findings=("effusion",), words=("effusion",),
                      sides=(side,), masks=(None,))  # fmt: skip

    records = [named("left"), named("right"), named("left"), record(tmp_path)]
    # Missed in the third; the second shows the wrong side; one false alarm in the fourth, which
    # names nothing: 1 of 3 x 5 + 6 findings that are not named.
    reader = Reader([{"effusion"}, {"effusion"}, set(), {"edema"}], ["left", "left", "left", ""])
    images = torch.zeros(4, 3, 1, 1) + torch.arange(4).view(4, 1, 1, 1)
    row = generation_row(reader, images, records)
    assert row["found"] == pytest.approx(2 / 3) and row["named"] == 3
    assert row["found_by_chance"] == pytest.approx(1 / 21)
    assert row["side"] == pytest.approx(1 / 2) and row["sided"] == 2
    assert row["side_by_chance"] == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="none of the 1 reports names one of pneumonia"):
        generation_row(reader, images[:1], records[3:])


def test_readable_leaves_out_reports_that_are_cut_off(tmp_path):
    short, long = record(tmp_path), record(tmp_path, report="effusion " * 9)
    assert readable(tiny_tokenizer(), [short, long]) == [short]


def save_mask(path, left, size=32):
    image = Image.new("L", (size, size))
    image.paste(255, (0, 0, left, size))
    image.save(path)
    return path


def test_mean_masks_is_the_share_of_masks_at_each_pixel(tmp_path):
    records = [
        record(tmp_path, report="effusion", findings=("effusion",), words=("effusion",),
               sides=("",), masks=(save_mask(tmp_path / f"{left}.png", left),))
        for left in (8, 16)
    ]  # fmt: skip
    prior = mean_masks(records, (32, 32))["effusion"]
    assert prior[0, [0, 8, 16]].tolist() == [1.0, 0.5, 0.0]


def test_localisation_on_phantoms_scores_findings_with_masks_beside_controls(tmp_path):
    for name in "ab":
        Image.new("RGB", (32, 32), (90, 90, 90)).save(tmp_path / f"{name}.png")
    mask = save_mask(tmp_path / "mask.png", 16)
    sound = record(tmp_path, "a", "no edema effusion", ("effusion", "edema"),
                   ("effusion", "edema"), ("right", ""), (mask, None))  # fmt: skip
    priors = mean_masks([sound], (32, 32))
    rows = localisation_on_phantoms(
        tiny_pipeline(), [sound, record(tmp_path, "b")], priors, timesteps=(500,),
        cas={"features": "grid"}, generator=torch.Generator().manual_seed(0), resamples=20,
    )  # fmt: skip
    by_map = {row["map"]: row for row in rows if row["finding"] == "mean"}
    assert set(by_map) == {"attention", "shuffled token", "anatomical prior"}
    assert by_map["attention"]["images"] == 1  # edema has no mask, the other report no finding
    assert by_map["anatomical prior"]["auc"] == 1.0  # here the prior is the mask itself
    with pytest.raises(ValueError, match="nothing to localise"):
        localisation_on_phantoms(
            tiny_pipeline(), [record(tmp_path, "b")], priors, generator=torch.Generator()
        )
