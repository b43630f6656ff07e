"""Images: one public range, [0, 1], and the only home of normalisation constants.

An image is (B, 3, H, W) float in [0, 1]; a grey radiograph has three equal channels. Sizes are
(H, W) everywhere; Pillow's `.size` is (W, H).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from medsign_lite.files import whole_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # of (R, G, B), ITU-R BT.601

# What Pillow calls the files we refuse, in words.
_REFUSED = {
    "1": "a black-and-white image of 1 bit",
    "LA": "two channels (grey and transparency)",
    "La": "two channels (grey and transparency)",
    "PA": "a palette with transparency",
    "P": "a palette",
    "RGBA": "four channels (RGB and transparency)",
    "RGBa": "four channels (RGB and transparency)",
    "CMYK": "four channels (CMYK)",
    "I": "more than 8 bits per channel",
    "F": "floating-point pixels",
}


def luma(image: Tensor) -> Tensor:
    """(B, 1, H, W) of (B, 3, H, W): what JPEG keeps best, and a conversion to grey alone."""
    weights = image.new_tensor(LUMA)
    return torch.einsum("bchw,c->bhw", image, weights)[:, None]


def load_image(path: str | Path) -> Tensor:
    """Read an 8-bit grey or RGB image file.

    Nothing is converted silently: transparency, palettes and 16-bit files are refused, because
    what they should become (which background? which intensity window?) is the caller's decision.

    Args:
        path: a file that Pillow reads, for example PNG or JPEG.

    Returns:
        (3, H, W) float32 in [0, 1]; a grey file is repeated over the three channels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, truncated, not an image, or not 8-bit grey or RGB.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"image {path} is empty (0 bytes)")
    try:
        with Image.open(path) as file:
            _refuse_other_modes(file, path)
            pixels = np.array(file)  # decodes: (H, W) or (H, W, 3) uint8
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path} is not an image file that Pillow can read") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow's errors for damaged content
        raise ValueError(f"image {path} is truncated or damaged: {error}") from error
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255  # (3, H, W)


def _refuse_other_modes(file: Image.Image, path: Path) -> None:
    expected = "expected 8-bit grey (L) or RGB"
    if file.mode.startswith("I;16") or "16" in _raw_mode(file):
        # Pillow opens a 16-bit RGB PNG as 8-bit RGB without a word: look at the raw mode, too.
        raise ValueError(f"image {path}: {expected}, got 16 bits per channel (mode {file.mode})")
    if file.mode not in ("L", "RGB"):
        what = _REFUSED.get(file.mode, "another layout")
        raise ValueError(f"image {path}: {expected}, got {what} (mode {file.mode})")


def _raw_mode(file: Image.Image) -> str:
    arguments = file.tile[0][3] if getattr(file, "tile", None) else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def save_image(image: Tensor, path: str | Path, *, text: PngInfo | None = None) -> Path:
    """Write an image as an 8-bit RGB PNG; values are clamped to [0, 1] and rounded.

    Clamping comes first: unclamped decoder output cast to bytes wraps around, and bright
    radiographs turn black in places.

    Args:
        image: (3, H, W) float, around [0, 1].
        path: the file to write; must end in .png.
        text: what the file shall say of itself.

    Returns:
        The path.

    Raises:
        ValueError: if the shape, the values (NaN) or the ending are not as above.
        OSError: if the file cannot be written (see `whole_file`).
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path ending in .png (lossless), got {path.name!r}")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got {tuple(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError(f"image for {path} holds NaN or infinite values")
    with whole_file(path) as file:
        Image.fromarray(to_bytes(image).numpy()).save(file, format="PNG", pnginfo=text)
    return path


def to_bytes(image: Tensor) -> Tensor:
    """Clamp and round (..., 3, H, W) in [0, 1] to (..., H, W, 3) uint8 on the CPU."""
    return (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().movedim(-3, -1)


def quantise(image: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to steps of 1/255: what a saved PNG would hold.

    Use it before scoring. Not for training: the gradient of rounding is zero.

    Args:
        image: any shape, float around [0, 1].

    Returns:
        Same shape, every value one of 0, 1/255, ..., 1.
    """
    return (image.clamp(0, 1) * 255).round() / 255


def check_image(
    image: Tensor, *, name: str = "image", minimum: int = 1, in_range: bool = True
) -> None:
    """Refuse anything that is not a batch of images.

    Args:
        image: (B, 3, H, W) float in [0, 1], with B, H, W at least 1.
        name: what the error shall call it.
        minimum: smallest height and width allowed.
        in_range: also look at the values. False inside training, where a decoder's output is
            not clamped and looking would make a GPU wait.

    Raises:
        ValueError: saying what was expected and what came.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"{name}: expected a tensor (B, 3, H, W), got {type(image).__name__}")
    if image.ndim != 4:
        raise ValueError(f"{name}: expected (B, 3, H, W), got {tuple(image.shape)}")
    batch, channels, height, width = image.shape
    if channels != 3:
        raise ValueError(
            f"{name}: expected 3 channels in (B, 3, H, W), got {channels} in "
            f"{tuple(image.shape)}; repeat a grey image over three channels"
        )
    if batch < 1:
        raise ValueError(f"{name}: expected at least one image, got {tuple(image.shape)}")
    if min(height, width) < minimum:
        raise ValueError(
            f"{name}: expected at least {minimum} pixels on each side, got (H, W) = "
            f"({height}, {width})"
        )
    if not image.is_floating_point():
        raise ValueError(f"{name}: expected float in [0, 1], got {image.dtype}; divide by 255")
    if in_range:
        low, high = (float(bound) for bound in torch.aminmax(image.detach()))
        tolerance = 1e-3  # interpolation may overshoot by rounding
        if not (low >= -tolerance and high <= 1 + tolerance):  # also catches NaN
            raise ValueError(f"{name}: expected values in [0, 1], got [{low:.3g}, {high:.3g}]")


def to_signed(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], the range around `vae.encode`."""
    return image * 2 - 1


def from_signed(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the range after `vae.decode`. Does not clamp."""
    return (image + 1) / 2


def imagenet_normalise(image: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation, per channel.

    Args:
        image: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W), about [-2.1, 2.7].
    """
    mean = image.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = image.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (image - mean) / std


def central_crop(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The largest central part of (..., H, W) with the proportions of `shape` (height, width)."""
    height, width = image.shape[-2:]
    scale = min(height / shape[0], width / shape[1])
    kept = round(shape[0] * scale), round(shape[1] * scale)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return image[..., top : top + kept[0], left : left + kept[1]]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize.

    Args:
        image: (B, C, H, W) or (C, H, W) float.
        size: (H, W) of the result, at least (1, 1).

    Returns:
        (B, C, *size) or (C, *size), within the range of the input.

    Raises:
        ValueError: if the shape or the size is not as above.
    """
    if image.ndim not in (3, 4):
        raise ValueError(f"expected (B, C, H, W) or (C, H, W), got {tuple(image.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected size (H, W) of at least (1, 1), got {tuple(size)}")
    batch = image if image.ndim == 4 else image[None]
    batch = F.interpolate(batch, tuple(size), mode="bilinear", antialias=True)
    return batch if image.ndim == 4 else batch[0]
