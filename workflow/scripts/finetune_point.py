"""One point of the sweep: fine-tune a decoder with these weights, and score it."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.extractor import load_extractor
from medsign_lite.finetuning import PRESETS, fit
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import copy_decoder, load_decoder, load_pipeline
from medsign_lite.losses import LossWeights
from medsign_lite.messages import read_message
from medsign_lite.perceptual import perceptual_loss
from medsign_lite.results import record_result
from medsign_lite.training.precision import PRECISIONS
from medsign_lite.training.processor import tune_processor
from workflow.sweep import Point


def weights_at(point: Point) -> LossWeights:
    """The modality's published weights, each times its factor."""
    published = PRESETS[point.modality]()
    return replace(
        published,
        message=point.message * published.message,
        total_variation=point.total_variation * published.total_variation,
        preservation=point.preservation * published.preservation,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modality", required=True, choices=sorted(PRESETS))
    for name in ("message", "total-variation", "preservation"):
        parser.add_argument(f"--{name}", type=float, required=True, help="factor of that weight")
    parser.add_argument("--cache", type=Path, required=True, help="latents, maps and prompts")
    parser.add_argument("--pipeline", type=Path, required=True, help="diffusers folder")
    parser.add_argument("--extractor", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="decoder to go on from, with its message")
    parser.add_argument("--perceptual-weights", default="", help="Watson-VGG .pth; else a stand-in")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--held-out", type=int, required=True, help="entries that are scored")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--precision", required=True, choices=PRECISIONS)
    parser.add_argument("--out", type=Path, required=True, help="folder; a killed run goes on")
    parser.add_argument("--record", type=Path, required=True, help="JSON, written at the end")
    options = parser.parse_args(arguments)
    tune_processor()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    point = Point(
        modality=options.modality,
        message=options.message,
        total_variation=options.total_variation,
        preservation=options.preservation,
    )
    extractor = load_extractor(options.extractor, device=device)
    vae = load_pipeline(options.pipeline, device=device).vae
    decoder = copy_decoder(vae)
    cache = read_latent_cache(options.cache, decoder.eval())
    details = {"modality": point.modality}
    if options.start:
        decoder, details["started_from"] = load_decoder(options.start, vae)
    earlier = details.get("started_from", {}).get("message", "0")
    message = read_message(earlier, bits=extractor.config.bits)
    _, held_out = cache.split(max(0, len(cache) - options.held_out))
    abnormal = int((held_out.maps.amax(dim=(1, 2)) > 0).sum())
    if not abnormal:
        raise SystemExit(
            f"expected a finding in one of the {len(held_out)} held-out entries at least, got "
            "none: hold out more"
        )
    fit(
        decoder,
        cache,
        message,
        extractor,
        weights_at(point),
        options.out,
        perceptual=perceptual_loss(options.perceptual_weights or None).to(device),
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        held_out=options.held_out,
        seed=options.seed,
        precision=options.precision,
        details=details,
    )
    _, config = load_checkpoint(options.out / "decoder", kind="decoder")
    values = {
        **config["evaluation"],
        "with_finding": abnormal,
        "steps": config["step"],
        "last_quality": config["quality"],
        "seconds": round(config["seconds"], 1),
    }
    about = {"point": asdict(point), "weights": config["weights"], "entries": len(cache)}
    about["goes_on_from_a_decoder"] = options.start is not None
    about |= {name: config[name] for name in ("batch_size", "learning_rate", "held_out", "seed")}
    record_result(options.record, values, about)


if __name__ == "__main__":
    main()
