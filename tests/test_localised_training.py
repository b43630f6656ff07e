import json

import pytest
import torch
from torch.nn import functional as F

from medsign_lite.baselines import localised_training
from medsign_lite.baselines.localised_training import (
    calibrate,
    evaluate,
    fit,
    localised_losses,
    localised_step,
    main,
)
from medsign_lite.baselines.localised_watermark import (
    LocalisedConfig,
    LocalisedWatermark,
    load_localised_watermark,
)
from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.curriculum import CurriculumConfig, NoTakeOff
from medsign_lite.messages import random_messages
from medsign_lite.metrics import bit_accuracy
from medsign_lite.training.evaluation_mode import evaluation_mode

CONFIG = LocalisedConfig(bits=4, channels=16)
EASY = CurriculumConfig(sizes=(32,), size_starts=(0.0,))
SMALL = {"config": CONFIG, "curriculum": EASY, "largest_batch": 8, "held_out": 8,
         "precision": "float32"}  # fmt: skip


def images(count=24, size=32):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def stack(count=24):
    return (255 * images(count)).to(torch.uint8)


def test_losses_by_hand():
    region = torch.zeros(3, 1, 8, 8)
    region[0, :, :4, :4] = 1  # one answer of four
    region[1, :, :, :2] = 1  # half of two answers
    answers = torch.zeros(3, 3, 2, 2)  # detection and two bits
    answers[0, 1, 0, 0] = 2.0
    answers[0, 2] = torch.tensor([[-1.0, 50.0], [50.0, 50.0]])  # wrong where it does not count
    message = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    losses = localised_losses(answers, region, message)
    assert losses["detection"].item() == pytest.approx(0.6931, abs=1e-4)  # ln 2: undecided
    first = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(-1.0))) / 2
    expected = (first + 0.6931) / 2  # the second image guesses, the third has no mark
    assert losses["message"].item() == pytest.approx(expected.item(), abs=1e-4)
    nothing = localised_losses(answers, 0 * region, message)
    assert nothing["message"].item() == 0


def test_losses_pixel_by_pixel_and_together_differ_where_answers_do():
    answers = torch.zeros(1, 2, 1, 2)
    answers[0, 1, 0] = torch.tensor([3.0, -1.0])  # a mean of 1
    losses = localised_losses(answers, torch.ones(1, 1, 4, 8), torch.ones(1, 1))
    each = F.softplus(torch.tensor([-3.0, 1.0])).mean()
    together = F.softplus(torch.tensor(-1.0))
    assert losses["message"].item() == pytest.approx(((each + together) / 2).item())


def test_detection_loss_is_least_for_the_region():
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1
    right = torch.tensor([[5.0, -5.0], [5.0, -5.0]]).view(1, 1, 2, 2)
    losses = [
        localised_losses(torch.cat([logits, logits], 1), region, torch.ones(1, 1))["detection"]
        for logits in (right, 0 * right, -right)
    ]
    assert losses[0] < 0.01 < losses[1] < 1 < losses[2]


