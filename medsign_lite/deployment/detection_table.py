"""What was read from many images, as a table on the terminal or as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from medsign_lite.deployment.key_detection import KeyDetection
from medsign_lite.files import whole_file

MARKED, NOT_MARKED, UNREADABLE = "marked", "not marked", "unreadable"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image; the fields are the columns of the CSV. Numbers are None where it is unreadable."""

    image: str
    decision: str  # "marked", "not marked" or "unreadable"
    key: str = ""  # whose, if marked; tied ids are joined by " or "
    matching: int | None = None  # bits that agree with the best key's
    bits: int | None = None
    p_value: float | None = None  # corrected for the number of keys
    reason: str = ""  # why it is unreadable
    claim: str = ""  # what its file says of itself, which anyone can write


def row_of(image: str, detection: KeyDetection, *, claim: str = "") -> Row:
    """A decision as a row."""
    return Row(
        image=image,
        decision=MARKED if detection.detected else NOT_MARKED,
        key=" or ".join(detection.keys),
        matching=detection.matching,
        bits=detection.bits,
        p_value=detection.p_value,
        claim=claim,
    )


def print_rows(
    rows: Iterable[Row], names: Sequence[str], *, file: TextIO, keys: bool = True
) -> Iterator[Row]:
    """Print a heading and then each row as it comes, below it its claim, and pass it on.

    Args:
        names: of all images, so that the columns are wide enough from the start.
        keys: with the column of keys.
    """
    width = max(len(name) for name in ("image", *names))

    def line(image: str, matching: str, p_value: str, decision: str, key: str) -> None:
        text = f"{image:{width}}  {matching:>8}  {p_value:>7}  {decision:10}  {key if keys else ''}"
        print(text.rstrip(), file=file, flush=True)

    line("image", "matching", "p-value", "decision", "key")
    for row in rows:
        if row.decision == UNREADABLE:
            line(row.image, "-", "-", f"{UNREADABLE}: {row.reason}", "")
        else:
            matching = f"{row.matching} of {row.bits}"
            line(row.image, matching, f"{row.p_value:.2g}", row.decision, row.key)
        if row.claim:
            print(f"    its file says: {row.claim}", file=file, flush=True)
        yield row


def write_rows(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write the rows as CSV (UTF-8, with a heading), whole or not at all (see `whole_file`)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
    return Path(path)
