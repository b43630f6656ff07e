"""Any folder of images, with or without a table, as a data set with a manifest.

    python -m data_prep.folder --source FOLDER --out FOLDER --size 256 --modality chest \\
        --csv FILE --image-column image --report-column report --findings-column findings \\
        --patient-column patient

Images (PNG, JPEG, TIFF, DICOM and others) become square 8-bit PNG files, cropped at the centre.
They are found by their endings, DICOM also without one; how many other files there are is said.
Nothing that identifies a patient is copied: no file name, no patient's number, none of a file's
metadata; images get running numbers in an order drawn by the seed. Reports and pixels are copied as
they are: take names out of them first. DICOM files that say that text is burned into their pixels
are dropped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.command_line import data_set_parser, run
from data_prep.conversion import Source, Summary, check_call, convert
from data_prep.findings import word_in
from data_prep.image_listing import ImageListing
from data_prep.pixels import Unusable
from data_prep.splits import check_shares, split_patients
from data_prep.tables import read_rows
from medsign_lite.data import MODALITIES

NOTHING_FOUND = ("", "no finding", "no findings", "normal", "none")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the table holds what; None where it has no such column."""

    image: str
    report: str | None = None
    findings: str | None = None
    patient: str | None = None


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
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Convert a folder of images and write its manifest; run again, it goes on where it stopped.

    Args:
        source: read with its sub-folders, never changed.
        out: a new folder outside of `source`, or one that the same call has begun.
        table: a CSV file or spreadsheet with one row per image; without it every image is taken.
        columns: needed with a table.
        modality: "chest" or "fundus", of all images.
        size: side of the results in pixels; smaller images are dropped, not enlarged.
        shares: of the patients, or of the images where no patient is known, that go to train,
            validation and test. A patient's images stay together.
        seed: draws the order and the splits.
        workers: threads; by default one for each core.

    Returns:
        Path of the manifest, written last, and the summary.

    Raises:
        FileNotFoundError: if source or table do not exist.
        ValueError: for a missing column, a bad argument, an `out` that holds something else, or if
            no image is left.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    check_call(source, out, modality, size)
    check_shares(shares)
    if table is not None and columns is None:
        raise ValueError("a table needs columns: at least the one that names the image")
    summary = Summary()
    listing = ImageListing(source)
    if listing.left_out:
        summary.remarks.append(
            f"{listing.left_out} other files left out: no image by ending, no DICOM by content"
        )
    if table is None:
        found = [Source(path=path, split="") for path in listing.paths]
    else:
        found = _read_table(Path(table), columns, listing, summary)
    patients = [item.patient or f"of image {number}" for number, item in enumerate(found)]
    splits = split_patients(patients, shares, seed=seed)
    path = convert(
        [replace(item, split=split) for item, split in zip(found, splits, strict=True)],
        source, out, modality=modality, size=size, seed=seed, summary=summary, workers=workers,
        progress=progress,
    )  # fmt: skip
    return path, summary


def _read_table(
    table: Path, columns: Columns, listing: ImageListing, summary: Summary
) -> list[Source]:
    """The usable rows, in the order of their images."""
    named = {part: name for part, name in vars(columns).items() if name is not None}
    found: dict[Path, Source] = {}
    for _, row in read_rows(table, list(named.values())):
        cells = {part: row[name] for part, name in named.items()}
        try:
            path = listing.find(cells["image"])
            if path in found:
                raise Unusable("named by an earlier row, too")
            if columns.patient is not None and not cells["patient"]:
                raise Unusable("its row names no patient")
        except Unusable as reason:
            summary.dropped[str(reason)] += 1
            continue
        report = " ".join(cells.get("report", "").split())
        labels = (name.strip().lower() for name in cells.get("findings", "").split("|"))
        findings = tuple(dict.fromkeys(name for name in labels if name not in NOTHING_FOUND))
        found[path] = Source(
            path=path,
            split="",  # drawn when all patients are known
            report=report,
            findings=findings,
            words=tuple(word_in(report, (name,)) for name in findings),
            patient=cells.get("patient"),
        )
    if unnamed := len(listing.paths) - len(found):
        summary.dropped["in the folder, but in no usable row of the table"] += unnamed
    return [found[path] for path in sorted(found)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = data_set_parser("folder", __doc__, size=256)
    parser.add_argument("--csv", "--table", type=Path, dest="table",
                        help="table with a row per image: .csv, .csv.gz or .xlsx")  # fmt: skip
    parser.add_argument(
        "--image-column", default="image", help="its path below the source, or name"
    )
    parser.add_argument("--report-column")
    parser.add_argument("--findings-column", help="findings separated by a vertical bar")
    parser.add_argument("--patient-column", help="keeps the images of one patient in one split")
    parser.add_argument("--modality", default="chest", choices=MODALITIES)
    parser.add_argument("--shares", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar="SHARE",
                        help="of train, validation and test")  # fmt: skip
    options = vars(parser.parse_args(arguments))
    columns = Columns(
        **{
            part: options.pop(f"{part}_column")
            for part in ("image", "report", "findings", "patient")
        }
    )
    options["shares"] = tuple(options["shares"])
    run(prepare_folder, columns=columns, **options)


if __name__ == "__main__":
    main()
