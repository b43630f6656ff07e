import math

import pytest
import torch
from torch import nn

from medsign_lite import evaluation
from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.detection import p_value
from medsign_lite.images import quantise
from medsign_lite.messages import random_message, random_messages
from medsign_lite.metrics import ROUNDING_PSNR, bit_accuracy, psnr, ssim


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Bands(nn.Module):
    """Reads bit k from the brightness of band k of 48: no geometry survives, most else does."""

    def forward(self, image):
        return nn.functional.adaptive_avg_pool2d(image.mean(dim=1), (1, 48))[:, 0] - 0.5


@pytest.fixture
def extractor():
    return Bands()


@pytest.fixture
def message():
    return random_message(48, generator=generator())


def write(messages):
    """(N, 48) bits as images (N, 3, 32, 96) that `Bands` reads."""
    bands = (0.35 + 0.3 * messages).repeat_interleave(2, dim=1)  # (N, 96)
    return bands[:, None, None].expand(-1, 3, 32, -1).clone()


def marked(message, count=6):
    """Image i carries the message with its first 2 i bits turned over."""
    messages = message.repeat(count, 1)
    for index in range(count):
        messages[index, : 2 * index] = 1 - messages[index, : 2 * index]
    return write(messages)


def evaluate(images, reference, extractor, message, **options):
    return {
        row["attack"]: row
        for row in evaluation.evaluate_attacks(
            images, reference, extractor, message, generator=generator(), resamples=50, **options
        )
    }


def test_evaluate_attacks_by_hand(extractor, message):
    rows = evaluate(marked(message), None, extractor, message)
    assert list(rows) == [*PAPER_ATTACKS, "mean"]
    none = rows["none"]  # 48, 46, 44, 42, 40 and 38 of 48 bits
    assert none["images"] == 6
    assert none["bit_accuracy"] == pytest.approx(43 / 48)
    assert none["bit_accuracy_low"] < 43 / 48 < none["bit_accuracy_high"]
    assert none["true_positive_rate"] == pytest.approx(4 / 6)  # 41 are needed
    expected = sum(math.log10(p_value(k, 48)) for k in range(38, 49, 2)) / 6
    assert none["log10_p"] == pytest.approx(expected, abs=1e-5)
    assert "unmarked_bit_accuracy" not in none
    means = [rows[name]["bit_accuracy"] for name in PAPER_ATTACKS]
    assert rows["mean"]["bit_accuracy"] == pytest.approx(sum(means) / 6)
    rates = [rows[name]["true_positive_rate"] for name in PAPER_ATTACKS]
    assert rows["mean"]["true_positive_rate"] == pytest.approx(sum(rates) / 6)


def test_an_interval_does_not_collapse_where_every_image_is_found(extractor, message):
    chosen = {name: PAPER_ATTACKS[name] for name in ("none", "jpeg")}
    row = evaluate(write(message.repeat(20, 1)), None, extractor, message, attacks=chosen)["mean"]
    assert row["true_positive_rate"] == 1 and 0.8 < row["true_positive_rate_low"] < 1
    none = evaluate(write(1 - message.repeat(20, 1)), None, extractor, message, attacks=chosen)
    assert none["mean"]["true_positive_rate"] == 0
    assert 0 < none["mean"]["true_positive_rate_high"] < 0.2


def test_evaluate_attacks_agrees_with_attacking_by_hand(extractor, message):
    images = marked(message)
    rows = evaluate(images, None, extractor, message)
    for name, attack in PAPER_ATTACKS.items():
        expected = bit_accuracy(extractor(attack(quantise(images))), message).mean()
        assert rows[name]["bit_accuracy"] == pytest.approx(float(expected), abs=1e-6), name
    assert rows["crop"]["bit_accuracy"] < 0.8  # the bands move


def test_evaluate_attacks_scores_what_a_png_holds(extractor, message):
    middle = 128 / 255

    def sensitive(image):
        return extractor(image) + 0.5 - middle

    faint = middle + (write(message[None]) - 0.5) * 0.01  # 0.4 steps of 1/255: gone once saved
    rows = evaluate(faint, None, sensitive, message, attacks={"none": PAPER_ATTACKS["none"]})
    assert bit_accuracy(sensitive(faint), message).item() == 1
    assert rows["none"]["bit_accuracy"] < 0.9


def test_evaluate_attacks_shows_the_unmarked_control(extractor, message):
    images = marked(message, 4)
    other = write(random_messages(4, 48, generator=generator(9)))
    rows = evaluate(images, other, extractor, message, attacks={"none": PAPER_ATTACKS["none"]})
    expected = bit_accuracy(extractor(other), message).mean()
    assert rows["none"]["unmarked_bit_accuracy"] == pytest.approx(float(expected))
    assert rows["none"]["false_positives"] == 0
    same = evaluate(images, images, extractor, message, attacks={"none": PAPER_ATTACKS["none"]})
    assert same["none"]["false_positives"] == 4
    assert same["mean"]["unmarked_bit_accuracy"] == pytest.approx(same["none"]["bit_accuracy"])


def test_evaluate_attacks_takes_generators_of_batches_and_a_message_each(extractor):
    messages = random_messages(7, 48, generator=generator())
    images = write(messages)
    whole = evaluate(images, images, extractor, messages, batch_size=3)
    assert whole["none"]["bit_accuracy"] == 1
    assert whole["none"]["true_positive_rate_low"] == pytest.approx(0.025 ** (1 / 7))
    streamed = evaluate(
        (x for x in images.split(2)), (x for x in images.split(2)), extractor, messages
    )
    assert streamed == whole


