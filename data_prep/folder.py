"""Any folder of images, with or without a table, as a data set with a manifest.

    python -m data_prep.folder --source FOLDER --out FOLDER --size 256 --modality chest \\
        --csv FILE --image-column image --report-column report --findings-column findings \\
        --patient-column patient

Images become square 8-bit PNG files, cropped at the centre. Nothing that identifies a patient is
copied: no file name, no patient's number, none of a file's metadata; images get running numbers in
an order drawn by the seed. Reports are copied as they are: take names out of them first.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from medsign_lite.data import MODALITIES, SPLITS, Record, write_manifest
from medsign_lite.files import whole_file

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NOTHING_FOUND = ("", "no finding", "no findings", "normal", "none")
CLAIM = "conversion.json"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the table holds what; None where it has no such column."""

    image: str
    report: str | None = None
    findings: str | None = None
    patient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image to convert, and what the table says about it."""

    path: Path
    report: str = ""
    findings: tuple[str, ...] = ()
    patient: str | None = None


@dataclass
class Summary:
    """How many images were kept, per split, and how many were dropped, per reason."""

    kept: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        kept = ", ".join(f"{self.kept[split]} {split}" for split in SPLITS)
        lines = [f"kept {self.kept.total()} ({kept}), dropped {self.dropped.total()}"]
        return "\n".join(lines + [f"  {count}: {why}" for why, count in self.dropped.most_common()])


def prepare_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    table: str | os.PathLike | None = None,
    columns: Columns | None = None,
    modality: str = "chest",
    size: int = 256,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Convert a folder of images and write its manifest; run again, it goes on where it stopped.

    Args:
        source: read with its sub-folders, never changed.
        out: a new folder outside of `source`, or one that the same call has begun.
        table: a CSV file with one row per image; without it every image is taken.
        columns: needed with a table.
        modality: "chest" or "fundus", of all images.
        size: side of the results in pixels; smaller images are dropped, not enlarged.
        shares: of the patients, or of the images where no patient is known, that go to train,
            validation and test. A patient's images stay together.
        seed: draws the order and the splits.

    Returns:
        Path of the manifest, written last, and the summary.

    Raises:
        FileNotFoundError: if source or table do not exist.
        ValueError: for a missing column, a bad argument, an `out` that holds something else, or if
            no image is left.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    _check_arguments(source, out, modality, size, shares)
    summary = Summary()
    if table is None:
        found = [Source(path=path) for path in _images_below(source)]
    elif columns is None:
        raise ValueError("a table needs columns: at least the one that names the image")
    else:
        found = _read_table(Path(table), columns, source, summary)
    if not found:
        raise ValueError(f"no image to convert in {source}: {summary}")
    random.Random(seed).shuffle(found)
    _claim(out, source, found, {"size": size, "modality": modality, "seed": seed})
    kept: list[tuple[int, Source]] = []
    for number, item in enumerate(tqdm(found, desc="images", disable=not progress)):
        try:
            _convert_once(item.path, _image_path(out, number), size)
            kept.append((number, item))
        except _Unusable as reason:
            summary.dropped[str(reason)] += 1
    if not kept:
        raise ValueError(f"no image of {source} could be used: {summary}")
    splits = _split([item.patient or str(number) for number, item in kept], shares, seed)
    summary.kept.update(splits)
    records = [
        Record(
            id=f"{modality}-{number:06d}",
            image=_image_path(out, number),
            modality=modality,
            split=split,
            report=item.report,
            findings=item.findings,
            words=tuple(_word(finding, item.report) for finding in item.findings),
            sides=("",) * len(item.findings),
            masks=(None,) * len(item.findings),
        )
        for (number, item), split in zip(kept, splits, strict=True)
    ]
    return write_manifest(out / "manifest.csv", records), summary


class _Unusable(Exception):
    """Why an image is dropped, in words that name no file."""


def _check_arguments(source: Path, out: Path, modality: str, size: int, shares: tuple) -> None:
    if not source.is_dir():
        raise FileNotFoundError(f"no folder at {source}")
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise ValueError(f"expected an out folder apart from the source {source}, got {out}")
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
    if size < 32:
        raise ValueError(f"expected a size of at least 32 pixels, got {size}")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"expected three shares that sum to 1, got {shares}")


def _images_below(source: Path) -> list[Path]:
    paths = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    return sorted(path for path in paths if path.suffix.lower() in ENDINGS)


def _read_table(table: Path, columns: Columns, source: Path, summary: Summary) -> list[Source]:
    """The usable rows; an image is named by its path below the source, or its name if unique."""
    if not table.is_file():
        raise FileNotFoundError(f"no table at {table}")
    below = _images_below(source)
    by_path = {path.relative_to(source).as_posix(): path for path in below}
    by_name = defaultdict(list)
    for path in below:
        by_name[path.name].append(path)
    found: dict[Path, Source] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        named = [name for name in vars(columns).values() if name is not None]
        if missing := [name for name in named if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{table}: no column {missing}; it has {reader.fieldnames}")
        for row in reader:
            cells = {part: (row[name] or "").strip() if name is not None else ""
                     for part, name in vars(columns).items()}  # fmt: skip
            try:
                path = _named(cells["image"], by_path, by_name)
                if path in found:
                    raise _Unusable("named by an earlier row, too")
                if columns.patient is not None and not cells["patient"]:
                    raise _Unusable("its row names no patient")
            except _Unusable as reason:
                summary.dropped[str(reason)] += 1
                continue
            names = (name.strip().lower() for name in cells["findings"].split("|"))
            found[path] = Source(
                path=path,
                report=" ".join(cells["report"].split()),
                findings=tuple(dict.fromkeys(n for n in names if n not in NOTHING_FOUND)),
                patient=cells["patient"] or None,
            )
    if unnamed := len(below) - len(found):
        summary.dropped["in the folder, but in no usable row of the table"] += unnamed
    return [found[path] for path in sorted(found)]


def _named(cell: str, by_path: dict[str, Path], by_name: dict[str, list[Path]]) -> Path:
    written = PurePosixPath(cell.replace("\\", "/"))
    if written.is_absolute() or ".." in written.parts:
        raise _Unusable("its row names a path outside of the source")
    if written.as_posix() in by_path:
        return by_path[written.as_posix()]
    candidates = by_name.get(written.name, []) if len(written.parts) == 1 else []
    if len(candidates) > 1:
        raise _Unusable("its row names several images: the name alone is not unique")
    if not candidates:
        raise _Unusable("its row names no image of the source")
    return candidates[0]


def _claim(out: Path, source: Path, found: Sequence[Source], settings: dict) -> None:
    """Mark the folder as this conversion's, or refuse it where it is somebody else's.

    Only one hash of all names together is written, from which no name can be told.
    """
    listing = [(i.path.relative_to(source).as_posix(), i.path.stat().st_size) for i in found]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    claim = settings | {"images": len(found), "digest": digest}
    path = out / CLAIM
    if path.is_file():
        if (earlier := json.loads(path.read_text(encoding="utf-8"))) != claim:
            changed = [name for name in claim if earlier.get(name) != claim[name]]
            raise ValueError(f"{out} holds another conversion (other {', '.join(changed)})")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"expected a new or empty folder, or one begun before; {out} is neither")
    if not (out / "images").resolve().is_relative_to(out):
        raise ValueError(f"{out / 'images'} leads out of the folder")
    with whole_file(path) as file:
        file.write(json.dumps(claim, indent=2).encode())


def _image_path(out: Path, number: int) -> Path:
    return out / "images" / f"{number:06d}.png"


def _convert_once(path: Path, target: Path, size: int) -> None:
    if target.is_file():  # written whole or not at all
        return
    try:
        with Image.open(path) as file:
            image = _eight_bits(ImageOps.exif_transpose(file))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _Unusable("truncated, damaged, or not an image") from error
    if min(image.size) < size:
        raise _Unusable(f"smaller than {size} pixels")
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    image.info.clear()
    with whole_file(target) as file:
        image.save(file, format="PNG")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey or RGB of 8 bits: more bits are stretched to their range, transparency gets black."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ValueError("not finite")
        scaled = (values - low) * (255 / max(high - low, 1e-12))
        return Image.fromarray(scaled.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _split(groups: Sequence[str], shares: Sequence[float], seed: int) -> list[str]:
    """A split for each image; images of one group share it, and no share above 0 goes empty."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    counts = [round(share * len(names)) for share in shares]
    if len(names) >= 3:
        counts = [max(count, share > 0) for count, share in zip(counts, shares, strict=True)]
    first, second = counts[2], counts[2] + counts[1]  # the rest, mostly all, is for training
    chosen = {
        name: "test" if i < first else "validation" if i < second else "train"
        for i, name in enumerate(names)
    }
    return [chosen[group] for group in groups]


