"""Runs that learn one batch by heart, resume, and write an ordinary folder."""

import copy
import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import nn

import medsign_lite.generator.diffusion_finetuning as module
from medsign_lite.data import Record, write_manifest
from medsign_lite.generator.diffusion_finetuning import fit_diffusion, main
from medsign_lite.generator.diffusion_step import diffusion_step, training_scheduler
from medsign_lite.latent_diffusion import load_pipeline, sample
from tests.tiny_pipeline import tiny_autoencoder, tiny_pipeline

REPORTS = ["no edema", "effusion", "edema effusion", "no"] * 2
OPTIONS = {"steps": 5, "batch": 4, "learning_rate": 3e-3, "precision": "float32", "log_every": 1}


def pipeline_of(prediction_type="epsilon", **parts):
    """Of one resolution: a step's time goes into the number of tensors, not their size."""
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type=prediction_type)
    blocks = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": None,
    }
    return tiny_pipeline(scheduler=scheduler, **blocks | parts)


def latents_of(count=8):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def weights_of(pipeline):
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "vae": pipeline.vae}
    return {
        f"{part}.{name}": weight.clone()
        for part, network in parts.items()
        for name, weight in network.state_dict().items()
    }


FLAT = torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1).expand(1, 4, 8, 8)


def loss_of(pipeline, latents):
    """On sixteen drawings of noise and timestep, always the same."""
    model = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    tokens = pipeline.tokenizer(REPORTS[:1] * 16, padding="max_length", return_tensors="pt")
    return diffusion_step(
        copy.deepcopy(model).requires_grad_(True),
        latents.expand(16, -1, -1, -1),
        tokens.input_ids,
        training_scheduler(pipeline),
        optimiser=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0),
        precision="float32",
        generator=torch.Generator().manual_seed(3),
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_batch_is_learnt_by_heart_and_the_autoencoder_does_not_move(tmp_path, prediction_type):
    pipeline = pipeline_of(prediction_type)
    start, before = weights_of(pipeline), loss_of(pipeline, FLAT)
    finished = fit_diffusion(
        pipeline, FLAT, REPORTS[:1], tmp_path, **OPTIONS | {"steps": 60, "learning_rate": 2e-2}
    )
    assert loss_of(finished, FLAT) < 0.5 * before
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0] == {"step": 0, "minutes": 0.0, "reports": 1, "reports_cut": 0}
    assert [row["step"] for row in rows[1:]] == list(range(1, 61))
    after = weights_of(finished)
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert not any(name.startswith("vae.") for name in moved)
    assert "unet.conv_in.weight" in moved
    assert any(name.startswith("text_encoder.") for name in moved)
    assert not any(p.requires_grad for p in finished.unet.parameters())


def test_result_is_an_ordinary_folder(tmp_path):
    source = tmp_path / "source"
    pipeline_of("v_prediction", vae=tiny_autoencoder(), text_width=24).save_pretrained(source)
    out = tmp_path / "out"
    finished = fit_diffusion(load_pipeline(source), latents_of(), REPORTS, out, **OPTIONS)
    loaded = load_pipeline(out / "pipeline")
    expected = sample(finished, ["edema"], seeds=[1], steps=2, size=(32, 32))
    assert torch.equal(sample(loaded, ["edema"], seeds=[1], steps=2, size=(32, 32)), expected)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    original = load_pipeline(source).vae.state_dict()
    for name, weight in loaded.vae.state_dict().items():
        assert torch.equal(weight, original[name])
    for path in (out / "pipeline").rglob("*.json"):
        assert str(source) not in path.read_text()


def test_half_precision_is_half_the_file(tmp_path):
    sizes = []
    for half in (False, True):
        out = tmp_path / str(half)
        options = OPTIONS | {"steps": 1, "half": half}
        finished = fit_diffusion(pipeline_of(), latents_of(), REPORTS, out, **options)
        plain = StableDiffusionPipeline.from_pretrained(out / "pipeline")
        assert plain.text_encoder.dtype == plain.unet.dtype == torch.float32
        pipeline = load_pipeline(out / "pipeline")
        for name, weight in finished.unet.state_dict().items():
            assert torch.equal(weight, pipeline.unet.state_dict()[name])
        files = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
        sizes.append([(out / "pipeline" / f"{f}.safetensors").stat().st_size for f in files])
    assert sizes[1][0] < 0.75 * sizes[0][0] and sizes[1][1] == sizes[0][1]


