"""Image files as hospitals keep them: 8 and 16-bit PNG, JPEG and DICOM, brought to [0, 1].

Detection needs grey values as a reader would see them. What that is, is fixed here:

- 8 bits: divided by 255, as `load_image` does.
- 16-bit grey PNG: divided by 2^k - 1, where k is the number of bits in use, at least 8. A PNG does
  not say that its 16 bits hold the 12 of a detector; divided by 65535 they would be almost black.
- 16-bit colour: its upper 8 bits, which is all that Pillow gives.
- DICOM: through its window, as `medsign_lite.deployment.dicom` says.

The tag (EXIF) that says which way is up is followed, as viewers do.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from medsign_lite.deployment.dicom import DICOM_ENDINGS, is_dicom, read_dicom
from medsign_lite.images import load_image

ENDINGS = (".png", ".jpg", ".jpeg", *DICOM_ENDINGS)


def find_image_files(places: Iterable[str | Path]) -> tuple[list[Path], int]:
    """The images among files and folders.

    Args:
        places: files, which are taken whatever their names; folders, searched at every depth for
            PNG, JPEG and DICOM by their endings, and for DICOM without one, by its first bytes.

    Returns:
        (paths, sorted within each folder; how many other files of the folders were left out).
        Hidden files count as neither, nor does a DICOMDIR, the index of a disc.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if there is no image at all.
    """
    places = [Path(place) for place in places]
    found, left_out = [], 0
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"no file or folder {place}")
        if not place.is_dir():
            found.append(place)
            continue
        for path in sorted(place.rglob("*")):
            inside = path.relative_to(place)
            hidden = any(part.startswith(".") for part in inside.parts)
            if hidden or path.name.upper() == "DICOMDIR" or not path.is_file():
                continue
            if path.suffix.lower() in ENDINGS or (not path.suffix and is_dicom(path)):
                found.append(path)
            else:
                left_out += 1
    if not found:
        raise ValueError(
            f"no image in {', '.join(map(str, places))}: expected files ending in "
            f"{', '.join(ENDINGS)}, or DICOM without an ending"
        )
    return found, left_out


def load_image_file(path: str | Path) -> Tensor:
    """Read a PNG, JPEG or DICOM file.

    Args:
        path: 8-bit grey or RGB, 16-bit grey or RGB, or DICOM with one frame, grey or RGB; what it
            is, is told from its content, for DICOM also from the ending.

    Returns:
        (3, H, W) float32 in [0, 1], as the module says; grey is repeated over the three channels.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the system does not let it be read.
        ValueError: if the file is empty, truncated, no image, or of another kind.
        ModuleNotFoundError: if it is DICOM and pydicom is not installed.
        All but the last and the system's own begin with "image" and the path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    if is_dicom(path):
        return _as_tensor(read_dicom(path, name=f"image {path}"))
    turn = 1
    try:
        with Image.open(path) as file:
            raw = file.tile[0][3] if file.tile else ""  # before the pixels are loaded
            turn = _orientation(file)
            if file.mode.startswith("I;16"):
                pixels = np.array(file, dtype=np.float64)
                highest = max(255, 2 ** int(pixels.max()).bit_length() - 1)
                return _upright(_as_tensor(pixels / highest), turn)
            if file.mode == "RGB" and isinstance(raw, str) and raw.startswith("RGB;16"):
                return _upright(_as_tensor(np.array(file) / 255), turn)
    except UnidentifiedImageError:
        pass  # load_image says what it is instead
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {path} has more pixels than Pillow takes for safe") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        if getattr(error, "errno", None):  # the system's, not Pillow's for damaged content
            raise
        raise ValueError(f"image {path} is truncated or damaged: {error}") from error
    return _upright(load_image(path), turn)


def _orientation(file: Image.Image) -> int:
    """1 to 8 as EXIF numbers them; 1, as stored, without the tag or where it cannot be read."""
    try:
        return file.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1  # if it is the pixels that are damaged, whoever decodes them says so


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Turn and mirror an image (3, H, W) as the tag asks."""
    if orientation in (5, 6, 7, 8):  # rows are stored as columns
        image = image.transpose(1, 2)
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return image.flip(flipped) if flipped else image


def _as_tensor(pixels: np.ndarray) -> Tensor:
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return torch.from_numpy(pixels).permute(2, 0, 1).float().contiguous()  # (3, H, W)
