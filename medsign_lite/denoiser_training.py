"""Training of the bundled model's tokenizer, text encoder and U-Net on reports and latents.

    python -m medsign_lite.denoiser_training --data MANIFEST --autoencoder FOLDER --out FOLDER

Three choices make the cross-attention localise, and are worth varying: the text encoder has one
layer, because a deep one that learns mixes the words of a sentence before the U-Net sees them; the
reports name up to three findings, so that each word has to own its place; and the tokenizer may
not learn tokens longer than seven characters, so that medical words are several tokens, as they
are for CLIP, and CAS has something to choose from.
"""

import argparse
import copy
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from medsign_lite.averaging import update_average
from medsign_lite.budgets import Budget, log_row
from medsign_lite.checkpoints import load_training_state, save_training_state
from medsign_lite.data import read_manifest
from medsign_lite.files import whole_file
from medsign_lite.image_stack import read_image_stack
from medsign_lite.precision import mixed_precision
from medsign_lite.processor import tune_processor

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
SAVE_SECONDS = 180  # between saved states


def learn_tokenizer(
    reports: Sequence[str], *, merges: int = 350, longest: int = 7, length: int = 77
) -> CLIPTokenizer:
    """Learn CLIP's byte-pair encoding (Sennrich et al., ACL 2016) from reports.

    The same reports give the same tokenizer, which a run that resumes relies on; the trainers of
    the usual library break ties by chance.

    Args:
        merges: pairs of tokens to merge at most, the most frequent first.
        longest: characters of a token at most, so that long words stay several tokens.
        length: tokens of a prompt, padding included; the rest is cut off.
    """
    # Every byte, within a word and at its end, so that no word of a user's prompt is unknown.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*letters, *(letter + WORD_END for letter in letters)]
    backend = _clip_tokenizer(alphabet, [], length).backend_tokenizer
    words = Counter()
    for report, count in Counter(reports).items():
        normalised = backend.normalizer.normalize_str(report)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised):
            words[word] += count
    learnt = learn_merges(words, merges=merges, longest=longest)
    return _clip_tokenizer([*alphabet, *map("".join, learnt)], learnt, length)


def learn_merges(words: Mapping[str, int], *, merges: int, longest: int) -> list[tuple[str, str]]:
    """The most frequent pairs of neighbouring tokens, merged one after another.

    Args:
        words: how often each word occurs.
        merges, longest: as in `learn_tokenizer`; ties go to the pair first in the alphabet.

    >>> learn_merges({"edema": 3, "edge": 1}, merges=2, longest=7)
    [('e', 'd'), ('ed', 'e')]
    """
    pieces = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    learnt = []
    for _ in range(merges):
        pairs = Counter()
        for word, tokens in pieces.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        allowed = [p for p in pairs if len("".join(p).removesuffix(WORD_END)) <= longest]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        for word, tokens in pieces.items():
            pieces[word] = _merged(tokens, best)
    return learnt


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(tokens):
        together = tuple(tokens[i : i + 2]) == pair
        merged.append("".join(pair) if together else tokens[i])
        i += 2 if together else 1
    return merged


def _clip_tokenizer(tokens: list[str], merges: list[tuple[str, str]], length: int) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*tokens, START, END])},
        merges=merges,
        model_max_length=length,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
    )


