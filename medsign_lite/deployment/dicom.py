"""DICOM images as they are meant to be seen, brought to [0, 1].

Grey values go through what the file says of them, in this order:

1. the modality's rescaling: a table, or a slope and an intercept;
2. the first window of the file (DICOM PS3.3, C.11.2.1); or its first VOI table; or, without either,
   the full range of 8-bit pixels, and of deeper or rescaled ones the range found in the image; a
   slope of 1 with an intercept of 0 rescales nothing;
3. an inversion if the file is MONOCHROME1, where large values are dark.

Pixels that only fill the frame up (C.7.5.1.1.2), as the file says by a value or a range of values,
are no part of the range found, and black.

Colour is divided by the greatest value that its bits can hold.

Only the elements that describe the pixels are read: who the patient is, is not even loaded. Errors
quote nothing of the header.
"""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DICOM_ENDINGS = (".dcm", ".dicom")
PIXEL_ELEMENTS = """PixelData Rows Columns SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration NumberOfFrames BitsAllocated BitsStored HighBit PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence RescaleSlope RescaleIntercept
    VOILUTSequence VOILUTFunction WindowCenter WindowWidth""".split()
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # decoded, all of them are RGB
_filters = threading.Lock()


class _Refused(Exception):
    """What was expected of the file, and what came."""


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """All that is needed of a file, in plain numbers."""

    pixels: np.ndarray  # (H, W) or (H, W, 3): stored values, rescaled, through a VOI table
    window: tuple[str, float, float] | None  # function, centre, width
    highest: int | None  # shown as 1; None: with neither window nor table, the greatest pixel is
    inverted: bool
    padding: np.ndarray | None  # (H, W) bool: what fills the frame up


