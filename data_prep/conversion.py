"""From images somewhere, with what is known of each, to a data set with a manifest.

What every data set has in common. Images are converted in parallel, each is written whole or not at
all, and the manifest last; the same call in the same folder goes on where it stopped, and another
call is refused.

Nothing that identifies a patient is written: no file name, no patient's or study's number, none of
a file's metadata. Images get running numbers in an order drawn by the seed. Pixels and reports are
copied as they are: text that was burned into an image stays in it, but for DICOM files that say of
themselves that they have some, which are dropped.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.image_reading import nameless, read_pixels
from data_prep.parallel import in_parallel
from data_prep.pixels import Box, Unusable, box_mask, square
from data_prep.splits import check_patients
from medsign_lite.data import MODALITIES, SPLITS, Record, write_manifest
from medsign_lite.deployment.dicom import DICOM_ENDINGS, import_pydicom, is_dicom
from medsign_lite.files import whole_file

CLAIM = "conversion.json"
FULL = "left over: its split is full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One image to convert, and what its tables say about it.

    ``words`` has one entry for each finding, as in the manifest. ``shape`` is the (H, W) that a
    table gives. ``boxes`` are drawn into the mask of the finding they name.
    """

    path: Path
    split: str
    report: str = ""
    findings: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    patient: str | None = None
    shape: tuple[int, int] | None = None
    boxes: tuple[tuple[str, Box], ...] = ()


@dataclass
class Summary:
    """How many images were kept, per split, how many were dropped, per reason, and remarks."""

    kept: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kept = ", ".join(f"{self.kept[split]} {split}" for split in SPLITS)
        lines = [f"kept {self.kept.total()} ({kept}), dropped {self.dropped.total()}"]
        lines += [f"  {count}: {why}" for why, count in self.dropped.most_common()]
        return "\n".join(lines + [f"  note: {remark}" for remark in self.remarks])


def check_call(source: Path, out: Path, modality: str, size: int) -> None:
    """Refuse what cannot work, before anything is read or written.

    Raises:
        FileNotFoundError: if there is no folder at `source`.
        ValueError: if one folder lies in the other, for an unknown modality, or a size below 32.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no folder at {source}")
    inner, outer = out.resolve(), source.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise ValueError(f"expected an out folder apart from the source {source}, got {out}")
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
    if size < 32:
        raise ValueError(f"expected a size of at least 32 pixels, got {size}")


def convert(
    sources: Sequence[Source],
    source: Path,
    out: Path,
    *,
    modality: str,
    size: int,
    seed: int,
    summary: Summary,
    wanted: Mapping[str, int | None] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Convert images, draw masks, and write the manifest.

    Args:
        sources: in an order that is the same every time; the seed shuffles it.
        source: folder that holds them all.
        out: a new folder, or one that the same call has begun.
        modality: "chest" or "fundus", of all images.
        size: side of the results in pixels; smaller images are dropped, not enlarged.
        seed: draws the order, and so which images fill a split.
        summary: what was dropped before; what happens here is added.
        wanted: images per split at most; None, or no entry, takes all. An image that turns out to
            be unusable is replaced by the next of its split.
        workers: threads; by default one for each core that this process may use.

    Returns:
        Path of the manifest, written last.

    Raises:
        ValueError: if `out` holds something else, a patient's images are in several splits, a
            number wanted is negative, or no image is left.
        ModuleNotFoundError: for DICOM files without pydicom.
        OSError: if the disk is full or out of order; call again to go on.
    """
    wanted = {split: (wanted or {}).get(split) for split in SPLITS}
    if any(most is not None and most < 0 for most in wanted.values()):
        raise ValueError(f"expected numbers of images, got {wanted}")
    if not sources:
        raise ValueError(f"no image to convert in {source}: {summary}")
    check_patients([item.patient for item in sources], [item.split for item in sources])
    # Only those without an ending have to be opened to know.
    told = (item.path for item in sources if item.path.suffix.lower() in ("", *DICOM_ENDINGS))
    if any(is_dicom(path) for path in told):
        import_pydicom()
    order = list(sources)
    random.Random(seed).shuffle(order)
    chosen = _choose(order, wanted, {})
    _claim(
        out, source, [order[number] for number in chosen],
        {"size": size, "modality": modality, "seed": seed, "wanted": wanted},
    )  # fmt: skip
    masks: dict[int, dict[str, Path]] = {}  # of every finished image
    unusable: dict[int, str] = {}
    while new := [number for number in chosen if number not in masks]:
        work = partial(_attempt, order=order, out=out, size=size)
        walk = in_parallel(work, new, workers=workers)
        for number, done in zip(
            new, tqdm(walk, total=len(new), desc="images", disable=not progress), strict=True
        ):
            if isinstance(done, str):
                unusable[number] = done
            else:
                masks[number] = done
        chosen = _choose(order, wanted, unusable)
    summary.kept.update(order[number].split for number in chosen)
    summary.dropped.update(unusable.values())
    if left := len(order) - len(chosen) - len(unusable):
        summary.dropped[FULL] += left
    for split, most in wanted.items():
        if (got := summary.kept[split]) < (most or 0):
            summary.remarks.append(f"{most} {split} images were asked for, {got} are there")
    if not chosen:
        raise ValueError(f"no image of {source} could be used: {summary}")
    return write_manifest(
        out / "manifest.csv",
        (_record(number, order[number], out, modality, masks[number]) for number in chosen),
    )


