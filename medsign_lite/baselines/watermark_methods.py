"""The watermarks of Table 1 behind one interface: what marks an image, and what reads it again.

DCT-DWT, SSL Watermark and the WAM kind write into a finished image; Stable Signature and MedSign
are decoders, which draw the image marked out of its latents. Both kinds get the original decoder's
image and its latents, so that all methods are scored on the same images.

A mark that somebody adds may be as strong as he likes. The three that can be set are set to the
PSNR that the paper prints of them; `matched_quality.py` compares all at one PSNR.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medsign_lite.baselines.dct_dwt import BLOCK, PLANES, DctDwt
from medsign_lite.baselines.localised_watermark import NAME, LocalisedWatermark
from medsign_lite.baselines.ssl_watermark import SSLWatermark
from medsign_lite.checkpoints import digest
from medsign_lite.images import luma, quantise
from medsign_lite.latent_diffusion import LatentDecoder, decode
from medsign_lite.messages import check_message, random_message

TIMED = 10  # images marked, and timed, together
SEARCHED = 50  # images of SSL Watermark's curve: every rung is another search, of seconds per image


@dataclass(frozen=True, kw_only=True, eq=False)
class WatermarkMethod:
    """A watermark with its message, ready to mark images and to read them.

    Attributes:
        key: names its row; title: the same for readers.
        message: (K,) in {0, 1}, one for all images: what an unmarked image happens to say of the
            message in use is then an honest control.
        write: images (B, 3, H, W) in [0, 1], their latents (B, C, h, w) and a CPU generator to
            marked images (B, 3, H, W) around [0, 1], on any device, not rounded.
        read: (B, 3, h, w) in [0, 1] to logits (B, K).
        settings: what its figures depend on: parameters, digests of weights and message; no path.
        at_psnr: makes the same method at another PSNR in dB; None if its residual may be scaled.
        curve_images: the first so many images are what its curve over PSNR is measured on, at least
            1; None for all.
        locate: (B, 3, h, w) in [0, 1] to how likely each pixel is marked, (B, h, w) in [0, 1]; None
            if the method cannot say.
    """

    key: str
    title: str
    message: Tensor
    write: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    read: Callable[[Tensor], Tensor]
    settings: dict
    at_psnr: Callable[[float], "WatermarkMethod"] | None = None
    curve_images: int | None = None
    locate: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.message.ndim != 1:
            raise ValueError(f"{self.key}: expected one message (K,), got {self.message.shape}")
        check_message(self.message, self.bits)

    @property
    def bits(self) -> int:
        """K."""
        return len(self.message)

    def draw(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mark images, and take the time.

        Args:
            images: (N, 3, H, W) in [0, 1], the original decoder's, rounded to 8 bits.
            latents: (N, C, h, w), scaled, what they were drawn from.

        Returns:
            (N, 3, H, W) around [0, 1] on the CPU, not rounded; and seconds per image, one value for
            each `TIMED` images. A decoder's time is that of drawing the image, which the original
            decoder takes as well; the others' comes on top of it.
        """
        if len(images) != len(latents):
            raise ValueError(f"expected latents of {len(images)} images, got {len(latents)}")
        generator = torch.Generator().manual_seed(0)
        marked, seconds = [], []
        for image, part in zip(images.split(TIMED), latents.split(TIMED), strict=True):
            start = time.perf_counter()
            marked.append(self.write(image, part, generator).float().cpu())
            seconds.append((time.perf_counter() - start) / len(image))
        return torch.cat(marked), torch.tensor(seconds)

    def mark(self, images: Tensor, latents: Tensor) -> Tensor:
        """Marked images as a file holds them: as `draw`, rounded to 8 bits."""
        return quantise(self.draw(images, latents)[0])


def own_message(bits: int) -> Tensor:
    """The message (bits,) of methods that come without one: always the same."""
    return random_message(bits, generator=torch.Generator().manual_seed(0))


def dct_dwt(*, psnr: float, bits: int = 48, plane: str = "luma") -> WatermarkMethod:
    """The classical watermark; psnr in dB, which textured images have, and smooth ones 2 dB less.

    A bit is a place on a lattice. Scaling the residual would push the image past it, so another
    PSNR is another lattice. In a texture its error is even over a step, in one of the 64 numbers of
    a block; where the image has nothing there, it is half a step for every other bit.
    """
    direction = torch.tensor(PLANES[plane][1])
    spread = 12 * (2 * BLOCK) ** 2 / float(direction.square().mean())
    method = DctDwt(bits=bits, plane=plane, step=math.sqrt(spread) * 10 ** (-psnr / 20))
    message = own_message(bits)
    return WatermarkMethod(
        key="dct-dwt" if plane == "luma" else f"dct-dwt-{plane}", title=f"DCT-DWT ({plane})",
        message=message,
        write=lambda images, latents, generator: method.embed(images, message),
        read=method.extract, settings={"psnr": psnr, "plane": plane, "bits": bits},
        at_psnr=lambda decibels: dct_dwt(psnr=decibels, bits=bits, plane=plane),
    )  # fmt: skip


def as_grey_file(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] as a grey PNG of 8 bits holds it, which is what a radiograph is."""
    return quantise(luma(quantise(image))).expand(-1, 3, -1, -1)


def ssl_watermark(method: SSLWatermark) -> WatermarkMethod:
    """The watermark in a backbone's features; its PSNR is the method's own."""
    message, device = own_message(method.bits), next(method.backbone.parameters()).device
    return WatermarkMethod(
        key="ssl-watermark", title="SSL Watermark", message=message,
        write=lambda images, latents, generator: method.embed(
            images.to(device), message, generator=generator
        ),
        read=lambda images: method.extract(images.to(device)),
        settings={
            "psnr": method.psnr, "bits": method.bits, "steps": method.steps, "key": method.seed,
            "margin": method.margin, "learning_rate": method.learning_rate,
            "attacks": list(method.attacks), "backbone": digest(method.backbone),
        },
        # Its PSNR is a bound of the search, which finds another residual under another one.
        at_psnr=lambda decibels: ssl_watermark(replace(method, psnr=decibels)),
        curve_images=SEARCHED,
    )  # fmt: skip


def wam_kind(watermark: LocalisedWatermark, *, psnr: float) -> WatermarkMethod:
    """The watermark that says where it is; psnr in dB, whatever it was trained at."""
    message, device = own_message(watermark.bits), next(watermark.parameters()).device
    weights = digest(watermark)

    def write(images: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
        residual = watermark.embedder(images.to(device), message.to(device).expand(len(images), -1))
        return images.to(device) + 10 ** (-psnr / 20) * residual

    return WatermarkMethod(
        key="wam-kind", title=f"{NAME}, {watermark.bits} bits", message=message,
        write=torch.no_grad()(write),
        read=torch.no_grad()(lambda images: watermark.extract(images.to(device))),
        locate=torch.no_grad()(lambda images: watermark.detect(images.to(device))),
        settings={"psnr": psnr, "bits": watermark.bits, "weights": weights},
    )  # fmt: skip


def of_decoder(
    key: str, title: str, decoder: LatentDecoder, message: Tensor, extractor: nn.Module
) -> WatermarkMethod:
    """A watermarking decoder with its message (K,) and what reads it: nothing can be set."""
    return WatermarkMethod(
        key=key, title=title, message=message,
        write=lambda images, latents, generator: decode(decoder, latents, batch=TIMED),
        read=extractor,
        settings={
            "decoder": digest(decoder), "extractor": digest(extractor), "message": digest([message])
        },
    )  # fmt: skip