def test_calibration_reads_before_training_where_chance_was_read():
    def right(watermark):
        with evaluation_mode(watermark):
            return bit_accuracy(watermark.extract(watermark.embed(held_out, sent)), sent).mean()

    watermark = LocalisedWatermark(LocalisedConfig(bits=8, channels=16), psnr=30.0)
    pictures = images(64, 96)
    held_out, sent = (
        pictures[48:],
        random_messages(16, 8, generator=torch.Generator().manual_seed(1)),
    )
    stack = (255 * pictures[:48]).to(torch.uint8)
    options = {"strengths": (0.05, 0.02), "batches": 12, "batch_size": 16}
    assert right(watermark) < 0.6  # every answer is 0
    calibrate(watermark, stack, generator=torch.Generator().manual_seed(0), **options)
    assert right(watermark) > 0.9
    assert not watermark.extractor.direct.weight[0].any()  # of "marked" nothing is known yet
    other = LocalisedWatermark(LocalisedConfig(bits=8, channels=16))
    other.load_state_dict(watermark.state_dict())
    calibrate(other, stack, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(other.extractor.direct.bias, watermark.extractor.direct.bias)


def test_step_learns_to_find_and_to_read_one_batch():
    watermark = LocalisedWatermark(CONFIG)
    optimiser = torch.optim.AdamW(watermark.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    batch, messages = images(16), random_messages(16, 4, generator=generator)
    history = []
    for _ in range(50):
        values, logits, sent = localised_step(
            watermark, optimiser, batch, messages, strength=0.3, attacks=1, precision="float32",
            generator=generator,
        )  # fmt: skip
        assert logits.shape == sent.shape and logits.shape[1] == 4 and len(logits) <= 16
        history.append(values)

    def mean(name, part):
        return sum(row[name] for row in part) / len(part)

    # Which images are marked is drawn anew in every step.
    assert mean("detection", history[-10:]) < 0.8 * mean("detection", history[:5])
    assert mean("message", history[-10:]) < 0.8 * mean("message", history[:5])
    assert values["loss"] == pytest.approx(values["detection"] + 10 * values["message"], abs=1e-5)


def test_step_under_full_attacks_updates_both_networks():
    watermark = LocalisedWatermark(CONFIG)
    before = {name: weight.clone() for name, weight in watermark.named_parameters()}
    optimiser = torch.optim.AdamW(watermark.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    messages = random_messages(12, 4, generator=generator)
    for _ in range(3):  # what reads begins at 0, and then what the embedder's pyramid draws
        values, _, _ = localised_step(
            watermark, optimiser, images(12), messages, strength=0.1, hardness=1.0,
            precision="float32", generator=generator,
        )  # fmt: skip
        assert 0 < values["loss"] < 30
    still = [n for n, weight in watermark.named_parameters() if torch.equal(weight, before[n])]
    assert not still


def test_evaluate_scores_attacks_localisation_and_false_alarms():
    watermark = LocalisedWatermark(CONFIG, psnr=34.0)
    options = {"generator": torch.Generator().manual_seed(0), "precision": "float32"}
    scores = evaluate(watermark, images(12), **options)
    attacks = ["none", "brightness", "crop", "jpeg", "rotation", "resize"]
    assert set(scores) == {"psnr", *attacks, "spliced", "iou", "unmarked"}
    assert scores["psnr"] == pytest.approx(34, abs=0.5)  # less what is clamped
    assert watermark.training
    with torch.no_grad():  # one that sees the mark everywhere
        watermark.extractor.head.weight[0] = 0
        watermark.extractor.head.bias[0] = 9
    scores = evaluate(watermark, images(12), **options)
    assert scores["unmarked"] == 1 and 0.2 < scores["iou"] < 1  # the regions' mean area


def test_fit_resumed_after_a_kill_equals_fit_in_one_go(tmp_path, monkeypatch):
    fit(stack(), tmp_path / "whole", steps=6, save_seconds=0, **SMALL)
    calls = []

    def step_until_killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return localised_step(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(localised_training, "localised_step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(stack(), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    fit(stack(), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    whole, killed = (
        load_checkpoint(tmp_path / name / "watermark", kind="localised watermark")[0]
        for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_fit_leaves_a_watermark_of_the_last_strength_and_a_log(tmp_path):
    fit(stack(), tmp_path, steps=2, log_seconds=0, **SMALL)
    watermark = load_localised_watermark(tmp_path / "watermark")
    assert watermark.bits == 4 and watermark.psnr == pytest.approx(13.98, abs=0.01)  # 0.2 still
    config = json.loads((tmp_path / "watermark" / "config.json").read_text())
    assert config["details"]["step"] == 2 and "iou" in config["details"]["evaluation"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "detection", "message", "learnt_bits", "bit_accuracy", "size"} <= set(lines[0])


def test_fit_refuses_to_resume_other_settings(tmp_path):
    fit(stack(), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="run with other settings.*seed was 0, is 1"):
        fit(stack(), tmp_path, steps=2, seed=1, **SMALL)


def test_fit_stops_a_run_that_does_not_take_off(tmp_path):
    settings = SMALL | {"curriculum": CurriculumConfig(
        sizes=(32,), size_starts=(0.0,), patience_images=16, take_off_margin=0.45)}  # fmt: skip
    with pytest.raises(NoTakeOff, match="stronger signal"):
        fit(stack(), tmp_path, steps=50, **settings)


def test_fit_takes_one_budget_and_enough_images(tmp_path):
    with pytest.raises(ValueError, match="either minutes or steps"):
        fit(stack(), tmp_path, **SMALL)
    with pytest.raises(ValueError, match="fewer than the 8 images, got 8"):
        fit(stack(8), tmp_path, steps=1, **SMALL)


def test_main_names_a_manifest_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent do not exist"):
        main(["--data", str(tmp_path / "absent"), "--out", str(tmp_path), "--steps", "1"])
