"""Provenance: what a generated image says about itself, in the file and beside it.

A watermark says that an image is marked; provenance says by what. It can be stripped with one
click, which the watermark is there for, but an honest reader finds it first. Two things are kept
out: the message, because whoever has it can forge the mark, and, unless the caller wants it, the
prompt, which may be a patient's report. Not even its hash: short reports can be guessed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from medsign_lite import __version__
from medsign_lite.images import save_image

STATEMENT = "Synthetic image, made by a generative model. It shows no patient."
CHUNK = "medsign_lite"  # keyword of the PNG text that holds the JSON
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which weights: their folder's own name, without its path, and each file's SHA-256."""

    name: str
    weights: Mapping[str, str]  # path inside the folder -> hexadecimal digest, as of sha256sum


def identify_model(folder: str | Path) -> Model:
    """Name a folder of weights and hash them; a safety checker, which is never loaded, is left out.

    Raises:
        FileNotFoundError: if the folder holds no weights.
    """
    folder = Path(folder)
    digests = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix in _WEIGHTS and path.is_file() and inside.parts[0] != "safety_checker":
            with path.open("rb") as file:
                digests[inside.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    if not digests:
        raise FileNotFoundError(f"{folder}: expected weights ending in {' or '.join(_WEIGHTS)}")
    return Model(name=folder.resolve().name, weights=digests)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How one image was made; the same seed and weights make it again."""

    model: Model
    decoder: Model
    key: str  # id in a registry, "unregistered" if the decoder's message is in none
    seed: int
    steps: int
    guidance: float
    size: tuple[int, int]  # (H, W) in pixels
    prompt: str | None = None  # None: not kept

    def document(self) -> dict:
        """What is written, as JSON can hold it; no prompt if it is not kept."""
        document = {
            "statement": STATEMENT,
            "digital_source_type": "trainedAlgorithmicMedia",  # the IPTC's term
            "software": f"medsign_lite {__version__}",
            **asdict(self),
        }
        if self.prompt is None:
            del document["prompt"]
        return json.loads(json.dumps(document))


def write_synthetic_png(image: Tensor, path: str | Path, provenance: Provenance) -> Path:
    """Write an image as an 8-bit RGB PNG that says how it was made; nothing is overwritten.

    Args:
        image: (3, H, W) float, around [0, 1]; clamped and rounded.
        path: ends in .png.

    Returns:
        The path.

    Raises:
        FileExistsError: if there is such a file.
        ValueError: if the shape, the values (NaN) or the ending are not as above.
        OSError: if the file cannot be written (see `whole_file`).
    """
    refuse_to_overwrite(Path(path))
    text = PngInfo()
    text.add_text("Description", STATEMENT)
    text.add_text("Software", f"medsign_lite {__version__}")
    text.add_itxt(CHUNK, json.dumps(provenance.document(), ensure_ascii=False))
    return save_image(image, path, text=text)


def read_provenance(path: str | Path) -> dict | None:
    """What `write_synthetic_png` wrote into a PNG about itself; None if there is no such thing.

    It is what the file claims, no more: anyone can write it.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with Image.open(path) as file:
            document = json.loads(file.info.get(CHUNK, "null"))
    except (UnidentifiedImageError, Image.DecompressionBombError):  # DICOM; more than Pillow takes
        return None
    except (ValueError, TypeError, RecursionError):  # somebody else's text of that name
        return None
    return document if isinstance(document, dict) else None


def file_claim(path: str | Path) -> str:
    """What an image's file says of itself, in words that are safe to print; empty if nothing.

    Only that it is synthetic and with which key: a prompt may be in it that is not to be shown.

    Raises:
        OSError: if the file cannot be read.
    """
    document = read_provenance(path)
    if document is None:
        return ""
    key = document.get("key")
    sound = isinstance(key, str) and 0 < len(key) <= 64 and key.isprintable()
    return f"synthetic, key {key}" if sound else "synthetic"


def refuse_to_overwrite(path: Path) -> None:
    """Raise a FileExistsError if there is something at the path."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another folder, or another seed")
