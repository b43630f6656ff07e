"""Training of the WAM kind of watermark (our small re-implementation): step, evaluate, fit.

    python -m medsign_lite.baselines.localised_training --data MANIFEST --out FOLDER --steps 700

Before the first step what reads the waves is fitted to what draws them (`calibrate`). In a step the
mark is kept in a random region, the rest of the picture is the original or another image, and
an attack moves the region along wherever it moves pixels. The losses ask for the region, and for
the message inside it. First the signal is strong and spread evenly; while the attacks grow it comes
to follow the just noticeable difference; and when the message is read under full attacks it becomes
weaker (the paper has two stages of fixed length: without the difference and with it).
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from medsign_lite.attacks import PAPER_ATTACKS, random_attack
from medsign_lite.baselines.localised_watermark import (
    FOLD,
    NAME,
    LocalisedConfig,
    LocalisedWatermark,
    pooled_logits,
    save_localised_watermark,
)
from medsign_lite.baselines.marked_regions import attack_with_region, random_regions, splice
from medsign_lite.checkpoints import load_strictly
from medsign_lite.curriculum import (
    Curriculum,
    CurriculumConfig,
    NoTakeOff,
    learning_rate_factor,
    random_crops,
)
from medsign_lite.extractor import fold_space
from medsign_lite.image_stack import held_out_rows, read_image_stack, stack_digest
from medsign_lite.images import quantise
from medsign_lite.losses import message_loss
from medsign_lite.messages import random_messages
from medsign_lite.metrics import bit_accuracy, psnr
from medsign_lite.pretraining import off_grid
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

GRID = 4 * FOLD  # of what the embedder draws, in pixels; the extractor shall not rely on it
# At 1, one pattern that says "marked" takes the residual, and no bit is learnt.
MESSAGE_WEIGHT = 10.0
# Rotations, flips and resizes make one wave another. With them, and three times the learning rate,
# nothing of that was undone after 17,000 images, and what is read without them had become worse.
TRAINING_ATTACKS = ("none", "crop", "brightness", "jpeg")
# Bits of a small region, compressed, cannot all be read: ask for less than elsewhere. Waves are
# heard at 26 dB from the start.
LOCALISED_CURRICULUM = CurriculumConfig(
    first_strength=0.05, read_well=0.75, read_very_well=0.78,
    attack_images=6_000, strength_images=6_000,
    sizes=(96, 128), size_starts=(0.0, 0.7),  # smaller crops say too little
)  # fmt: skip


@torch.no_grad()
def calibrate(
    watermark: LocalisedWatermark,
    images: Tensor,
    *,
    strengths: tuple[float, float],
    size: int = 96,
    batches: int = 64,
    batch_size: int = 32,
    generator: torch.Generator,
) -> None:
    """Fit what an untrained extractor reads to what an untrained embedder draws.

    The energies' direct way to the bits becomes a ridge regression of the messages on an image's
    mean energies. Descent had not found as good a line after 20,000 images.

    Args:
        images: (N, 3, H, W) uint8 to draw from.
        strengths: root mean square of the residual in [0, 1] units: largest and least.
        size: of the crops.
    """
    extractor = watermark.extractor
    device = extractor.direct.weight.device
    energies, signs = [], []
    for _ in range(batches):
        chosen = torch.randint(0, len(images), (batch_size,), generator=generator)
        batch = random_crops(images[chosen], size, generator=generator).to(device).float() / 255
        messages = random_messages(batch_size, watermark.bits, generator=generator).to(device)
        masking, place = torch.rand(2, generator=generator).tolist()
        strength = strengths[0] * (strengths[1] / strengths[0]) ** place
        residual = watermark.embedder(batch, messages, masking=masking, generator=generator)
        marked = random_attack(
            quantise(batch + strength * residual), names=TRAINING_ATTACKS, generator=generator
        )
        energies.append(extractor.energies(marked).mean(dim=(2, 3)))
        signs.append(2 * messages - 1)
    energies, signs = torch.cat(energies), torch.cat(signs)
    mean = energies.mean(dim=0)
    centred = energies - mean
    ridge = torch.eye(centred.shape[1], device=device)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ signs)
    extractor.direct.weight[1:, :, 0, 0] = weight.T
    extractor.direct.bias[1:] = -(mean @ weight)


def localised_losses(answers: Tensor, region: Tensor, message: Tensor) -> dict[str, Tensor]:
    """What an extractor's answers (B, 1 + K, h, w) are worth, in nats.

    Args:
        region: (B, 1, H, W) in {0, 1}, h = ceil(H / 4), w = ceil(W / 4).
        message: (B, K) in {0, 1}.

    Returns:
        "detection": binary cross-entropy with the share of an answer's 4 x 4 pixels that is marked;
        "message": that of the bits inside the region, half pixel by pixel, half of their mean over
        the region; every image that is marked anywhere counts alike.
    """
    share = fold_space(region, FOLD).mean(dim=1, keepdim=True)  # (B, 1, h, w)
    detection = F.binary_cross_entropy_with_logits(answers[:, :1], share)
    shown = share.sum(dim=(1, 2, 3)) > 0
    if not shown.any():
        return {"detection": detection, "message": answers.sum() * 0}
    answers, share, message = answers[shown], share[shown], message[shown]
    target = message[:, :, None, None].expand_as(answers[:, 1:])
    entropy = F.binary_cross_entropy_with_logits(answers[:, 1:], target, reduction="none")
    each = (entropy.mean(dim=1) * share[:, 0]).sum(dim=(1, 2)) / share.sum(dim=(1, 2, 3))
    together = message_loss(pooled_logits(answers, share), message)
    return {"detection": detection, "message": (each.mean() + together) / 2}


def localised_step(
    watermark: LocalisedWatermark,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    messages: Tensor,
    *,
    strength: float,
    hardness: float = 0.0,
    attacks: int = 4,
    precision: str = "auto",
    generator: torch.Generator,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """One optimiser step on images (B, 3, H, W) in [0, 1] and messages (B, K) in {0, 1}.

    Args:
        strength: root mean square of the residual in [0, 1] units.
        hardness: in [0, 1]: of the attacks, how many images are marked only in part, how far the
            residual follows the just noticeable difference, and how many rows and columns are cut
            off at the top left. Cut at full from the start, no bit is learnt.
        attacks: parts of the batch, each of which meets one random attack.

    Returns:
        {"loss", "detection", "message"}; the logits (M, K) of the M images in which some of the
        mark is left, detached; and their messages (M, K).
    """
    with mixed_precision(images.device, precision):
        residual = watermark.embedder(images, messages, masking=hardness, generator=generator)
        marked = images + strength * residual
        # What a file would hold, with the gradient of what was drawn.
        marked = marked + (quantise(marked) - marked).detach()
        region = random_regions(
            len(images), images.shape[-2:], generator=generator, figures=hardness
        ).to(images)
        pictures = splice(marked, images, region, generator=generator)
        both = torch.cat([pictures, region], dim=1)
        both = off_grid(both, GRID, strength=hardness, generator=generator)
        parts = zip(both.chunk(attacks), messages.chunk(attacks), strict=True)
        losses, read, sent = [], [], []
        for part, message in parts:
            picture, place = attack_with_region(
                part[:, :3], part[:, 3:], names=TRAINING_ATTACKS, generator=generator,
                strength=hardness,
            )  # fmt: skip
            answers = watermark.extractor.coarse(picture)
            losses.append((len(part) / len(images), localised_losses(answers, place, message)))
            shown = place.sum(dim=(1, 2, 3)) > 0
            read.append(pooled_logits(answers, answers[:, :1].sigmoid()).detach()[shown])
            sent.append(message[shown])
    values = {
        name: sum(share * loss[name] for share, loss in losses) for name in ("detection", "message")
    }
    loss = values["detection"] + MESSAGE_WEIGHT * values["message"]
    descend(loss, optimiser)
    values = {name: float(value.detach()) for name, value in ({"loss": loss} | values).items()}
    return values, torch.cat(read), torch.cat(sent)


@torch.no_grad()
def evaluate(
    watermark: LocalisedWatermark,
    images: Tensor,
    *,
    generator: torch.Generator,
    batch_size: int = 64,
    precision: str = "auto",
) -> dict[str, float]:
    """What held-out images (N, 3, H, W) in [0, 1] say of the watermark, rounded to 8 bits.

    Returns:
        "psnr" in dB; the bit accuracy of wholly marked images after each attack of the paper;
        "spliced", that of images marked in a random region, the rest being from anywhere; "iou",
        intersection over union of those regions and what `detect` gives at least .5; "unmarked",
        the share of pixels of unmarked images that it gives as much.
    """
    rows = []
    for batch in images.split(batch_size):
        messages = random_messages(len(batch), watermark.bits, generator=generator)
        messages = messages.to(batch.device)
        region = random_regions(len(batch), batch.shape[-2:], generator=generator).to(batch)
        with evaluation_mode(watermark), mixed_precision(batch.device, precision):
            marked = quantise(watermark.embed(batch, messages).float())
            row = {"psnr": psnr(marked, batch, data_range=1.0)}
            for name, attack in PAPER_ATTACKS.items():
                row[name] = bit_accuracy(watermark.extract(attack(marked)), messages)
            pictures = splice(marked, batch, region, generator=generator)
            found = watermark.detect(pictures) >= 0.5
            shown = region.sum(dim=(1, 2, 3)) > 0
            read = watermark.extract(pictures)
            row["unmarked"] = (watermark.detect(batch) >= 0.5).float().mean(dim=(1, 2))
        row["spliced"] = bit_accuracy(read, messages)[shown]
        wanted = region[:, 0].bool()
        both = (found & wanted).sum(dim=(1, 2))
        either = (found | wanted).sum(dim=(1, 2))
        row["iou"] = (both / either.clamp(min=1))[shown]
        rows.append(row)
    return {name: float(torch.cat([row[name] for row in rows]).mean()) for name in rows[0]}


def fit(
    images: Tensor,
    out: str | Path,
    *,
    config: LocalisedConfig | None = None,
    curriculum: CurriculumConfig | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch_pixels: int = 32 * 96 * 96,
    largest_batch: int = 64,
    learning_rate: float = 3e-4,
    held_out: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    log_seconds: float = 20.0,
    save_seconds: float = 120.0,
) -> LocalisedWatermark:
    """Train both networks until `minutes` or `steps` are spent; resumes what `out` holds.

    Args:
        images: (N, 3, H, W) uint8; `held_out`, evenly spread over them, are never trained on.
        out: gets log.jsonl, training.pt while running, and watermark/ at the end.
        batch_pixels: a batch holds this many pixels, so that small crops come in larger batches,
            but at most `largest_batch` images.

    Raises:
        ValueError: if not exactly one of minutes and steps is given, images are too few, `out`
            holds a run with other settings, or several processes were started.
        NoTakeOff: if the run stays at chance (see `CurriculumConfig.patience_images`).
    """
    if not 0 < held_out < len(images):
        raise ValueError(
            f"held_out: expected from 1 to fewer than the {len(images)} images, got {held_out}"
        )
    Processes().require_one("a localised watermark's training")
    config, curriculum = config or LocalisedConfig(), curriculum or LOCALISED_CURRICULUM
    budget, state = Budget(minutes=minutes, steps=steps), Curriculum(curriculum, config.bits)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)  # the networks' first weights
    generator = torch.Generator().manual_seed(seed)
    watermark = LocalisedWatermark(config).to(device=device, memory_format=training_layout(device))
    optimiser = torch.optim.AdamW(watermark.parameters(), lr=learning_rate, weight_decay=0.01)
    settings = plain_settings(
        config=asdict(config), curriculum=asdict(curriculum), batch_pixels=batch_pixels,
        largest_batch=largest_batch, learning_rate=learning_rate, seed=seed,
        entries=len(images), held_out=held_out, stack=stack_digest(images),
    )  # fmt: skip
    train_rows, test_rows = held_out_rows(len(images), held_out)
    if saved := load_training_state(out / "training.pt", settings=settings):
        load_strictly(watermark, saved["watermark"], name=f"training state in {out}")
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        state = Curriculum(curriculum, **saved["curriculum"])
        budget = Budget(minutes=minutes, steps=steps, **saved["budget"])
    else:
        strengths = (curriculum.first_strength, curriculum.last_strength)
        calibrate(watermark, images[train_rows], strengths=strengths, generator=generator)

    def save() -> None:
        save_training_state(out / "training.pt", {
            "settings": settings, "watermark": watermark.state_dict(),
            "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
            "curriculum": state.state(), "budget": budget.state(),
        })  # fmt: skip

    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", desc="localised watermark")
    last_log = last_save = time.monotonic()
    while (progress := budget.progress) < 1:
        size = state.size(progress)
        batch_size = max(1, min(largest_batch, batch_pixels // size**2))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        chosen = torch.randint(0, len(train_rows), (batch_size,), generator=generator)
        batch = random_crops(images[train_rows[chosen]], size, generator=generator)
        messages = random_messages(batch_size, config.bits, generator=generator).to(device)
        values, logits, sent = localised_step(
            watermark, optimiser, batch.to(device).float() / 255, messages,
            strength=state.strength, hardness=state.attack_strength, precision=precision,
            generator=generator,
        )  # fmt: skip
        if len(sent):  # by chance no image of a small batch is marked
            state.update(logits, sent)
        budget.tick()
        if time.monotonic() - last_log > log_seconds:
            log_row(out, budget, {
                "images": state.images, "size": size, **values,
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
    watermark.psnr = -20 * math.log10(state.strength)
    figures = evaluate(
        watermark, images[test_rows].to(device).float() / 255, generator=generator,
        precision=precision,
    )  # fmt: skip
    state.say_if_unfinished()
    details = {
        **settings,
        **budget.state(),
        "images": state.images,
        "strength": state.strength,
        "attack_strength": state.attack_strength,
        "evaluation": figures,
    }
    log_row(out, budget, {"evaluation": figures})
    save_localised_watermark(out / "watermark", watermark, details=details)
    return watermark


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.baselines.localised_training", description=f"Train the {NAME}."
    )
    parser.add_argument("--data", required=True, help="manifest, folder, or .npy of uint8")
    parser.add_argument("--out", required=True, help="run folder; an interrupted run resumes")
    parser.add_argument("--minutes", type=float, help="training time in all")
    parser.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--size", type=int, default=128, help="side the images are brought to")
    parser.add_argument("--limit", type=int, help="images to read at most")
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--psnr", type=float, default=38.0, help="of the last strength, in dB")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", help="auto, bfloat16 or float32")
    options = parser.parse_args(arguments)
    tune_processor()
    images = read_image_stack(options.data, size=options.size, limit=options.limit)
    try:
        fit(
            images, options.out, config=LocalisedConfig(bits=options.bits),
            curriculum=replace(LOCALISED_CURRICULUM, last_strength=10 ** (-options.psnr / 20)),
            minutes=options.minutes, steps=options.steps, learning_rate=options.learning_rate,
            seed=options.seed, device=options.device, precision=options.precision,
        )  # fmt: skip
    except NoTakeOff as error:
        raise SystemExit(f"stopped: {error}") from error


if __name__ == "__main__":
    main()
