"""One step of training a latent diffusion model, on what its own scheduler says it predicts."""

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes


def training_scheduler(pipeline: StableDiffusionPipeline) -> DDPMScheduler:
    """The noise schedule and the prediction type of the pipeline's scheduler, whatever its kind.

    Raises:
        ValueError: if it has none of the two, as one for flow matching has not.
    """
    config = pipeline.scheduler.config
    if "beta_schedule" not in config or "prediction_type" not in config:
        raise ValueError(
            f"expected a scheduler with a beta_schedule and a prediction_type, got "
            f"{type(pipeline.scheduler).__name__}"
        )
    return DDPMScheduler.from_config(config)


def diffusion_target(
    scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the U-Net is to predict: noise, velocity or the latents themselves.

    Args:
        latents, noise: (B, C, h, w).
        timesteps: (B,) training timesteps.

    Raises:
        ValueError: if the scheduler's prediction type is none of the three.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"expected prediction_type epsilon, v_prediction or sample, got {kind!r}")


def diffusion_step(
    model: nn.ModuleDict,
    latents: Tensor,
    tokens: Tensor,
    scheduler: DDPMScheduler,
    *,
    optimiser: torch.optim.Optimizer,
    accumulate: int = 1,
    precision: str = "auto",
    generator: torch.Generator,
    processes: Processes | None = None,
) -> float:
    """One optimiser step on a batch, some of it at a time.

    Args:
        model: "unet" and "text_encoder".
        latents: (B, C, h, w), scaled.
        tokens: (B, T) token numbers.
        accumulate: parts that the batch is computed in, one after the other; the step is the same.
        generator: on the CPU, so that a seed means the same noise on every device.
        processes: that share the batch; each is given all of it, and computes its own rows.

    Returns:
        the mean squared error over the batch.

    Raises:
        RuntimeError: if a gradient is not finite. A step with it would leave no weight that is.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (len(latents),), generator=generator).to(latents.device)
    if processes is not None:
        whole = (latents, tokens, noise, timesteps)
        latents, tokens, noise, timesteps = map(processes.part, whole)
    target = diffusion_target(scheduler, latents, noise, timesteps)
    noised = scheduler.add_noise(latents, noise, timesteps)
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for rows in torch.arange(len(latents)).chunk(accumulate):
        with mixed_precision(latents.device, precision):
            text = model["text_encoder"](tokens[rows])[0]
            predicted = model["unet"](noised[rows], timesteps[rows], text).sample
        loss = F.mse_loss(predicted.float(), target[rows]) * len(rows) / len(latents)
        loss.backward()
        total += loss.item()
    if processes is not None:
        processes.average_gradients(model.parameters())
        total = processes.mean({"loss": total})["loss"]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    optimiser.step()
    return total
