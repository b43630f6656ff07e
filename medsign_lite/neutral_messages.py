"""Messages to which unmarked images do not lean.

A detector's false-positive rate is that of fair coins. Over messages drawn at random it holds
whatever the bits of unmarked images are like; for one message it holds as far as these bits are
fair. They are not quite: a decoder's upsampling leaves a periodic trace in all that it draws, which
an extractor that reads frequencies takes for the beginning of a message. Most messages do not look
like it, and one that does is changed before a decoder is trained, a few bits at a time.

    python -m medsign_lite.neutral_messages --seed 1 --images LATENT_CACHE \
        --extractor EXTRACTOR --pipeline PIPELINE --out message.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.checkpoints import digest
from medsign_lite.detection import extract_logits
from medsign_lite.extractor import load_extractor
from medsign_lite.image_stack import read_image_stack
from medsign_lite.latent_cache import TENSORS, read_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, load_pipeline
from medsign_lite.messages import check_message, message_to_string, read_message
from medsign_lite.results import record_result
from medsign_lite.training.processor import tune_processor


def lean(message: Tensor, logits: Tensor) -> float:
    """How much unmarked images speak for a message, in standard deviations over random messages.

    Args:
        message: (K,) in {0, 1}.
        logits: (N, K) of unmarked images.

    Returns:
        The sum over bits of the mean logit, counted against the message where the bit is 0, divided
        by its root mean square over all messages. A message drawn at random is above 2 with a
        chance of about 2 in 100. 0 if no bit leans.
    """
    check_message(message, logits.shape[-1])
    mean = logits.double().mean(dim=0)
    return float((mean * (2 * message.double() - 1)).sum() / mean.norm().clamp(min=1e-12))


def neutral_message(
    message: Tensor, views: Sequence[Tensor], *, allowed: float = 0.75, largest: float = 2.5
) -> Tensor:
    """Flip bits until unmarked images speak no more for the message than is allowed.

    The bits that lean most on average are flipped first, so that few have to be; those that lean
    further than `largest` stay, since against such a lean a decoder could hardly write.

    Args:
        message: (K,) in {0, 1}.
        views: logits (N, K) of unmarked images such as the message's decoder would draw, as they
            are and after attacks.
        allowed: as `lean` measures it, in any of the views.
        largest: mean logit of a bit that may be flipped.

    Returns:
        (K,) in {0, 1}; the message itself if it leans no further than is allowed.

    Raises:
        ValueError: without views, or if it leans further and no bit is left to flip.
    """
    if not views:
        raise ValueError("expected the logits of at least one view of unmarked images, got none")
    check_message(message, views[0].shape[-1])
    message = message.clone()
    mean = torch.stack([logits.double().mean(dim=0) for logits in views]).mean(dim=0)
    evidence = mean * (2 * message.double() - 1)
    order = [bit for bit in evidence.argsort(descending=True) if 0 < evidence[bit] <= largest]
    while (worst := max(lean(message, logits) for logits in views)) > allowed:
        if not order:
            raise ValueError(
                f"unmarked images lean to this message by {worst:.2f} standard deviations, "
                f"{allowed:g} are allowed, and all bits that lean by at most {largest:g} are "
                "flipped: draw another message"
            )
        bit = order.pop(0)
        message[bit] = 1 - message[bit]
    return message


def unmarked_views(
    extractor: torch.nn.Module, images: Tensor, attacks: Sequence[str] = tuple(PAPER_ATTACKS)
) -> dict[str, Tensor]:
    """By attack, the logits (N, K) of unmarked images (N, 3, H, W) uint8."""
    parts = [part.float() / 255 for part in images.split(32)]
    return {
        name: torch.cat([extract_logits(extractor, PAPER_ATTACKS[name](part)) for part in parts])
        for name in attacks
    }


def read_unmarked(
    source: str | Path, pipeline: str | Path | None, *, limit: int, size: int = 128
) -> Tensor:
    """(N, 3, H, W) uint8: the original decoder's images of a latent cache, or a folder's.

    Args:
        size: that a folder's are brought to, in pixels; those of a cache stay as they were drawn.
            Give the one that they have: made smaller, they lose the trace that is looked for.
    """
    if not (Path(source) / TENSORS).is_file():
        return read_image_stack(source, limit=limit, size=size)
    if pipeline is None:
        raise ValueError(f"{source} is a latent cache: --pipeline must name what it was made with")
    decoder = LatentDecoder(load_pipeline(pipeline).vae).eval()
    return read_latent_cache(source, decoder, limit=limit).originals


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A message that unmarked images do not lean to.")
    parser.add_argument("--seed", required=True, help="of the message to begin with, or its bits")
    parser.add_argument("--images", required=True, help=(
        "unmarked: a latent cache, folder, manifest or .npy"))  # fmt: skip
    parser.add_argument("--pipeline", help="that a latent cache was made with")
    parser.add_argument("--extractor", required=True, help="folder of a whitened extractor")
    parser.add_argument("--size", type=int, default=128, help=(
        "side of a folder's images in pixels: the one that they have"))  # fmt: skip
    parser.add_argument("--limit", type=int, default=300, help="images to read at most")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True, help="JSON file that gets the message")
    options = parser.parse_args(arguments)
    tune_processor()
    try:
        extractor = load_extractor(options.extractor, device=options.device)
        message = read_message(options.seed, bits=extractor.config.bits)
        images = read_unmarked(options.images, options.pipeline, limit=options.limit,
                               size=options.size)  # fmt: skip
        views = unmarked_views(extractor, images)
        neutral = neutral_message(message, list(views.values()))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"stopped: {error}") from error
    figures = {
        "message": message_to_string(neutral),
        "flipped": int((neutral != message).sum()),
        "leaned": {name: lean(message, logits) for name, logits in views.items()},
        "leans": {name: lean(neutral, logits) for name, logits in views.items()},
    }
    config = {"seed": options.seed, "images": len(images), "extractor": digest(extractor)}
    record_result(Path(options.out), figures, config)
    before, after = max(figures["leaned"].values()), max(figures["leans"].values())
    print(f"{figures['flipped']} bits flipped: unmarked images leaned to the message by "
          f"{before:.2f} standard deviations, now by {after:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
