"""Where findings lie and which side their words name, told by hand."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from medsign_lite.data import SIDES, Record
from medsign_lite.generator.grounding import read_groundings
from medsign_lite.generator.report_supervision import (
    IGNORED,
    emphasised_places,
    read_sides,
    side_loss,
)
from medsign_lite.generator.report_tokenizer import learn_tokenizer
from medsign_lite.localisation import word_tokens
from tests.test_denoiser_training import RECORDS, REPORTS, record_of


def test_emphasised_are_the_latents_of_a_finding_and_of_its_other_side(tmp_path):
    small, large = torch.zeros(2, 32, 32, dtype=torch.uint8)
    small[5, 9] = 255  # a microaneurysm
    large[20:, 30:] = 255
    for name, mask in (("small", small), ("large", large)):
        Image.fromarray(mask.numpy()).save(tmp_path / f"{name}.png")

    def record(modality, *masks):
        paths = tuple(mask and tmp_path / f"{mask}.png" for mask in masks)
        empty = ("",) * len(masks)
        return Record(
            id="one", image=tmp_path / "one.png", modality=modality, split="train", report="One.",
            findings=("a", "b", "c")[: len(masks)], words=empty, sides=empty, masks=paths,
        )  # fmt: skip

    records = [record("fundus", "small", None, "large"), record("chest"), record("chest", "small")]
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    expected[0, [1, 6], 2] = True
    expected[0, 5:, 7] = expected[0, :3, 7] = True
    expected[2, 1, [2, 5]] = True
    _, regions = read_groundings(records, learn_tokenizer(REPORTS), (8, 8))
    assert torch.equal(emphasised_places(records, regions), expected)


def test_every_token_of_a_word_is_to_know_its_side_and_no_other():
    tokenizer = learn_tokenizer(REPORTS)
    sides = read_sides([*RECORDS[:3], record_of("Edema " * 80 + "right ptx.", ("ptx", "right"))],
                       tokenizer)  # fmt: skip
    assert sides.shape == (4, 77)
    for row, report, word, side in ((0, REPORTS[0], "pneumonia", "right"),
                                    (1, REPORTS[1], "effusion", "left"),
                                    (1, REPORTS[1], "cardiomegaly", "")):  # fmt: skip
        positions = word_tokens(tokenizer, report, word)
        assert len(positions) > 1 and (sides[row, positions] == SIDES.index(side)).all()
    named = [len(word_tokens(tokenizer, REPORTS[1], w)) for w in ("effusion", "cardiomegaly")]
    assert (sides[1] != IGNORED).sum() == sum(named)
    assert (sides[2:] == IGNORED).all()  # nothing named; cut off
    both = replace(record_of("edema", ("edema", "right")), findings=("edema",) * 2,
                   words=("edema",) * 2, sides=("right", "left"), masks=(None,) * 2)  # fmt: skip
    assert (read_sides([both], tokenizer) == IGNORED).all()  # one word, two sides
    three = replace(both, findings=("edema",) * 3, words=("edema",) * 3, masks=(None,) * 3,
                    sides=("right", "left", "right"))  # fmt: skip
    assert (read_sides([three], tokenizer) == IGNORED).all()


def test_side_loss_is_the_cross_entropy_of_the_named_tokens_alone():
    head, hidden = nn.Linear(4, len(SIDES)), torch.randn(2, 5, 4, requires_grad=True)
    sides = torch.full((2, 5), IGNORED)
    assert side_loss(hidden, head, sides).item() == 0
    sides[0, 2], sides[1, 4] = 1, 3
    expected = sum(-head(hidden[i, j]).log_softmax(0)[k] for i, j, k in ((0, 2, 1), (1, 4, 3))) / 2
    loss = side_loss(hidden, head, sides)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert (hidden.grad.abs().sum(dim=2) > 0).sum() == 2
