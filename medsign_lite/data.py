"""The manifest: the one contract between data preparation and the library.

A data set is a folder with images, masks and a manifest, a CSV file of one row per image. Lists
within a cell are separated by a vertical bar and aligned: the second word names the second finding.

====================  ==========================================================================
column                content
====================  ==========================================================================
``id``                unique name of the image
``image``             path of an 8-bit grey or RGB image, relative to the manifest's folder
``modality``          ``chest`` or ``fundus``
``split``             ``train``, ``validation`` or ``test``
``report``            the sentence that describes the image, and so the prompt
``findings``          names of what is present, of any vocabulary
``words``             the word of the report that names each finding
``sides``             the patient's side of each finding, or the retina's half, or nothing
``masks``             path of an 8-bit mask (0 and 255) for each finding, or nothing
====================  ==========================================================================
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from medsign_lite.files import whole_file
from medsign_lite.images import load_image

CHEST_FINDINGS = (
    "pneumonia",
    "pneumothorax",
    "atelectasis",
    "edema",
    "cardiomegaly",
    "effusion",
)
FUNDUS_FINDINGS = ("microaneurysms", "haemorrhages", "exudates", "drusen", "cupping")
FINDINGS = {"chest": CHEST_FINDINGS, "fundus": FUNDUS_FINDINGS}

MODALITIES = ("chest", "fundus")
SPLITS = ("train", "validation", "test")
SIDES = ("right", "left", "bilateral", "superior", "inferior", "")
COLUMNS = ("id", "image", "modality", "split", "report", "findings", "words", "sides", "masks")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a manifest, with absolute paths.

    ``findings``, ``words``, ``sides`` and ``masks`` have the same length. A mask is ``None`` where
    the data set has none.

    Raises:
        ValueError: for an invalid value, lists of different lengths, an entry with a vertical bar,
            or a word that is not in the report, which is not quoted: it may be a patient's.
    """

    id: str
    image: Path
    modality: str
    split: str
    report: str
    findings: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    masks: tuple[Path | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a record needs an id, got an empty one")
        for column, value, accepted in (
            ("modality", self.modality, MODALITIES),
            ("split", self.split, SPLITS),
            *(("sides", side, SIDES) for side in self.sides),
        ):
            if value not in accepted:
                raise ValueError(
                    f"record {self.id!r}: {column} must be one of {accepted}, got {value!r}"
                )
        lengths = {
            name: len(getattr(self, name)) for name in ("findings", "words", "sides", "masks")
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"record {self.id!r}: lists of different lengths: {lengths}")
        for column in ("findings", "words"):
            if any("|" in entry for entry in getattr(self, column)):
                raise ValueError(
                    f"record {self.id!r}: expected {column} without a vertical bar, which "
                    "separates them in the manifest"
                )
        if any(word.lower() not in self.report.lower() for word in self.words):
            raise ValueError(f"record {self.id!r}: one of its words is not in its report")


def read_manifest(path: str | os.PathLike, *, check_files: bool = True) -> list[Record]:
    """Read and validate a manifest.

    Args:
        path: the CSV file, or the folder that holds a ``manifest.csv``.
        check_files: open every image's and mask's header, and compare their sizes.

    Raises:
        FileNotFoundError: if the manifest, an image or a mask does not exist.
        ValueError: for wrong columns, a duplicate id, an invalid value, an unreadable image, or a
            mask whose size is not its image's. The message names the manifest's line, of a row
            with a report of several lines the last.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}; python -m data_prep.phantoms writes one")
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a BOM
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if set(columns) != set(COLUMNS):
            missing = [name for name in COLUMNS if name not in columns]
            unknown = [name for name in columns if name not in COLUMNS]
            raise ValueError(f"{path}: missing columns {missing}, unknown columns {unknown}")
        records, seen, folder = [], {}, _Folder(path.parent)
        for row in reader:
            line = reader.line_num  # of the file: a report may hold line breaks
            try:
                record = _record(folder, row)
                if record.id in seen:
                    raise ValueError(f"id {record.id!r} is already on line {seen[record.id]}")
                if check_files:
                    _check_files(record)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{path}, line {line}: {error}") from error
            seen[record.id] = line
            records.append(record)
    if not records:
        raise ValueError(f"{path}: expected at least one row, got none")
    return records


def write_manifest(path: str | os.PathLike, records: Iterable[Record]) -> Path:
    """Write records as a manifest, paths made relative to its folder, in one rename.

    Records are written as they come: an iterator of them need not fit into memory.

    Raises:
        ValueError: if a file lies outside the manifest's folder, or a mask's path below it has a
            vertical bar.
        OSError: if the file cannot be written (see `whole_file`).
    """
    path = Path(path)
    folder = _Folder(path.parent)

    def relative(file: Path | None) -> str:
        if file is None:
            return ""
        resolved = folder.resolve(Path(file).absolute())  # relative ones are the caller's
        if not resolved.is_relative_to(folder.path):
            raise ValueError(f"{file} lies outside the manifest's folder {folder.path}")
        return resolved.relative_to(folder.path).as_posix()

    with whole_file(path) as binary:
        file = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for r in records:
            masks = [relative(mask) for mask in r.masks]
            if any("|" in mask for mask in masks):
                raise ValueError(f"record {r.id!r}: expected masks' paths without a vertical bar")
            lists = ("|".join(items) for items in (r.findings, r.words, r.sides, masks))
            writer.writerow([r.id, relative(r.image), r.modality, r.split, r.report, *lists])
        file.detach()  # flushes, and leaves the file open for its block to close
    return path


class _Folder:
    """Resolves the paths of a manifest, each of its sub-folders only once.

    Resolving asks the disk about every part of a path: for 100,000 rows, minutes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._parents: dict[str, Path] = {}

    def resolve(self, file: str | Path) -> Path:
        parent, name = os.path.split(file)
        if parent not in self._parents:
            self._parents[parent] = (self.path / parent).resolve()
        path = self._parents[parent] / name
        return path.resolve() if name in ("", ".", "..") or path.is_symlink() else path

    def inside(self, relative: str) -> Path:
        path = self.resolve(relative)
        if not path.is_relative_to(self.path):
            raise ValueError(f"the path {relative!r} leaves the manifest's folder")
        return path


def _record(folder: _Folder, row: dict) -> Record:
    if None in row or None in row.values():
        raise ValueError(
            f"expected {len(COLUMNS)} cells, got {sum(v is not None for v in row.values())}"
        )
    findings = tuple(row["findings"].split("|")) if row["findings"] else ()

    def aligned(column: str) -> tuple[str, ...]:
        return tuple(row[column].split("|")) if findings else ()

    return Record(
        id=row["id"],
        image=folder.inside(row["image"]),
        modality=row["modality"],
        split=row["split"],
        report=row["report"],
        findings=findings,
        words=aligned("words"),
        sides=aligned("sides"),
        masks=tuple(folder.inside(mask) if mask else None for mask in aligned("masks")),
    )


def _check_files(record: Record) -> None:
    size = _image_size(record.image)
    for mask in filter(None, record.masks):
        if (mask_size := _image_size(mask)) != size:
            raise ValueError(f"mask {mask.name} is {mask_size} pixels, its image {size} (W, H)")


def _image_size(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (zero bytes)")
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                _check_png_end(path)
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a readable image") from error


def _check_png_end(path: Path) -> None:
    # A header alone opens; a truncated copy lacks the end chunk, and reading twelve bytes tells.
    with path.open("rb") as file:
        file.seek(-min(12, path.stat().st_size), os.SEEK_END)
        if b"IEND" not in file.read():
            raise ValueError(f"{path} is truncated: the PNG has no end")


def pictures_digest(records: Iterable[Record]) -> str:
    """Names the images and masks of records by their sizes in bytes, wherever they lie.

    For the key of a kept result: what was drawn anew has the same identifiers.

    Returns:
        12 hexadecimal digits; a file that is not there counts as well.
    """
    hashed = hashlib.sha256()
    for record in records:
        files = [record.image, *filter(None, record.masks)]
        sizes = [path.stat().st_size if path.is_file() else None for path in files]
        hashed.update(repr((record.id, sizes)).encode())
    return hashed.hexdigest()[:12]


class ManifestDataset(Dataset):
    """Images of one split with their reports, labels and masks.

    Each item is a dict:

    - ``image``: (3, H, W) float in [0, 1]
    - ``report``: str
    - ``labels``: (F,) float in {0, 1}, one per name of ``findings``
    - ``masks``: (F, H, W) float in {0, 1}; zero where a finding is absent or has no mask
    - ``id``: str

    Args:
        records: from ``read_manifest``.
        split: keep this split only; ``None`` keeps all.
        modality: keep this modality only; ``None`` keeps both.
        findings: the names that make up the labels, in order; by default the modality's own, or
            both modalities' one after the other.

    Raises:
        ValueError: if no record is left.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        split: str | None = None,
        modality: str | None = None,
        findings: Sequence[str] | None = None,
    ) -> None:
        self.records = [
            record
            for record in records
            if split in (None, record.split) and modality in (None, record.modality)
        ]
        if not self.records:
            raise ValueError(
                f"no record of split {split!r} and modality {modality!r} among {len(records)}"
            )
        default = FINDINGS[modality] if modality else CHEST_FINDINGS + FUNDUS_FINDINGS
        self.findings = tuple(findings) if findings is not None else default

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = load_image(record.image)  # (3, H, W)
        labels = torch.zeros(len(self.findings))
        masks = torch.zeros(len(self.findings), *image.shape[1:])
        for finding, path in zip(record.findings, record.masks, strict=True):
            if finding in self.findings:
                row = self.findings.index(finding)
                labels[row] = 1.0
                if path is not None:
                    masks[row] = load_mask(path)
        return {
            "image": image,
            "report": record.report,
            "labels": labels,
            "masks": masks,
            "id": record.id,
        }


def load_mask(path: str | os.PathLike) -> Tensor:
    """Read a mask file: (H, W) float in {0, 1}, 1 where the file is above half.

    Raises:
        ValueError: if the file is not a readable 8-bit grey image.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "1"):
                raise ValueError(f"mask {path}: expected 8-bit grey, got mode {image.mode}")
            return torch.from_numpy(np.array(image.convert("L")) > 127).float()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"mask {path} cannot be read: {error}") from error
