"""Targets by hand, and steps that do not depend on how they are computed."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from torch import nn

from medsign_lite.generator.diffusion_step import (
    diffusion_step,
    diffusion_target,
    training_scheduler,
)
from tests.test_diffusion_finetuning import REPORTS, latents_of, pipeline_of, weights_of
from tests.tiny_pipeline import tiny_pipeline


def test_targets_by_hand():
    """alpha_bar is .64 after the first of two steps and .16 after the second: roots .8, .6; .4."""
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -1.0)
    timesteps = torch.tensor([0, 1])
    expected = {
        "epsilon": [-1.0, -1.0],
        "sample": [2.0, 2.0],
        "v_prediction": [0.8 * -1 - 0.6 * 2, 0.4 * -1 - 0.84**0.5 * 2],
    }
    for kind, values in expected.items():
        pipeline = tiny_pipeline(scheduler=DDIMScheduler(
            num_train_timesteps=2, trained_betas=[0.36, 0.75], prediction_type=kind, steps_offset=1,
            clip_sample=False,
        ))  # fmt: skip
        target = diffusion_target(training_scheduler(pipeline), latents, noise, timesteps)
        assert target.flatten().tolist() == pytest.approx(values, abs=1e-6)


def test_schedule_is_the_pipelines_own():
    """Of PNDM, which Stable Diffusion 1 comes with and which cannot make a velocity itself."""
    pipeline = tiny_pipeline(scheduler=PNDMScheduler(
        skip_prk_steps=True, steps_offset=1, beta_start=1e-3, prediction_type="v_prediction"
    ))  # fmt: skip
    scheduler = training_scheduler(pipeline)
    torch.testing.assert_close(scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"


def test_other_schedulers_and_targets_are_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="a beta_schedule .* got FlowMatchEulerDiscrete"):
        training_scheduler(pipeline)
    scheduler = training_scheduler(pipeline_of())
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="got 'score'"):
        diffusion_target(scheduler, *torch.zeros(2, 1, 1, 1, 1), torch.zeros(1, dtype=torch.long))


def stepped(accumulate, **options):
    pipeline = pipeline_of()
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    model = nn.ModuleDict(parts).requires_grad_(True)
    tokens = pipeline.tokenizer(REPORTS, padding="max_length", return_tensors="pt").input_ids
    loss = diffusion_step(
        model,
        latents_of(),
        tokens,
        training_scheduler(pipeline),
        # Plain descent: Adam would divide small differences by themselves.
        optimiser=torch.optim.SGD(model.parameters(), lr=1.0),
        accumulate=accumulate,
        precision="float32",
        generator=torch.Generator().manual_seed(3),
        **options,
    )
    return loss, pipeline


@pytest.mark.parametrize("accumulate", [2, 3, 8], ids=["2x4", "3+3+2", "8x1"])
def test_accumulated_step_is_that_of_the_whole_batch(accumulate):
    whole_loss, whole = stepped(1)
    loss, parts = stepped(accumulate)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    start = weights_of(pipeline_of())
    expected = weights_of(whole)
    assert any(not torch.equal(expected[name], start[name]) for name in start)
    for name, weight in weights_of(parts).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_of_processes_average_to_that_of_the_whole_batch():
    """Each computes its rows; what they would exchange is caught here and averaged by hand."""

    class Half:
        def __init__(self, index):
            self.index, self.gradients = index, None

        def part(self, batch):
            return batch.chunk(2)[self.index]

        def average_gradients(self, parameters):
            self.gradients = [p.grad.clone() for p in parameters if p.grad is not None]

        def mean(self, values):
            return values

    class Whole(Half):
        def part(self, batch):
            return batch

    processes = [Whole(0), Half(0), Half(1)]
    losses = [stepped(2, processes=each)[0] for each in processes]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    gradients = zip(*(each.gradients for each in processes), strict=True)
    for whole, first, second in gradients:
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-5)


def test_loss_of_a_network_that_says_nothing_is_the_targets_square():
    """Its output is zero, so the loss is the mean square of the noise that was drawn."""
    pipeline = pipeline_of()
    for weight in pipeline.unet.conv_out.parameters():
        weight.data.zero_()
    model = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    loss = diffusion_step(
        model.requires_grad_(True),
        latents_of(),
        torch.zeros(8, 16, dtype=torch.long),
        training_scheduler(pipeline),
        optimiser=torch.optim.SGD(model.parameters(), lr=0.0),
        generator=torch.Generator().manual_seed(3),
    )
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert loss == pytest.approx(noise.square().mean().item(), rel=1e-5)
