"""Look for patients' identifiers in what a project publishes: notebooks, logs, results.

    python -m data_prep.identifiers notebooks results runs

MIMIC-CXR, CheXpert, ChestX-ray14 and ODIR name images by patient and study; such a name in an
output ties it to a person in the data set. Their forms are known here; those of a hospital's own
names are not.

A finding is said with its file, its line or cell, and the form it has, and never quoted: in a path,
"..." stands for each folder and file whose name is one. Exit status: 0 if nothing is found, 1 if
something is.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

FORMS = {
    "a MIMIC-CXR image": r"(?<![0-9a-f-])[0-9a-f]{8}(?:-[0-9a-f]{8}){4}(?![0-9a-f-])",
    "a MIMIC-CXR patient": r"(?<![A-Za-z0-9])p1[0-9]{7}(?![0-9])",
    "a MIMIC-CXR study": r"(?<![A-Za-z0-9])s5[0-9]{7}(?![0-9])",
    "a numbered patient or study": r"(?i)(?:subject|study|patient)[ _]?id\W{1,4}[0-9]+",
    "a CheXpert patient": r"(?<![A-Za-z0-9])patient[0-9]{5}(?![0-9])",
    "a ChestX-ray14 image": r"(?<![0-9])[0-9]{8}_[0-9]{3}(?![0-9])",
    "an ODIR image": r"(?<![A-Za-z0-9_.])[0-9]{1,5}_(?:left|right)(?![a-z])",
}
TEXT = (
    ".csv",
    ".html",
    ".ipynb",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".svg",
    ".txt",
    ".yaml",
    ".yml",
)


def identifiers_in(text: str) -> list[tuple[int, str]]:
    """Line, from 1, and form of everything that looks like a patient's identifier."""
    found = []
    for form, pattern in FORMS.items():
        for match in re.finditer(pattern, text):
            found.append((text.count("\n", 0, match.start()) + 1, form))
    return sorted(found)


def scan(places: Iterable[str | os.PathLike]) -> list[str]:
    """Findings in files, in the text files below folders, and in the names of all of them.

    The folders in which a place lies count too, as far as its path names them. Of a notebook
    everything is read but its pictures: sources, outputs, errors and metadata.

    Returns:
        A sentence for each, such as "results/a.json, line 3: a CheXpert patient"; a name is said
        with the folder that it is in, such as "a name in runs/...: a MIMIC-CXR study".

    Raises:
        FileNotFoundError: if a place does not exist.
    """
    found, seen = [], set()
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"no file or folder at {_shown(place)}")
        below = sorted(place.rglob("*")) if place.is_dir() else []
        for path in (*reversed(place.parents), place, *below):
            if path in seen:  # of places that share a folder
                continue
            seen.add(path)
            forms = [form for _, form in identifiers_in(path.name)]
            found += [f"a name in {_shown(path.parent)}: {form}" for form in forms]
            if path.is_file() and path.suffix.lower() in TEXT:
                found += [f"{_shown(path)}, {where}: {form}" for where, form in _scan_file(path)]
    return found


def _shown(path: Path) -> str:
    parts = ("..." if identifiers_in(part) else part for part in path.parts)
    return Path(*parts).as_posix()


def _scan_file(path: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix.lower() == ".ipynb":
        try:
            document = json.loads(text)
            parts = {f"cell {n}": cell for n, cell in enumerate(document.pop("cells"), start=1)}
        except (ValueError, KeyError, AttributeError):
            pass  # no notebook's JSON: read as the text it is
        else:
            for where, part in (parts | {"metadata": document}).items():
                forms = (form for told in _strings(part) for _, form in identifiers_in(told))
                yield from ((where, form) for form in dict.fromkeys(forms))
            return
    for line, form in identifiers_in(text):
        yield f"line {line}", form


def _strings(node: object) -> Iterator[str]:
    """Every text within a part of a notebook, lines joined; pictures are left out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            if not name.startswith("image/") or name == "image/svg+xml":
                yield name
                yield from _strings(value)
    elif isinstance(node, list):
        if node and all(isinstance(line, str) for line in node):
            yield "".join(node)
        else:
            for value in node:
                yield from _strings(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.identifiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=Path, help="files and folders")
    try:
        found = scan(parser.parse_args(arguments).places)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(*found, f"{len(found)} identifiers found", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