def _word(finding: str, report: str) -> str:
    """The finding's name if the report has it exactly once, as a whole word; otherwise nothing."""
    found = re.findall(rf"\b{re.escape(finding)}\b", report, re.IGNORECASE)
    return found[0] if len(found) == 1 else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.folder", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", type=Path, required=True, help="folder of images, read only")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--csv", type=Path, help="table with a row per image")
    parser.add_argument(
        "--image-column", default="image", help="its path below the source, or name"
    )
    parser.add_argument("--report-column")
    parser.add_argument("--findings-column", help="findings separated by a vertical bar")
    parser.add_argument("--patient-column", help="keeps the images of one patient in one split")
    parser.add_argument("--modality", default="chest", choices=MODALITIES)
    parser.add_argument("--size", type=int, default=256, help="side of the results in pixels")
    parser.add_argument("--shares", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar="SHARE",
                        help="of train, validation and test")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    path, summary = prepare_folder(
        options.source,
        options.out,
        table=options.csv,
        columns=Columns(
            image=options.image_column,
            report=options.report_column,
            findings=options.findings_column,
            patient=options.patient_column,
        ),
        modality=options.modality,
        size=options.size,
        shares=tuple(options.shares),
        seed=options.seed,
    )
    print(summary, f"manifest: {path}", sep="\n")


if __name__ == "__main__":
    main()
