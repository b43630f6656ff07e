"""A set of images of one size, held in memory as bytes: what a training loop draws from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsign_lite.checkpoints import digest
from medsign_lite.data import read_manifest
from medsign_lite.images import central_crop, load_image, resize, to_bytes

_ENDINGS = (".png", ".jpg", ".jpeg")


def read_image_stack(
    source: str | Path, *, size: int = 128, split: str = "train", limit: int | None = None
) -> Tensor:
    """Read images, cut to the central square and brought to `size` x `size` pixels.

    Args:
        source: a manifest (.csv, or a folder with manifest.csv, of which `split` is read), any
            other folder of PNG or JPEG files, or an .npy file of uint8, (N, H, W), (N, H, W, 3)
            or (N, 3, H, W), H = W = size.
        limit: images to read at most, evenly spread over the source.

    Returns:
        (N, 3, size, size) uint8 on the CPU.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if it holds no image, or an array of another kind; if a split is asked for that
            only a manifest has, since all images of another source are to train on.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"images {source} do not exist: give a folder, manifest or .npy")
    listed = source.suffix == ".csv" or (source / "manifest.csv").exists()
    if split != "train" and not listed:
        raise ValueError(f"split {split!r}: expected a manifest, got {source}, which has no splits")
    if source.suffix == ".npy":
        return _from_array(np.load(source, mmap_mode="r"), source, size, limit)
    if listed:
        paths = [r.image for r in read_manifest(source, check_files=False) if r.split == split]
    else:
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in _ENDINGS)
    if not paths:
        raise ValueError(f"{source} holds no image (split {split!r} of a manifest, or {_ENDINGS})")
    paths = [paths[i] for i in _spread(len(paths), limit)]
    stack = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for row, path in zip(stack, paths, strict=True):
        row.copy_(_square(load_image(path), size))
    return stack


def _spread(count: int, limit: int | None) -> list[int]:
    kept = count if limit is None else min(limit, count)
    return [i * count // kept for i in range(kept)]


def stack_digest(images: Tensor, *, count: int = 64) -> str:
    """Names a stack (N, 3, H, W) by `count` of its images, evenly spread: all would take long."""
    return digest([images[:: max(1, len(images) // count)]])


def held_out_rows(total: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out, the latter evenly spread.

    A manifest lists one modality after another: the last images alone would be of one kind.
    """
    test = torch.arange(held_out) * (total // held_out)
    train = torch.ones(total, dtype=torch.bool)
    train[test] = False
    return train.nonzero().flatten(), test


def _square(image: Tensor, size: int) -> Tensor:
    image = central_crop(image[None], (1, 1))
    image = image if image.shape[-1] == size else resize(image, (size, size))
    return to_bytes(image)[0].permute(2, 0, 1)


def _from_array(array: np.ndarray, source: Path, size: int, limit: int | None) -> Tensor:
    shapes = {(size, size): None, (size, size, 3): (0, 3, 1, 2), (3, size, size): (0, 1, 2, 3)}
    if array.dtype != np.uint8 or array.shape[1:] not in shapes or not len(array):
        raise ValueError(
            f"{source}: expected uint8 (N, {size}, {size}), (N, {size}, {size}, 3) or "
            f"(N, 3, {size}, {size}), got {array.dtype} {array.shape}"
        )
    order = shapes[array.shape[1:]]
    kept = torch.from_numpy(np.array(array[_spread(len(array), limit)]))
    if order is None:
        return kept[:, None].expand(-1, 3, -1, -1)
    return kept.permute(order).contiguous()
