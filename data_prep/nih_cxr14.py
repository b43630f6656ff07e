"""NIH ChestX-ray14: labels as prompts, and radiologists' boxes as masks.

    python -m data_prep.nih_cxr14 --source FOLDER --out FOLDER

The source holds `Data_Entry_2017*.csv`, `train_val_list.txt`, `test_list.txt`, where there are
boxes `BBox_List_2017*.csv`, and the images in folders of any depth (`images_001/images/`). Images
are 1024 x 1024 pixels, and boxes are given in these; of a copy that was resized, name the new side
(--side). A subset with an `index.csv` and `boxes.csv` of this project's own form is read as well:
its images are 512 x 512, and without lists its patients are split by the seed.

There are no reports. The prompt is made from the labels, "Chest radiograph with cardiomegaly and
pleural effusion.", or "Normal chest radiograph." where nothing was found.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.command_line import add_counts, data_set_parser, run
from data_prep.conversion import Source, Summary, check_call, convert
from data_prep.findings import NO_FINDING, chest_prompt, finding_of, words_of
from data_prep.image_listing import ImageListing
from data_prep.pixels import Box, Unusable
from data_prep.splits import check_shares, split_patients
from data_prep.tables import check_unique, find_table, number_in, read_rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of a distribution's tables and columns, and the side of its images in pixels."""

    table: str
    image: str
    labels: str
    patient: str
    boxes: str
    box_finding: str
    box: tuple[str, str, str, str]
    side: int


# The header of the boxes was written as `Bbox [x,y,w,h]`, whose commas divide it into four columns.
OFFICIAL = Layout(
    table="Data_Entry_2017*.csv", image="Image Index", labels="Finding Labels",
    patient="Patient ID", boxes="BBox_List_2017*.csv", box_finding="Finding Label",
    box=("Bbox [x", "y", "w", "h]"), side=1024,
)  # fmt: skip
SUBSET = Layout(
    table="index.csv", image="filename", labels="finding_labels", patient="patient_id",
    boxes="boxes.csv", box_finding="finding", box=("x", "y", "w", "h"), side=512,
)  # fmt: skip
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def prepare_nih_cxr14(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    validation_share: float = 0.1,
    side: int | None = None,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Convert and describe the data set; run again, it goes on where it stopped.

    Args:
        source: folder of tables, lists and images.
        out: a new folder, or one that the same call has begun.
        train, validation, test: images at most; None is all.
        validation_share: of the patients of the training list; without lists, of all patients,
            and a test split of the same share.
        side: of the images in pixels, by default the distribution's; others are dropped.
        size: side of the results in pixels.
        seed: draws the patients of a split, the order and the samples.
        workers: threads; by default one for each core.

    Returns:
        Path of the manifest, and the summary.

    Raises:
        FileNotFoundError: if the folder, the table of labels, or one of the two lists is missing.
        ValueError: for a table that is wrong, saying where, a bad argument, or if no image is left.
        OSError: if the disk is full or out of order; call again to go on.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    check_call(source, out, "chest", size)
    check_shares((1 - validation_share, validation_share, 0.0))
    layout = next((form for form in (OFFICIAL, SUBSET) if find_table(source, form.table)), None)
    if layout is None:
        raise FileNotFoundError(f"no table {OFFICIAL.table} or {SUBSET.table} in {source}")
    summary = Summary()
    lists = _read_lists(source)
    found = _read_images(source, layout, lists, side or layout.side, summary)
    if lists is None:
        shares = (1 - 2 * validation_share, validation_share, validation_share)
        summary.remarks.append("no lists of a split: patients are split by the seed")
    else:
        shares = (1 - validation_share, validation_share, 0.0)
    drawn = [number for number, item in enumerate(found) if item.split == "train"]
    splits = split_patients([found[number].patient for number in drawn], shares, seed=seed)
    for number, split in zip(drawn, splits, strict=True):
        found[number] = replace(found[number], split=split)
    path = convert(
        found, source, out, modality="chest", size=size, seed=seed, summary=summary,
        wanted={"train": train, "validation": validation, "test": test}, workers=workers,
        progress=progress,
    )  # fmt: skip
    return path, summary


def _read_lists(source: Path) -> dict[str, str] | None:
    """Split of every image of the two lists, or None where there are none."""
    paths = {split: source / name for split, name in LISTS.items()}
    if not any(path.is_file() for path in paths.values()):
        return None
    splits: dict[str, str] = {}
    for split, path in paths.items():
        if not path.is_file():
            raise FileNotFoundError(f"no list {path.name} in {source}, though the other is there")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            name = line.strip()
            if splits.get(name, split) != split:
                raise ValueError(f"{path.name}, line {number}: the image is in both lists")
            if name:
                splits[name] = split
    return splits


def _read_images(
    source: Path, layout: Layout, lists: dict[str, str] | None, side: int, summary: Summary
) -> list[Source]:
    """The usable rows; all that may be drawn from are "train" for the time being."""
    table = find_table(source, layout.table)
    listing = ImageListing(source)
    boxes = _read_boxes(source, layout)
    rows = read_rows(table, (layout.image, layout.labels, layout.patient))
    found, unmatched = [], 0
    for number, row in check_unique(rows, table, layout.image):
        name = row[layout.image]
        try:
            if not name:
                raise Unusable("an empty row")
            if not row[layout.patient]:
                raise Unusable("its row names no patient")
            if lists is not None and name not in lists:
                raise Unusable("in neither of the two lists")
            path = listing.find(name)
        except Unusable as reason:
            summary.dropped[str(reason)] += 1
            continue
        labels = dict.fromkeys(finding_of(label) for label in row[layout.labels].split("|"))
        if "" in labels:
            raise ValueError(f"{table.name}, row {number}: {layout.labels!r} has an empty label")
        findings = tuple(label for label in labels if label != NO_FINDING)
        marked = boxes.get(name, [])
        unmatched += sum(finding not in findings for finding, _ in marked)
        report = chest_prompt(findings)
        found.append(
            Source(
                path=path,
                split="train" if lists is None else lists[name],
                report=report,
                findings=findings,
                words=words_of(findings, report),
                patient=row[layout.patient],
                shape=(side, side),
                boxes=tuple(box for box in marked if box[0] in findings),
            )
        )
    if unmatched:
        summary.remarks.append(f"{unmatched} boxes left out: their image has no such label")
    return found


def _read_boxes(source: Path, layout: Layout) -> dict[str, list[tuple[str, Box]]]:
    """Boxes of each image with the finding they show, in fractions of its side."""
    table = find_table(source, layout.boxes)
    boxes = defaultdict(list)
    if table is not None:
        for number, row in read_rows(table, (layout.image, layout.box_finding, *layout.box)):
            if row[layout.image]:
                box = tuple(number_in(table, number, c, row[c]) / layout.side for c in layout.box)
                boxes[row[layout.image]].append((finding_of(row[layout.box_finding]), box))
    return boxes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = data_set_parser("nih_cxr14", __doc__)
    add_counts(parser, train=None, validation=None, test=None)
    parser.add_argument("--validation-share", type=float, default=0.1, metavar="SHARE",
                        help="of the training patients (default: 0.1)")  # fmt: skip
    parser.add_argument("--side", type=int, metavar="PIXELS",
                        help="of the source's images (default: 1024; in a subset 512)")  # fmt: skip
    run(prepare_nih_cxr14, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
