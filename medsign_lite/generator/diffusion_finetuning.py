"""Train a latent diffusion model on one's own images and reports.

    python -m medsign_lite.generator.diffusion_finetuning --pipeline FOLDER --data MANIFEST \\
        --out FOLDER --steps 10000

The way RoentGen was made (Chambon et al., 2022): from a model that draws already, U-Net and text
encoder are trained together on reports and images, and the autoencoder stays as it is, so its
latents are made once. What the U-Net is to predict is what the model's own scheduler says, and
some reports are dropped, so that there is an unconditional model for guidance. Unlike
`denoiser_training.py`, which makes the bundled model from nothing, nothing is added to the loss:
a manifest of one's own rarely has masks or sides. Several processes share a batch as
`processes.py` says.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from medsign_lite.checkpoints import digest
from medsign_lite.curriculum import learning_rate_factor
from medsign_lite.data import MODALITIES, read_manifest
from medsign_lite.encoded_images import encoded_images
from medsign_lite.files import whole_folder
from medsign_lite.generator.bundled_networks import read_as_float32
from medsign_lite.generator.diffusion_step import diffusion_step, training_scheduler
from medsign_lite.generators import freeze
from medsign_lite.latent_diffusion import BUNDLED, image_size, load_pipeline
from medsign_lite.training.averaging import update_average
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.precision import PRECISIONS
from medsign_lite.training.processes import Processes
from medsign_lite.training.processor import tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

SAVE_SECONDS = 600  # between saved states, which for a real model are gigabytes


def fit_diffusion(
    pipeline: StableDiffusionPipeline,
    latents: Tensor,
    reports: Sequence[str],
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 16,
    accumulate: int = 1,
    learning_rate: float = 5e-5,
    unconditional: float = 0.1,
    average: float = 0.999,
    train_text_encoder: bool = True,
    gradient_checkpointing: bool = False,
    precision: str = "auto",
    half: bool = False,
    seed: int = 0,
    log_every: int = 50,
) -> StableDiffusionPipeline:
    """Train until minutes or steps are spent; a killed run resumes where it saved last.

    In float32 the weights, their average, gradients and the optimiser's two moments take 20 bytes
    per trained weight, and the saved state 16.

    Args:
        pipeline: in float32, on the device to train on unless several processes have their own;
            its U-Net and text encoder are changed in place.
        latents: (N, C, h, w), scaled; on the CPU, in any floating-point type.
        reports: N; what is longer than the tokenizer's limit is cut, and how many are is the first
            line of the log.
        folder: gets ``state.pt`` while running, ``log.jsonl``, and the finished ``pipeline/``.
        batch: images in a step, computed in `accumulate` parts.
        unconditional: share of the reports replaced by the empty prompt, for guidance.
        average: decay of the moving average of the weights.
        gradient_checkpointing: compute activations twice instead of keeping them.
        half: write U-Net and text encoder in half precision.

    Returns:
        A pipeline with the averaged weights, in evaluation mode; also saved as `folder`/pipeline.

    Raises:
        ValueError: if latents do not fit the U-Net or the number of reports, the pipeline is not
            in float32, its scheduler is not one for this, the batch cannot be divided, or the
            folder holds a run with other settings.
    """
    channels = pipeline.unet.config.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels or len(latents) != len(reports):
        raise ValueError(
            f"expected latents (N, {channels}, h, w) and N reports, got {tuple(latents.shape)} "
            f"and {len(reports)}"
        )
    if not 1 <= accumulate <= batch:
        raise ValueError(f"expected 1 to {batch} parts of a batch, got accumulate={accumulate}")
    if pipeline.unet.dtype != torch.float32:
        raise ValueError(
            f"expected a pipeline in float32, got {pipeline.unet.dtype}: small steps vanish in it; "
            "`precision` makes the computation faster"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(pipeline.unet.device)
    device = processes.device
    pipeline.to(device)
    scheduler = training_scheduler(pipeline)
    tokens = pipeline.tokenizer(
        [*reports, ""], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids  # (N + 1, T); the last row is the empty prompt
    model = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    model.train().requires_grad_(True)
    model["text_encoder"].requires_grad_(train_text_encoder)
    if gradient_checkpointing:
        model["unet"].enable_gradient_checkpointing()
    averaged = copy.deepcopy(model).requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-2)
    spent, mean_loss = {}, None
    settings = plain_settings(
        images=len(latents), batch=batch, accumulate=accumulate, learning_rate=learning_rate,
        unconditional=unconditional, average=average, train_text_encoder=train_text_encoder,
        prediction_type=scheduler.config.prediction_type, seed=seed,
        latents=digest([latents]), words=digest([tokens]),
    )  # fmt: skip
    if state := load_training_state(folder / "state.pt", settings=settings):
        for name, part in (("model", model), ("averaged", averaged), ("optimiser", optimiser)):
            part.load_state_dict(state[name])
        spent, mean_loss = state["budget"], state["mean_loss"]
    budget = Budget(minutes=minutes, steps=steps, **spent)
    if processes.is_main and not spent:
        lengths = map(len, pipeline.tokenizer([*reports], verbose=False).input_ids)
        cut = sum(length > tokens.shape[1] for length in lengths)
        log_row(folder, budget, {"reports": len(reports), "reports_cut": cut})

    def save() -> None:
        if not processes.is_main:
            return
        state = {"model": model.state_dict(), "averaged": averaged.state_dict()}
        state |= {"optimiser": optimiser.state_dict(), "mean_loss": mean_loss}
        state |= {"budget": budget.state(), "settings": settings}
        save_training_state(folder / "state.pt", state)

    last_save = time.monotonic()
    while (progress := processes.agree(budget.progress)) < 1:
        # Of the step, so that a resumed run draws what a whole one would have drawn.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + budget.step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < unconditional
        loss = diffusion_step(
            model,
            latents[rows].to(device, torch.float32),
            tokens[rows.masked_fill(dropped, len(reports))].to(device),
            scheduler,
            optimiser=optimiser,
            accumulate=accumulate,
            precision=precision,
            generator=generator,
            processes=processes,
        )
        budget.tick()
        update_average(averaged, model, step=budget.step, decay=average)
        mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
        if processes.is_main and budget.step % log_every == 0:
            log_row(folder, budget, {"loss": mean_loss})
        if time.monotonic() - last_save > SAVE_SECONDS:
            save()
            last_save = time.monotonic()
    save()
    if half:
        freeze(averaged).half().float()  # what is returned is what is written
    finished = _with_networks(pipeline, freeze(averaged))
    if processes.is_main:
        _save_pipeline(finished, folder / "pipeline", half=half)
    processes.wait()
    return finished


def _with_networks(
    pipeline: StableDiffusionPipeline, networks: nn.ModuleDict
) -> StableDiffusionPipeline:
    """A pipeline of other networks, that names no folder of this machine."""
    networks["unet"].disable_gradient_checkpointing()
    finished = StableDiffusionPipeline(
        **{**pipeline.components, **dict(networks.items())}, requires_safety_checker=False
    )
    finished.set_progress_bar_config(disable=True)
    for part in (finished, finished.unet, finished.vae):
        part.register_to_config(_name_or_path="")
    finished.text_encoder.config._name_or_path = ""
    return finished


def _save_pipeline(pipeline: StableDiffusionPipeline, folder: Path, *, half: bool) -> None:
    """Write an ordinary folder, whole or not at all; the autoencoder's weights as they are."""
    networks = (pipeline.unet, pipeline.text_encoder)
    for network in networks if half else ():
        network.half()
    with whole_folder(folder) as part:
        pipeline.save_pretrained(part)
        read_as_float32(part)
    for network in networks:
        network.float()


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pipeline", type=Path, default=BUNDLED, help="diffusers folder to start")
    parser.add_argument("--unet", type=Path, help="folder of another U-Net for it")
    parser.add_argument("--data", type=Path, required=True, help="manifest; its train split")
    parser.add_argument("--modality", choices=MODALITIES, help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder; a killed run resumes")
    parser.add_argument("--minutes", type=float, help="training time in all")
    parser.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--accumulate", type=int, default=1, help="parts it is computed in")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--unconditional", type=float, default=0.1, help="share of empty prompts")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weights' mean")
    parser.add_argument("--freeze-text-encoder", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="slower, smaller")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--half", action="store_true", help="write weights in half precision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    tune_processor()
    processes = Processes(options.device)
    pipeline = load_pipeline(options.pipeline, unet=options.unet, device=processes.device)
    training_scheduler(pipeline)  # refused before anything is encoded
    records = [
        record
        for record in read_manifest(options.data, check_files=False)
        if record.split == "train" and options.modality in (None, record.modality)
    ]
    if not records:
        raise ValueError(
            f"{options.data}: no {options.modality or 'such'} image of the train split"
        )
    encode = partial(encoded_images, records, pipeline.vae, options.out, size=image_size(pipeline))
    if processes.is_main:
        encode()
    processes.wait()
    latents = encode()  # of the file
    fit_diffusion(
        pipeline, latents, [record.report for record in records], options.out,
        minutes=options.minutes, steps=options.steps, batch=options.batch,
        accumulate=options.accumulate, learning_rate=options.learning_rate,
        unconditional=options.unconditional, average=options.average,
        train_text_encoder=not options.freeze_text_encoder,
        gradient_checkpointing=options.gradient_checkpointing, precision=options.precision,
        half=options.half, seed=options.seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
