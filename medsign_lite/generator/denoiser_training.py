"""Training of the bundled model's tokenizer, text encoder and U-Net on reports and latents.

    python -m medsign_lite.generator.denoiser_training --data MANIFEST --autoencoder FOLDER \\
        --out FOLDER

Seven choices make the cross-attention localise, and are worth varying: the text encoder has one
layer, because a deep one that learns mixes the words of a sentence before the U-Net sees them; the
reports name up to three findings, so that each word has to own its place; they name the side before
the finding, because the text encoder is causal and a token knows what precedes it; each piece of a
finding's word has to tell the side, which the encoder does not learn from noise alone; an error
where a finding lies, or would were the other side named, weighs more, so that the words are heeded
early; the words of a finding are grounded in its mask (`grounding.py`); and the tokenizer may not
learn tokens longer than seven characters, so that medical words are several tokens, as they are for
CLIP, and CAS has something to choose from.
"""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from medsign_lite.checkpoints import digest
from medsign_lite.data import SIDES, Record, read_manifest
from medsign_lite.encoded_images import encoded_images
from medsign_lite.files import whole_folder
from medsign_lite.generator.bundled_networks import (
    build_scheduler,
    build_text_encoder,
    build_unet,
    save_pipeline,
)
from medsign_lite.generator.grounding import (
    UNGROUNDED,
    attention_with_gradients,
    grounding_loss,
    read_groundings,
    summed_maps,
)
from medsign_lite.generator.report_supervision import (
    IGNORED,
    emphasised_places,
    read_sides,
    side_loss,
)
from medsign_lite.generator.report_tokenizer import learn_tokenizer
from medsign_lite.latent_diffusion import load_pipeline
from medsign_lite.training.averaging import update_average
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes, descend
from medsign_lite.training.processor import training_layout, tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

SAVE_SECONDS = 180  # between saved states
SMALLEST = 0.08  # share of an image below which a finding does not weigh more per place


