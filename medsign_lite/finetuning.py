"""Fine-tuning of the VAE decoder into a watermarking decoder (Sec. 2.2, Eq. 2).

    python -m medsign_lite.finetuning --cache FOLDER --extractor FOLDER --pipeline FOLDER \
        --out FOLDER --modality chest --message 7 --minutes 30

With `--total-variation 0 --preservation 0 --attack-strength 0`, and `--first-quality` and
`--last-quality` alike, it is Stable Signature's: image and message alone, in a fixed ratio, nothing
between decoder and extractor.

Latents, the original decoder's images and the maps never change, so they are made once
(`latent_cache.py`) and a step costs one decoder pass and one extractor pass. The message gets in
first; then, as long as it is still read under attack, the losses that keep the image as it was
weigh more and more: image quality is bought back with the margin that is left.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from medsign_lite.attacks import PAPER_ATTACKS, check_training_attacks
from medsign_lite.checkpoints import digest
from medsign_lite.curriculum import learning_rate_factor
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.finetuning_step import evaluate, finetune_step
from medsign_lite.latent_cache import LatentCache, joined, read_latent_cache, with_mirrored
from medsign_lite.latent_diffusion import copy_decoder, load_decoder, load_pipeline, save_decoder
from medsign_lite.losses import LossWeights, chest_weights, fundus_weights
from medsign_lite.messages import check_message, message_to_string, read_message
from medsign_lite.perceptual import COLOUR, perceptual_loss
from medsign_lite.training.averaging import update_average
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.optimisers import OPTIMISERS, decoder_optimiser, trained_parameters
from medsign_lite.training.precision import PRECISIONS
from medsign_lite.training.processes import Processes
from medsign_lite.training.processor import training_layout, tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

__all__ = ["evaluate", "finetune_step", "fit", "main"]

PRESETS = {"chest": chest_weights, "fundus": fundus_weights}
HELD_OUT = 64  # last entries of a cache, which are never trained on


def fit(
    decoder: nn.Module,
    cache: LatentCache,
    message: Tensor,
    extractor: AnyExtractor,
    weights: LossWeights,
    out: str | Path,
    *,
    perceptual: nn.Module,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 8,
    layers: Sequence[str] = (),
    optimiser: str = "adamw",
    learning_rate: float = 5e-4,
    first_quality: float = 0.3,
    last_quality: float = 8.0,
    quality_growth: float = 0.02,
    read_well: float = 0.95,
    attack_strength: float = 1.0,
    reads: int = 1,
    attack_names: Sequence[str] = tuple(PAPER_ATTACKS),
    temperature: float = 1.0,
    average: float = 0.998,
    held_out: int = HELD_OUT,
    seed: int = 0,
    precision: str = "auto",
    details: dict | None = None,
    log_seconds: float = 20.0,
    save_seconds: float = 120.0,
) -> nn.Module:
    """Train until `minutes` or `steps` are spent; resumes what `out` holds.

    Args:
        decoder: a copy of the original one (`latent_diffusion.copy_decoder`); changed in place.
        cache: its last `held_out` entries are never trained on.
        message: (K,) in {0, 1}.
        extractor: frozen here and left in evaluation mode.
        layers: names of the decoder's modules that are trained, such as "up_blocks.2"; none: all.
            The others stay as they are, and with them most of what the decoder draws.
        optimiser: "adamw" or "muon" (see `optimisers.py`).
        first_quality, last_quality, quality_growth: the factor of the image losses. It starts at
            the first; every step multiplies it by 1 + growth (up to the last) while the smoothed
            bit accuracy is at least `read_well`, and divides it by as much (down to the first)
            while it is not.
        attack_strength: of the random attacks, reached after a tenth of the budget.
        reads: of each image in a step, each under an attack of its own.
        attack_names: of the random attacks; one named twice is drawn twice as often.
        average: decay of the running average of the weights, which is what is returned and saved.
        details: recorded with the decoder, for example the pipeline's name.

    Returns:
        The decoder with averaged weights, in evaluation mode; also saved as `out`/decoder.

    Raises:
        ValueError: for a message of the wrong length, too few entries, no read, an unknown
            layer, optimiser or attack, or not exactly one of minutes and steps.
    """
    if message.ndim != 1:
        raise ValueError(f"expected one message (K,) per decoder, got {tuple(message.shape)}")
    check_message(message, extractor.config.bits)
    if not 0 < held_out < len(cache):
        raise ValueError(
            f"held_out: expected from 1 to fewer than the cache's {len(cache)} entries, "
            f"got {held_out}"
        )
    check_training_attacks(attack_names)
    if reads < 1:
        raise ValueError(f"reads: expected at least 1 of each image in a step, got {reads}")
    trained = trained_parameters(decoder, layers)
    budget = Budget(minutes=minutes, steps=steps)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    processes = Processes(next(decoder.parameters()).device)
    device = processes.device
    decoder.to(device), extractor.to(device), perceptual.to(device)
    message = message.to(device)
    extractor.eval().requires_grad_(False)
    decoder.train().to(memory_format=training_layout(device))
    averaged = copy.deepcopy(decoder).requires_grad_(False)
    optimising = decoder_optimiser(trained, optimiser, learning_rate=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    train, test = cache.split(len(cache) - held_out)
    quality, accuracy = first_quality, 0.5
    settings = plain_settings(
        message=message_to_string(message.cpu()), weights=asdict(weights), seed=seed,
        perceptual=perceptual.name, batch_size=batch_size, layers=list(layers),
        optimiser=optimiser, learning_rate=learning_rate,
        first_quality=first_quality, last_quality=last_quality, quality_growth=quality_growth,
        attack_strength=attack_strength, reads=reads, attack_names=list(attack_names),
        temperature=temperature, read_well=read_well,
        average=average, entries=len(cache), held_out=held_out,
        # What a run that is gone on with has to be of; and a baseline of the right extractor.
        latents=digest([cache.latents]), extractor=digest(extractor), start=digest(decoder),
        maps=digest([cache.maps]) if weights.preservation else None,
    )  # fmt: skip
    if saved := load_training_state(out / "training.pt", settings=settings):
        for name, part in (("decoder", decoder), ("averaged", averaged), ("optimiser", optimising)):
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        quality, accuracy = saved["quality"], saved["accuracy"]
        budget = Budget(minutes=minutes, steps=steps, **saved["budget"])

    def save() -> None:
        if not processes.is_main:
            return
        save_training_state(out / "training.pt", {
            "settings": settings, "decoder": decoder.state_dict(),
            "averaged": averaged.state_dict(), "optimiser": optimising.state_dict(),
            "generator": generator.get_state(), "quality": quality, "accuracy": accuracy,
            "budget": budget.state(),
        })  # fmt: skip

    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", desc="decoder")
    last_log = last_save = time.monotonic()
    while (progress := processes.agree(budget.progress)) < 1:
        for group in optimising.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        chosen = torch.randint(0, len(train), (batch_size,), generator=generator)
        original, latents, maps = train.batch(processes.part(chosen), device)
        values = finetune_step(
            decoder, original, latents, maps, message, extractor, weights, optimiser=optimising,
            perceptual=perceptual, quality=quality, temperature=temperature, precision=precision,
            attack_strength=attack_strength * min(1.0, 10 * progress), reads=reads,
            attack_names=attack_names, generator=generator, processes=processes,
        )  # fmt: skip
        values = processes.mean(values)
        accuracy += 0.1 * (values["bit_accuracy"] - accuracy)
        change = 1 + quality_growth if accuracy >= read_well else 1 / (1 + quality_growth)
        quality = min(max(quality * change, first_quality), last_quality)
        budget.tick()
        update_average(averaged, decoder, step=budget.step, decay=average)
        if processes.is_main and time.monotonic() - last_log > log_seconds:
            log_row(out, budget, {"quality": quality, "smoothed_accuracy": accuracy, **values})
            bar.update(int(100 * budget.progress) - bar.n)
            bar.set_postfix(accuracy=f"{accuracy:.3f}", psnr=f"{values['psnr']:.1f}")
            last_log = time.monotonic()
        if time.monotonic() - last_save > save_seconds:
            save()
            last_save = time.monotonic()
    save()
    bar.close()
    averaged.eval()
    config = {**settings, **budget.state(), "quality": quality, **(details or {})}
    if processes.is_main:  # before it is scored: whatever comes of that, the training is not lost
        save_decoder(out / "decoder", averaged, config)
    config["evaluation"] = evaluate(averaged, test, message, extractor, precision=precision)
    if processes.is_main:
        log_row(out, budget, {"evaluation": config["evaluation"]})
        save_decoder(out / "decoder", averaged, config)
    processes.wait()
    return averaged


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a decoder to write one message.")
    parser.add_argument("--cache", required=True, help="folder with latents, maps and prompts")
    parser.add_argument("--kind", default="", help="of the cache's maps; default: its own")
    parser.add_argument("--extractor", required=True, help="folder of a whitened extractor")
    parser.add_argument("--pipeline", required=True, help="diffusers folder of the original")
    parser.add_argument("--out", required=True, help="run folder; an interrupted run resumes")
    parser.add_argument("--message", help=(
        "the bits, or a seed to draw them from; default: that of --start, or seed 0"))  # fmt: skip
    parser.add_argument("--modality", required=True, choices=sorted(PRESETS))
    parser.add_argument("--start", help="decoder/ of an earlier run to go on from, on this cache")
    parser.add_argument("--minutes", type=float, help="training time in all")
    parser.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--layers", nargs="+", default=[], metavar="NAME", help=(
        "of the decoder that are trained, such as up_blocks.2; default: all"))  # fmt: skip
    parser.add_argument("--optimiser", default="adamw", choices=OPTIMISERS)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--temperature", type=float, default=1.0, help=(
        "of the message loss: below 1, smaller logits will do"))  # fmt: skip
    parser.add_argument("--read-well", type=float, default=0.95, help="accuracy to keep")
    parser.add_argument("--first-quality", type=float, default=0.3, help=(
        "factor of the image losses that it starts from and never goes below"))  # fmt: skip
    parser.add_argument("--last-quality", type=float, default=8.0, help=(
        "factor that it never goes above; the same as the first: it stays at that"))  # fmt: skip
    parser.add_argument("--attacks", nargs="+", default=list(PAPER_ATTACKS), metavar="NAME", help=(
        "drawn from while training; one named twice is drawn twice as often"))  # fmt: skip
    parser.add_argument("--attack-strength", type=float, default=1.0, help=(
        "of the attacks, 0 to 1; at 0 there is nothing between decoder and extractor"))  # fmt: skip
    parser.add_argument("--reads", type=int, default=1, help=(
        "of each image in a step, each under an attack of its own"))  # fmt: skip
    parser.add_argument("--total-variation", type=float, help="another weight of that loss")
    parser.add_argument("--preservation", type=float, help="another weight of that loss")
    parser.add_argument("--perceptual-weights", help="published Watson-VGG .pth; else a stand-in")
    parser.add_argument("--masking", type=float, default=0.7, help=(
        "of the stand-in: from 0, an error weighs the same everywhere, to 1"))  # fmt: skip
    parser.add_argument("--structure", type=float, default=0.0, help=(
        "weight of one minus SSIM, added to the perceptual loss"))  # fmt: skip
    parser.add_argument("--evenness", type=float, default=0.0, help=(
        "weight of speckles and colour, added to the perceptual loss"))  # fmt: skip
    parser.add_argument("--colour", type=float, default=COLOUR, help=(
        "how many times --evenness counts what an error has of colour"))  # fmt: skip
    parser.add_argument("--mirrored", action="store_true", help=(
        "train with every entry mirrored left to right and upside down as well"))  # fmt: skip
    parser.add_argument("--limit", type=int, help="entries of the cache to use at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    options = parser.parse_args(arguments)
    tune_processor()
    extractor = load_extractor(options.extractor, device=options.device)
    weights = PRESETS[options.modality]()
    given = {"total_variation": options.total_variation, "preservation": options.preservation}
    weights = replace(weights, **{name: w for name, w in given.items() if w is not None})
    perceptual = perceptual_loss(
        options.perceptual_weights, masking=options.masking, structure=options.structure,
        evenness=options.evenness, colour=options.colour,
    )  # fmt: skip
    check_training_attacks(options.attacks)
    vae = load_pipeline(options.pipeline, device=options.device).vae
    original = copy_decoder(vae).eval()
    decoder, details = original, {"modality": options.modality, "mirrored": options.mirrored}
    if options.start:
        decoder, details["started_from"] = load_decoder(options.start, vae)
    earlier = details.get("started_from", {}).get("message", "0")
    message = read_message(options.message or earlier, bits=extractor.config.bits)
    # Only now, as it takes minutes where the originals have to be decoded.
    cache = read_latent_cache(options.cache, original, kind=options.kind, limit=options.limit)
    if options.mirrored and len(cache) > HELD_OUT:
        train, test = cache.split(len(cache) - HELD_OUT)
        cache = joined(with_mirrored(train, original), test)
    fit(
        decoder, cache, message, extractor, weights, options.out, perceptual=perceptual,
        minutes=options.minutes, steps=options.steps, batch_size=options.batch_size,
        layers=options.layers, optimiser=options.optimiser, learning_rate=options.learning_rate,
        temperature=options.temperature, read_well=options.read_well,
        first_quality=options.first_quality, last_quality=options.last_quality,
        attack_strength=options.attack_strength,
        reads=options.reads, attack_names=options.attacks, seed=options.seed,
        precision=options.precision, details=details,
    )  # fmt: skip


if __name__ == "__main__":
    main()
