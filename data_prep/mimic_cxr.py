"""MIMIC-CXR-JPG: frontal radiographs with the impression of their report as the prompt.

    python -m data_prep.mimic_cxr --source FOLDER --out FOLDER [--reports FOLDER]

The source holds `files/`, `mimic-cxr-2.0.0-split.csv.gz` and `mimic-cxr-2.0.0-metadata.csv.gz`;
with `mimic-cxr-2.0.0-chexpert.csv.gz` the manifest has findings, too. Tables may be unpacked. The
reports (`files/p10/p10.../s5....txt`) are a download of their own: name their folder with
--reports unless they lie beside the images.

As in the paper: the official split, AP and PA views, impressions without duplicates, 6,000 drawn
from train and 1,903 from test. Where the paper is silent: a study gives one image, PA before AP;
duplicates are looked for within a split, white space and capitals aside; each text is drawn with
the same probability, however often it occurs, and stands for one of its studies at random.
"""

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.command_line import add_counts, data_set_parser, run
from data_prep.conversion import Source, Summary, check_call, convert
from data_prep.findings import CHEXPERT_LABELS, NO_FINDING, positive_findings, words_of
from data_prep.image_reading import nameless
from data_prep.impressions import impression
from data_prep.parallel import in_parallel
from data_prep.tables import check_unique, find_table, need_table, number_in, read_rows

VIEWS = ("PA", "AP")  # in the order in which they are preferred
SPLIT_OF = {"train": "train", "validate": "validation", "test": "test"}
NO_REPORT, NO_IMPRESSION = "its report is missing", "its report has no impression"


@dataclass(frozen=True, kw_only=True, slots=True)
class Radiograph:
    """The image that stands for a study."""

    image: str
    study: str
    subject: str
    split: str
    view: str
    shape: tuple[int, int]

    @property
    def folder(self) -> str:
        """The study's folder below ``files/``; with ``.txt`` its report."""
        return f"p{self.subject[:2]}/p{self.subject}/s{self.study}"


