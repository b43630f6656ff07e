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
from torch.nn import functional as F

from medsign_lite.images import LUMA, check_image, luma, resize, to_bytes


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
    require(math.isfinite(degrees), "rotation by a finite angle in degrees", degrees)
    require(0 <= fill <= 1, "rotation fill in [0, 1]", fill)
    if interpolation not in ("nearest", "bilinear"):
        raise ValueError(
            f"expected rotation interpolation 'nearest' or 'bilinear', got {interpolation!r}"
        )
    angle = torch.full((1,), degrees, dtype=image.dtype, device=image.device)
    return kornia_rotate(image - fill, angle, mode=interpolation) + fill


def jpeg(image: Tensor, quality: int = 50, *, subsampling: int = 2) -> Tensor:
    """Save as JPEG with Pillow and read back.

    The forward pass is the real codec, so it clamps and rounds to 8 bits. The gradient passes
    where the codec let something pass: through each cosine of each block of luminance, but hardly
    through those that were rounded to nothing. Colour, of which 4:2:0 keeps little, passes none.

    Args:
        image: (B, 3, H, W) in [0, 1].
        quality: Pillow's, 1 to 100.
        subsampling: of the colour: 2 is 4:2:0, the default everywhere; 0 is 4:4:4.

    Returns:
        (B, 3, H, W), every value one of 0, 1/255, ..., 1.
    """
    _check(image)
    require(
        1 <= quality <= 100 and quality == int(quality), "a whole JPEG quality 1 to 100", quality
    )
    ratios = "JPEG subsampling 0 (4:4:4), 1 (4:2:2) or 2 (4:2:0)"
    require(subsampling in (0, 1, 2), ratios, subsampling)
    return _Jpeg.apply(image, int(quality), subsampling)


# The luminance table of the JPEG standard's Annex K, which Pillow scales with the quality.
LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


class _Jpeg(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image: Tensor, quality: int, subsampling: int) -> Tensor:
        if ctx.needs_input_grad[0]:
            scale = 5000 / quality if quality < 50 else 200 - 2 * quality
            steps = (torch.tensor(LUMINANCE_STEPS) * scale / 100).round().clamp(1, 255)
            level = _block_cosines(luma(image)[:, 0].float() * 255) / steps.to(image.device)
            # What is below half a step is rounded to nothing.
            ctx.save_for_backward((2 * level).square().clamp(max=1))
        decoded = np.stack(
            [_through_jpeg(pixels, quality, subsampling) for pixels in to_bytes(image).numpy()]
        )  # (B, H, W, 3) uint8
        decoded = torch.from_numpy(decoded).to(image.device).permute(0, 3, 1, 2)
        return decoded.to(image.dtype) / 255

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        # Every channel of the result moves with the luminance, which is a weighted mean.
        towards = _block_cosines(gradient.sum(dim=1).float()) * passes
        towards = _from_block_cosines(towards, gradient.shape[-2:]).to(gradient.dtype)
        return torch.stack([weight * towards for weight in LUMA], dim=1), None, None


def _cosine_matrix(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 values, one cosine per row."""
    place = torch.arange(8, dtype=torch.float64)
    matrix = (math.pi / 8 * place[:, None] * (place + 0.5)).cos() / 2
    matrix[0] /= 2**0.5
    return matrix.to(like)


def _block_cosines(values: Tensor) -> Tensor:
    """(B, H, W) to (B, rows, columns, 8, 8); the last blocks repeat the edge, as the codec does."""
    below, right = (-side % 8 for side in values.shape[-2:])
    values = F.pad(values[:, None], (0, right, 0, below), mode="replicate")[:, 0]
    matrix = _cosine_matrix(values)
    return matrix @ values.unfold(1, 8, 8).unfold(2, 8, 8) @ matrix.T


def _from_block_cosines(cosines: Tensor, size: tuple[int, int]) -> Tensor:
    matrix = _cosine_matrix(cosines)
    blocks = matrix.T @ cosines @ matrix
    values = blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return values[:, : size[0], : size[1]]


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

    Without a `generator` (CPU) the noise is that of seed 0, which starts again with every call: an
    evaluation repeats exactly, and its marked and unmarked images meet the same noise. But images
    at the same place of different batches share theirs, so that figures depend, within their
    intervals, on the batch size.
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
