"""What the commands of all data sets share: their options, and how they end."""

import argparse
from collections.abc import Callable
from pathlib import Path

from data_prep.conversion import Summary


def data_set_parser(name: str, description: str, *, size: int = 512) -> argparse.ArgumentParser:
    """A parser with the options that every data set has.

    Args:
        name: of the module in `data_prep`.
        description: its docstring.
        size: default side of the images in pixels.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="FOLDER", help="the data set, read only")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add("--size", type=int, default=size, metavar="PIXELS",
        help=f"side of the results (default: {size})")  # fmt: skip
    add("--seed", type=int, default=0, help="draws order and samples (default: 0)")
    add("--workers", type=int, metavar="NUMBER", help="threads (default: one for each core)")
    return parser


def add_counts(parser: argparse.ArgumentParser, **counts: int | None) -> None:
    """Options for the number of images of each split, with their defaults; None is all."""
    for split, count in counts.items():
        shown = "all" if count is None else count
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="NUMBER",
            help=f"{split} images at most (default: {shown})",
        )  # fmt: skip


def run(prepare: Callable[..., tuple[Path, Summary]], **options) -> None:
    """Prepare a data set and print its summary; an error ends the program in one line.

    No traceback is shown: a chain of errors could quote the name of a file, and so a patient.
    """
    try:
        path, summary = prepare(**options)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"stopped: {error}") from None
    print(summary, f"manifest: {path}", sep="\n")
