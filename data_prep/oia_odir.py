"""OIA-ODIR: fundus photographs with each eye's diagnostic keywords as the prompt.

    python -m data_prep.oia_odir --source FOLDER --out FOLDER

Both distributions are read: OIA-ODIR's three sets, each with `Images/` and `Annotation/` ("Training
Set" or "Training_Set"), and ODIR-5K's one table beside folders of images. Annotations are
spreadsheets, which needs openpyxl. The official sets are pooled: they label patients, and as the
paper says, no split exists for its purpose.

The labels N to O are a patient's; the truth of an eye is in its keywords. They are brought to one
spelling (lower case, no hyphens, "non proliferative") and joined by commas: that is the report. As
in the paper there are 290 distinct reports, 3,361 images for training and 2,000 for testing. Where
it is silent: the reports are the 290 most frequent, and both eyes of a patient share a split.

Keywords become findings under their own name, but for those that mean one of the project's:

    microaneurysms   "microaneurysm(s)"
    haemorrhages     "... haemorrhage(s)", in either spelling, unless of the vitreous
    exudates         "... exudate(s)", "exudation"
    drusen           "... drusen"
    cupping          "... cupping", "... optic cup"

Keywords about the picture ("lens dust") and "normal fundus" are no findings. Images whose keywords
say that they show no fundus are dropped.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.command_line import add_counts, data_set_parser, run
from data_prep.conversion import Source, Summary, check_call, convert
from data_prep.findings import word_in
from data_prep.image_listing import ImageListing
from data_prep.pixels import Unusable
from data_prep.splits import split_patients
from data_prep.tables import check_unique, read_rows

EYES = (("Left-Fundus", "Left-Diagnostic Keywords"), ("Right-Fundus", "Right-Diagnostic Keywords"))
COLUMNS = ("ID", *EYES[0], *EYES[1])
SEPARATORS = r"[,\uff0c\u3001;\uff1b]"  # commas and semicolons, of Western and of full width
HYPHENS = r"[-\u2010-\u2014\u2212\uff0d]"
SIGNS = {
    "microaneurysms": r"\bmicro ?aneurysms?\b",
    "haemorrhages": r"(?<!vitreous )\bha?emorrhages?\b",
    "exudates": r"\bexudat(?:es?|ion)\b",
    "drusen": r"\bdrusen\b",
    "cupping": r"\bcupping\b|\boptic cup\b",
}
NO_FINDINGS = ("normal fundus", "lens dust", "low image quality", "image offset",
               "optic disk photographically invisible")  # fmt: skip
NO_FUNDUS = ("no fundus image", "anterior segment image")


def prepare_oia_odir(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    reports: int | None = 290,
    train: int = 3361,
    validation: int = 0,
    test: int = 2000,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, Summary]:
    """Convert and describe the data set; run again, it goes on where it stopped.

    Args:
        source: folder of either distribution.
        out: a new folder, or one that the same call has begun.
        reports: distinct reports at most, the most frequent ones; None is all.
        train, validation, test: images at most; patients are split in the same proportion.
        size: side of the results in pixels.
        seed: draws the patients of each split, and the images.
        workers: threads; by default one for each core.

    Returns:
        Path of the manifest, and the summary.

    Raises:
        FileNotFoundError: if the folder or its annotations are missing.
        ValueError: for a table that is wrong, saying where, a bad argument, or if no image is left.
        ImportError: without openpyxl.
        OSError: if the disk is full or out of order; call again to go on.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    check_call(source, out, "fundus", size)
    wanted = {"train": train, "validation": validation, "test": test}
    if min(wanted.values()) < 0 or not sum(wanted.values()):
        raise ValueError(f"expected numbers of images with a positive sum, got {wanted}")
    if reports is not None and reports < 1:
        raise ValueError(f"expected at least one report, got {reports}")
    summary = Summary()
    found = []
    for table, folder in _annotations(source).items():
        found += _read(table, ImageListing(folder), summary)
    found = _most_frequent(found, reports, summary)
    shares = [count / sum(wanted.values()) for count in wanted.values()]
    splits = split_patients([item.patient for item in found], shares, seed=seed)
    path = convert(
        [replace(item, split=split) for item, split in zip(found, splits, strict=True)],
        source, out, modality="fundus", size=size, seed=seed, summary=summary, wanted=wanted,
        workers=workers, progress=progress,
    )  # fmt: skip
    return path, summary


