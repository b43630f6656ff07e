"""What tests of data sets share: small images, tables, and a look for forbidden words."""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 pixels, (H, W) or (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_table(path: Path, rows: Sequence[dict] | Sequence[Sequence]) -> Path:
    """A .csv, .csv.gz or .xlsx of rows: dicts with the columns' names, or lists, the first of them
    the header."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)] if isinstance(
        rows[0], dict
    ) else [list(row) for row in rows]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for line in lines:
            book.active.append(line)
        book.save(path)
        return path
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


def words_written(out: Path, words: Iterable[str]) -> list[str]:
    """Those of the words that are in a name or the bytes of any file below `out`."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files, "nothing was written, so nothing was looked at"
    return [
        word
        for word in words
        if any(word.encode() in path.read_bytes() or word in path.name for path in files)
    ]
