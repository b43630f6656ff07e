"""How far AdamW and Muon bring a watermarking decoder in the same number of steps.

    python -m benchmarks.optimisers --cache build/weights/cache_chest --modality chest

Every run starts from the bundled pipeline's original decoder, by the recipe of the shipped ones,
and differs from the others in optimiser and learning rate alone. The factor of the image losses is
held, so that all of them descend the same loss. Recorded is what each reaches on held-out samples.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from medsign_lite.ablations import recipe_of
from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.data import MODALITIES
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.finetuning import fit
from medsign_lite.latent_cache import LatentCache, read_latent_cache
from medsign_lite.latent_diffusion import (
    BUNDLED,
    Autoencoder,
    copy_decoder,
    load_decoder,
    load_pipeline,
)
from medsign_lite.messages import random_message
from medsign_lite.processor import tune_processor
from medsign_lite.results import record_result

RUNS = tuple((name, rate) for name in ("adamw", "muon") for rate in (5e-4, 1e-3))


def compare(
    vae: Autoencoder,
    cache: LatentCache,
    extractor: AnyExtractor,
    recipe: dict,
    *,
    steps: int,
    quality: float,
    held_out: int = 64,
) -> list[dict]:
    """A row per run of `RUNS`: optimiser, rate, seconds of a step, and the figures of `evaluate`.

    Args:
        recipe: from `ablations.recipe_of`; its optimiser and quality are replaced.
        quality: the factor of the image losses, held throughout.
    """
    message = random_message(extractor.config.bits, generator=torch.Generator().manual_seed(1))
    rows = []
    for optimiser, rate in RUNS:
        options = recipe | {
            "optimiser": optimiser, "first_quality": quality, "last_quality": quality,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            fit(
                copy_decoder(vae), cache, message, extractor, out=folder, steps=steps,
                learning_rate=rate, held_out=held_out, **options,
            )  # fmt: skip
            seconds = (time.perf_counter() - began) / steps
            reached = load_decoder(Path(folder) / "decoder", vae)[1]["evaluation"]
        row = {"optimiser": optimiser, "learning_rate": rate, "step_seconds": seconds}
        rows.append(row | reached)
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cache", type=Path, required=True, help="of medsign_lite.sample_cache")
    parser.add_argument("--modality", choices=MODALITIES, default="chest")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quality", type=float, default=0.2)
    parser.add_argument("--output", type=Path, default=Path("results/optimisers.json"))
    options = parser.parse_args()
    tune_processor()
    vae = load_pipeline(options.weights / "pipeline").vae
    shipped = options.weights / f"decoder_{options.modality}"
    recipe = recipe_of(load_checkpoint(shipped, kind="decoder")[1])
    rows = compare(
        vae, read_latent_cache(options.cache, copy_decoder(vae).eval()),
        load_extractor(options.weights / "extractor"), recipe,
        steps=options.steps, quality=options.quality,
    )  # fmt: skip
    config = {
        **{name: getattr(options, name) for name in ("modality", "steps", "quality")},
        **{name: recipe[name] for name in ("batch_size", "attack_names", "temperature")},
        "perceptual": recipe["perceptual"].name, "loss_weights": vars(recipe["weights"]),
    }  # fmt: skip
    record_result(options.output, {"runs": rows}, config)


if __name__ == "__main__":
    main()
