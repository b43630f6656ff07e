"""The latents of a manifest's images: an autoencoder that does not change encodes them once.

Images are read and encoded a shard at a time, so their number is limited by the disk alone, and a
killed run goes on with the next shard.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from medsign_lite.data import Record
from medsign_lite.files import whole_file
from medsign_lite.images import central_crop, load_image, resize
from medsign_lite.latent_diffusion import Autoencoder, encode, scale_factor
from medsign_lite.shards import check_disk, join_shards, write_shard
from medsign_lite.training.training_state import check_settings, plain_settings

SHARD = 256  # images


def encoded_images(
    records: Sequence[Record],
    vae: Autoencoder,
    folder: str | Path,
    *,
    size: tuple[int, int],
    batch: int = 4,
    progress: bool = True,
) -> Tensor:
    """Encode each record's image, or read what an earlier call left in the folder.

    Args:
        records: N, of whose images the central part of the wanted shape is kept.
        vae: frozen.
        folder: gets ``latents.safetensors``.
        size: (H, W) in pixels that the images are brought to.
        batch: images encoded at a time.

    Returns:
        (N, C, h, w) scaled latents in half precision, mapped from the file.

    Raises:
        ValueError: if the folder holds latents of other images, of another size or autoencoder.
        OSError: if the disk cannot hold them.
    """
    folder = Path(folder)
    weights = list(vae.encoder.parameters())  # two tensors that any training changes
    settings = plain_settings(
        # Sizes, too: what was drawn anew has the same names.
        images=_digest([[r.id, r.image.name, r.image.stat().st_size] for r in records]), size=size,
        autoencoder=_digest([weights[0].tolist(), weights[-1].tolist()]),
    )  # fmt: skip
    kept, finished = folder / "latents.json", folder / "latents.safetensors"
    if kept.is_file():
        check_settings(json.loads(kept.read_text(encoding="utf-8")), settings, folder=folder)
    else:
        with whole_file(kept) as file:
            file.write((json.dumps(settings, indent=2) + "\n").encode())
    if not finished.is_file():
        numbers = size[0] * size[1] // scale_factor(vae) ** 2 * vae.config.latent_channels
        check_disk(folder, 2 * 2 * numbers * len(records))  # half precision, in shards and joined
        shards = folder / "latents"
        files = []
        starts = range(0, len(records), SHARD)
        for start in tqdm(starts, desc="latents", unit="shard", disable=not progress):
            files.append(shards / f"{start:07d}.safetensors")
            if not files[-1].is_file():
                some = records[start : start + SHARD]
                parts = [some[i : i + batch] for i in range(0, len(some), batch)]
                latents = torch.cat([encode(vae, _read(part, size)).cpu() for part in parts])
                write_shard(files[-1], {"latents": latents.half()})
        join_shards(files, finished)
        shutil.rmtree(shards)
    return load_file(finished)["latents"]


def central_part(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest central part of (B, C, H, W) of the shape of `size`, brought to `size`."""
    part = central_crop(image, size)
    return part if tuple(part.shape[-2:]) == tuple(size) else resize(part, size)


def _read(records: Sequence[Record], size: tuple[int, int]) -> Tensor:
    return torch.cat([central_part(load_image(record.image)[None], size) for record in records])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
