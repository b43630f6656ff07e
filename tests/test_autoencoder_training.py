"""The autoencoder: figures by hand, learning, and resuming where a run was killed."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from medsign_lite.generator.autoencoder_training import (
    autoencoder_loss,
    fit_autoencoder,
    latent_scale,
    reconstruction_psnr,
)
from medsign_lite.generator.bundled_networks import build_autoencoder


@pytest.fixture
def images():
    """One smooth picture eight times, uint8: a few steps learn something of it."""
    ramp = torch.linspace(20, 235, 64)[None, None, None, :]
    return ramp.expand(8, 3, 64, 64).round().to(torch.uint8)


def test_built_autoencoder_makes_the_stated_latents():
    vae = build_autoencoder(channels=(8, 8, 8, 8))
    assert vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean.shape == (1, 4, 16, 16)


def test_loss_is_the_squared_error_plus_the_divergence():
    torch.manual_seed(1)
    vae = build_autoencoder(channels=(8, 8, 8, 8)).eval()
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    seeded = [torch.Generator().manual_seed(2) for _ in range(2)]
    result = autoencoder_loss(vae, image, generator=seeded[0], kl_weight=0.0)
    error = result["loss"].item()
    # In [0, 1] the squared error is a quarter of that in [-1, 1].
    assert result["psnr"] == pytest.approx(-10 * torch.tensor(error / 4).log10().item(), abs=1e-4)
    posterior = vae.encode(image).latent_dist
    by_hand = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    weighted = autoencoder_loss(vae, image, generator=seeded[1], kl_weight=10.0)["loss"].item()
    assert weighted - error == pytest.approx(10 * by_hand.item(), rel=1e-4)


class Offset(torch.nn.Module):
    """Stands for an autoencoder that reproduces the image a fixed amount too bright."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = torch.nn.Parameter(torch.tensor(amount))

    def encode(self, image):
        distribution = type("Distribution", (), {"mean": image})
        return type("Encoded", (), {"latent_dist": distribution})

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents + self.amount})


def test_reconstruction_psnr_by_hand():
    images = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    offset = Offset(10 / 127.5)  # ten of 255 levels
    expected = 20 * torch.tensor(255 / 10).log10()
    torch.testing.assert_close(
        reconstruction_psnr(offset, images, batch=2), expected.expand(3), rtol=1e-4, atol=1e-4
    )


def test_latent_scale_gives_unit_deviation():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    signed = images.float() / 127.5 - 1
    assert latent_scale(Offset(0.0), images) == pytest.approx(1 / signed.std().item(), rel=1e-5)


def test_fit_learns_logs_and_saves(images, tmp_path):
    vae = fit_autoencoder(
        images, images[:4], tmp_path, steps=24, batch=4, learning_rate=3e-3, log_every=8
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [8, 16, 24]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 1
    loaded = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert loaded.config.scaling_factor == pytest.approx(vae.config.scaling_factor)
    mean = loaded.encode(images[:4].float() / 127.5 - 1).latent_dist.mean
    assert mean.std().item() * loaded.config.scaling_factor == pytest.approx(1.0, abs=0.3)


def test_fit_resumes_exactly(images, tmp_path, monkeypatch):
    settings = {"steps": 6, "batch": 2, "log_every": 100}
    whole = fit_autoencoder(images, images[:2], tmp_path / "whole", **settings)

    import medsign_lite.generator.autoencoder_training as training

    loss, calls = training.autoencoder_loss, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training, "autoencoder_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_autoencoder(images, images[:2], tmp_path / "killed", **settings)
    monkeypatch.setattr(training, "autoencoder_loss", loss)
    resumed = fit_autoencoder(images, images[:2], tmp_path / "killed", **settings)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, msg=name)


def test_the_encoder_is_final_when_the_decoder_trains_alone(images, tmp_path, monkeypatch):
    import medsign_lite.generator.autoencoder_training as training

    loss, encoders, decoders = training.autoencoder_loss, [], []

    def noting(vae, image, *, decoder_alone, **options):
        for part, seen in ((vae.encoder, encoders), (vae.decoder, decoders)):
            seen.append([p.detach().clone() for p in part.parameters()])
        assert decoder_alone == (len(encoders) > 2)
        return loss(vae, image, decoder_alone=decoder_alone, **options)

    monkeypatch.setattr(training, "autoencoder_loss", noting)
    vae = fit_autoencoder(
        images, images[:2], tmp_path, steps=5, batch=2, log_every=5, decoder_alone_from=0.4
    )

    def equal(first, second):
        return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    assert not equal(encoders[0], encoders[1])
    assert equal(encoders[2], encoders[4]) and not equal(decoders[2], decoders[4])
    assert equal(encoders[2], list(vae.encoder.parameters()))  # the average's encoder, too


def test_fit_does_not_learn_from_a_batch_that_is_far_off(images, tmp_path, monkeypatch):
    import medsign_lite.generator.autoencoder_training as training

    loss, weights = training.autoencoder_loss, []

    def spike(vae, image, **options):
        weights.append([p.detach().clone() for p in vae.parameters()])
        result = loss(vae, image, **options)
        return result | {"loss": 100 * result["loss"]} if len(weights) == 3 else result

    monkeypatch.setattr(training, "autoencoder_loss", spike)
    fit_autoencoder(images, images[:2], tmp_path, steps=5, batch=2, log_every=5)
    changed = [
        any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in zip(weights[:-1], weights[1:], strict=True)
    ]
    assert changed == [True, True, False, True]
    assert json.loads((tmp_path / "log.jsonl").read_text())["skipped"] == 1


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [({"batch": 1}, 64, "batch: expected a multiple of 2, .* got 1"),
     ({}, 48, "square images of at least 64 pixels, got .*48, 48")],
)  # fmt: skip
def test_fit_refuses_what_would_fail_at_half_its_budget(tmp_path, options, size, message):
    images = torch.zeros(4, 3, size, size, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        fit_autoencoder(images, images, tmp_path / "run", steps=4, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fit_goes_from_crops_to_whole_images_to_the_decoder_alone(tmp_path, monkeypatch):
    sizes, encoder = [], []
    monkeypatch.setattr("medsign_lite.generator.autoencoder_training.build_autoencoder", tiny)
    monkeypatch.setattr(
        "medsign_lite.generator.autoencoder_training.autoencoder_loss", watched(sizes)
    )
    images = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8)
    for steps in (3, 4):  # the second goes on from the first, in the last phase
        vae = fit_autoencoder(images, images, tmp_path, steps=steps, batch=4)
        encoder.append([p.clone() for p in vae.encoder.parameters()])
    assert [size for size, _ in sizes[:3]] == [(4, 64), (4, 64), (2, 128)]
    assert [alone for _, alone in sizes] == [False, False, False, True]
    assert all(torch.equal(a, b) for a, b in zip(*encoder, strict=True))


def tiny():
    return build_autoencoder(channels=(8, 8, 8, 8))


def watched(seen):
    def loss(vae, image, **options):
        seen.append(((len(image), image.shape[-1]), options["decoder_alone"]))
        return autoencoder_loss(vae, image, **options)

    return loss