def build_text_encoder(
    tokenizer: CLIPTokenizer, *, width: int = 128, layers: int = 1
) -> CLIPTextModel:
    """A shallow CLIP text encoder, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(
    *, channels: tuple[int, ...] = (64, 128), text_width: int = 128, sample_size: int = 16
) -> UNet2DConditionModel:
    """A small U-Net with cross-attention at every resolution, untrained."""
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM on velocities, ending in pure noise.

    Stable Diffusion's own schedule keeps some signal at its last step, from which a small model
    would read the brightness that it should choose (Lin et al., WACV 2024).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def denoising_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    tokens: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted velocity at random timesteps.

    Args:
        latents: (B, 4, h, w), scaled.
        tokens: (B, T) token numbers; a row of the empty prompt trains the unconditional model.
        generator: on the CPU, so that a seed means the same noise on every device.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (len(latents),), generator=generator).to(latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    predicted = unet(noised, timesteps, text_encoder(tokens)[0]).sample
    return (predicted.float() - velocity).square().mean()


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
    reports: Sequence[str],
    vae: AutoencoderKL,
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    learning_rate: float = 1e-3,
    unconditional: float = 0.1,
    text_layers: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log_every: int = 50,
) -> StableDiffusionPipeline:
    """Train text encoder and U-Net together until minutes or steps are spent; resumes.

    Args:
        latents: (N, 4, h, w), scaled.
        reports: N prompts.
        vae: goes into the pipeline as it is.
        folder: gets ``state.pt`` while running, ``log.jsonl``, and the finished ``pipeline/``.
        unconditional: share of the reports replaced by the empty prompt, for guidance.

    Returns:
        A pipeline with the weights' moving average, in evaluation mode on the CPU.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = learn_tokenizer(reports)
    tokens = _tokens(tokenizer, [*reports, ""])  # (N + 1, T); the last row is the empty prompt
    text_encoder = build_text_encoder(tokenizer, layers=text_layers)
    unet = build_unet(sample_size=latents.shape[-1])
    if torch.device(device).type == "cpu":
        # The fused attention's backward pass in bfloat16 is twice as slow there as the plain one.
        unet.set_attn_processor(AttnProcessor())
    model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    model = model.to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    scheduler = build_scheduler()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    spent, mean_loss = {}, 1.0
    if state := load_training_state(folder / "state.pt"):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        spent, mean_loss = state["budget"], state["mean_loss"]
    budget = Budget(minutes=minutes, steps=steps, **spent)

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict()}
        state |= {"optimiser": optimiser.state_dict(), "mean_loss": mean_loss}
        save_training_state(folder / "state.pt", {**state, "budget": budget.state()})

    last_save = time.monotonic()
    while budget.progress < 1:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + budget.step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * _constant_then_cosine(budget.progress, budget.step)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        empty = torch.rand(batch, generator=generator) < unconditional
        texts = rows.masked_fill(empty, len(reports))
        with mixed_precision(device):
            loss = denoising_loss(
                unet, text_encoder, scheduler,
                latents[rows].to(device), tokens[texts].to(device), generator=generator,
            )  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        budget.tick()
        update_average(average, model, step=budget.step)
        mean_loss = 0.98 * mean_loss + 0.02 * loss.item()
        if budget.step % log_every == 0:
            log_row(folder, budget, {"loss": mean_loss})
        if time.monotonic() - last_save > SAVE_SECONDS:
            save()
            last_save = time.monotonic()
    save()
    return save_pipeline(folder / "pipeline", average, tokenizer, vae)


def save_pipeline(
    folder: str | Path, model: torch.nn.ModuleDict, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    """Assemble an ordinary pipeline and write it in half precision."""
    vae.register_to_config(_name_or_path="")  # a path of this machine is nobody else's business
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"].cpu().eval(),
        tokenizer=tokenizer,
        unet=model["unet"].cpu().eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    return pipeline.to(torch.float32)


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
    vae = AutoencoderKL.from_pretrained(options.autoencoder).eval()
    records = [r for r in read_manifest(options.data, check_files=False) if r.split == "train"]
    kept = options.out / "latents.safetensors"  # a resumed run need not encode again
    if not kept.is_file():
        images = read_image_stack(options.data, split="train")
        latents = encode_images(vae.to(options.device), images)
        with whole_file(kept) as file:
            file.write(to_safetensors({"latents": latents}))
    latents = load_file(kept)["latents"]
    if len(latents) != len(records):
        raise ValueError(
            f"{kept} holds {len(latents)} latents, {options.data} {len(records)} images"
        )
    fit_denoiser(
        latents,
        [record.report for record in records],
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
