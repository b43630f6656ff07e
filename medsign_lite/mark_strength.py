"""A decoder's mark made stronger or weaker after training, or averaged with another's.

    python -m medsign_lite.mark_strength RUN/decoder --factor 1.06 --cache CACHE \\
        --extractor EXTRACTOR --out FOLDER
    python -m medsign_lite.mark_strength RUN/decoder --average START/decoder --share 0.3 \\
        --cache CACHE --extractor EXTRACTOR --out FOLDER

What training changed in the weights is multiplied by the factor. Around 1 the mark's amplitude
follows the factor, because what was changed is small beside the weights. So a decibel of image
quality that is left over buys bits, or the other way round, in a minute and without training.

Weights may be averaged as well with those of a decoder that training passed through before, and
that carries the same message: what steps along the way did to please one batch cancels.
"""

import argparse
import copy
from pathlib import Path

import torch

from medsign_lite.checkpoints import digest
from medsign_lite.extractor import load_extractor
from medsign_lite.finetuning import HELD_OUT
from medsign_lite.finetuning_step import evaluate
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import (
    BUNDLED,
    Autoencoder,
    LatentDecoder,
    copy_decoder,
    freeze,
    load_decoder,
    load_pipeline,
    save_decoder,
)
from medsign_lite.messages import message_from_string
from medsign_lite.training.processor import tune_processor

LOWEST, HIGHEST = 0.5, 1.5  # beyond, the decoder draws another picture instead of another mark


def check_factor(factor: float) -> None:
    """Refuse a factor that `with_strength` does not take."""
    if not LOWEST <= factor <= HIGHEST:
        raise ValueError(f"factor: expected from {LOWEST} to {HIGHEST}, got {factor}")


def with_strength(decoder: LatentDecoder, vae: Autoencoder, factor: float) -> LatentDecoder:
    """A frozen copy whose weights are original + factor * (decoder - original).

    Args:
        decoder: fine-tuned from this autoencoder's; stays as it is.
        factor: from 0.5 to 1.5; at 1 the copy is the decoder.

    Raises:
        ValueError: for another factor.
    """
    check_factor(factor)
    made, trained = copy_decoder(vae), decoder.state_dict()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            value.copy_(torch.lerp(value.float(), trained[name].float(), factor))
    return freeze(made)


def averaged(decoder: LatentDecoder, other: LatentDecoder, share: float) -> LatentDecoder:
    """A frozen decoder whose weights are (1 - share) * decoder's + share * other's.

    Args:
        decoder, other: of one autoencoder and one message; they stay as they are.
        share: of the other one, above 0 and below 1.

    Raises:
        ValueError: for another share.
    """
    check_share(share)
    made, second = copy.deepcopy(decoder), other.state_dict()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            value.copy_(torch.lerp(value.float(), second[name].float(), share))
    return freeze(made)


def check_share(share: float) -> None:
    """Refuse a share that `averaged` does not take."""
    if not 0 < share < 1:
        raise ValueError(f"share: expected above 0 and below 1, got {share}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.mark_strength", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("decoder", type=Path, help="folder of a fine-tuned decoder")
    parser.add_argument("--factor", type=float, default=1.0, help=f"{LOWEST} to {HIGHEST}")
    parser.add_argument(
        "--average", type=Path, metavar="FOLDER", help="another one to average with"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of that one in the average")
    parser.add_argument("--cache", type=Path, required=True, help="samples it was fine-tuned on")
    parser.add_argument("--extractor", type=Path, required=True, help="that it was trained with")
    parser.add_argument("--pipeline", type=Path, default=BUNDLED)
    parser.add_argument("--out", type=Path, required=True, help="the new decoder's folder")
    options = parser.parse_args(arguments)
    if options.factor == 1 and options.average is None:
        parser.error(
            "the decoder would stay as it is: expected a --factor other than 1 or --average"
        )
    try:
        check_factor(options.factor)  # before the samples are decoded
        check_share(options.share)
    except ValueError as error:
        parser.error(str(error))
    tune_processor()
    vae = load_pipeline(options.pipeline).vae
    extractor = load_extractor(options.extractor)
    made, config = load_decoder(options.decoder, vae)
    config = {key: value for key, value in config.items() if key not in ("kind", "origin")}
    if options.average:
        other, about = load_decoder(options.average, vae)
        if about["message"] != config["message"]:
            parser.error(f"--average: expected the message {config['message']}, got another one")
        made = averaged(made, other, options.share)
        config["averaged_with"] = {"decoder": digest(other), "share": options.share}
    if options.factor != 1:
        made = with_strength(made, vae, options.factor)
    cache = read_latent_cache(options.cache, LatentDecoder(vae).eval())
    held_out = config.get("held_out", HELD_OUT)
    _, test = cache.split(len(cache) - held_out)
    message = message_from_string(config["message"], bits=extractor.config.bits)
    factor = options.factor * config.get("mark_strength", 1.0)
    figures = evaluate(made, test, message, extractor)
    save_decoder(options.out, made, {**config, "mark_strength": factor, "evaluation": figures})
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
