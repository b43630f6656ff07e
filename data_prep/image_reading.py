"""An image file of any kind as 8-bit pixels.

More than 8 bits are stretched to their own range: a detector's numbers have no common scale.
Transparency becomes black. The tag that says which way is up is followed. A DICOM file is shown as
it asks to be (`medsign_lite.deployment.dicom`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_prep.pixels import Unusable, stretch
from medsign_lite.deployment.dicom import has_burned_in_text, is_dicom, read_dicom

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@contextmanager
def nameless(what: str) -> Iterator[None]:
    """Leave the file's name, which can be a patient's, out of the system's errors in this block."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, f"{what} cannot be read: {error.strerror}") from None


def read_pixels(path: Path, *, expected: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file.

    Args:
        path: what Pillow reads, or DICOM, which is told by its ending or its content.
        expected: (H, W) that the data set's table gives, of the pixels as stored.

    Returns:
        8-bit grey ("L") or RGB.

    Raises:
        Unusable: if it is missing, damaged, DICOM of a kind that is not read, or of another size
            than expected.
        ModuleNotFoundError: if it is DICOM and pydicom is not installed.
        OSError: if the disk or its rights are at fault; the message leaves the file's name out.
    """
    try:
        with nameless("an image"):
            if is_dicom(path):
                image = _shown_dicom(path)
                stored = image.size
            else:
                with Image.open(path) as file:
                    stored = file.size
                    image = _eight_bits(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise Unusable("its image is missing") from None
    except DAMAGE as error:
        if getattr(error, "errno", None) is not None:  # the system's; Pillow's own have no number
            raise
        raise Unusable("truncated, damaged, or not an image") from None
    if expected is not None and stored != expected[::-1]:
        raise Unusable("of another size than its table says")
    return image


def _shown_dicom(path: Path) -> Image.Image:
    try:
        pixels = read_dicom(path, name="its DICOM file")
    except ValueError as error:
        raise Unusable(str(error)) from None
    if has_burned_in_text(path):
        raise Unusable("its DICOM file says that text is burned into its pixels")
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return stretch(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")