def keywords(cell: str) -> tuple[str, ...]:
    """The keywords of an eye, in one spelling and without repetition.

    Examples:
        >>> keywords("Moderate nonproliferative  retinopathy\uff0c laser-spot ,")
        ('moderate non proliferative retinopathy', 'laser spot')
    """
    words = re.sub(HYPHENS, " ", cell.lower())
    words = re.sub(r"\bnon\s*proliferative\b", "non proliferative", words)
    parts = (" ".join(part.split()) for part in re.split(SEPARATORS, words))
    return tuple(dict.fromkeys(part for part in parts if part))


def named_findings(words: Sequence[str], report: str) -> dict[str, str]:
    """Finding to the word of the report that names it ("" where that is not clear)."""
    found: dict[str, str] = {}
    for keyword in words:
        if keyword in NO_FINDINGS:
            continue
        signs = [(sign, match) for sign, pattern in SIGNS.items()
                 if (match := re.search(pattern, keyword))]  # fmt: skip
        if not signs:  # a manifest separates findings, and words, by vertical bars
            word = "" if "|" in keyword else word_in(report, (keyword,))
            found.setdefault(keyword.replace("|", " "), word)
        for sign, match in signs:
            found.setdefault(sign, word_in(report, (match[0],)))
    return found


def _annotations(source: Path) -> dict[Path, Path]:
    """Every table of annotations in English, and the folder that holds its images."""
    tables: dict[Path, Path] = {}
    for path in sorted(source.rglob("*.xlsx")):
        name = path.name.lower()
        if "annotation" not in name or "chinese" in name or name.startswith(("~", ".")):
            continue
        beside = path.parent.name.lower().startswith("annotation")
        folder = path.parent.parent if beside else path.parent
        if folder in tables.values():
            raise ValueError(
                f"several tables of annotations in one set: {path.name} is one of them"
            )
        tables[path] = folder
    if not tables:
        raise FileNotFoundError(f"no spreadsheet of annotations (*annotation*.xlsx) in {source}")
    return tables


def _read(table: Path, listing: ImageListing, summary: Summary) -> list[Source]:
    found: dict[Path, Source] = {}
    for _, row in check_unique(read_rows(table, COLUMNS), table, "ID"):
        if not any(row.values()):
            summary.dropped["an empty row"] += 1
            continue
        for image, words in EYES:
            try:
                eye = _eye(row["ID"], row[image], keywords(row[words]), listing)
                if eye.path in found:
                    raise Unusable("named by an earlier row, too")
                found[eye.path] = eye
            except Unusable as reason:
                summary.dropped[str(reason)] += 1
    return list(found.values())


def _eye(patient: str, image: str, words: Sequence[str], listing: ImageListing) -> Source:
    if not patient:
        raise Unusable("its row has no ID")
    if not image:
        raise Unusable("an eye without an image")
    if not words:
        raise Unusable("an eye without keywords")
    if any(word in NO_FUNDUS for word in words):
        raise Unusable("no fundus, by its keywords")
    report = ", ".join(words)
    findings = named_findings(words, report)
    return Source(
        path=listing.find(image),
        split="",  # drawn when all patients are known
        report=report,
        findings=tuple(findings),
        words=tuple(findings.values()),
        patient=patient,
    )


def _most_frequent(found: list[Source], reports: int | None, summary: Summary) -> list[Source]:
    if reports is None:
        return found
    counts = sorted(Counter(item.report for item in found).items(), key=lambda c: (-c[1], c[0]))
    if len(counts) < reports:
        summary.remarks.append(
            f"{reports} distinct reports were asked for, {len(counts)} are there"
        )
    taken = {report for report, _ in counts[:reports]}
    kept = [item for item in found if item.report in taken]
    if left := len(found) - len(kept):
        summary.dropped[f"its report is not among the {reports} most frequent"] += left
    return kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = data_set_parser("oia_odir", __doc__)
    parser.add_argument("--reports", type=int, default=290, metavar="NUMBER",
                        help="distinct reports at most (default: 290)")  # fmt: skip
    add_counts(parser, train=3361, validation=0, test=2000)
    run(prepare_oia_odir, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
