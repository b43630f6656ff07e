"""SSL Watermark: an image is changed until a self-supervised network reads the message in it.

Fernandez et al., "Watermarking images in self-supervised latent spaces", ICASSP 2022, a row of
Table 1. A key draws K orthonormal directions in the space of a backbone's whitened features; the
sign of the features along the k-th is the k-th bit. Nothing is trained for the watermark: each
image is optimised by itself, through random distortions, under a limit on its PSNR.

Where this departs from the paper: the residual is weighed by what could just be noticed in the
image as it was, theirs by a map of SSIM that follows the optimisation; JPEG and brightness are
among the distortions; the margin is one that a small image can reach (with a larger one no bit
ever has enough, and the easy ones take what the hard ones need: a margin of 5 reads .72 of the bits
of 16 radiographs at 36 dB, .3 reads .82); what is embedded in an image that is all but grey is
grey, because a radiograph's file is, and a generated one's channels are equal but for a level or
two.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.attacks import random_attack
from medsign_lite.baselines.backbone import WhitenedBackbone
from medsign_lite.baselines.noticeable import just_noticeable_difference
from medsign_lite.images import check_image, quantise
from medsign_lite.messages import check_message, check_one_message_per_image
from medsign_lite.metrics import psnr
from medsign_lite.training.precision import mixed_precision

EMBEDDING_ATTACKS = ("none", "crop", "rotation", "resize", "blur", "jpeg", "brightness")
TOLERANCE = 0.1  # dB
GREY = 3 / 255  # mean spread of the channels below which an image is a radiograph, not a photograph


def carriers(dimensions: int, bits: int, *, seed: int) -> Tensor:
    """Random orthonormal directions, one column per bit: (dimensions, bits) float32.

    Raises:
        ValueError: if there are fewer dimensions than bits.
    """
    if dimensions < bits:
        raise ValueError(
            f"{bits} bits need as many dimensions of whitened features, got {dimensions}: whiten "
            "on more varied images, or take fewer bits"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(dimensions, bits, generator=generator, dtype=torch.float64)
    columns, upper = torch.linalg.qr(drawn)
    return (columns * upper.diagonal().sign()).float()  # no sign is the library's choice


@dataclass(kw_only=True, eq=False)
class SSLWatermark:
    """A watermark of `bits` bits in the features of a whitened backbone.

    psnr: in dB, 20 to 50, of the image rounded to 8 bits, reached within .1 dB. seed: of the
    directions: the key. margin: how far beyond zero, in deviations of an unmarked image's
    features, the optimisation pushes every bit. perceptual: weigh the residual by what could just
    be noticed. precision: of the optimisation, "float32", "bfloat16" or "auto"; reading is always
    float32.
    """

    backbone: WhitenedBackbone
    bits: int = 48
    psnr: float = 40.0
    steps: int = 100
    seed: int = 0
    margin: float = 0.3  # no more is reached in 128 x 128 pixels, and unreached bits all pull alike
    learning_rate: float = 0.01
    attacks: tuple[str, ...] = EMBEDDING_ATTACKS
    perceptual: bool = True
    precision: str = "float32"
    batch_size: int = 32
    _carriers: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("bits", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("margin", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 20 <= self.psnr <= 50:
            raise ValueError(f"psnr: expected 20 to 50 dB, got {self.psnr}")
        self._carriers = carriers(self.backbone.dimensions, self.bits, seed=self.seed)

    def extract(self, image: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) in [0, 1]; of deviation 1 on unmarked images."""
        features = self.backbone(image)
        return features @ self._carriers.to(features.device)

    def embed(self, image: Tensor, message: Tensor, *, generator: torch.Generator) -> Tensor:
        """Write a message into images, `batch_size` at a time.

        Args:
            image: (B, 3, H, W) in [0, 1].
            message: (K,) or (B, K) in {0, 1}.
            generator: CPU; draws the distortions. The same one gives the same images.

        Returns:
            (B, 3, H, W), every value one of 0, 1/255, ..., 1.

        Raises:
            ValueError: for another message, or images too small for the backbone.
            RuntimeError: if no change of an image is large enough for the PSNR: the backbone
                does not look at it.
        """
        check_image(image, minimum=self.backbone.minimum_side)
        check_message(message, self.bits)
        message = message.expand(len(image), -1) if message.ndim == 1 else message
        check_one_message_per_image(message, image, self.bits)
        batches = zip(image.split(self.batch_size), message.split(self.batch_size), strict=True)
        return torch.cat([self._embed(*batch, generator) for batch in batches])

    @torch.enable_grad()
    def _embed(self, image: Tensor, message: Tensor, generator: torch.Generator) -> Tensor:
        image, signs = quantise(image.detach()), 2 * message.to(image) - 1
        weight = image.new_ones(len(image), 1, 1, 1)
        if self.perceptual:
            weight = just_noticeable_difference(image)
            weight = weight / weight.amax(dim=(1, 2, 3), keepdim=True)
        spread = (image.amax(dim=1) - image.amin(dim=1)).mean(dim=(1, 2))
        grey = (spread < GREY)[:, None, None, None]
        # Free within [0, 1]; weight and scale are at most 1 and bring it nearer to the image.
        free = image.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([free], lr=self.learning_rate)
        for _ in range(self.steps):
            marked = image + self._residual(free - image, weight, grey)
            attacked = random_attack(
                marked, names=self.attacks, minimum=self.backbone.minimum_side,
                generator=generator,
            )  # fmt: skip
            with mixed_precision(image.device, self.precision):
                features = self.backbone(attacked)
            logits = features @ self._carriers.to(features.device)
            # A sum over images: none weighs less because of what is beside it.
            loss = F.relu(self.margin - signs * logits).mean(dim=1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                free.clamp_(0, 1)
        with torch.no_grad():
            return self._at_psnr(image, self._residual(free - image, weight, grey))

    def _residual(self, change: Tensor, weight: Tensor, grey: Tensor) -> Tensor:
        """The change weighed, and scaled down if it would be below the PSNR."""
        change = change * weight
        change = torch.where(grey, change.mean(dim=1, keepdim=True), change)
        error = change.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        return change * (10 ** (-self.psnr / 20) / error).clamp(max=1)

    def _at_psnr(self, image: Tensor, residual: Tensor) -> Tensor:
        """Scale each image's residual so that the rounded image has the PSNR, by bisection."""
        low = image.new_zeros(len(image), 1, 1, 1)
        high = low + 64
        for _ in range(30):
            middle = (low + high) / 2
            quality = psnr(quantise(image + middle * residual), image, data_range=1.0)
            above = (quality >= self.psnr)[:, None, None, None]
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        marked = quantise(image + low * residual)
        reached = psnr(marked, image, data_range=1.0)
        if not (reached < self.psnr + TOLERANCE).all():
            raise RuntimeError(
                f"{int((reached >= self.psnr + TOLERANCE).sum())} of {len(image)} images cannot "
                f"be changed down to {self.psnr:g} dB: {float(reached.max()):.1f} dB is what came; "
                "do the backbone's features depend on the image?"
            )
        return marked
