"""Pixels of a data set's images: 8 bits, square, and boxes in them as masks."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageOps

Box = tuple[float, float, float, float]  # left, top, width, height as fractions of the image


class Unusable(Exception):
    """Why an image or its row is dropped, in words that name no file and no patient."""


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, (size, size), without the file's metadata.

    Raises:
        Unusable: if the image is smaller: nothing is enlarged.
    """
    if min(image.size) < size:
        raise Unusable(f"smaller than {size} pixels")
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    image.info.clear()
    return image


def box_mask(boxes: Iterable[Box], shape: tuple[int, int], size: int) -> Image.Image:
    """Boxes in an image as a mask of its middle square.

    Args:
        boxes: parts that lie outside of the image are cut off.
        shape: (H, W) of the image.
        size: side of the result.

    Returns:
        (size, size) of mode "L", 255 inside a box, 0 elsewhere.
    """
    height, width = shape
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    for left, top, across, down in boxes:
        first = round(left * width), round(top * height)
        last = round((left + across) * width) - 1, round((top + down) * height) - 1
        if last[0] >= first[0] and last[1] >= first[1]:  # Pillow fills both ends
            draw.rectangle((*first, *last), fill=255)
    fitted = ImageOps.fit(mask, (size, size), Image.Resampling.BILINEAR)
    return fitted.point([0] * 128 + [255] * 128)


def stretch(values: np.ndarray) -> Image.Image:
    """(H, W) numbers as 8-bit grey, the least black and the greatest white.

    Raises:
        ValueError: if a number is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("expected finite pixels")
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))