def _choose(order: Sequence[Source], wanted: Mapping, unusable: Mapping[int, str]) -> list[int]:
    """Numbers of the first usable images of each split, as many as wanted."""
    chosen, taken = [], Counter()
    for number, item in enumerate(order):
        most = wanted[item.split]
        if number not in unusable and (most is None or taken[item.split] < most):
            taken[item.split] += 1
            chosen.append(number)
    return chosen


def _claim(out: Path, source: Path, chosen: Sequence[Source], settings: dict) -> None:
    """Mark the folder as this conversion's, or refuse it where it is somebody else's.

    Only one hash of everything together is written, from which no name can be told.
    """
    digest = hashlib.sha256()
    for item in chosen:
        length = -1
        with suppress(FileNotFoundError), nameless("an image"):  # a missing one is counted later
            length = item.path.stat().st_size
        told = (item.split, item.report, item.findings, item.words, item.shape, item.boxes)
        line = (item.path.relative_to(source).as_posix(), length, *told)
        digest.update(json.dumps(line).encode())
    claim = settings | {"images": len(chosen), "digest": digest.hexdigest()}
    path = out / CLAIM
    if path.is_file():
        if (earlier := json.loads(path.read_text(encoding="utf-8"))) != claim:
            changed = [name for name in claim if earlier.get(name) != claim[name]]
            raise ValueError(f"{out} holds another conversion (other {', '.join(changed)})")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"expected a new or empty folder, or one begun before; {out} is neither")
    for folder in (out / "images", out / "masks"):
        if not folder.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{folder} leads out of the folder")
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink()
    with whole_file(path) as file:
        file.write(json.dumps(claim, indent=2).encode())


def _image_path(out: Path, number: int) -> Path:
    return out / "images" / f"{number:06d}.png"


def _attempt(
    number: int, *, order: Sequence[Source], out: Path, size: int
) -> dict[str, Path] | str:
    """Convert one image unless that is done: the masks of its findings, or why it is dropped."""
    item, target = order[number], _image_path(out, number)
    marked = sorted({name for name, _ in item.boxes if name in item.findings})
    masks = {name: out / "masks" / f"{number:06d}-{name.replace(' ', '-')}.png" for name in marked}
    if target.is_file():  # written whole and last, or not at all
        return {name: path for name, path in masks.items() if path.is_file()}
    try:
        image = read_pixels(item.path, expected=item.shape)
        fitted = square(image, size)
    except Unusable as reason:
        return str(reason)
    drawn = {}
    for name, path in masks.items():
        boxes = [box for finding, box in item.boxes if finding == name]
        mask = box_mask(boxes, image.size[::-1], size)
        if mask.getbbox():  # cropping may have left nothing of it
            _save(mask, path)
            drawn[name] = path
    _save(fitted, target)
    return drawn


def _save(image, path: Path) -> None:
    with whole_file(path) as file:
        image.save(file, format="PNG")


def _record(
    number: int, item: Source, out: Path, modality: str, masks: Mapping[str, Path]
) -> Record:
    return Record(
        id=f"{modality}-{number:06d}",
        image=_image_path(out, number),
        modality=modality,
        split=item.split,
        report=item.report,
        findings=item.findings,
        words=item.words,
        sides=("",) * len(item.findings),
        masks=tuple(masks.get(name) for name in item.findings),
    )