def denoising_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    tokens: Tensor,
    *,
    weights: Tensor | None = None,
    generator: torch.Generator,
    processes: Processes | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity at random timesteps.

    Args:
        latents: (B, 4, h, w), scaled.
        tokens: (B, T) token numbers; a row of the empty prompt trains the unconditional model.
        weights: (B, h, w) weight of each place's error; default: all alike.
        generator: on the CPU, so that a seed means the same noise on every device.
        processes: that a batch is shared by, of which all this is one's part.
    """
    whole = len(latents) * (1 if processes is None else processes.count)
    noise = torch.randn(whole, *latents.shape[1:], generator=generator)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (whole,), generator=generator)
    if processes is not None:
        noise, timesteps = processes.part(noise), processes.part(timesteps)
    noise, timesteps = noise.to(latents.device), timesteps.to(latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    predicted = unet(noised, timesteps, text_encoder(tokens)[0]).sample
    error = (predicted.float() - velocity).square()
    return (error if weights is None else error * weights[:, None]).mean()


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, *, batch: int = 64) -> Tensor:
    """Scaled latents (N, 4, h, w) of (N, 3, H, W) uint8 images, on the CPU."""
    device = next(vae.parameters()).device
    latents = []
    for part in images.split(batch):
        with mixed_precision(device):
            posterior = vae.encode(part.to(device).float() / 127.5 - 1).latent_dist
        latents.append(posterior.mean.float().cpu() * vae.config.scaling_factor)
    return torch.cat(latents)


def fit_denoiser(
    latents: Tensor,
    records: Sequence[Record],
    vae: AutoencoderKL,
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    learning_rate: float = 1e-3,
    unconditional: float = 0.1,
    emphasis: float = 3.0,
    side_weight: float = 0.1,
    grounding: float = 0.2,
    text_layers: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log_every: int = 50,
) -> StableDiffusionPipeline:
    """Train text encoder and U-Net together until minutes or steps are spent; resumes.

    Args:
        latents: (N, 4, h, w), scaled.
        records: N, whose reports are the prompts. Masks and sides are used where there are any.
        vae: goes into the pipeline as it is.
        folder: gets ``state.pt`` while running, ``log.jsonl``, and the finished ``pipeline/``.
        unconditional: share of the reports replaced by the empty prompt, for guidance.
        emphasis: how much the places of `emphasised_places` weigh together, the image as a whole
            being 1. Findings are a few latents of an image, and without this the network draws
            anatomy long before it heeds the words that name them; the smaller, the longer.
        side_weight: of the text encoder's `side_loss`.
        grounding: weight of `grounding_loss`; at 0 attention goes where the noise sends it.

    Returns:
        A pipeline with the weights' moving average, in evaluation mode on the CPU.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(device)
    device = processes.device
    torch.manual_seed(seed)
    reports = [record.report for record in records]
    kept = folder / "tokenizer"  # a resumed run's weights know the numbers of this one
    tokenizer = CLIPTokenizer.from_pretrained(kept) if kept.is_dir() else learn_tokenizer(reports)
    processes.wait()  # all have looked for it before one writes it
    if processes.is_main and not kept.is_dir():
        with whole_folder(kept) as part:
            tokenizer.save_pretrained(part)
    tokens = _tokens(tokenizer, [*reports, ""])  # (N + 1, T); the last row is the empty prompt
    sides = read_sides(records, tokenizer)
    owners, regions = read_groundings(records, tokenizer, tuple(latents.shape[-2:]))
    emphasised = emphasised_places(records, regions)
    text_encoder = build_text_encoder(tokenizer, layers=text_layers)
    unet = build_unet(sample_size=latents.shape[-1])
    head = nn.Linear(text_encoder.config.hidden_size, len(SIDES))  # thrown away afterwards
    with mixed_precision(device):
        if torch.device(device).type == "cpu" and torch.is_autocast_enabled("cpu"):
            # There the fused attention's backward pass takes twice as long as the plain one.
            unet.set_attn_processor(AttnProcessor())
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder, "side_head": head})
    model = model.to(device, memory_format=training_layout(device)).train()
    average = copy.deepcopy(model).requires_grad_(False)
    scheduler = build_scheduler()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    spent, mean_loss = {}, 1.0
    settings = plain_settings(
        images=len(latents), latents=digest([latents]), words=digest([tokens]), batch=batch,
        learning_rate=learning_rate, seed=seed,
        unconditional=unconditional, emphasis=emphasis, side_weight=side_weight,
        grounding=grounding, text_layers=text_layers,
    )  # fmt: skip
    if state := load_training_state(folder / "state.pt", settings=settings):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        spent, mean_loss = state["budget"], state["mean_loss"]
    budget = Budget(minutes=minutes, steps=steps, **spent)

    def save() -> None:
        if not processes.is_main:
            return
        state = {"model": model.state_dict(), "average": average.state_dict()}
        state |= {"optimiser": optimiser.state_dict(), "mean_loss": mean_loss}
        state |= {"budget": budget.state(), "settings": settings}
        save_training_state(folder / "state.pt", state)

    last_save = time.monotonic()
    while (progress := processes.agree(budget.progress)) < 1:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + budget.step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * _constant_then_cosine(progress, budget.step)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < unconditional
        rows, empty = processes.part(rows), processes.part(empty)
        texts = rows.masked_fill(empty, len(reports))
        # Without words there is nothing to heed: the unconditional model is trained as usual.
        heeded = emphasised[rows] & ~empty[:, None, None]
        share = heeded.float().mean(dim=(1, 2), keepdim=True).clamp(min=SMALLEST)
        words = tokens[texts].to(device)
        named = sides[rows].masked_fill(empty[:, None], IGNORED).to(device)
        owned = owners[rows].masked_fill(empty[:, None], UNGROUNDED).to(device)
        with mixed_precision(device), attention_with_gradients(unet) as attention:
            loss = denoising_loss(
                unet, text_encoder, scheduler, latents[rows].to(device), words,
                weights=(1 + emphasis * heeded / share).to(device), generator=generator,
                processes=processes,
            )  # fmt: skip
            told = side_loss(text_encoder(words)[0], head, named)
        maps = summed_maps(attention, tuple(latents.shape[-2:]))
        strayed = grounding_loss(maps, owned, regions[rows].to(device))
        descend(loss + side_weight * told + grounding * strayed, optimiser, processes)
        budget.tick()
        update_average(average, model, step=budget.step)
        values = processes.mean({
            "loss": loss.item(), "side_loss": told.item(), "grounding_loss": strayed.item(),
        })  # fmt: skip
        mean_loss = 0.98 * mean_loss + 0.02 * values["loss"]
        if processes.is_main and budget.step % log_every == 0:
            log_row(folder, budget, values | {"loss": mean_loss})
        if time.monotonic() - last_save > SAVE_SECONDS:
            save()
            last_save = time.monotonic()
    save()
    if not processes.is_main:
        processes.wait()
        return load_pipeline(folder / "pipeline")
    pipeline = save_pipeline(folder / "pipeline", average, tokenizer, vae)
    processes.wait()
    return pipeline


def _tokens(tokenizer: CLIPTokenizer, reports: Sequence[str]) -> Tensor:
    padded = tokenizer(list(reports), padding="max_length", truncation=True, return_tensors="pt")
    return padded.input_ids


def _constant_then_cosine(progress: float, step: int, *, decay_from: float = 0.6) -> float:
    warm_up = min(1.0, (step + 1) / 200)
    phase = (min(progress, 1.0) - decay_from) / (1 - decay_from)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(phase, 0.0))))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="manifest")
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="folder of an AutoencoderKL"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, help="training time in all")
    parser.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--text-layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    tune_processor()
    processes = Processes(options.device)
    vae = AutoencoderKL.from_pretrained(options.autoencoder).eval()
    records = [r for r in read_manifest(options.data, check_files=False) if r.split == "train"]
    size = (vae.config.sample_size,) * 2
    folder = options.out / "images"
    if processes.is_main:  # the others read what it has written
        encoded_images(records, vae.to(processes.device), folder, size=size, batch=64)
    processes.wait()
    latents = encoded_images(records, vae, folder, size=size).float()
    fit_denoiser(
        latents,
        records,
        vae.cpu(),
        options.out,
        minutes=options.minutes,
        steps=options.steps,
        batch=options.batch,
        text_layers=options.text_layers,
        seed=options.seed,
        device=options.device,
    )


if __name__ == "__main__":
    main()
