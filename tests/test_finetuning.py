import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.extractor import Extractor, ExtractorConfig, save_extractor, whiten
from medsign_lite.finetuning import evaluate, finetune_step, fit, main
from medsign_lite.finetuning_step import as_seen
from medsign_lite.latent_cache import LatentCache, write_latent_cache
from medsign_lite.latent_diffusion import copy_decoder, decode, load_decoder
from medsign_lite.losses import LossWeights, chest_weights
from medsign_lite.perceptual import perceptual_loss
from medsign_lite.training.optimisers import OPTIMISERS
from tests.tiny_pipeline import tiny_pipeline

WEIGHTS = LossWeights(image=0.1, message=1, total_variation=0.1, preservation=1)
MESSAGE = torch.tensor([1.0, 0.0, 1.0, 1.0])


def tiny_vae():
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).requires_grad_(False)  # fmt: skip
    vae.decoder.conv_out.weight *= 0.3  # images well inside [0, 1]
    return vae


def tiny_extractor(norm="batch"):
    torch.manual_seed(2)
    extractor = Extractor(ExtractorConfig(
        bits=4, channels=16, stages=(1, 1), width=32, norm=norm, embedder_channels=16))  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(16, 3, 32, 32, generator=generator) for _ in range(2)]
    return whiten(extractor, images)


def tiny_cache(vae, count=12):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(count, 4, 16, 16, generator=generator)
    maps = torch.zeros(count, 16, 16)
    maps[:, :8] = 1  # the upper half is the pathology
    originals = (255 * decode(vae, latents).clamp(0, 1)).round().to(torch.uint8)
    return LatentCache(
        latents=latents, maps=maps, originals=originals, prompts=("no finding",) * count
    )


def run(decoder, extractor, cache, steps, **options):
    decoder.train()
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=options.pop("learning_rate", 5e-3))
    original, latents, maps = cache.batch(torch.arange(4), "cpu")
    settings = {"weights": WEIGHTS, "perceptual": perceptual_loss(), "precision": "float32",
                "generator": torch.Generator().manual_seed(0)} | options  # fmt: skip
    message, weights = settings.pop("message", MESSAGE), settings.pop("weights")
    values = [
        finetune_step(decoder, original, latents, maps, message, extractor, weights,
                      optimiser=optimiser, **settings)
        for _ in range(steps)
    ]  # fmt: skip
    assert not latents.requires_grad, "a step changed the caller's latents"
    return values


def test_finetune_step_writes_the_message_and_moves_nothing_else():
    vae, extractor = tiny_vae(), tiny_extractor().requires_grad_(False)
    kept = {name: w.clone() for name, w in {**vae.state_dict(), **extractor.state_dict()}.items()}
    decoder, cache = copy_decoder(vae), tiny_cache(vae)
    message = 1 - (extractor(cache.batch(torch.arange(8), "cpu")[0]).mean(dim=0) > 0).float()
    history = run(decoder, extractor, cache, 40, message=message, quality=0.01)
    assert history[0]["bit_accuracy"] < 0.5  # the message is what the originals do not say
    assert history[-1]["bit_accuracy"] > 0.95
    assert history[-1]["message"] < 0.5 * history[0]["message"]
    after = {**vae.state_dict(), **extractor.state_dict()}
    assert all(torch.equal(kept[name], after[name]) for name in kept)
    assert all(p.grad is None for p in extractor.parameters())


def test_finetune_step_reads_each_image_under_an_attack_of_its_own_each_time(monkeypatch):
    vae, seen = tiny_vae(), []

    def attack(image, *, generator, **options):
        seen.append((len(image), generator.initial_seed()))
        return image

    monkeypatch.setattr("medsign_lite.pretraining.random_attack", attack)
    losses = []
    for reads, strength in ((1, 1.0), (3, 1.0), (3, 0.0)):
        seen.clear()
        settings = {"reads": reads, "attacks": 2, "attack_strength": strength}
        losses += run(copy_decoder(vae), tiny_extractor(), tiny_cache(vae), 1, **settings)
        calls = 2 * reads if strength else 0
        assert len(seen) == len(set(seen)) == calls and {size for size, _ in seen} <= {2}
    for other in losses[1:]:  # an attack that does nothing: the same mean
        assert other == pytest.approx(losses[0], rel=1e-4)


