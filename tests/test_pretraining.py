import dataclasses
import json

import numpy as np
import pytest
import torch

from medsign_lite import pretraining
from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.curriculum import SPECTRAL_CURRICULUM, CurriculumConfig, NoTakeOff
from medsign_lite.extractor import Embedder, Extractor, ExtractorConfig, load_extractor
from medsign_lite.messages import random_messages
from medsign_lite.pretraining import evaluate, fit, main, off_grid, pretrain_step, read_under_attack

CONFIG = ExtractorConfig(
    bits=4, channels=16, stages=(1, 1), width=32, embedder_channels=16, embedder_depth=2
)
EASY = CurriculumConfig(sizes=(32,), size_starts=(0.0,))
SMALL = {"config": CONFIG, "curriculum": EASY, "batch_pixels": 8 * 32 * 32, "held_out": 8,
         "precision": "float32"}  # fmt: skip


def images(count=24, size=32):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def stack(count=24, size=32):
    return (255 * images(count, size)).to(torch.uint8)


def networks():
    torch.manual_seed(0)
    return Embedder(CONFIG), Extractor(CONFIG)


def test_pretrain_step_learns_to_read_one_batch():
    embedder, extractor = networks()
    parameters = [*embedder.parameters(), *extractor.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    batch, messages = images(16), random_messages(16, 4, generator=generator)
    history = [
        pretrain_step(
            embedder, extractor, optimiser, batch, messages, strength=0.2, precision="float32",
            generator=generator,
        )[0]
        for _ in range(150)
    ]  # fmt: skip
    assert history[0]["loss"] == pytest.approx(0.69, abs=0.15)
    assert history[-1]["bit_accuracy"] > 0.95
    assert history[-1]["loss"] < 0.3


def test_off_grid_cuts_as_far_as_the_strength_says():
    image, generator = torch.rand(1, 3, 40, 40), torch.Generator().manual_seed(0)
    sides = {
        strength: {
            side
            for _ in range(200)
            for side in off_grid(image, 8, strength=strength, generator=generator).shape[-2:]
        }
        for strength in (0.0, 0.3, 1.0)
    }
    assert sides == {0.0: {40}, 0.3: {38, 39, 40}, 1.0: set(range(33, 41))}


def test_read_under_attack_keeps_the_batch_in_order():
    _, extractor = networks()
    extractor.eval()
    batch = images(8)
    plain = read_under_attack(extractor, batch, strength=0, generator=torch.Generator())
    assert torch.allclose(plain, extractor(batch))
    faint = read_under_attack(extractor, batch, strength=1e-6, generator=torch.Generator())
    assert faint.shape == plain.shape
    nearest = torch.cdist(faint, plain).argmin(dim=1)
    assert nearest.tolist() == list(range(8))


def test_evaluate_scores_every_attack_of_the_paper_and_the_psnr():
    embedder, extractor = networks()
    scores = evaluate(
        embedder, extractor, images(8), strength=0.02, generator=torch.Generator().manual_seed(0),
        precision="float32",
    )  # fmt: skip
    assert list(scores) == ["psnr", "none", "brightness", "crop", "jpeg", "rotation", "resize"]
    assert scores["psnr"] == pytest.approx(34.0, abs=0.5)  # -20 log10(.02), less what is clamped
    assert all(0 <= scores[name] <= 1 for name in scores if name != "psnr")
    assert embedder.training and extractor.training


def test_fit_resumed_after_a_kill_equals_fit_in_one_go(tmp_path, monkeypatch):
    fit(stack(), tmp_path / "whole", steps=6, save_seconds=0, **SMALL)
    calls = []

    def step_until_killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pretrain_step(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr("medsign_lite.pretraining.pretrain_step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(stack(), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    fit(stack(), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    whole, _ = load_checkpoint(tmp_path / "whole" / "extractor", kind="extractor")
    killed, _ = load_checkpoint(tmp_path / "killed" / "extractor", kind="extractor")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_fit_leaves_a_whitened_extractor_and_says_how_it_was_made(tmp_path):
    fit(stack(), tmp_path, steps=2, log_seconds=0, **SMALL)
    extractor = load_extractor(tmp_path / "extractor")
    trained_on = stack()[torch.arange(len(stack())) % 3 > 0]  # every third of 24 is held out
    logits = extractor(trained_on.float() / 255)
    assert logits.mean(dim=0).abs().max() < 1e-3  # calibrated on these
    details = load_checkpoint(tmp_path / "extractor", kind="extractor")[1]["details"]
    assert details["step"] == 2 and "rotation" in details["evaluation"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"step", "loss", "bit_accuracy", "learnt_bits", "strength", "size"} <= set(lines[0])


def test_fit_refuses_to_resume_other_settings(tmp_path):
    fit(stack(), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        fit(stack(), tmp_path, steps=2, seed=1, **SMALL)


def test_fit_draws_from_the_attacks_that_are_named(tmp_path, monkeypatch):
    drawn = []

    def note(extractor, image, *, names, **options):
        drawn.append(names)
        return extractor(image).float()

    monkeypatch.setattr("medsign_lite.pretraining.read_under_attack", note)
    fit(stack(), tmp_path, steps=1, attack_names=("flip", "crop"), **SMALL)
    assert drawn == [("flip", "crop")]
    details = load_checkpoint(tmp_path / "extractor", kind="extractor")[1]["details"]
    assert details["attack_names"] == ["flip", "crop"]
    with pytest.raises(ValueError, match="attack_names was .* is .'none', 'brightness'"):
        fit(stack(), tmp_path, steps=2, **SMALL)
    with pytest.raises(ValueError, match="expected names among none, flip, .* got 'shear'"):
        fit(stack(), tmp_path / "other", steps=1, attack_names=("shear",), **SMALL)


def test_fit_stops_a_run_that_does_not_take_off(tmp_path):
    settings = SMALL | {"curriculum": CurriculumConfig(
        sizes=(32,), size_starts=(0.0,), patience_images=16, take_off_margin=0.45)}  # fmt: skip
    with pytest.raises(NoTakeOff, match="stronger signal"):
        fit(stack(), tmp_path, steps=50, **settings)


@pytest.mark.parametrize("budget", [{}, {"minutes": 1, "steps": 1}], ids=["neither", "both"])
def test_fit_takes_one_budget(tmp_path, budget):
    with pytest.raises(ValueError, match="either minutes or steps"):
        fit(stack(), tmp_path, **SMALL, **budget)


def test_fit_refuses_too_few_images(tmp_path):
    with pytest.raises(ValueError, match="more than 4 others, one per bit, got 4"):
        fit(stack(12), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="at least 1 image held out, got 0"):
        fit(stack(), tmp_path, steps=1, **SMALL | {"held_out": 0})
    assert not list(tmp_path.iterdir())


def test_fit_refuses_other_images_of_the_same_number(tmp_path):
    fit(stack(), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="other settings: stack was"):
        fit(stack().flip(3), tmp_path, steps=2, **SMALL)


def test_main_names_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent do not exist"):
        main(["--images", str(tmp_path / "absent"), "--out", str(tmp_path), "--steps", "1"])


def test_main_follows_the_networks_curriculum_but_for_a_strength_that_is_given(
    tmp_path, monkeypatch
):
    np.save(tmp_path / "images.npy", stack(2).numpy())
    seen = []
    monkeypatch.setattr(pretraining, "fit", lambda *_, curriculum, **__: seen.append(curriculum))
    for more in ((), ("--strength", "0.02"), ("--network", "folded")):
        main(["--images", str(tmp_path / "images.npy"), "--out", "OUT", "--steps", "1",
              "--size", "32", *more])  # fmt: skip
    weaker = dataclasses.replace(SPECTRAL_CURRICULUM, last_strength=0.02)
    assert seen == [SPECTRAL_CURRICULUM, weaker, CurriculumConfig()]


def test_an_upright_network_does_not_look_for_turns(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", stack(2).numpy())
    seen = []
    monkeypatch.setattr(pretraining, "fit", lambda *_, config, **__: seen.append(config))
    for network in ("spectral", "upright"):
        main(["--images", str(tmp_path / "images.npy"), "--out", "OUT", "--steps", "1",
              "--size", "32", "--network", network])  # fmt: skip
    assert dataclasses.replace(seen[0], turns=0) == seen[1] != seen[0]
