import pytest
import torch

from medsign_lite.evaluation import localisation_rows
from medsign_lite.metrics import contrast_to_noise, roc_auc


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FINDINGS = ["effusion", "edema", "effusion", "cupping"]
SIDES = ["right", "bilateral", "left", "superior"]


def located():
    """Four masks in the halves that SIDES name (the patient's), and maps that find them."""
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[0, 6:10, :4] = True  # patient's right: left half of the image
    masks[1, 6:10, 4:12] = True
    masks[2, 6:10, 12:] = True
    masks[3, :4, 6:10] = True
    noise = torch.rand(4, 16, 16, generator=generator())
    return 0.8 * masks + 0.2 * noise, masks


def rows_of(maps, masks, **options):
    options = {"generator": generator(), "resamples": 100, **options}
    rows = localisation_rows(maps, masks, FINDINGS, **options)
    return {(row["map"], row["finding"]): row for row in rows}


def test_rows_by_finding_and_mean_over_findings():
    maps, masks = located()
    maps[1] = 1 - maps[1]  # edema is missed
    rows = rows_of(maps, masks)
    assert [key[1] for key in rows] == ["effusion", "edema", "cupping", "mean"]
    effusion, edema, mean = (rows["attention", name] for name in ("effusion", "edema", "mean"))
    assert (effusion["images"], edema["images"], mean["images"]) == (2, 1, 4)
    assert effusion["auc"] == effusion["pointing"] == effusion["iou_best"] == effusion["iou"] == 1
    assert edema["auc"] == edema["pointing"] == 0 and edema["cnr"] < 0
    assert mean["auc"] == pytest.approx(2 / 3)  # per finding, not per image (3/4)
    cnr = contrast_to_noise(maps, masks)
    assert effusion["cnr"] == pytest.approx(float(cnr[[0, 2]].mean()))
    assert mean["cnr"] == pytest.approx(float((cnr[[0, 2]].mean() + cnr[1] + cnr[3]) / 3), rel=1e-5)
    assert effusion["cnr_low"] <= effusion["cnr"] <= effusion["cnr_high"]


def test_side_is_the_patients_and_unsided_images_do_not_count():
    maps, masks = located()
    rows = rows_of(maps, masks, sides=SIDES)
    assert "side_correct" not in rows["attention", "edema"]
    assert rows["attention", "mean"]["sided"] == 3
    assert rows["attention", "mean"]["side_correct"] == 1
    mirrored = rows_of(maps.flip(2), masks, sides=SIDES)
    assert mirrored["attention", "effusion"]["side_correct"] == 0
    assert mirrored["attention", "cupping"]["side_correct"] == 1


def test_controls_stand_beside_with_a_paired_margin():
    maps, masks = located()
    uniform, mirrored = torch.full_like(maps, 0.5), maps.flip(2)
    rows = rows_of(maps, masks, controls={"uniform": uniform, "mirrored": mirrored})
    assert rows["uniform", "mean"]["cnr"] == 0
    assert rows["uniform", "mean"]["auc"] == 0.5
    assert rows["uniform", "mean"]["pointing"] == pytest.approx(16 / 256, abs=0.05)
    assert rows["uniform", "mean"]["cnr_margin"] == pytest.approx(rows["attention", "mean"]["cnr"])
    assert rows["mirrored", "effusion"]["cnr_margin_low"] > 0
    assert "cnr_margin" not in rows["attention", "mean"]
    auc = roc_auc(mirrored, masks)
    assert rows["mirrored", "effusion"]["auc"] == pytest.approx(float(auc[[0, 2]].mean()))


def test_rows_do_not_depend_on_batches_and_repeat():
    maps, masks = located()
    whole = rows_of(maps, masks, sides=SIDES)
    assert rows_of(maps, masks, sides=SIDES, batch_size=3) == whole
    streamed = rows_of((m for m in maps.split(1)), (m for m in masks.split(1)), sides=SIDES)
    assert streamed == whole


def test_maps_of_one_image_are_drawn_together():
    """Four findings that always fail together say as much as one: the interval must not shrink."""
    generator_ = generator()
    masks = torch.zeros(80, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True
    good = torch.rand(20, generator=generator_) < 0.5  # of each image
    maps = torch.where(good.repeat_interleave(4)[:, None, None], masks.float(), 1 - masks.float())
    findings, images = ["a", "b", "c", "d"] * 20, [i // 4 for i in range(80)]
    sides = ["right"] * 80
    options = {"resamples": 400, "sides": sides}
    apart, together = (
        localisation_rows(maps, masks, findings, generator=generator(1), images=names, **options)[
            -1
        ]
        for names in (None, images)
    )
    assert apart["pointing"] == together["pointing"] == pytest.approx(float(good.double().mean()))
    for score in ("pointing", "side_correct"):
        width = [row[f"{score}_high"] - row[f"{score}_low"] for row in (apart, together)]
        assert 1.7 < width[1] / width[0] < 2.4  # twice: a quarter of the trials
    with pytest.raises(ValueError, match="one image per finding, 80, got 3"):
        localisation_rows(maps, masks, findings, generator=generator(), images=[1, 2, 3])


def test_threshold_of_the_fixed_iou():
    maps, masks = located()
    rows = rows_of(maps, masks, threshold=0.0)
    shares = masks.double().mean(dim=(1, 2))  # everything is found
    assert rows["attention", "edema"]["iou"] == pytest.approx(float(shares[1]))


def test_rows_refuse_other_counts():
    maps, masks = located()
    with pytest.raises(ValueError, match="one finding per map, at least one; got 4 and 3 maps"):
        rows_of(maps[:3], masks[:3])
    with pytest.raises(ValueError, match="one side per finding, 4, got 3"):
        rows_of(maps, masks, sides=SIDES[:3])
    with pytest.raises(ValueError, match=r"everywhere, got \[3, 4\]"):
        rows_of(maps, masks, controls={"short": maps[:3]})
    with pytest.raises(ValueError, match="mask 0 of the batch is empty"):
        rows_of(maps, masks & False)
