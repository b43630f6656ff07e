"""Distortions of an image, as plain functions: light, geometry, compression, blur and noise.

Every function maps (B, 3, H, W) in [0, 1] to (B, 3, h, w) and lets gradients through. The range
of the values is not checked: a decoder's output is not clamped while it is trained. `attacks.py`
gives them names, settings and training ranges.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medsign_lite.images import check_image, resize, to_bytes


def identity(image: Tensor) -> Tensor:
    """No attack: the image (B, 3, H, W) itself."""
    _check(image)
    return image


def brightness(image: Tensor, factor: float = 2.0) -> Tensor:
    """Multiply and clamp to [0, 1]; factor at least 0. Saturated pixels pass no gradient."""
    _check(image)
    require(factor >= 0, "brightness factor of at least 0", factor)
    return (image * factor).clamp(0, 1)


def contrast(image: Tensor, factor: float = 2.0) -> Tensor:
    """Scale the distance from each image's mean by `factor`, at least 0, and clamp to [0, 1]."""
    _check(image)
    require(factor >= 0, "contrast factor of at least 0", factor)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return ((image - mean) * factor + mean).clamp(0, 1)


def centre_crop(image: Tensor, area: float = 0.5, *, resize_back: bool = False) -> Tensor:
    """Keep the central part that covers a fraction of the area.

    Args:
        image: (B, 3, H, W) in [0, 1].
        area: fraction kept, in (0, 1]; each side becomes `int(side * sqrt(area))`, so 50 % of
            128 x 128 is 90 x 90.
        resize_back: enlarge the crop to (H, W) again (bilinear). Off in the paper's convention.

    Returns:
        (B, 3, h, w), or (B, 3, H, W) if resized back.

    Raises:
        ValueError: if the area is out of range or the crop would hold no pixel.
    """
    _check(image)
    require(0 < area <= 1, "crop area in (0, 1]", area)
    size = scaled_size(image, area, "crop")
    height, width = image.shape[-2:]
    cropped = crop_at(image, (height - size[0]) // 2, (width - size[1]) // 2, size)
    return resize(cropped, (height, width)) if resize_back else cropped


def resize_area(image: Tensor, area: float = 0.7, *, resize_back: bool = False) -> Tensor:
    """Resize to a fraction of the area, antialiased bilinear.

    Args:
        image: (B, 3, H, W) in [0, 1].
        area: above 0; each side becomes `int(side * sqrt(area))`, so 70 % of 128 x 128 is
            107 x 107.
        resize_back: resize to (H, W) again. Off in the paper's convention.

    Returns:
        (B, 3, h, w), or (B, 3, H, W) if resized back.

    Raises:
        ValueError: if the area is out of range or no pixel would be left.
    """
    _check(image)
    require(0 < area < math.inf, "resize area above 0", area)
    resized = resize(image, scaled_size(image, area, "resize"))
    return resize(resized, tuple(image.shape[-2:])) if resize_back else resized


def rotate(
    image: Tensor, degrees: float = 25.0, fill: float = 0.0, *, interpolation: str = "nearest"
) -> Tensor:
    """Rotate counter-clockwise about the centre on the same canvas: the corners are lost.

    Args:
        image: (B, 3, H, W) in [0, 1].
        degrees: the angle.
        fill: grey value in [0, 1] of what comes into view.
        interpolation: "nearest" or "bilinear".

    Returns:
        (B, 3, H, W).
    """
    from kornia.geometry.transform import rotate as kornia_rotate  # slow to import

    _check(image)
    require(math.isfinite(degrees), "a finite angle in degrees", degrees)
    require(0 <= fill <= 1, "fill in [0, 1]", fill)
    if interpolation not in ("nearest", "bilinear"):
        raise ValueError(f"expected interpolation 'nearest' or 'bilinear', got {interpolation!r}")
    angle = torch.full((1,), degrees, dtype=image.dtype, device=image.device)
    return kornia_rotate(image - fill, angle, mode=interpolation) + fill


def jpeg(image: Tensor, quality: int = 50, *, subsampling: int = 2) -> Tensor:
    """Save as JPEG with Pillow and read back.

    The forward pass is the real codec, so it clamps and rounds to 8 bits; the gradient passes
    straight through, as if the codec were the identity.

    Args:
        image: (B, 3, H, W) in [0, 1].
        quality: Pillow's, 1 to 100.
        subsampling: of the colour: 2 is 4:2:0, the default everywhere; 0 is 4:4:4.

    Returns:
        (B, 3, H, W), every value one of 0, 1/255, ..., 1.
    """
    _check(image)
    require(1 <= quality <= 100 and quality == int(quality), "whole quality 1 to 100", quality)
    require(subsampling in (0, 1, 2), "subsampling 0 (4:4:4), 1 (4:2:2) or 2 (4:2:0)", subsampling)
    decoded = np.stack(
        [_through_jpeg(pixels, int(quality), subsampling) for pixels in to_bytes(image).numpy()]
    )  # (B, H, W, 3) uint8
    decoded = torch.from_numpy(decoded).to(image.device).permute(0, 3, 1, 2).to(image.dtype) / 255
    return decoded + (image - image.detach())  # the second term is 0 and carries the gradient


def _through_jpeg(pixels: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(buffer) as file:
        return np.array(file)


def gaussian_blur(image: Tensor, sigma: float = 1.0) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, above 0, cut at three sigma; edges are reflected."""
    from kornia.filters import gaussian_blur2d  # slow to import

    _check(image)
    require(0 < sigma < math.inf, "blur sigma above 0", sigma)
    size = 2 * math.ceil(3 * sigma) + 1
    check_image(image, minimum=size // 2 + 1, in_range=False)  # what reflection needs
    return gaussian_blur2d(image, (size, size), (sigma, sigma))


def gaussian_noise(
    image: Tensor, deviation: float = 0.05, *, generator: torch.Generator | None = None
) -> Tensor:
    """Add independent noise of a standard deviation of at least 0 and clamp to [0, 1].

    Without a `generator` (CPU) the noise is that of seed 0: an evaluation repeats exactly.
    """
    _check(image)
    require(0 <= deviation < math.inf, "noise deviation of at least 0", deviation)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    noise = torch.randn(image.shape, generator=generator).to(image)
    return (image + deviation * noise).clamp(0, 1)


def _check(image: Tensor) -> None:
    check_image(image, in_range=False)


def require(condition: bool, expected: str, value: object) -> None:
    """Raise a ValueError that says what was expected and what came."""
    if not condition:
        raise ValueError(f"expected {expected}, got {value}")


def scaled_size(image: Tensor, area: float, name: str) -> tuple[int, int]:
    """(h, w) of a fraction of the area, rounded down as the reference does."""
    height, width = image.shape[-2:]
    size = int(height * math.sqrt(area)), int(width * math.sqrt(area))
    if min(size) < 1:
        raise ValueError(f"{name} to an area of {area:g} leaves no pixel of (H, W) = "
                         f"({height}, {width}): the image is too small")  # fmt: skip
    return size


def crop_at(image: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """Cut (B, 3, *size) out of an image (B, 3, H, W)."""
    return image[..., top : top + size[0], left : left + size[1]]
