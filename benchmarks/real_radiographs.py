"""The main path on real radiographs with a real autoencoder, at a small budget.

    python -m benchmarks.real_radiographs --data ../shared/data --work build/real_radiographs

Chest radiographs (NIH ChestX-ray14) become a manifest at 256 px; an extractor is pre-trained and
whitened on them; the decoder of a pretrained Stable Diffusion autoencoder (`AutoencoderTiny`) is
fine-tuned to carry a message; the held-out radiographs are scored under the paper's attacks. What
is reached in a few minutes on two cores is recorded with the budget that it took.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from data_prep.folder import Columns, prepare_folder
from medsign_lite.data import read_manifest
from medsign_lite.evaluation import evaluate_attacks, quality_row
from medsign_lite.extractor import load_extractor
from medsign_lite.finetuning import fit as fit_decoder
from medsign_lite.image_stack import read_image_stack
from medsign_lite.images import quantise
from medsign_lite.latent_cache import LatentCache, decode_bytes
from medsign_lite.latent_diffusion import LatentDecoder, copy_decoder, decode, encode, freeze
from medsign_lite.losses import chest_weights
from medsign_lite.messages import random_message
from medsign_lite.perceptual import perceptual_loss
from medsign_lite.pretraining import CHOICES
from medsign_lite.pretraining import fit as fit_extractor
from medsign_lite.results import record_result
from medsign_lite.training.processor import tune_processor


def cached_radiographs(
    vae: AutoencoderTiny, images: torch.Tensor, maps: torch.Tensor | None = None
) -> LatentCache:
    """What fine-tuning reads, of (N, 3, H, W) in [0, 1] and maps (N, H, W).

    Without maps, as where there is no report to make them from, nothing is spared.
    """
    latents = torch.cat([encode(vae, part) for part in images.split(8)])
    original = LatentDecoder(vae)
    originals = torch.cat([decode_bytes(original, part) for part in latents.split(8)])
    if maps is None:
        maps = torch.zeros(len(images), *images.shape[-2:])
    return LatentCache(
        latents=latents.half(), maps=maps.half(), originals=originals, prompts=("",) * len(images)
    )


def run(
    data: Path,
    work: Path,
    *,
    size: int = 256,
    extractor_budget: dict,
    decoder_budget: dict,
    limit: int | None = None,
    seed: int = 0,
) -> dict:
    """Manifest, extractor, decoder and scores; every part resumes what `work` holds.

    Args:
        extractor_budget, decoder_budget: arguments of the two fits, such as minutes or steps.
        limit: images of each split at most.

    Returns:
        attack rows and the quality row of the held-out radiographs.

    Raises:
        ValueError: if `work` holds other radiographs, the same at another size, or a decoder that
            another extractor reads, as after a larger `extractor_budget`.
    """
    columns = Columns(image="filename", findings="finding_labels", patient="patient_id")
    # Quick where it is done already, and refused where `work` holds another folder's images.
    manifest, _ = prepare_folder(
        data / "cxr", work / "radiographs", table=data / "cxr" / "index.csv", columns=columns,
        modality="chest", size=size,
    )  # fmt: skip
    read_manifest(manifest)
    train = read_image_stack(manifest, size=size, split="train", limit=limit)
    test = read_image_stack(manifest, size=size, split="test", limit=limit)
    # The bundled one's network: it learns from few images, HiDDeN's needs a million.
    config, curriculum, learning_rate = CHOICES["spectral"]
    fit_extractor(
        train, work / "extractor", config=config(), curriculum=curriculum,
        learning_rate=learning_rate, held_out=min(32, len(train) // 4), seed=seed,
        **extractor_budget,
    )  # fmt: skip
    extractor = load_extractor(work / "extractor" / "extractor")
    vae = freeze(AutoencoderTiny.from_pretrained(data / "taesd"))
    message = random_message(
        extractor.config.bits, generator=torch.Generator().manual_seed(seed + 1)
    )
    decoder = fit_decoder(
        copy_decoder(vae), cached_radiographs(vae, train.float() / 255), message, extractor,
        chest_weights(), work / "decoder", perceptual=perceptual_loss(), seed=seed,
        held_out=min(16, len(train) // 4), **decoder_budget,
    )  # fmt: skip
    latents = encode(vae, test.float() / 255)
    reference, marked = quantise(decode(vae, latents)), quantise(decode(decoder, latents))
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": {"train": len(train), "test": len(test)},
        "attacks": evaluate_attacks(marked, reference, extractor, message, generator=generator),
        "quality": quality_row(marked, reference, generator=generator),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/real_radiographs"))
    parser.add_argument("--extractor-minutes", type=float, default=8)
    parser.add_argument("--decoder-minutes", type=float, default=14)
    parser.add_argument("--output", type=Path, default=Path("results/real_radiographs.json"))
    options = parser.parse_args()
    if not (options.data / "cxr").is_dir() or not (options.data / "taesd").is_dir():
        raise SystemExit(f"skipped: {options.data} has no folders cxr and taesd")
    tune_processor()
    budgets = {
        "extractor_budget": {"minutes": options.extractor_minutes},
        "decoder_budget": {
            "minutes": options.decoder_minutes, "batch_size": 4, "reads": 4, "optimiser": "muon",
            "learning_rate": 1e-3, "temperature": 0.7,
        },
    }  # fmt: skip
    values = run(options.data, options.work, **budgets)
    record_result(
        options.output,
        values,
        {**budgets, "size": 256, "autoencoder": "AutoencoderTiny", "network": "spectral"},
    )
    for row in values["attacks"]:
        print(f"{row['attack']:<12} bit accuracy {row['bit_accuracy']:.3f}")
    print(f"PSNR {values['quality']['psnr']:.2f} dB, SSIM {values['quality']['ssim']:.3f}")


if __name__ == "__main__":
    main()