def test_evaluate_attacks_refuses(extractor, message):
    images = marked(message, 2)
    with pytest.raises(ValueError, match="at least one image to evaluate"):
        evaluate(iter(()), None, extractor, message)
    with pytest.raises(ValueError, match=r"same number of images everywhere, got \[1, 2\]"):
        evaluate(images, images[:1], extractor, message)
    with pytest.raises(ValueError, match="reference: expected 3 channels"):
        evaluate(images, images[:, :1], extractor, message)
    with pytest.raises(ValueError, match="a message of 48 bits"):
        evaluate(images, None, extractor, message[:32])
    with pytest.raises(ValueError, match="in .0, 1."):
        evaluate(images, None, extractor, message, false_positive_rate=0.0)


def changed(count=5):
    reference = quantise(torch.rand(count, 3, 32, 40, generator=generator()) * 0.8 + 0.1)
    masks = torch.zeros(count, 1, 32, 40, dtype=torch.bool)
    masks[..., :10, :10] = True
    images = torch.where(masks, reference + 2 / 255, reference + 20 / 255)
    return images, reference, masks


def test_quality_row_by_hand():
    images, reference, masks = changed()
    row = evaluation.quality_row(
        images, reference, masks=masks, generator=generator(), resamples=50
    )
    assert row["images"] == row["masked"] == 5
    assert row["psnr_inside"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert row["psnr_outside"] == pytest.approx(20 * math.log10(255 / 20), abs=1e-3)
    assert row["psnr_gap"] == pytest.approx(20, abs=1e-3)
    assert row["psnr_gap_pooled"] == pytest.approx(20, abs=1e-3)
    assert row["psnr_gap_low"] <= row["psnr_gap"] <= row["psnr_gap_high"] + 1e-6
    assert row["psnr"] == pytest.approx(float(psnr(images, reference, data_range=1.0).mean()))
    assert row["ssim"] == pytest.approx(float(ssim(images, reference, data_range=1.0).mean()))


def test_quality_row_skips_empty_and_full_masks_and_streams():
    images, reference, masks = changed()
    masks[0], masks[3] = False, True
    options = {"generator": generator(), "resamples": 50}
    row = evaluation.quality_row(images, reference, masks=masks[:, 0], batch_size=1, **options)
    assert (row["images"], row["masked"]) == (5, 3)
    assert row["psnr_gap"] == pytest.approx(20, abs=1e-3)
    masks[:] = False
    row = evaluation.quality_row(
        iter(images.split(2)), iter(reference.split(2)), masks=iter(masks.split(2)), **options
    )
    assert row["masked"] == 0 and "psnr_gap" not in row and "psnr" in row
    with pytest.raises(ValueError, match="at least one image"):
        evaluation.quality_row(iter(()), iter(()), **options)


def test_quality_row_rounds_to_8_bits_first():
    _, reference, _ = changed()
    row = evaluation.quality_row(
        reference + 0.4 / 255, reference, generator=generator(), resamples=50
    )
    assert row["psnr"] == 100  # nothing a PNG would show


def test_psnr_gap_is_not_decided_by_one_untouched_finding():
    images, reference, masks = changed()
    images[0] = torch.where(masks[0], reference[0], images[0])
    row = evaluation.quality_row(
        images, reference, masks=masks, generator=generator(), resamples=50
    )
    # Four gaps of 20 dB; the fifth finding counts as if rounding alone had changed it.
    fifth = ROUNDING_PSNR - 20 * math.log10(255 / 20)
    assert 20 < row["psnr_gap"] == pytest.approx((4 * 20 + fifth) / 5, abs=1e-3)
    # Squared errors in steps of 8 bits: 2^2 inside four times and a twelfth once, 20^2 outside.
    pooled = 10 * math.log10(5 * 20**2 / (4 * 2**2 + 1 / 12))
    assert row["psnr_gap_pooled"] == pytest.approx(pooled, abs=1e-3)


def test_diagnostic_change_by_hand():
    images = torch.zeros(2, 3, 8, 8)
    images[0], images[1] = 51 / 255, 102 / 255
    reference = torch.zeros(2, 3, 8, 8)

    def classifier(image):
        level = image.mean(dim=(1, 2, 3))
        return torch.stack([level, 1 - level / 2], dim=1)

    rows = evaluation.diagnostic_change(
        classifier,
        images,
        reference,
        findings=["edema", "effusion"],
        generator=generator(),
        resamples=50,
        batch_size=1,
    )
    assert [row["finding"] for row in rows] == ["edema", "effusion", "mean"]
    assert [row["change"] for row in rows] == pytest.approx([30, 15, 22.5], abs=1e-4)
    assert [row["shift"] for row in rows] == pytest.approx([30, -15, 7.5], abs=1e-4)
    assert rows[0]["change_low"] >= 20 - 1e-4 and rows[0]["change_high"] <= 40 + 1e-4


@pytest.mark.parametrize(
    "classifier, match",
    [
        (lambda x: torch.zeros(len(x), 3), r"probabilities \(2, 1\) for edema, got \(2, 3\)"),
        (lambda x: torch.full((len(x), 1), 3.0), "logits, perhaps"),
        (lambda x: torch.full((len(x), 1), math.nan), "logits, perhaps"),
    ],
)
def test_diagnostic_change_refuses(classifier, match):
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=match):
        evaluation.diagnostic_change(
            classifier, images, images, findings=["edema"], generator=generator()
        )


def test_evaluation_repeats_with_its_seed(extractor, message):
    first, second = (evaluate(marked(message), None, extractor, message) for _ in range(2))
    assert first == second
