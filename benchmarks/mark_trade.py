"""What a weaker mark would cost, and at which wavelengths a mark lies.

    python -m benchmarks.mark_trade --modality fundus

On the images of Table 1: the shipped decoder's mark at several strengths, as
`medsign_lite.mark_strength` makes them, with what each leaves of image quality, of the bits and of
the classifiers' answers. It says whether a figure that falls short could be bought with one that
has something to spare. The wavelengths say why SSIM falls: its windows are some 11 pixels wide, so
it forgives a mark of longer waves, and our extractor reads none above 21.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import FINDINGS, MODALITIES
from medsign_lite.evaluation import diagnostic_change, evaluate_attacks, quality_row
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.images import luma, quantise
from medsign_lite.judges.judge_networks import load_classifier
from medsign_lite.latent_diffusion import (
    BUNDLED,
    Autoencoder,
    LatentDecoder,
    copy_decoder,
    decode,
    load_decoder,
    load_pipeline,
)
from medsign_lite.mark_strength import with_strength
from medsign_lite.messages import message_from_string
from medsign_lite.records.table_samples import kept_samples
from medsign_lite.results import ROOT, read_result, record_result
from medsign_lite.training.processor import tune_processor

RESULTS = ROOT / "results"
FACTORS = (1.0, 0.95, 0.9, 0.8, 0.7)
JUDGES = ("classifier", "classifier_mixer")
WAVELENGTHS = (2, 3, 4, 6, 8, 12, 21, 64)  # pixels


def strength_row(
    images: Tensor,
    originals: Tensor,
    extractor: AnyExtractor,
    message: Tensor,
    classifiers: Mapping[str, Callable[[Tensor], Tensor]],
    findings: Sequence[str],
    *,
    false_positive_rate: float = 1e-6,
    seed: int = 0,
) -> dict:
    """Quality, bits by attack and change by classifier, each with its interval.

    Args:
        images, originals: (N, 3, H, W) around [0, 1], with and without the mark.
        classifiers: by name, (B, 3, H, W) to probabilities (B, findings).
    """
    generator = torch.Generator().manual_seed(seed)
    attacks = evaluate_attacks(
        images, None, extractor, message,
        false_positive_rate=false_positive_rate, generator=generator,
    )  # fmt: skip
    changes = {}
    for name, judge in classifiers.items():
        *_, changes[name] = diagnostic_change(
            judge, images, originals, findings=findings, generator=generator
        )
    return quality_row(images, originals, generator=generator) | {
        "attacks": attacks, "changes": changes,
    }  # fmt: skip


def wavelengths(images: Tensor, originals: Tensor) -> list[dict]:
    """Of a mark (N, 3, H, W) and of the luma below it: shares of the power between wavelengths.

    Returns:
        Rows of `shortest` and `longest` wavelength in pixels, the `mark`'s share of its own power
        there, and the `image`'s of its own; shares of all but the mean brightness, which add up to
        1 at most: what is above the longest or below the shortest is not listed.
    """
    originals = quantise(originals)
    mark = _power(luma(quantise(images) - originals))
    image = _power(luma(originals))
    height, width = mark.shape
    down, across = torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double()
    length = 1 / torch.hypot(down[:, None], across).clamp(min=1e-9)
    rows = []
    for shortest, longest in zip(WAVELENGTHS, WAVELENGTHS[1:], strict=False):
        ring = (length >= shortest) & (length < longest)
        shares = {name: float(power[ring].sum() / power.sum().clamp(min=1e-30))
                  for name, power in (("mark", mark), ("image", image))}  # fmt: skip
        rows.append({"shortest": shortest, "longest": longest, **shares})
    return rows


def _power(grey: Tensor) -> Tensor:
    """Mean power spectrum (H, W) of (N, 1, H, W), without the mean brightness."""
    grey = grey[:, 0].double()
    return torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square().mean(dim=0)


def trade(
    decoder: LatentDecoder,
    vae: Autoencoder,
    latents: Tensor,
    *reading: object,
    factors: Sequence[float] = FACTORS,
    false_positive_rate: float = 1e-6,
) -> dict:
    """{"strengths": a `strength_row` with its factor for each, "wavelengths"} of one decoder.

    Args:
        latents: (N, C, h, w), scaled.
        reading: what `strength_row` takes after the images.
    """
    originals = decode(copy_decoder(vae).eval(), latents)
    rows = []
    for factor in factors:
        images = decode(with_strength(decoder, vae, factor), latents)
        row = strength_row(images, originals, *reading, false_positive_rate=false_positive_rate)
        rows.append({"factor": factor, **row})
        print(f"{factor:4.2f}: {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}", flush=True)
    return {"strengths": rows, "wavelengths": wavelengths(decode(decoder, latents), originals)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent)
    parser.add_argument("--results", type=Path, default=RESULTS, help="with the tables' samples")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--output", type=Path, help="default: mark_trade_MODALITY.json in there")
    options = parser.parse_args(arguments)
    tune_processor()
    samples = read_result(options.results / f"table_samples_{options.modality}.json")
    kept = samples["values"]["prompts"]
    if not 1 <= options.images <= len(kept):
        parser.error(f"--images: {len(kept)} samples are kept, got {options.images}")
    pipeline = load_pipeline(options.weights / "pipeline")
    latents = kept_samples(pipeline, kept[: options.images], options.results)
    if latents is None:
        parser.error(f"{options.results} keeps no samples of {options.weights / 'pipeline'}")
    parts = ["pipeline", "extractor", f"decoder_{options.modality}", *JUDGES]
    decoder, about = load_decoder(options.weights / f"decoder_{options.modality}", pipeline.vae)
    extractor, findings = load_extractor(options.weights / "extractor"), FINDINGS[options.modality]
    judges = {name: load_classifier(options.weights / name) for name in JUDGES}
    with torch.no_grad():
        values = trade(
            decoder, pipeline.vae, latents, extractor,
            message_from_string(about["message"], bits=extractor.config.bits),
            {name: lambda image, judge=judge: judge.probability(image, findings)
             for name, judge in judges.items()},
            findings,
        )  # fmt: skip
    config = {
        "modality": options.modality, "images": len(latents), "factors": list(FACTORS),
        "weights": weights_fingerprint(options.weights, parts),
    }  # fmt: skip
    output = options.output or options.results / f"mark_trade_{options.modality}.json"
    print("written to", record_result(output, values, config))


if __name__ == "__main__":
    main()
