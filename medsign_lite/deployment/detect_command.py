"""`medsign-lite detect`: whether images are marked, with which key, and what their files say."""

import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from medsign_lite.deployment.detection_table import (
    MARKED,
    NOT_MARKED,
    UNREADABLE,
    Row,
    print_rows,
    row_of,
    write_rows,
)
from medsign_lite.deployment.image_files import find_image_files, load_image_file
from medsign_lite.deployment.key_detection import KeyDetection, detect_keys
from medsign_lite.deployment.keys import Key, Registry, read_registry
from medsign_lite.deployment.provenance import file_claim
from medsign_lite.detection import extract_logits
from medsign_lite.extractor import MINIMUM_SIDE, AnyExtractor, load_extractor
from medsign_lite.images import check_image
from medsign_lite.messages import ungroup


def run(options: Namespace) -> int:
    """Carry the command out; 0 if every image could be read, 1 if not.

    A run that ends before its time leaves a CSV file of the images that were finished.

    Raises:
        OSError, ValueError, RuntimeError: if it cannot be carried out.
    """
    paths, left_out = find_image_files(options.images)
    extractor = load_extractor(options.extractor, device=options.device)
    registry = given_registry(options.keys, options.message, bits=extractor.config.bits)
    rate = options.false_positive_rate
    # An empty batch: whatever does not fit is found before the first image is read.
    detect_keys(torch.zeros(0, extractor.config.bits), registry, false_positive_rate=rate)
    if options.csv is not None:
        if options.csv.is_dir():
            raise ValueError(f"--csv {options.csv}: expected a file to write, got a folder")
        check_writable(options.csv.parent)
    # A name that is no text, which Linux allows, must not cost the whole table.
    names = [str(path).encode(errors="backslashreplace").decode() for path in paths]
    if options.hide_names:
        names = [str(number) for number in range(1, len(paths) + 1)]
    rows = read_rows(paths, names, extractor, registry, false_positive_rate=rate)
    if options.csv is None:
        rows = print_rows(rows, names, file=sys.stdout, keys=len(registry.keys) > 1)
    rows = collect_rows(rows, options.csv, expected=len(paths))
    counts = Counter(row.decision for row in rows)
    parts = [f"{counts[decision]} {decision}" for decision in (MARKED, NOT_MARKED, UNREADABLE)]
    also = f"; {left_out} other files left out" if left_out else ""
    print(f"images: {len(rows)}; {', '.join(parts)}{also}", file=sys.stderr)
    return 1 if counts[UNREADABLE] else 0


def collect_rows(
    rows: Iterable[Row], path: Path | None, *, expected: int, seconds: float = 60.0
) -> list[Row]:
    """All rows, written as CSV if there is a path.

    What is finished is written, whole or not at all, every so many seconds, for a run that is
    killed; and at the end, whatever that is: Ctrl-C, or an error that nobody foresaw.

    Args:
        rows: as they come, `expected` of them.
        path: of the CSV file; an earlier one stays until the first row is finished.

    Raises:
        OSError: if the file cannot be written.
    """
    done, written = [], time.monotonic()
    try:
        for row in rows:
            done.append(row)
            if path is not None and time.monotonic() - written >= seconds:
                write_rows(path, done)
                written = time.monotonic()
    finally:
        if path is not None and done:
            write_rows(path, done)
            if len(done) < expected:
                print(f"stopped early: {len(done)} of {expected} images are in {path}",
                      file=sys.stderr)  # fmt: skip
    return done


def check_writable(folder: Path) -> None:
    """Make the folder if needed; an OSError, before hours of work, if it takes no file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"folder {folder} cannot be written ({error.strerror})") from error


def given_registry(keys: Path, message: str | None, *, bits: int) -> Registry:
    """The registry in a file, or, if there is a message, one of that message alone.

    Args:
        message: `bits` times "0" or "1"; spaces and underscores may group them.

    Raises:
        ValueError: if the message is not as above; see also `read_registry`.
    """
    if message is None:
        return read_registry(keys)
    key = Key(id="message", message=ungroup(message))
    if len(key.message) != bits:
        raise ValueError(
            f"--message: expected {bits} bits, as the extractor reads, got {len(key.message)}"
        )
    return Registry(bits=bits, keys=(key,))


def read_rows(
    paths: Sequence[Path],
    names: Sequence[str],
    extractor: AnyExtractor,
    registry: Registry,
    *,
    false_positive_rate: float,
) -> Iterator[Row]:
    """Read one image after another; one that cannot be read is a row that says why.

    That includes one that is too large for the memory, or that a network fails on.
    """
    for path, name in zip(paths, names, strict=True):
        try:
            detection = detect_file(
                path, extractor, registry, false_positive_rate=false_positive_rate
            )
            claim = file_claim(path)
        except OSError as error:
            reason = error.strerror or _without_name(error, path)
        except MemoryError:
            reason = "not enough memory for an image of its size"
        except (ValueError, ModuleNotFoundError, RuntimeError) as error:
            reason = _without_name(error, path)
        else:
            yield row_of(name, detection, claim=claim)
            continue
        yield Row(image=name, decision=UNREADABLE, reason=reason)


def _without_name(error: Exception, path: Path) -> str:
    """What is wrong; the row says with which image, or is not to."""
    told = str(error).removeprefix(f"image {path}").lstrip(": ")
    return told.partition("\n")[0] or type(error).__name__  # torch may go on for lines


def detect_file(
    path: Path, extractor: AnyExtractor, registry: Registry, *, false_positive_rate: float
) -> KeyDetection:
    """Decide about one file (see `load_image_file` and `detect_keys`).

    Raises:
        OSError, ValueError, ModuleNotFoundError: if it cannot be read, or is smaller than the
            extractor needs.
        MemoryError, RuntimeError: if it is too large, or the extractor fails on it.
    """
    batch = load_image_file(path)[None]
    least = max(MINIMUM_SIDE, extractor.minimum_side)
    check_image(batch, name=f"image {path}", minimum=least)
    logits = extract_logits(extractor, batch)
    return detect_keys(logits, registry, false_positive_rate=false_positive_rate)[0]