def test_finetune_step_first_losses_are_those_of_the_original():
    """Before any step the decoder is the original but for rounding: no image loss, PSNR ~ 59 dB."""
    vae = tiny_vae()
    cache = tiny_cache(vae)
    assert cache.originals.float().std() > 5  # not a flat image
    first = run(copy_decoder(vae), tiny_extractor(), cache, 1)[0]
    assert first["preservation"] < 1e-5
    assert first["psnr"] > 50
    expected = WEIGHTS.message * first["message"] + sum(
        getattr(WEIGHTS, name) * first[name]
        for name in ("image", "total_variation", "preservation")
    )
    assert first["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_is_cut_off_at_both_counts_as_the_original():
    image = torch.tensor([1.2, 1.2, 0.9, -0.1, -0.1, 0.5]).view(1, 1, 1, 6)
    original = torch.tensor([1.0, 0.8, 1.0, 0.0, 0.1, 0.5]).view(1, 1, 1, 6)
    expected = [1.0, 1.2, 0.9, 0.0, -0.1, 0.5]
    image.requires_grad_(True)
    seen = as_seen(image, original)
    assert seen.flatten().tolist() == pytest.approx(expected)
    seen.sum().backward()
    assert image.grad.flatten().tolist() == [0, 1, 1, 0, 1, 1]


def test_preservation_keeps_the_mark_out_of_the_pathology():
    vae, extractor = tiny_vae(), tiny_extractor()
    cache = tiny_cache(vae)
    gaps = {}
    for preservation in (0, 3000):
        decoder = copy_decoder(vae)
        weights = LossWeights(image=0.01, message=1, total_variation=0, preservation=preservation)
        run(decoder, extractor, cache, 30, weights=weights)
        scores = evaluate(decoder, cache, MESSAGE, extractor, precision="float32")
        gaps[preservation] = scores["finding_psnr"] - scores["elsewhere_psnr"]
    assert gaps[3000] > gaps[0] + 3  # dB


def test_evaluate_scores_quality_and_every_attack():
    vae, extractor = tiny_vae(), tiny_extractor()
    scores = evaluate(copy_decoder(vae), tiny_cache(vae), MESSAGE, extractor, precision="float32")
    assert list(scores) == [
        "psnr", "ssim", "finding_psnr", "elsewhere_psnr",
        "none", "brightness", "crop", "jpeg", "rotation", "resize",
    ]  # fmt: skip
    assert scores["psnr"] > 60 and scores["ssim"] > 0.999  # the original against itself


def test_evaluate_counts_no_finding_where_there_is_none():
    vae, extractor = tiny_vae(), tiny_extractor()
    decoder, cache = copy_decoder(vae), tiny_cache(vae)
    decoder.decoder.conv_out.bias.data += 0.1
    every = evaluate(decoder, cache, MESSAGE, extractor, precision="float32")
    half = replace(cache, maps=cache.maps.clone())
    half.maps[:6] = 0
    some = evaluate(decoder, half, MESSAGE, extractor, precision="float32")
    # The same change everywhere: images without a finding must not pass for images spared.
    assert some["finding_psnr"] == pytest.approx(every["finding_psnr"], abs=0.1)
    none = replace(cache, maps=torch.zeros_like(cache.maps))
    assert "finding_psnr" not in evaluate(decoder, none, MESSAGE, extractor, precision="float32")


SETTINGS = {"perceptual": perceptual_loss(), "batch_size": 4, "held_out": 4, "precision": "float32"}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_fit_resumed_after_a_kill_equals_fit_in_one_go(tmp_path, monkeypatch, optimiser):
    vae, extractor = tiny_vae(), tiny_extractor()
    cache = tiny_cache(vae)

    def go(name):
        return fit(copy_decoder(vae), cache, MESSAGE, extractor, WEIGHTS, tmp_path / name,
                   steps=6, save_seconds=0, optimiser=optimiser, **SETTINGS)  # fmt: skip

    whole = go("whole")
    calls = []

    def step_until_killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return finetune_step(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr("medsign_lite.finetuning.finetune_step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            go("killed")
    killed = go("killed")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, killed.state_dict()[name]), name


def test_fit_saves_a_decoder_that_says_what_it_carries(tmp_path):
    vae, extractor = tiny_vae(), tiny_extractor()
    averaged = fit(
        copy_decoder(vae), tiny_cache(vae), MESSAGE, extractor, WEIGHTS, tmp_path, steps=3,
        log_seconds=0, details={"modality": "chest"}, **SETTINGS,
    )  # fmt: skip
    loaded, config = load_decoder(tmp_path / "decoder", vae)
    assert config["message"] == "1011" and config["modality"] == "chest"
    assert config["perceptual"] == "masked-pyramid"
    assert "rotation" in config["evaluation"]
    latents = torch.randn(1, 4, 16, 16)
    assert torch.allclose(loaded(latents), averaged(latents), atol=1e-2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"quality", "psnr", "bit_accuracy", "preservation"} <= set(lines[0])


def test_fit_trains_the_layers_that_are_named(tmp_path):
    vae = tiny_vae()
    before = copy_decoder(vae).state_dict()
    layers = {"layers": ["up_blocks.1", "conv_out"]}
    after = fit(copy_decoder(vae), tiny_cache(vae), MESSAGE, tiny_extractor(), WEIGHTS, tmp_path,
                steps=3, **layers, **SETTINGS).state_dict()  # fmt: skip
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "up_blocks.1." in name or "conv_out." in name}
    assert json.loads((tmp_path / "decoder/config.json").read_text())["layers"] == layers["layers"]


def test_fit_freezes_the_extractor_and_its_running_statistics(tmp_path):
    vae, extractor = tiny_vae(), tiny_extractor(norm="batch").train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    fit(copy_decoder(vae), tiny_cache(vae), MESSAGE, extractor, WEIGHTS, tmp_path, steps=3,
        **SETTINGS)  # fmt: skip
    assert not extractor.training
    for name, value in extractor.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (torch.ones(5), "4 bits|expected .*4"),
        (torch.tensor([1.0, 0.5, 0.0, 1.0]), "0"),
        (torch.ones(2, 4), "one message"),
    ],
    ids=["too long", "not bits", "one per image"],
)
def test_fit_refuses_a_bad_message_before_any_work(tmp_path, message, error):
    vae = tiny_vae()
    with pytest.raises(ValueError, match=error):
        fit(copy_decoder(vae), tiny_cache(vae), message, tiny_extractor(), WEIGHTS, tmp_path,
            steps=1, **SETTINGS)  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"layers": ["up_blocks.9"]}, "no layer 'up_blocks.9' to train; there are .*up_blocks.1"),
        ({"reads": 0}, "reads: expected at least 1 .* got 0"),
        ({"held_out": 0}, "held_out: expected from 1 to fewer than the cache's 12 entries, got 0"),
        ({"held_out": 12}, "held_out: .* got 12"),
        ({"attack_names": ["jpg"]}, "expected names among .* got 'jpg'"),
    ],
    ids=["layer", "reads", "none held out", "all held out", "attack"],
)
def test_fit_refuses_bad_options_before_any_work(tmp_path, option, error):
    vae = tiny_vae()
    with pytest.raises(ValueError, match=error):
        fit(copy_decoder(vae), tiny_cache(vae), MESSAGE, tiny_extractor(), WEIGHTS, tmp_path,
            steps=1, **SETTINGS | option)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_fit_keeps_the_decoder_that_could_not_be_scored(tmp_path, monkeypatch):
    def failing(*arguments, **options):
        raise MemoryError("scores")

    monkeypatch.setattr("medsign_lite.finetuning.evaluate", failing)
    vae = tiny_vae()
    with pytest.raises(MemoryError):
        fit(copy_decoder(vae), tiny_cache(vae), MESSAGE, tiny_extractor(), WEIGHTS, tmp_path,
            steps=1, **SETTINGS)  # fmt: skip
    _, about = load_decoder(tmp_path / "decoder", vae)
    assert about["step"] == 1 and "evaluation" not in about


