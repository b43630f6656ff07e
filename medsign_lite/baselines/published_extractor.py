"""The published extractor of Stable Signature (Fernandez et al., ICCV 2023), as a network of ours.

Its authors give it as a TorchScript archive, already whitened, for 48 bits and 256 pixels. It reads
images normalised as ImageNet's, and its logits are small: a standard deviation of about .05, so a
decoder is fine-tuned against it with a `message_loss` temperature of about .1. The archive's
licence (CC BY-NC 4.0) does not allow it to be shipped here.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from medsign_lite.images import check_image, imagenet_normalise

TEMPERATURE = 0.1  # that brings its logits to the size of one


class PublishedExtractor(nn.Module):
    """A TorchScript extractor behind our interface: images in [0, 1] to logits (B, K)."""

    minimum_side = 32  # pixels of an image

    def __init__(self, network: torch.jit.ScriptModule, bits: int) -> None:
        super().__init__()
        self.network = network
        self.config = SimpleNamespace(bits=bits)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], to logits (B, bits); above 0 reads as bit 1."""
        check_image(image, minimum=self.minimum_side, in_range=False)
        # Channels last: with its gradient, two thirds of the time on a processor.
        image = imagenet_normalise(image).contiguous(memory_format=torch.channels_last)
        return self.network(image)


def load_published_extractor(
    path: str | Path, *, device: str | torch.device = "cpu"
) -> PublishedExtractor:
    """Load a TorchScript extractor, frozen, in evaluation mode, after reading one image with it.

    TorchScript is not a pickle: an archive can compute, and can do nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a TorchScript archive, or is not one of an extractor.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no extractor at {path}")
    try:
        with warnings.catch_warnings():  # torch would rather have torch.export; it was published so
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: expected a TorchScript archive: {error}") from error
    probe = torch.full((1, 3, 64, 64), 0.5, device=device)
    try:
        with torch.no_grad():
            logits = network(probe)
    except RuntimeError as error:
        raise ValueError(f"{path} does not read an image (1, 3, 64, 64): {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{path}: expected logits (1, K) of an image, got {got}")
    return PublishedExtractor(network, logits.shape[1]).eval().requires_grad_(False)