def prepare_mimic_cxr(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    reports: str | os.PathLike | None = None,
    train: int | None = 6000,
    validation: int | None = 0,
    test: int | None = 1903,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Draw, convert and describe the data set; run again, it goes on where it stopped.

    Args:
        source: of the images and tables.
        out: a new folder, or one that the same call has begun.
        reports: of the reports, with or without a folder `files`; by default `source`.
        train, validation, test: images at most; None is all.
        size: side of the results in pixels.
        seed: draws the samples.
        workers: threads; by default one for each core.

    Returns:
        Path of the manifest, and the summary.

    Raises:
        FileNotFoundError: if a folder or a table is missing.
        ValueError: for a table that is wrong, saying where, a bad argument, or if no image is left.
        OSError: if the disk is full or out of order; call again to go on.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    check_call(source, out, "chest", size)
    base = _files(source if reports is None else Path(reports))
    wanted = {"train": train, "validation": validation, "test": test}
    summary = Summary()
    studies = [s for s in _studies(source, summary) if wanted[s.split] != 0]
    random.Random(seed).shuffle(studies)  # decides which study stands for a text
    texts = tqdm(
        in_parallel(lambda study: _read(base / f"{study.folder}.txt"), studies, workers=workers),
        total=len(studies), desc="reports", disable=not progress,
    )  # fmt: skip
    seen: set[tuple[str, str]] = set()
    unique: dict[str, tuple[Radiograph, str]] = {}
    for study, text in zip(studies, texts, strict=True):
        key = (study.split, (text or "").lower())
        if not text:
            summary.dropped[NO_REPORT if text is None else NO_IMPRESSION] += 1
        elif key in seen:
            summary.dropped["the impression of another study of its split"] += 1
        else:
            seen.add(key)
            unique[study.study] = (study, text)
    findings = _findings(source, unique)
    path = convert(
        [
            Source(
                path=source / "files" / study.folder / f"{study.image}.jpg",
                split=study.split,
                report=text,
                findings=findings.get(name, ()),
                words=words_of(findings.get(name, ()), text),
                patient=study.subject,
                shape=study.shape,
            )
            for name, (study, text) in sorted(unique.items())
        ],
        source, out, modality="chest", size=size, seed=seed, summary=summary, wanted=wanted,
        workers=workers, progress=progress,
    )  # fmt: skip
    return path, summary


def _files(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of reports at {folder}")
    return folder / "files" if (folder / "files").is_dir() else folder


def _studies(source: Path, summary: Summary) -> list[Radiograph]:
    """One frontal image for each study of the split table."""
    table = need_table(source, "mimic-cxr-2*-split.csv", "mimic-cxr-2*-split.csv.gz")
    splits: dict[str, str] = {}
    for number, row in check_unique(read_rows(table, ("dicom_id", "split")), table, "dicom_id"):
        if row["dicom_id"]:
            if row["split"] not in SPLIT_OF:
                raise ValueError(
                    f"{table.name}, row {number}: 'split' is not one of {tuple(SPLIT_OF)}"
                )
            splits[row["dicom_id"]] = SPLIT_OF[row["split"]]
    table = need_table(source, "mimic-cxr-2*-metadata.csv", "mimic-cxr-2*-metadata.csv.gz")
    columns = ("dicom_id", "study_id", "subject_id", "ViewPosition", "Rows", "Columns")
    chosen: dict[str, Radiograph] = {}
    for number, row in check_unique(read_rows(table, columns), table, "dicom_id"):
        if not row["dicom_id"]:
            summary.dropped["an empty row"] += 1
        elif not _plain(row):
            summary.dropped["its row names a path outside of the source"] += 1
        elif row["dicom_id"] not in splits:
            summary.dropped["in no row of the split table"] += 1
        elif row["ViewPosition"] not in VIEWS:
            summary.dropped["no frontal view"] += 1
        else:
            image = Radiograph(
                image=row["dicom_id"], study=row["study_id"], subject=row["subject_id"],
                split=splits[row["dicom_id"]], view=row["ViewPosition"],
                shape=tuple(int(number_in(table, number, c, row[c])) for c in ("Rows", "Columns")),
            )  # fmt: skip
            other = chosen.get(image.study, image)
            if other is not image:
                summary.dropped["another view of its study is taken"] += 1
            chosen[image.study] = min(other, image, key=lambda i: (VIEWS.index(i.view), i.image))
    return list(chosen.values())


def _plain(row: dict[str, str]) -> bool:
    """Whether the ids that a path is made of are of digits, or hexadecimal with hyphens."""
    numbers = all(re.fullmatch(r"[0-9]+", row[name]) for name in ("study_id", "subject_id"))
    return numbers and re.fullmatch(r"[0-9a-f-]+", row["dicom_id"]) is not None


def _read(path: Path) -> str | None:
    """The impression, "" where the report has none, or None where there is no report."""
    try:
        with nameless("a report"):
            return impression(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def _findings(source: Path, unique: dict) -> dict[str, tuple[str, ...]]:
    """Findings of the studies in question, or nothing where the labels' table is missing."""
    table = find_table(source, "mimic-cxr-2*-chexpert.csv", "mimic-cxr-2*-chexpert.csv.gz")
    if table is None:
        return {}
    found = {}
    rows = read_rows(table, ("study_id", *CHEXPERT_LABELS))
    for number, row in check_unique(rows, table, "study_id"):
        if row["study_id"] in unique:
            try:
                names = positive_findings((label, row[label]) for label in CHEXPERT_LABELS)
            except ValueError as error:
                raise ValueError(f"{table.name}, row {number}: {error}") from None
            found[row["study_id"]] = tuple(name for name in names if name != NO_FINDING)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = data_set_parser("mimic_cxr", __doc__)
    parser.add_argument("--reports", type=Path, metavar="FOLDER",
                        help="of the reports (default: the source)")  # fmt: skip
    add_counts(parser, train=6000, validation=0, test=1903)
    run(prepare_mimic_cxr, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
