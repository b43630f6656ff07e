"""The velocity target and the training of text encoder and U-Net."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import medsign_lite.generator.denoiser_training as training
from medsign_lite.data import Record
from medsign_lite.generator.bundled_networks import build_scheduler
from medsign_lite.generator.denoiser_training import (
    denoising_loss,
    encode_images,
    fit_denoiser,
)
from medsign_lite.latent_diffusion import encode, load_pipeline
from tests.tiny_pipeline import tiny_pipeline

REPORTS = [
    "Severe right lower lobe pneumonia. No pneumothorax.",
    "Moderate cardiomegaly and small left effusion.",
    "No cardiomegaly, effusion, pneumonia or pneumothorax.",
] * 20


def record_of(report, *named, masks=None):
    """A chest record; each of `named` is a word and its side."""
    words, sides = zip(*named, strict=True) if named else ((), ())
    return Record(
        id="one", image=Path("one.png"), modality="chest", split="train", report=report,
        findings=words, words=words, sides=sides, masks=masks or (None,) * len(words),
    )  # fmt: skip


RECORDS = [
    record_of(REPORTS[0], ("pneumonia", "right")),
    record_of(REPORTS[1], ("cardiomegaly", ""), ("effusion", "left")),
    record_of(REPORTS[2]),
] * 4


class Oracle(nn.Module):
    """A U-Net that knows the latents' noise, drawn as the loss draws it."""

    def __init__(self, latents, seed, scheduler, wrong=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(latents.shape, generator=generator)
        self.latents, self.alphas, self.wrong = latents, scheduler.alphas_cumprod, wrong

    def forward(self, noised, timesteps, text):
        alpha = self.alphas[timesteps][:, None, None, None]
        expected = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * self.noise
        torch.testing.assert_close(noised, expected)
        velocity = alpha.sqrt() * self.noise - (1 - alpha).sqrt() * self.latents
        return type("Output", (), {"sample": velocity + self.wrong})


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_loss_is_the_squared_error_of_the_velocity(wrong):
    latents, scheduler = torch.randn(5, 4, 8, 8), build_scheduler()
    oracle = Oracle(latents, 3, scheduler, wrong)
    loss = denoising_loss(
        oracle,
        lambda tokens: (None,),
        scheduler,
        latents,
        torch.zeros(5, 77, dtype=torch.long),
        generator=torch.Generator().manual_seed(3),
    )
    assert loss.item() == pytest.approx(wrong**2, abs=1e-6)


def test_loss_weighs_each_place():
    latents, scheduler, weights = torch.randn(2, 4, 8, 8), build_scheduler(), torch.zeros(2, 8, 8)
    weights[0, 2, 3] = 5.0
    loss = denoising_loss(
        Oracle(latents, 3, scheduler, wrong=0.5),
        lambda tokens: (None,),
        scheduler,
        latents,
        torch.zeros(2, 77, dtype=torch.long),
        weights=weights,
        generator=torch.Generator().manual_seed(3),
    )
    assert loss.item() == pytest.approx(0.25 * 5 / (2 * 64), abs=1e-6)


def test_emphasis_falls_on_images_with_words(small, tmp_path, monkeypatch):
    vae, latents, loss, seen = tiny_pipeline().vae, torch.randn(8, 4, 8, 8), denoising_loss, []
    small_one, large_one = torch.zeros(2, 8, 8, dtype=torch.bool)
    small_one[1, 2] = True  # less than the smallest share that is told apart
    large_one[4:] = True
    emphasised = torch.stack([small_one, large_one] * 4)

    def noting(*arguments, weights, **options):
        seen.append((arguments[4], weights))
        return loss(*arguments, weights=weights, **options)

    monkeypatch.setattr(training, "emphasised_places", lambda records, regions: emphasised)
    monkeypatch.setattr(training, "denoising_loss", noting)
    fit_denoiser(
        latents, RECORDS[:8], vae, tmp_path, steps=6, **small,
        unconditional=0.5, emphasis=3.0,
    )  # fmt: skip
    tokens, weights = (torch.cat(parts) for parts in zip(*seen, strict=True))
    empty = tokens[:, 1] == tokens[:, 2]  # nothing but padding after the start
    assert 0 < empty.sum() < len(empty)
    assert weights[empty].eq(1).all()
    large = weights[~empty][:, 5, 5] > 1
    assert 0 < large.sum() < len(large)
    # However large, findings weigh three times the image together.
    assert weights[~empty][large].sum(dim=(1, 2)) == pytest.approx(64 + 3 * 64)
    assert weights[~empty][~large][:, 1, 2] == pytest.approx(1 + 3 / training.SMALLEST)
    assert weights[~empty][~large].sum(dim=(1, 2)) == pytest.approx(64 + 3 / training.SMALLEST)


def test_text_encoder_learns_to_tell_sides(small, tmp_path):
    left = record_of(REPORTS[0].replace("right", "left"), ("pneumonia", "left"))
    fit_denoiser(torch.zeros(8, 4, 8, 8), [RECORDS[0], left] * 4, tiny_pipeline().vae, tmp_path,
                 steps=60, side_weight=1.0, **small)  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # Two sides, equally often: a guess costs ln 2.
    assert rows[0]["side_loss"] > 0.4 and rows[-1]["side_loss"] < 0.2


def test_words_learn_to_attend_to_their_mask(small, tmp_path):
    """Its latents say nothing, so that only grounding can tell the word where to look."""
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[:8] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    record = record_of(REPORTS[0], ("pneumonia", "right"), masks=(tmp_path / "mask.png",))
    ends = {}
    for weight in (0.0, 1.0):
        folder = tmp_path / str(weight)
        fit_denoiser(torch.randn(8, 4, 8, 8), [record] * 8, tiny_pipeline().vae, folder,
                     steps=40, grounding=weight, **small)  # fmt: skip
        rows = (folder / "log.jsonl").read_text().splitlines()
        ends[weight] = json.loads(rows[-1])["grounding_loss"]
    # The mask is a quarter of the image: evenly spread attention costs (3 / 4)^2.
    assert ends[0.0] > 0.4 and ends[1.0] < 0.6 * ends[0.0]


def test_encoded_images_agree_with_the_boundary():
    vae = tiny_pipeline().vae
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    # bfloat16, where the processor has it, keeps eight bits of mantissa.
    torch.testing.assert_close(
        encode_images(vae, images, batch=2), encode(vae, images / 255), rtol=0.05, atol=0.02
    )


@pytest.fixture
def small(monkeypatch):
    """Networks of a few thousand weights."""
    unet = training.build_unet
    monkeypatch.setattr(training, "build_unet", lambda **o: unet(channels=(16, 16), **o))
    return {"batch": 4, "log_every": 5, "learning_rate": 3e-3}


def test_fit_writes_an_ordinary_pipeline(small, tmp_path):
    vae, latents = tiny_pipeline().vae, torch.randn(8, 4, 8, 8).clamp(-1, 1)
    fit_denoiser(latents, RECORDS[:8], vae, tmp_path, steps=30, **small)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[-1]["loss"] < rows[0]["loss"]
    loaded = load_pipeline(tmp_path / "pipeline")
    assert loaded.tokenizer.tokenize("effusion")[-1].endswith("</w>")
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    files = sorted(path.suffix for path in (tmp_path / "pipeline").rglob("*model.*"))
    assert files == [".safetensors"] * 3


def test_fit_resumes_exactly(small, tmp_path, monkeypatch):
    vae, latents = tiny_pipeline().vae, torch.randn(8, 4, 8, 8)
    whole = fit_denoiser(latents, RECORDS[:8], vae, tmp_path / "whole", steps=5, **small)
    loss, calls = training.denoising_loss, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training, "denoising_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_denoiser(latents, RECORDS[:8], vae, tmp_path / "killed", steps=5, **small)
    monkeypatch.setattr(training, "denoising_loss", loss)
    resumed = fit_denoiser(latents, RECORDS[:8], vae, tmp_path / "killed", steps=5, **small)
    for name, weight in whole.unet.state_dict().items():
        torch.testing.assert_close(resumed.unet.state_dict()[name], weight, msg=name)
