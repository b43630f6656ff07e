"""Tables of a data set (CSV, compressed CSV, spreadsheets): row by row, columns by name.

What is wrong with a table is said with its file name, a column or a row's number, never with what a
cell holds: a cell can be a patient's.
"""

import csv
import difflib
import gzip
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Row = tuple[int, dict[str, str]]
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a table, one at a time, with the asked columns only.

    Args:
        path: a file ending in .csv, .csv.gz or .xlsx (its first sheet; needs openpyxl).
        columns: names in the header, in any order; other columns are passed over.

    Yields:
        A row's number as a spreadsheet counts (the header is row 1), and its cells, stripped. An
        empty row between others has empty cells; empty rows at the end are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another ending, a missing or doubled column, a row of too few or too many
            cells, merged cells, or a file that is damaged or no UTF-8 text.
        ImportError: for a spreadsheet without openpyxl.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}")
    if path.name.endswith((".csv", ".csv.gz")):
        lines = _csv_lines(path)
    elif path.suffix == ".xlsx":
        lines = _sheet_lines(path)
    else:
        raise ValueError(f"{path.name}: expected a table ending in .csv, .csv.gz or .xlsx")
    header = [cell.strip() for cell in next(lines, [])]
    places = {name: _place(path, header, name) for name in columns}
    empty: list[int] = []
    for number, line in enumerate(lines, start=2):
        if not any(cell.strip() for cell in line):
            empty.append(number)
            continue
        yield from ((before, dict.fromkeys(columns, "")) for before in empty)
        empty.clear()
        _check_length(path, number, header, line)
        yield number, {name: line[i].strip() if i < len(line) else "" for name, i in places.items()}


def find_table(source: Path, *patterns: str) -> Path | None:
    """The one file of a folder that fits one of the patterns; None where none does.

    Raises:
        ValueError: if several files fit.
    """
    found = sorted({path for pattern in patterns for path in source.glob(pattern)})
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"expected one table of {' or '.join(patterns)}, got {names}")
    return found[0] if found else None


def need_table(source: Path, *patterns: str) -> Path:
    """As `find_table`, where the data set cannot be read without.

    Raises:
        FileNotFoundError: naming what was looked for.
    """
    if (path := find_table(source, *patterns)) is None:
        raise FileNotFoundError(f"no table {' or '.join(patterns)} in {source}")
    return path


def check_unique(rows: Iterable[Row], table: Path, column: str) -> Iterator[Row]:
    """Pass rows on, and stop at a second row of the same id (empty ones apart).

    Raises:
        ValueError: naming both rows.
    """
    seen: dict[str, int] = {}
    for number, cells in rows:
        if name := cells[column]:
            if name in seen:
                raise ValueError(
                    f"{table.name}, row {number}: the {column!r} of row {seen[name]} once more"
                )
            seen[name] = number
        yield number, cells


def number_in(table: Path, number: int, column: str, cell: str) -> float:
    """The number in a cell.

    Raises:
        ValueError: if it is none, or not finite, naming row and column, not the cell's content.
    """
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{table.name}, row {number}: {column!r} is no number")
    return value


def _place(path: Path, header: list[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise ValueError(f"{path.name}: the column {name!r} occurs {header.count(name)} times")
    # Not the whole header: where it is missing, the first line is a patient's.
    names = {cell.lower(): cell for cell in header if not any(c.isdigit() for c in cell)}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    hint = f" (is it {names[close[0]]!r}?)" if close else ""
    raise ValueError(f"{path.name}: no column {name!r} in its first row{hint}")


def _check_length(path: Path, number: int, header: list[str], line: list[str]) -> None:
    """Empty cells at the end do not count: some headers and rows end in commas."""
    if any(header[len(line) :]) or any(cell.strip() for cell in line[len(header) :]):
        raise ValueError(
            f"{path.name}, row {number}: expected {len(header)} cells, got {len(line)}"
        )


def _csv_lines(path: Path) -> Iterator[list[str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except DAMAGED:
        raise ValueError(f"{path.name}: truncated, or not compressed by gzip") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: expected UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"{path.name}: not a CSV table: {error}") from None


def _sheet_lines(path: Path) -> Iterator[list[str]]:
    try:
        import openpyxl
    except ImportError:
        raise ImportError(
            f"reading {path.name} needs openpyxl: pip install openpyxl, "
            "or save the sheet as a CSV file of the same name"
        ) from None
    try:
        book = openpyxl.load_workbook(path, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, *DAMAGED):
        raise ValueError(f"{path.name}: truncated, or not a spreadsheet") from None
    sheet = book.worksheets[0]
    if merged := sorted(str(cells) for cells in sheet.merged_cells.ranges):
        raise ValueError(
            f"{path.name}: cells {merged[0]} are merged ({len(merged)} places in all); unmerge "
            "them and fill every row"
        )
    for line in sheet.iter_rows(values_only=True):
        yield [_text(cell) for cell in line]
    book.close()


def _text(cell: object) -> str:
    if isinstance(cell, float) and cell.is_integer():  # a spreadsheet's 12 may be saved as 12.0
        return str(int(cell))
    return "" if cell is None else str(cell)
