"""CheXpert: frontal radiographs whose prompt is made from their labels.

    python -m data_prep.chexpert --source FOLDER --out FOLDER

The source holds `train.csv`, `valid.csv` and the folders `train/` and `valid/`; the paths in the
tables begin with the distribution's own name ("CheXpert-v1.0-small/train/..."), whatever the folder
is called now. Labels are read by their column's name.

There are no reports. A label of 1.0 is a finding and enters the prompt, "Chest radiograph with
cardiomegaly and pleural effusion."; uncertain ones (-1.0) do not. "No Finding" alone gives "Normal
chest radiograph."; an image with no positive label at all has no prompt and is dropped.

`valid.csv`, which radiologists labelled, becomes the test split; validation is a share of the
patients of `train.csv`.

The small distribution's images have a shorter side of 320 pixels, hence the default size; with the
full one, ask for 512.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.command_line import add_counts, data_set_parser, run
from data_prep.conversion import Source, Summary, check_call, convert
from data_prep.findings import (
    CHEXPERT_LABELS,
    NO_FINDING,
    chest_prompt,
    positive_findings,
    words_of,
)
from data_prep.image_listing import below_source
from data_prep.pixels import Unusable
from data_prep.splits import check_shares, split_patients
from data_prep.tables import Row, check_unique, need_table, read_rows

PATH, VIEW = "Path", "Frontal/Lateral"


def prepare_chexpert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    validation_share: float = 0.05,
    size: int = 320,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Convert and describe the data set; run again, it goes on where it stopped.

    Args:
        source: folder of the tables.
        out: a new folder, or one that the same call has begun.
        train, validation, test: images at most; None is all.
        validation_share: of the patients of `train.csv`.
        size: side of the results in pixels.
        seed: draws the validation patients, the order and the samples.
        workers: threads; by default one for each core.

    Returns:
        Path of the manifest, and the summary.

    Raises:
        FileNotFoundError: if the folder or a table is missing.
        ValueError: for a table that is wrong, saying where, a bad argument, or if no image is left.
        OSError: if the disk is full or out of order; call again to go on.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    check_call(source, out, "chest", size)
    shares = (1 - validation_share, validation_share, 0.0)
    check_shares(shares)
    summary = Summary()
    found = _read(source, "train.csv", "train", summary)
    splits = split_patients([item.patient for item in found], shares, seed=seed)
    found = [replace(item, split=split) for item, split in zip(found, splits, strict=True)]
    found += _read(source, "valid.csv", "test", summary)
    path = convert(
        found, source, out, modality="chest", size=size, seed=seed, summary=summary,
        wanted={"train": train, "validation": validation, "test": test}, workers=workers,
        progress=progress,
    )  # fmt: skip
    return path, summary


def _read(source: Path, name: str, split: str, summary: Summary) -> list[Source]:
    table = need_table(source, name, f"{name}.gz")
    rows = read_rows(table, (PATH, VIEW, *CHEXPERT_LABELS))
    found = []
    for row in check_unique(rows, table, PATH):
        try:
            found.append(_image(source, table, row, split))
        except Unusable as reason:
            summary.dropped[str(reason)] += 1
    return found


def _image(source: Path, table: Path, row: Row, split: str) -> Source:
    number, cells = row
    if not cells[PATH]:
        raise Unusable("an empty row")
    if cells[VIEW] != "Frontal":
        raise Unusable("no frontal view")
    written = below_source(cells[PATH])
    patient = re.search(r"patient\d+", written.as_posix())
    if patient is None or len(written.parts) < 2:
        raise Unusable("its path names no patient")
    try:
        positive = positive_findings((label, cells[label]) for label in CHEXPERT_LABELS)
    except ValueError as error:
        raise ValueError(f"{table.name}, row {number}: {error}") from None
    if not positive:
        raise Unusable("no positive label to make a prompt of")
    findings = tuple(name for name in positive if name != NO_FINDING)
    report = chest_prompt(findings)
    return Source(
        path=source.joinpath(*written.parts[1:]),  # without the distribution's own name
        split=split,
        report=report,
        findings=findings,
        words=words_of(findings, report),
        patient=patient[0],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = data_set_parser("chexpert", __doc__, size=320)
    add_counts(parser, train=None, validation=None, test=None)
    parser.add_argument("--validation-share", type=float, default=0.05, metavar="SHARE",
                        help="of the training patients (default: 0.05)")  # fmt: skip
    run(prepare_chexpert, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