def test_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path / "whole", **OPTIONS)
    step, calls = diffusion_step, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(module, "diffusion_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path / "killed", **OPTIONS)
    resumed = fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path / "killed", **OPTIONS)
    assert len(calls) == 4 + 2  # the fourth again, and the fifth
    expected = weights_of(whole)
    for name, weight in weights_of(resumed).items():
        torch.testing.assert_close(weight, expected[name], msg=name)
    with pytest.raises(ValueError, match="other settings: unconditional was 0.1, is 0.5"):
        fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path / "killed",
                      unconditional=0.5, **OPTIONS)  # fmt: skip
    with pytest.raises(ValueError, match="other settings: words was"):
        fit_diffusion(pipeline_of(), latents_of(), [*REPORTS[:-1], "another"], tmp_path / "killed",
                      **OPTIONS)  # fmt: skip


def test_result_is_the_average_of_the_weights(tmp_path):
    """One step by hand: the average moves by 10/11 of the way (see `update_average`)."""
    pipeline = pipeline_of()
    start = copy.deepcopy(pipeline.unet.conv_in.weight.data)
    options = OPTIONS | {"steps": 1}
    finished = fit_diffusion(pipeline, latents_of(), REPORTS, tmp_path, **options)
    trained = pipeline.unet.conv_in.weight
    expected = start + (trained - start) * 10 / 11
    torch.testing.assert_close(finished.unet.conv_in.weight, expected.detach())


@pytest.mark.parametrize(("share", "dropped"), [(0.0, 0), (1.0, 20), (0.5, None)])
def test_reports_are_dropped_for_guidance(tmp_path, monkeypatch, share, dropped):
    seen = []

    def noting(model, latents, tokens, *arguments, **options):
        seen.append(tokens)
        return 0.0

    monkeypatch.setattr(module, "diffusion_step", noting)
    fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path, unconditional=share, **OPTIONS)
    tokens = torch.cat(seen)
    empty = int((tokens[:, 1] == tokens[:, 2]).sum())  # nothing but padding after the start
    assert empty == dropped if dropped is not None else 0 < empty < len(tokens) == 20


def test_text_encoder_can_stay_and_activations_be_computed_twice(tmp_path):
    plain, saving = pipeline_of(), pipeline_of()
    start = weights_of(plain)
    options = OPTIONS | {"steps": 2, "train_text_encoder": False}
    fit_diffusion(plain, latents_of(), REPORTS, tmp_path / "a", **options)
    fit_diffusion(saving, latents_of(), REPORTS, tmp_path / "b", gradient_checkpointing=True,
                  **options)  # fmt: skip
    expected = weights_of(plain)
    for name, weight in weights_of(saving).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(weight, start[name]) or name.startswith("unet.")


def test_reports_that_are_cut_are_counted(tmp_path):
    reports = [*REPORTS[:-1], "edema " * 20]
    fit_diffusion(pipeline_of(), latents_of(), reports, tmp_path, **OPTIONS | {"steps": 1})
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (first["reports"], first["reports_cut"]) == (8, 1)


def test_bad_arguments_are_refused(tmp_path):
    for latents, reports in ((latents_of(7), REPORTS), (latents_of()[:, :3], REPORTS)):
        with pytest.raises(ValueError, match=r"expected latents \(N, 4, h, w\) and N reports"):
            fit_diffusion(pipeline_of(), latents, reports, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="in float32, got torch.bfloat16"):
        fit_diffusion(pipeline_of().to(torch.bfloat16), latents_of(), REPORTS, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="1 to 4 parts of a batch, got accumulate=5"):
        fit_diffusion(pipeline_of(), latents_of(), REPORTS, tmp_path, accumulate=5, **OPTIONS)


def test_command_line_trains_on_a_manifest(tmp_path):
    pipeline_of().save_pretrained(tmp_path / "pipeline")
    records = []
    for number, report in enumerate(REPORTS):
        path = tmp_path / f"{number}.png"
        pixels = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        split = "test" if number == 7 else "train"
        records.append(Record(id=str(number), image=path, modality="chest", split=split,
                              report=report))  # fmt: skip
    manifest = write_manifest(tmp_path / "manifest.csv", records)
    common = ["--pipeline", str(tmp_path / "pipeline"), "--data", str(manifest), "--device", "cpu"]
    main([*common, "--out", str(tmp_path / "out"), "--steps", "2", "--batch", "2"])
    assert json.loads((tmp_path / "out/latents.json").read_text())["size"] == [32, 32]
    assert load_pipeline(tmp_path / "out" / "pipeline").unet.config.sample_size == 16
    with pytest.raises(ValueError, match="no fundus image of the train split"):
        main([*common, "--out", str(tmp_path / "none"), "--steps", "1", "--modality", "fundus"])
