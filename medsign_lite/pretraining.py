"""Pre-training of the watermark extractor (Sec. 2.1): step, evaluate, fit, and a command.

    python -m medsign_lite.pretraining --images FOLDER --out FOLDER --minutes 50
    python -m medsign_lite.pretraining --images FOLDER --out FOLDER --minutes 50 \
        --network upright --attacks none flip crop crop resize resize jpeg jpeg

The second is by the transforms that Stable Signature was published with, without turns built in.
The loss is the message's alone; nobody will see the embedder's images. What an extractor reads
well at a small strength, the watermarking decoder will later be able to write at a small strength.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from medsign_lite.attacks import PAPER_ATTACKS, check_training_attacks, random_attack
from medsign_lite.curriculum import (
    SPECTRAL_CURRICULUM,
    Curriculum,
    CurriculumConfig,
    NoTakeOff,
    learning_rate_factor,
    random_crops,
)
from medsign_lite.extractor import (
    AnyConfig,
    AnyEmbedder,
    AnyExtractor,
    ExtractorConfig,
    build_networks,
    network_name,
    published_config,
    save_extractor,
    whiten,
)
from medsign_lite.image_stack import held_out_rows, read_image_stack, stack_digest
from medsign_lite.images import quantise
from medsign_lite.losses import message_loss
from medsign_lite.messages import random_messages
from medsign_lite.metrics import bit_accuracy, psnr
from medsign_lite.spectral import SpectralConfig
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.evaluation_mode import evaluation_mode
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes, descend
from medsign_lite.training.processor import training_layout, tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

CHOICES = {  # configuration, curriculum, learning rate
    "spectral": (SpectralConfig, SPECTRAL_CURRICULUM, 4e-3),
    "upright": (partial(SpectralConfig, turns=0), SPECTRAL_CURRICULUM, 4e-3),
    "folded": (ExtractorConfig, CurriculumConfig(), 1e-3),
    "published": (published_config, CurriculumConfig(), 1e-3),
}


def read_under_attack(
    extractor: AnyExtractor,
    image: Tensor,
    *,
    strength: float,
    parts: int = 4,
    names: Sequence[str] = tuple(PAPER_ATTACKS),
    generator: torch.Generator,
    processes: Processes | None = None,
) -> Tensor:
    """Logits (B, K), float32, of images (B, 3, H, W) around [0, 1] after random attacks.

    The batch is cut into `parts`, each of which meets one attack, drawn from `names`; a strength of
    0 is none. With `processes`, the images are this one's share of the batch, and so are the parts.
    """
    # One that chooses among moves learns from their average instead: the choice has no gradient.
    look = getattr(extractor, "look", extractor)
    if strength == 0:
        return look(image).float()
    count = 1 if processes is None else processes.count
    # A seed for each part: several processes then meet the attacks that one would have met.
    seeds = torch.randint(2**62, (count * math.ceil(parts / count),), generator=generator)
    seeds = seeds if processes is None else processes.part(seeds)
    attacked = (
        random_attack(
            part,
            names=tuple(names),
            generator=torch.Generator().manual_seed(seed),
            strength=strength,
            minimum=extractor.minimum_side,
        )
        for part, seed in zip(image.chunk(len(seeds)), seeds.tolist(), strict=False)
    )
    return torch.cat([look(part).float() for part in attacked])


def off_grid(
    image: Tensor, grid: int, *, strength: float = 1.0, generator: torch.Generator
) -> Tensor:
    """Cut rows and columns off the top left of (B, C, H, W): up to `grid` - 1 at a strength of 1.

    The embedder draws in squares of `grid` pixels. An extractor that always finds them aligned with
    the image's corner learns a code that any crop, rotation or resize destroys; one that never does
    hardly begins to learn.
    """
    bound = 1 + round(strength * (grid - 1))
    top, left = torch.randint(bound, (2,), generator=generator).tolist()
    return image[..., top:, left:]


def pretrain_step(
    embedder: AnyEmbedder,
    extractor: AnyExtractor,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    messages: Tensor,
    *,
    strength: float,
    attack_strength: float = 0.0,
    attacks: int = 4,
    attack_names: Sequence[str] = tuple(PAPER_ATTACKS),
    precision: str = "auto",
    generator: torch.Generator,
    processes: Processes | None = None,
) -> tuple[dict[str, float], Tensor]:
    """One optimiser step on images (B, 3, H, W) in [0, 1] and messages (B, K) in {0, 1}.

    `attacks` parts of the batch each meet one attack, drawn from `attack_names`.
    With `processes` these are this one's share of the batch. Batch normalisation sees no more than
    that, so several processes do not quite take the steps of one.

    Returns:
        {"loss", "bit_accuracy"} and the logits (B, K), detached.
    """
    with mixed_precision(images.device, precision):
        marked = embedder.embed(images, messages, strength, generator=generator).float()
        marked = off_grid(marked, embedder.grid, strength=attack_strength, generator=generator)
        logits = read_under_attack(
            extractor, marked, strength=attack_strength, parts=attacks, names=attack_names,
            generator=generator, processes=processes,
        )  # fmt: skip
    loss = message_loss(logits, messages)
    descend(loss, optimiser, processes)
    logits = logits.detach()
    accuracy = float(bit_accuracy(logits, messages).mean())
    return {"loss": float(loss.detach()), "bit_accuracy": accuracy}, logits


@torch.no_grad()
def evaluate(
    embedder: AnyEmbedder,
    extractor: AnyExtractor,
    images: Tensor,
    *,
    strength: float,
    generator: torch.Generator,
    batch_size: int = 64,
    precision: str = "auto",
) -> dict[str, float]:
    """Bit accuracy per attack of the paper on marked images rounded to 8 bits, and their PSNR.

    images: (N, 3, H, W) in [0, 1]. The extractor must not be whitened yet: whitening mixes bits.
    """
    rows = []
    for batch in images.split(batch_size):
        messages = random_messages(len(batch), extractor.config.bits, generator=generator)
        messages = messages.to(batch.device)
        with evaluation_mode(embedder, extractor), mixed_precision(batch.device, precision):
            marked = embedder.embed(batch, messages, strength, generator=generator)
            marked = quantise(marked.float())
            row = {"psnr": psnr(marked, batch, data_range=1.0)}
            for name, attack in PAPER_ATTACKS.items():
                row[name] = bit_accuracy(extractor(attack(marked)), messages)
        rows.append(row)
    return {name: float(torch.cat([row[name] for row in rows]).mean()) for name in rows[0]}


def fit(
    images: Tensor,
    out: str | Path,
    *,
    config: AnyConfig | None = None,
    curriculum: CurriculumConfig | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch_pixels: int = 64 * 96 * 96,
    largest_batch: int = 128,
    attack_names: Sequence[str] = tuple(PAPER_ATTACKS),
    learning_rate: float = 1e-3,
    held_out: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    log_seconds: float = 20.0,
    save_seconds: float = 120.0,
) -> tuple[AnyEmbedder, AnyExtractor]:
    """Train embedder and extractor until `minutes` or `steps` are spent; resumes what `out` holds.

    Args:
        images: (N, 3, H, W) uint8; `held_out`, evenly spread over them, are never trained on.
        out: gets log.jsonl, training.pt while running, and the whitened extractor/ at the end.
        batch_pixels: a batch holds this many pixels, so that small crops come in larger batches,
            but at most `largest_batch` images.
        attack_names: of the random attacks; one named twice is drawn twice as often.

    Raises:
        ValueError: if not exactly one of minutes and steps is given, images are too few, or an
            attack is unknown.
        NoTakeOff: if the run stays at chance (see `CurriculumConfig.patience_images`).
    """
    config, curriculum = config or ExtractorConfig(), curriculum or CurriculumConfig()
    if held_out < 1 or len(images) - held_out <= config.bits:  # of fewer it cannot be whitened
        raise ValueError(
            f"expected at least 1 image held out, got {held_out}, and more than {config.bits} "
            f"others, one per bit, got {len(images) - held_out}"
        )
    check_training_attacks(attack_names)
    processes = Processes(device)
    device = processes.device
    budget, state = Budget(minutes=minutes, steps=steps), Curriculum(curriculum, config.bits)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)  # the networks' first weights
    generator = torch.Generator().manual_seed(seed)
    layout = {"device": device, "memory_format": training_layout(device)}
    embedder, extractor = (network.to(**layout) for network in build_networks(config))
    optimiser = torch.optim.AdamW(
        [*embedder.parameters(), *extractor.parameters()], lr=learning_rate, weight_decay=0.01
    )
    settings = plain_settings(
        network=network_name(config), config=asdict(config), curriculum=asdict(curriculum),
        seed=seed, learning_rate=learning_rate, entries=len(images), held_out=held_out,
        batch_pixels=batch_pixels, largest_batch=largest_batch, attack_names=list(attack_names),
        stack=stack_digest(images),
    )  # fmt: skip
    if saved := load_training_state(out / "training.pt", settings=settings):
        for name, part in (("embedder", embedder), ("extractor", extractor),
                           ("optimiser", optimiser)):  # fmt: skip
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        state = Curriculum(curriculum, **saved["curriculum"])
        budget = Budget(minutes=minutes, steps=steps, **saved["budget"])

    def save() -> None:
        if not processes.is_main:
            return
        save_training_state(out / "training.pt", {
            "settings": settings, "embedder": embedder.state_dict(),
            "extractor": extractor.state_dict(), "optimiser": optimiser.state_dict(),
            "generator": generator.get_state(), "curriculum": state.state(),
            "budget": budget.state(),
        })  # fmt: skip

    train_rows, test_rows = held_out_rows(len(images), held_out)
    test = images[test_rows].to(device).float() / 255
    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", desc="extractor")
    last_log = last_save = time.monotonic()
    while (progress := processes.agree(budget.progress)) < 1:
        size = state.size(progress)
        batch_size = max(1, min(largest_batch, batch_pixels // size**2))
        batch_size = processes.count * math.ceil(batch_size / processes.count)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        chosen = torch.randint(0, len(train_rows), (batch_size,), generator=generator)
        batch = random_crops(images[train_rows[chosen]], size, generator=generator)
        batch = processes.part(batch).to(device).float() / 255
        messages = random_messages(batch_size, config.bits, generator=generator).to(device)
        values, logits = pretrain_step(
            embedder, extractor, optimiser, batch, processes.part(messages),
            strength=state.strength, attack_strength=state.attack_strength,
            attack_names=attack_names, precision=precision, generator=generator,
            processes=processes,
        )  # fmt: skip
        state.update(processes.gather(logits), messages)
        budget.tick()
        if processes.is_main and time.monotonic() - last_log > log_seconds:
            log_row(out, budget, {
                "images": state.images, "size": size, "loss": values["loss"],
                "bit_accuracy": state.bit_accuracy, "learnt_bits": state.learnt_bits,
                "strength": state.strength, "attack_strength": state.attack_strength,
            })  # fmt: skip
            bar.update(int(100 * budget.progress) - bar.n)
            bar.set_postfix(bits=state.learnt_bits, accuracy=f"{state.bit_accuracy:.3f}")
            last_log = time.monotonic()
        if time.monotonic() - last_save > save_seconds:
            save()
            last_save = time.monotonic()
    save()
    bar.close()
    figures = evaluate(
        embedder, extractor, test, strength=state.strength, generator=generator,
        precision=precision,
    )  # fmt: skip
    chosen = torch.randperm(len(train_rows), generator=generator)[:4096]
    calibration = images[train_rows[chosen]]
    whitened = whiten(extractor, (b.to(device).float() / 255 for b in calibration.split(64)))
    state.say_if_unfinished()
    details = {**settings, **budget.state(), "images": state.images,
               "strength": state.strength, "attack_strength": state.attack_strength,
               "evaluation": figures}  # fmt: skip
    if processes.is_main:
        log_row(out, budget, {"evaluation": figures})
        save_extractor(out / "extractor", whitened, details=details)
    processes.wait()
    return embedder, whitened


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pre-train and whiten a watermark extractor.")
    parser.add_argument("--images", required=True, help="folder, manifest, or .npy of uint8")
    parser.add_argument("--out", required=True, help="run folder; an interrupted run resumes")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time in all")
    length.add_argument("--hours", type=float, help="the same in hours")
    length.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--size", type=int, default=128, help="side the images are brought to")
    parser.add_argument("--limit", type=int, help="images to read at most")
    parser.add_argument("--bits", type=int, default=48)
    parser.add_argument("--network", default="spectral", choices=sorted(CHOICES), help=(
        "spectral, upright (the same without turns), folded or published (HiDDeN's)"))  # fmt: skip
    parser.add_argument("--strength", type=float, help=(
        "last root mean square of the residual; default: as suits the network"))  # fmt: skip
    parser.add_argument("--attacks", nargs="+", default=list(PAPER_ATTACKS), metavar="NAME", help=(
        "drawn from while training; one named twice is drawn twice as often"))  # fmt: skip
    parser.add_argument("--learning-rate", type=float, help="default: as suits the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="auto, bfloat16 or float32")
    options = parser.parse_args(arguments)
    tune_processor()
    minutes = 60 * options.hours if options.hours is not None else options.minutes
    config, curriculum, learning_rate = CHOICES[options.network]
    if options.strength is not None:
        curriculum = replace(curriculum, last_strength=options.strength)
    images = read_image_stack(options.images, size=options.size, limit=options.limit)
    try:
        fit(
            images, options.out, config=config(bits=options.bits),
            minutes=minutes, steps=options.steps,
            curriculum=curriculum,
            attack_names=options.attacks,
            learning_rate=options.learning_rate or learning_rate, seed=options.seed,
            device=options.device, precision=options.precision,
        )  # fmt: skip
    except NoTakeOff as error:
        raise SystemExit(f"stopped: {error}") from error


if __name__ == "__main__":
    main()