def test_fit_refuses_another_message_in_the_same_folder(tmp_path):
    vae, extractor = tiny_vae(), tiny_extractor()
    cache = tiny_cache(vae)
    fit(copy_decoder(vae), cache, MESSAGE, extractor, WEIGHTS, tmp_path, steps=1, **SETTINGS)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        fit(copy_decoder(vae), cache, 1 - MESSAGE, extractor, WEIGHTS, tmp_path, steps=1,
            **SETTINGS)  # fmt: skip


def test_fit_goes_on_with_no_other_cache_extractor_or_start(tmp_path):
    vae, extractor = tiny_vae(), tiny_extractor()
    cache = tiny_cache(vae)
    fit(copy_decoder(vae), cache, MESSAGE, extractor, WEIGHTS, tmp_path, steps=1, **SETTINGS)
    moved = copy_decoder(vae)
    with torch.no_grad():
        moved.decoder.conv_out.bias += 0.1
    for decoder, others, reader, name in (
        (copy_decoder(vae), replace(cache, latents=cache.latents + 1), extractor, "latents"),
        (copy_decoder(vae), replace(cache, maps=1 - cache.maps), extractor, "maps"),
        (copy_decoder(vae), cache, tiny_extractor("group"), "extractor"),
        (moved, cache, extractor, "start"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with other settings.*{name}"):
            fit(decoder, others, MESSAGE, reader, WEIGHTS, tmp_path, steps=1, **SETTINGS)
    unmapped = replace(WEIGHTS, preservation=0)  # then the maps do not matter
    fit(copy_decoder(vae), cache, MESSAGE, extractor, unmapped, tmp_path / "b", steps=1,
        **SETTINGS)  # fmt: skip
    fit(copy_decoder(vae), replace(cache, maps=1 - cache.maps), MESSAGE, extractor, unmapped,
        tmp_path / "b", steps=1, **SETTINGS)  # fmt: skip


def test_main_fine_tunes_from_folders(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    save_extractor(tmp_path / "extractor", tiny_extractor())
    generator = torch.Generator().manual_seed(0)
    write_latent_cache(
        tmp_path / "cache", torch.randn(70, 4, 16, 16, generator=generator),
        torch.rand(70, 16, 16, generator=generator), ["no effusion"] * 70,
    )  # fmt: skip
    command = [
        "--cache", str(tmp_path / "cache"), "--extractor", str(tmp_path / "extractor"),
        "--pipeline", str(tmp_path / "pipeline"), "--modality", "chest",
        "--steps", "1", "--batch-size", "2", "--precision", "float32", "--device", "cpu",
    ]  # fmt: skip
    main([*command, "--out", str(tmp_path / "out"), "--learning-rate", "0.01",
          "--message", "1010"])  # fmt: skip
    first, config = load_checkpoint(tmp_path / "out" / "decoder", kind="decoder")
    assert config["message"] == "1010"
    assert config["weights"] == vars(chest_weights()) and config["attack_strength"] == 1
    # Another run goes on from there: a step so small that half precision does not show it.
    main([*command, "--out", str(tmp_path / "next"), "--start", str(tmp_path / "out" / "decoder"),
          "--learning-rate", "1e-9", "--mirrored", "--structure", "2"])  # fmt: skip
    second, config = load_checkpoint(tmp_path / "next" / "decoder", kind="decoder")
    assert all(torch.allclose(second[name], first[name], atol=1e-4) for name in first)
    assert config["started_from"]["learning_rate"] == 0.01 and config["message"] == "1010"
    assert config["mirrored"] and config["entries"] == 4 * 6 + 64  # what is held out stays as it is
    assert config["perceptual"] == "masked-pyramid+ssim-2"
    # Stable Signature's: image and message alone, nothing between decoder and extractor.
    main([*command, "--out", str(tmp_path / "plain"), "--total-variation", "0",
          "--preservation", "0", "--attack-strength", "0"])  # fmt: skip
    _, config = load_checkpoint(tmp_path / "plain" / "decoder", kind="decoder")
    changed = {"total_variation": 0, "preservation": 0}
    assert config["weights"] == vars(chest_weights()) | changed
    assert config["attack_strength"] == 0
