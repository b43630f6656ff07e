"""Tokenizer, velocity target and the training of text encoder and U-Net."""

import json

import pytest
import torch
from torch import nn

import medsign_lite.denoiser_training as training
from medsign_lite.denoiser_training import (
    build_scheduler,
    build_text_encoder,
    build_unet,
    denoising_loss,
    encode_images,
    fit_denoiser,
    learn_merges,
    learn_tokenizer,
)
from medsign_lite.latent_diffusion import encode, load_pipeline
from tests.tiny_pipeline import tiny_pipeline

REPORTS = [
    "Severe right lower lobe pneumonia. No pneumothorax.",
    "Moderate cardiomegaly and small left effusion.",
    "No cardiomegaly, effusion, pneumonia or pneumothorax.",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(REPORTS)


def test_merges_by_hand():
    # "ab" occurs 5 times, "b c</w>" 4 times; after the first merge "ab c</w>" is left, 4 times.
    words = {"abc": 4, "abd": 1, "xyz": 3}
    assert learn_merges(words, merges=2, longest=9) == [("a", "b"), ("ab", "c</w>")]
    # A tie goes to the alphabet: "xy" and "yz</w>" both occur 3 times.
    assert learn_merges({"xyz": 3}, merges=1, longest=9) == [("x", "y")]
    # With two characters at most, "abc" never becomes one token.
    assert learn_merges({"abc": 4}, merges=9, longest=2) == [("a", "b")]


def test_the_same_reports_give_the_same_tokenizer(tokenizer):
    again = learn_tokenizer(REPORTS[::-1])
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.tokenize(REPORTS[0]) == tokenizer.tokenize(REPORTS[0])


def test_tokens_are_short_so_that_medical_words_are_several(tokenizer):
    learnt = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token[0] != "<"]
    assert max(map(len, learnt)) <= 7
    for word in ("pneumothorax", "pneumonia", "cardiomegaly", "effusion"):
        pieces = tokenizer.tokenize(word)
        assert len(pieces) >= 2 and "".join(pieces) == word + "</w>"
    assert tokenizer.tokenize("No") == ["no</w>"]


def test_any_text_is_tokenised_without_unknowns(tokenizer):
    pieces = tokenizer.tokenize("Zürich: 3 mm nodule (ö).")
    assert tokenizer.unk_token not in pieces
    assert tokenizer.decode(tokenizer("Zebra é").input_ids[1:-1]).strip() == "zebra é"


def test_prompts_begin_end_and_are_padded_as_the_text_encoder_expects(tokenizer):
    ids = tokenizer("no effusion", padding="max_length").input_ids
    assert len(ids) == tokenizer.model_max_length == 77
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.is_fast  # offsets of words need it


def test_schedule_ends_in_pure_noise():
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0.0
    assert scheduler.config.prediction_type == "v_prediction"


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


def test_text_encoder_and_unet_fit_together(tokenizer):
    text_encoder, unet = build_text_encoder(tokenizer, layers=2), build_unet(channels=(16, 32))
    tokens = torch.tensor(tokenizer(["effusion"], padding="max_length").input_ids)
    states = text_encoder(tokens)[0]
    assert states.shape == (1, 77, 128)
    assert unet(torch.zeros(1, 4, 16, 16), 0, states).sample.shape == (1, 4, 16, 16)
    names = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert len(names) == 7  # 2 down, 1 mid, 4 up


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
    fit_denoiser(latents, REPORTS[:8], vae, tmp_path, steps=30, **small)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[-1]["loss"] < rows[0]["loss"]
    loaded = load_pipeline(tmp_path / "pipeline")
    assert loaded.tokenizer.tokenize("effusion")[-1].endswith("</w>")
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    files = sorted(path.suffix for path in (tmp_path / "pipeline").rglob("*model.*"))
    assert files == [".safetensors"] * 3


def test_fit_resumes_exactly(small, tmp_path, monkeypatch):
    vae, latents = tiny_pipeline().vae, torch.randn(8, 4, 8, 8)
    whole = fit_denoiser(latents, REPORTS[:8], vae, tmp_path / "whole", steps=5, **small)
    loss, calls = training.denoising_loss, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training, "denoising_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_denoiser(latents, REPORTS[:8], vae, tmp_path / "killed", steps=5, **small)
    monkeypatch.setattr(training, "denoising_loss", loss)
    resumed = fit_denoiser(latents, REPORTS[:8], vae, tmp_path / "killed", steps=5, **small)
    for name, weight in whole.unet.state_dict().items():
        torch.testing.assert_close(resumed.unet.state_dict()[name], weight, msg=name)
