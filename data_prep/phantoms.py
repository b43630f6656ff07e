"""Procedural phantoms with reports and exact masks, written as a data set.

    python -m data_prep.phantoms --out FOLDER --train 2000 --validation 200 --test 200

No patient, no licence question, and a ground truth for localisation that no real set has. A
phantom is a function of its seed: splits are disjoint ranges of seeds, so that a test image cannot
have been trained on, and ``phantom("chest", "test", 7)`` is the same pixels on every machine.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from data_prep.chest_phantom import draw_chest
from data_prep.fundus_phantom import draw_fundus
from data_prep.phantom import Phantom
from medsign_lite.data import MODALITIES, SPLITS, Record, read_manifest, write_manifest
from medsign_lite.files import whole_file

DRAW = {"chest": draw_chest, "fundus": draw_fundus}
# Far apart, so that no number of images makes two splits overlap.
FIRST_SEED = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}


def phantom(modality: str, split: str, index: int, *, size: int = 128, **options) -> Phantom:
    """Draw the phantom of that number of a split; ``options`` go to the modality's own function."""
    if modality not in DRAW:
        raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
    if split not in FIRST_SEED:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    return DRAW[modality](FIRST_SEED[split] + index, size=size, **options)


def write_phantoms(
    folder: str | os.PathLike,
    *,
    train: int = 2000,
    validation: int = 200,
    test: int = 200,
    modalities: tuple[str, ...] = MODALITIES,
    size: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw a data set and write images, masks and the manifest.

    Args:
        folder: made if it does not exist; files of the same names are replaced, and an earlier
            manifest is removed before the first of them.
        train: images of that split for each modality; likewise ``validation`` and ``test``.
        modalities: which to draw.
        size: side of the square images in pixels, at least 32.
        workers: processes; by default one for each core.

    Returns:
        Path of ``manifest.csv``, written last: a folder without it is not finished.
    """
    folder = Path(folder)
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or not sum(counts.values()):
        raise ValueError(f"expected numbers of images with a positive sum, got {counts}")
    for modality in modalities:
        if modality not in DRAW:
            raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
        for part in ("images", "masks"):
            (folder / part / modality).mkdir(parents=True, exist_ok=True)
    # It would describe other images than those that a run leaves which does not come to its end.
    (folder / "manifest.csv").unlink(missing_ok=True)
    jobs = [(m, s, i) for m in modalities for s in SPLITS for i in range(counts[s])]
    records = list(
        tqdm(
            _write_all(partial(_write, folder, size), jobs, workers or os.cpu_count() or 1),
            total=len(jobs),
            desc="phantoms",
            disable=not progress,
        )
    )
    return write_manifest(folder / "manifest.csv", records)


def _write_all(write: partial, jobs: list, workers: int) -> Iterator[Record]:
    if workers == 1:
        yield from map(write, jobs)
        return
    # Forking a process whose libraries have started threads can deadlock, hence "spawn"; and with
    # one process a core, threads within each would only wait for one another.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, threadpool_limits, (1,)) as pool:
        yield from pool.map(write, jobs, chunksize=64)


def _write(folder: Path, size: int, job: tuple[str, str, int]) -> Record:
    modality, split, index = job
    drawn = phantom(modality, split, index, size=size)
    name = f"{modality}-{split}-{index:06d}"
    image = folder / "images" / modality / f"{name}.png"
    _save(drawn.image, image)
    masks = []
    for finding, mask in zip(drawn.findings, drawn.masks, strict=True):
        masks.append(folder / "masks" / modality / f"{name}-{finding.name}.png")
        _save(mask.astype(np.uint8) * 255, masks[-1])
    return Record(
        id=name,
        image=image,
        modality=modality,
        split=split,
        report=drawn.report,
        findings=tuple(finding.name for finding in drawn.findings),
        words=tuple(finding.word for finding in drawn.findings),
        sides=tuple(finding.side for finding in drawn.findings),
        masks=tuple(masks),
    )


def _save(pixels: np.ndarray, path: Path) -> None:
    with whole_file(path) as file:  # compressed little: speed; the files are small anyway
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.phantoms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for split, count in (("train", 2000), ("validation", 200), ("test", 200)):
        parser.add_argument(f"--{split}", type=int, default=count, help="images for each modality")
    parser.add_argument("--modalities", nargs="+", default=MODALITIES, choices=MODALITIES)
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    path = write_phantoms(
        options.out,
        train=options.train,
        validation=options.validation,
        test=options.test,
        modalities=tuple(options.modalities),
        size=options.size,
        workers=options.workers,
    )
    print(f"{len(read_manifest(path, check_files=False))} phantoms described in {path}")


if __name__ == "__main__":
    main()
