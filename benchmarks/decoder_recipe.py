"""What each part of the decoders' recipe brings, in the same number of steps.

    python -m benchmarks.decoder_recipe --cache build/weights/cache_chest --modality chest

Every run starts from the original decoder with one seed and one message, and differs from the
recipe of the shipped decoder in one thing alone. The factor of the image losses is held, so that
all of them descend the same loss as far as they share it. They end at different PSNRs, which makes
their bit accuracies incomparable; so each one's residual is scaled to one PSNR as well, and read
again. Short runs: what one brings late in a long run, this does not say.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

import torch

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.checkpoints import load_checkpoint, weights_fingerprint
from medsign_lite.data import MODALITIES
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.finetuning import fit
from medsign_lite.latent_cache import LatentCache, read_latent_cache
from medsign_lite.latent_diffusion import (
    BUNDLED,
    Autoencoder,
    copy_decoder,
    decode,
    load_decoder,
    load_pipeline,
)
from medsign_lite.messages import random_message
from medsign_lite.perceptual import perceptual_of
from medsign_lite.results import record_result
from medsign_lite.tables.ablations import recipe_of
from medsign_lite.tables.matched_quality import curve_row, match_psnr
from medsign_lite.training.processor import tune_processor


def variants(recipe: dict) -> dict[str, dict]:
    """What each run changes of a recipe from `ablations.recipe_of`, by its name."""
    loss = recipe["perceptual"].name
    masked = re.sub("^masked-pyramid(-[^+]+)?", "masked-pyramid", loss)  # by 0.7
    return {
        "recipe": {},
        "all layers": {"layers": []},
        "half the rate": {"learning_rate": recipe["learning_rate"] / 2},
        "AdamW": {"optimiser": "adamw"},
        "AdamW, half the rate": {
            "optimiser": "adamw", "learning_rate": recipe["learning_rate"] / 2,
        },
        "one read an image": {"reads": 1},
        "no attacks": {"attack_strength": 0.0},
        "no JPEG": {"attack_names": [n for n in recipe["attack_names"] if n != "jpeg"]},
        "all attacks alike": {"attack_names": list(PAPER_ATTACKS)},
        "masked by contrast": {"perceptual": perceptual_of(masked)},
        "without SSIM": {"perceptual": perceptual_of(re.sub(r"\+ssim-[^+]+", "", loss))},
        "without evenness": {"perceptual": perceptual_of(re.sub(r"\+even-[^+]+", "", loss))},
    }  # fmt: skip


def compare(
    vae: Autoencoder,
    cache: LatentCache,
    extractor: AnyExtractor,
    recipe: dict,
    *,
    steps: int,
    quality: float,
    decibels: float,
    held_out: int = 64,
) -> list[dict]:
    """A row per run of `variants`, of the last `held_out` entries of the cache.

    Args:
        recipe: from `ablations.recipe_of`; its factors of quality are replaced.
        quality: the factor of the image losses, held throughout.
        decibels: of the PSNR that all are compared at.

    Returns:
        run, step_seconds, the figures of `finetuning_step.evaluate`, and "matched", a `curve_row`.
    """
    message = random_message(extractor.config.bits, generator=torch.Generator().manual_seed(1))
    _, test = cache.split(len(cache) - held_out)
    originals, latents, _ = test.batch(torch.arange(len(test)), "cpu")
    rows = []
    for name, changes in variants(recipe).items():
        options = recipe | {"first_quality": quality, "last_quality": quality} | changes
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            decoder = fit(
                copy_decoder(vae), cache, message, extractor, out=folder, steps=steps,
                held_out=held_out, **options,
            )  # fmt: skip
            seconds = (time.perf_counter() - began) / steps
            reached = load_decoder(Path(folder) / "decoder", vae)[1]["evaluation"]
        marked = match_psnr(decode(decoder, latents), originals, decibels)
        matched = curve_row(
            marked, originals, extractor, message, rung=decibels,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        matched = {key: value for key, value in matched.items() if "per_image" not in key}
        rows.append({"run": name, "step_seconds": seconds, **reached, "matched": matched})
        print(f"{name:22} {reached['psnr']:.1f} dB, SSIM {reached['ssim']:.3f}; at "
              f"{decibels:g} dB {matched['bit_accuracy']:.3f} of the bits", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cache", type=Path, required=True, help="of medsign_lite.sample_cache")
    parser.add_argument("--modality", choices=MODALITIES, default="chest")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quality", type=float, default=0.03)
    parser.add_argument("--learning-rate", type=float, default=4e-4, help=(
        "of the first steps; what a shipped decoder records is that of its last"))  # fmt: skip
    parser.add_argument("--psnr", type=float, default=40.0, help="dB that all are compared at")
    parser.add_argument("--output", type=Path, default=Path("results/decoder_recipe.json"))
    options = parser.parse_args()
    tune_processor()
    vae = load_pipeline(options.weights / "pipeline").vae
    shipped = options.weights / f"decoder_{options.modality}"
    recipe = recipe_of(load_checkpoint(shipped, kind="decoder")[1])
    recipe["learning_rate"] = options.learning_rate
    rows = compare(
        vae, read_latent_cache(options.cache, copy_decoder(vae).eval()),
        load_extractor(options.weights / "extractor"), recipe,
        steps=options.steps, quality=options.quality, decibels=options.psnr,
    )  # fmt: skip
    config = {
        **{name: getattr(options, name) for name in ("modality", "steps", "quality", "psnr")},
        **{name: value for name, value in recipe.items() if name not in ("weights", "perceptual")},
        "perceptual": recipe["perceptual"].name, "loss_weights": vars(recipe["weights"]),
        "weights": weights_fingerprint(options.weights, ["pipeline", "extractor"]),
    }  # fmt: skip
    record_result(options.output, {"runs": rows}, config)


if __name__ == "__main__":
    main()