def import_pydicom() -> None:
    """Import the package that reads DICOM, or say what to install.

    Raises:
        ModuleNotFoundError: if it is missing or too old.
    """
    try:
        import pydicom.pixels  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading DICOM files needs pydicom: pip install pydicom"
        ) from error


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its ending or, whatever its name, by its first bytes."""
    if path.suffix.lower() in DICOM_ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # whoever reads it next is told why
        return False


def read_dicom(path: Path, *, name: str = "DICOM file") -> np.ndarray:
    """Read the one image of a DICOM file. Threads may call this at the same time.

    Args:
        path: grey or RGB of one frame; compressed as far as pydicom finds a package for it.
        name: what the errors shall call the file; its path may name a patient.

    Returns:
        (H, W) or, of colour, (H, W, 3) float64 in [0, 1], as the module says.

    Raises:
        ValueError: if the file is empty, damaged, no DICOM, or of a kind that is not read.
        ModuleNotFoundError: without pydicom.
        OSError: if the system does not let it be read.
    """
    import_pydicom()
    content = Path(path).read_bytes()
    if not content:
        raise ValueError(f"{name} is empty (0 bytes)")
    try:
        with _pydicom_quiet():
            decoded = _decode(content)
    except _Refused as refusal:
        raise ValueError(f"{name}: {refusal}") from None
    except Exception as error:  # damaged bytes lead pydicom into any of them, and they quote values
        raise ValueError(
            f"{name} is truncated, damaged, no DICOM, or compressed in a way that pydicom cannot "
            f"read here ({type(error).__name__})"
        ) from None
    shown = _show(decoded)
    if np.isnan(shown.min()):
        raise ValueError(f"{name}: expected finite pixels, got others")
    return shown


def has_burned_in_text(path: Path) -> bool:
    """Whether a DICOM file says of itself that text is burned into its pixels (0028,0301).

    A file that does not say may hold some all the same.
    """
    import_pydicom()
    import pydicom

    with _pydicom_quiet():
        file = pydicom.dcmread(path, specific_tags=["BurnedInAnnotation"])
        return str(file.get("BurnedInAnnotation", "")).strip().upper() == "YES"


@contextmanager
def _pydicom_quiet() -> Iterator[None]:
    """Hold pydicom's warnings back: it has one for every small breach of the standard.

    Warning filters are the process's. Threads that changed and restored them in turns would leave
    them changed; so one thread at a time decodes, which is short beside what follows.
    """
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        yield


def _decode(content: bytes) -> _Decoded:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi, pixel_array

    file = pydicom.dcmread(io.BytesIO(content), specific_tags=PIXEL_ELEMENTS)
    photometric = _photometric(file)
    pixels, bits = pixel_array(file, index=0), int(file.BitsStored)
    window, highest, padding = None, None, None
    if photometric in COLOUR:
        highest = 2**bits - 1
    else:
        padding = _padding(pixels, file)
        rescaled = _is_rescaled(file)
        pixels, window = apply_modality_lut(pixels, file), _window(file)
        if window is None and file.get("VOILUTSequence"):
            highest = 2 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1
            pixels = apply_voi(pixels, file)
        elif window is None and bits == 8 and file.PixelRepresentation == 0 and not rescaled:
            highest = 255
    inverted = photometric == "MONOCHROME1"
    return _Decoded(
        pixels=pixels, window=window, highest=highest, inverted=inverted, padding=padding
    )


def _photometric(file) -> str:
    """Of a file that holds one image of a kind that is read; refuses others."""
    from pydicom.pixels import get_decoder

    if "PixelData" not in file:
        raise _Refused("expected DICOM with an image, got one without, or truncated")
    if int(file.get("NumberOfFrames") or 1) > 1:
        raise _Refused("expected DICOM with one frame, got several")
    photometric = str(file.get("PhotometricInterpretation", ""))
    if photometric not in GREY + COLOUR:
        raise _Refused("expected DICOM in grey or RGB, got another photometric interpretation")
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise _Refused(
            f"compressed as {syntax.name}, for which pydicom needs another package, such as "
            "pylibjpeg"
        )
    return photometric


def _padding(stored: np.ndarray, file) -> np.ndarray | None:
    """Where values as stored, before any rescaling, only fill the frame up."""
    ends = [_first(file.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    # 16 bits, signed as the pixels are, but many files state -2000 of signed ones as 63536.
    kind = np.int16 if stored.dtype.kind == "i" else np.uint16
    ends = [np.int64(end).astype(kind) for end in ends if end is not None]
    return (stored >= min(ends)) & (stored <= max(ends))  # in MONOCHROME1 the limit is the lower


def _is_rescaled(file) -> bool:
    """Many files state a slope of 1 and an intercept of 0, which is to say that they are not."""
    if file.get("ModalityLUTSequence"):
        return True
    slope, intercept = _first(file.get("RescaleSlope")), _first(file.get("RescaleIntercept"))
    return slope is not None and intercept is not None and (slope, intercept) != (1, 0)


def _window(file) -> tuple[str, float, float] | None:
    centre, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    if centre is None or width is None:
        return None
    function = str(file.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise _Refused("expected a window that is LINEAR, LINEAR_EXACT or SIGMOID, got another")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise _Refused("expected a window with a width, got one without")
    return function, centre, width


def _first(value: float | Sequence[float] | None) -> float | None:
    """A header's value, which may be one number, several or none."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, Sequence) else value)


def _show(decoded: _Decoded) -> np.ndarray:
    """Values as stored to [0, 1]; not a number where they are not finite."""
    pixels = decoded.pixels.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # far from a window; not finite
        if decoded.window is not None:
            shown = _through_window(pixels, *decoded.window)
        elif decoded.highest is not None:
            shown = (pixels / decoded.highest).clip(0, 1)
        else:
            of = pixels if decoded.padding is None else pixels[~decoded.padding]
            low, high = (float(of.min()), float(of.max())) if of.size else (0.0, 0.0)
            shown = (pixels - low) / (high - low or 1)
    shown = 1 - shown if decoded.inverted else shown
    return shown if decoded.padding is None else np.where(decoded.padding, 0.0, shown)


def _through_window(pixels: np.ndarray, function: str, centre: float, width: float) -> np.ndarray:
    """Values to [0, 1] as DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3 say."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (pixels - centre) / width))
    if function == "LINEAR":  # from the first value inside to the last, half a step apart
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (pixels > centre).astype(float)
    return ((pixels - centre) / width + 0.5).clip(0, 1)
