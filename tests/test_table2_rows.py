"""Rows of Table 2: figures by hand, over seeds, and paired against the reference."""

import pytest
import torch

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.evaluation import diagnostic_change, evaluate_attacks, quality_row
from medsign_lite.metrics import ROUNDING_PSNR
from medsign_lite.tables.table2_rows import against, image_scores, over_seeds, per_image, table2_row

NAMES = ("edema", "effusion")
ATTACKS = {name: PAPER_ATTACKS[name] for name in ("none", "crop")}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(change, *, psnr=40.0, bits=1.0, count=6, gap=2.0):
    """Of images that all change by as much, but one that shows no finding."""
    original = torch.linspace(0.1, 0.7, count)[:, None].expand(-1, 2)
    return {
        "psnr": [psnr] * count, "ssim": [0.9] * count,
        "psnr_inside": [None] + [psnr + gap] * (count - 1),
        "psnr_outside": [None] + [psnr] * (count - 1),
        "attacks": {"none": [1.0] * count, "crop": [2 * bits - 1] * count},
        "original": {"judge": original.tolist()},
        "marked": {"judge": (original + change / 100).tolist()},
    }  # fmt: skip


def test_an_untouched_finding_counts_as_one_that_is_only_rounded():
    seed = scores(1.0, psnr=40.0, gap=60.0)
    assert per_image(seed)["psnr_gap"].nanmean() == pytest.approx(ROUNDING_PSNR - 40, abs=1e-4)
    assert ROUNDING_PSNR == pytest.approx(58.92, abs=0.01)


def row_of(seeds):
    labels = torch.tensor([[0.0, 1], [0, 1], [0, 0], [1, 0], [1, 0], [1, 0]])
    return table2_row(seeds, findings=NAMES, labels=labels, generator=generator(), resamples=50)


def test_image_scores_are_those_of_the_evaluation():
    """The mean of the images' scores is what the three evaluations give."""
    original = torch.rand(5, 3, 32, 32, generator=generator(1))
    marked = original + 0.1 * torch.rand(5, 3, 32, 32, generator=generator(2))
    masks = torch.zeros(5, 32, 32, dtype=torch.bool)
    masks[1:, 4:9] = True
    message = torch.tensor([1.0, 0.0, 1.0, 1.0])

    def extractor(image):
        return image.mean(dim=1).flatten(1)[:, :4] - 0.5

    def classify(image):
        return image.mean(dim=(2, 3))[:, :2]

    found = image_scores(
        marked, original, masks, extractor=extractor, message=message,
        classifiers={"judge": classify}, attacks=ATTACKS, batch_size=2,
    )  # fmt: skip
    values = per_image(found)
    quality = quality_row(marked, original, masks=masks, generator=generator(), resamples=2)
    for name in ("psnr", "ssim", "psnr_inside", "psnr_outside", "psnr_gap"):
        assert float(values[name].nanmean()) == pytest.approx(quality[name], abs=1e-4)
    assert found["psnr_inside"][0] is None and values["psnr_gap"].isnan().tolist()[0]
    read = evaluate_attacks(
        marked, None, extractor, message, attacks=ATTACKS, generator=generator(),
        resamples=2, false_positive_rate=0.1,
    )  # fmt: skip
    assert float(values["bit_accuracy"].mean()) == pytest.approx(read[-1]["bit_accuracy"])
    assert float(values["attack crop"].mean()) == pytest.approx(read[1]["bit_accuracy"])
    row = table2_row({"0": found}, findings=NAMES, labels=torch.eye(5)[:, :2],
                     generator=generator(), resamples=20)  # fmt: skip
    change = diagnostic_change(classify, marked, original, findings=NAMES, generator=generator(),
                               resamples=2)  # fmt: skip
    mean = row["classifiers"]["judge"]["mean"]["change"]
    assert mean["value"] == pytest.approx(change[-1]["change"])


def test_row_has_the_mean_and_the_range_of_its_seeds():
    row = row_of({"0": scores(1.0, psnr=40), "1": scores(3.0, psnr=42, bits=0.9)})
    assert row["seeds"] == ["0", "1"] and row["images"] == 6
    assert row["psnr"] == pytest.approx(
        {"value": 41, "low": 41, "high": 41, "least": 40, "most": 42}
    )
    assert row["psnr_gap"]["value"] == pytest.approx(2)
    assert row["bit_accuracy"]["value"] == pytest.approx(0.95)
    assert row["attacks"]["crop"]["least"] == pytest.approx(0.8)
    change = row["classifiers"]["judge"]["edema"]["change"]
    assert [change[name] for name in ("value", "least", "most")] == pytest.approx([2, 1, 3])
    assert row["classifiers"]["judge"]["mean"]["auc_change"]["value"] == pytest.approx(0)


def test_over_seeds_averages_ends_and_keeps_what_cannot_be_measured():
    first = {"value": 1.0, "low": 0.0, "high": 3.0}
    merged = over_seeds([first, {"value": 2.0, "low": 1.0, "high": 5.0}])
    assert merged == {"value": 1.5, "low": 0.5, "high": 4.0, "least": 1.0, "most": 2.0}
    assert set(over_seeds([first, dict.fromkeys(first)]).values()) == {None}
    assert over_seeds([{"value": 1.0, "low": None, "high": None}])["low"] is None


def test_against_pairs_images_and_seeds():
    own = {"0": scores(2.0, psnr=38), "1": scores(5.0, psnr=39)}
    other = {"0": scores(1.0, psnr=40), "1": scores(1.0, psnr=42), "2": scores(50.0)}
    found = against(own, other, generator=generator(), resamples=50)
    assert found["psnr"] == pytest.approx(
        {"value": -2.5, "low": -2.5, "high": -2.5, "least": -3, "most": -2}
    )
    assert found["change"]["judge"]["value"] == pytest.approx((1 + 4) / 2)
    assert found["change"]["judge"]["most"] == pytest.approx(4)


def test_against_has_an_interval_of_the_differences_not_of_the_images():
    drawn = torch.rand(200, generator=generator(3)) * 20
    own, other = scores(1.0, count=200), scores(1.0, count=200)
    own["psnr"], other["psnr"] = (30 + drawn).tolist(), (32 + drawn).tolist()
    figure = against({"a": own}, {"b": other}, generator=generator())["psnr"]
    assert [figure["low"], figure["high"]] == pytest.approx([-2, -2], abs=1e-5)


def test_against_refuses_other_images():
    with pytest.raises(ValueError, match="expected the same images in both rows"):
        against({"0": scores(1.0)}, {"1": scores(1.0, count=5)}, generator=generator())
