"""The maps that a decoder is fine-tuned with in the ablations: the paper's, and controls it lacks.

The paper compares its map with those it gets without CAS and without AAS. Whether it matters at
all *where* a map is high, those two cannot say. The controls can: a uniform map protects nowhere in
particular, a mirrored one the wrong place, and an exact mask is the best there can be.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medsign_lite.data import Record, load_mask
from medsign_lite.encoded_images import central_part, encoded_images
from medsign_lite.images import resize
from medsign_lite.latent_cache import LatentCache, read_latent_cache, write_latent_cache
from medsign_lite.latent_diffusion import Autoencoder

# Options of `pathology_map` that make each kind of map from one recording of attention.
MAP_KINDS = {
    "literal": {"select": "cas", "scale": "literal"},
    "sharp": {"select": "cas", "scale": "sharp"},
    "literal_without_cas": {"select": "average", "scale": "literal"},
    "sharp_without_cas": {"select": "average", "scale": "sharp"},
    "without_aas": {"select": "cas", "scale": None},
}
MIRROR = {"chest": -1, "fundus": -2}  # the axis along which a finding has another side


def uniform_map(maps: Tensor) -> Tensor:
    """(..., H, W) to maps that are everywhere what each was on average: no place is protected.

    The preservation loss squares the map, so at an equal mean it weighs a flat map less in all than
    one of highs and lows.
    """
    return maps.mean(dim=(-2, -1), keepdim=True).expand_as(maps).clone()


def mirrored_map(maps: Tensor, modality: str) -> Tensor:
    """(..., H, W) on the wrong side: left and right exchanged in a chest, up and down in a fundus.

    Raises:
        ValueError: for another modality.
    """
    if modality not in MIRROR:
        raise ValueError(f"modality: expected one of {tuple(MIRROR)}, got {modality!r}")
    return maps.flip(MIRROR[modality])


def mask_maps(records: Sequence[Record], size: tuple[int, int]) -> Tensor:
    """The exact masks of each record's findings, joined: (N, H, W) in [0, 1].

    A record without findings has a map of zeros, as an image without words has.

    Raises:
        ValueError: if a finding has no mask, naming the record.
    """
    maps = torch.zeros(len(records), *size)
    for row, record in enumerate(records):
        for finding, path in zip(record.findings, record.masks, strict=True):
            if path is None:
                raise ValueError(f"record {record.id!r} has no mask of its {finding}")
            mask = central_part(load_mask(path)[None, None], size)[0, 0]
            maps[row] = torch.maximum(maps[row], mask)
    return maps.clamp(0, 1)


def mask_cache(
    records: Sequence[Record], vae: Autoencoder, decoder: nn.Module, folder: str | Path,
    *, size: tuple[int, int],
) -> LatentCache:  # fmt: skip
    """A latent cache of encoded images with their exact masks as maps; made once, then read.

    Generated images have no exact masks, so this one decoder is fine-tuned on encoded phantoms.

    Args:
        decoder: the original one, of the autoencoder `vae`.
        size: (H, W) in pixels.
    """
    folder = Path(folder)
    maps = mask_maps(records, size)
    latents = encoded_images(records, vae, folder, size=size, progress=False)
    write_latent_cache(folder, latents, maps, [record.report for record in records])
    return read_latent_cache(folder, decoder)


def agreement(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of maps (N, H, W) with others, image by image; (N,) in [-1, 1].

    Maps of another size are brought to that of `others`. A constant map has none, which is NaN.
    """
    if maps.shape[-2:] != others.shape[-2:]:
        maps = resize(maps[:, None].float(), tuple(others.shape[-2:]))[:, 0]
    pair = [m.flatten(1).double() for m in (maps, others)]
    first, second = (m - m.mean(dim=1, keepdim=True) for m in pair)
    length = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(dim=1) / length
    flat = length <= 1e-9 * pair[0].shape[1]
    return torch.where(flat, torch.nan, correlation)


def moved_residual(marked: Tensor, original: Tensor, *, generator: torch.Generator) -> Tensor:
    """The same watermark at a random place: each image's residual, rolled by a random shift.

    Its energy and its grain are what they were, so what differs is where it lies.

    Args:
        marked, original: (N, 3, H, W) in [0, 1].
        generator: a CPU generator.

    Returns:
        (N, 3, H, W) around [0, 1].
    """
    height, width = marked.shape[-2:]
    images = []
    for image, plain in zip(marked, original, strict=True):
        down = int(torch.randint(height, (), generator=generator))
        along = int(torch.randint(width, (), generator=generator))
        images.append(plain + (image - plain).roll((down, along), dims=(-2, -1)))
    return torch.stack(images)
