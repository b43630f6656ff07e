"""What stays the same while a decoder is fine-tuned: latents, pathology maps, original images.

On disk a folder holds `cache.safetensors` with `latents` (N, C, h, w) and `maps` (N, H, W), both
in half precision, maps at the latents' or the images' resolution, and `prompts.json`. Other maps of
the same latents may lie beside them, as `maps_NAME`. The
original decoder's images, `originals` (N, 3, H, W) uint8, are in the file as well, or are made
from the latents when the cache is read. What is in the file is mapped into memory: only the
entries that are used are read, and 6,000 of 512 x 512 pixels need not fit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medsign_lite.files import whole_file
from medsign_lite.images import to_bytes

TENSORS = "cache.safetensors"
PROMPTS = "prompts.json"
SAME_DECODER = 0.5  # levels of 255 apart on average: another device's rounding is far less


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """N entries, on the CPU.

    latents: (N, C, h, w), scaled as the U-Net sees them. maps: (N, h, w) or (N, H, W) in [0, 1].
    originals: (N, 3, H, W) uint8, the original decoder's images as a PNG would hold them.
    prompts: N texts.
    """

    latents: Tensor
    maps: Tensor
    originals: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in vars(self).items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"expected as many of each, got {counts}")
        if self.latents.ndim != 4 or self.maps.ndim != 3 or self.originals.ndim != 4:
            raise ValueError(
                "expected latents (N, C, h, w), maps (N, H, W) and originals (N, 3, H, W), got "
                f"{tuple(self.latents.shape)}, {tuple(self.maps.shape)} and "
                f"{tuple(self.originals.shape)}"
            )

    def __len__(self) -> int:
        return len(self.latents)

    def split(self, count: int) -> tuple["LatentCache", "LatentCache"]:
        """The first `count` entries and the rest; nothing is copied."""
        first = {name: value[:count] for name, value in vars(self).items()}
        rest = {name: value[count:] for name, value in vars(self).items()}
        return LatentCache(**first), LatentCache(**rest)

    def batch(self, indices: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Originals (B, 3, H, W) in [0, 1], latents (B, C, h, w), maps (B, H, W), float32."""
        originals = self.originals[indices].to(device).float() / 255
        maps = self.maps[indices].to(device).float()
        if maps.shape[-2:] != originals.shape[-2:]:
            size = originals.shape[-2:]
            maps = F.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]
        return originals, self.latents[indices].to(device).float(), maps.clamp(0, 1)


def write_latent_cache(
    folder: str | Path, latents: Tensor, maps: Tensor, prompts: list[str]
) -> Path:
    """Write latents (N, C, h, w), maps (N, H, W) in [0, 1] and N prompts."""
    folder = Path(folder)
    if not len(latents) == len(maps) == len(prompts):
        raise ValueError(
            "expected a map and a prompt for each entry of the latents, got "
            f"{len(latents)} latents, {len(maps)} maps and {len(prompts)} prompts"
        )
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in (("latents", latents), ("maps", maps))
    }
    with whole_file(folder / PROMPTS) as texts, whole_file(folder / TENSORS) as data:
        texts.write((json.dumps(prompts, indent=0, ensure_ascii=False) + "\n").encode())
        data.write(to_safetensors(tensors))
    return folder


@torch.no_grad()
def read_latent_cache(
    folder: str | Path,
    decoder: nn.Module,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    kind: str = "",
) -> LatentCache:
    """Read a cache; unless it holds the originals, decode its latents with the original decoder.

    Args:
        decoder: the original one.
        limit: of the entries.
        kind: of the maps, where the folder holds others beside its own (see `map_variants.py`).

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if it is truncated, lacks a tensor, its parts disagree in number, its
            originals are another decoder's, or it holds no maps of that kind.
    """
    folder = Path(folder)
    for name in (TENSORS, PROMPTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"latent cache {folder}: {name} is missing")
    try:
        tensors = load_file(folder / TENSORS)
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSORS} is truncated or damaged: {error}") from error
    others = {name.removeprefix("maps_") for name in tensors if name.startswith("maps_")}
    if set(tensors) - {"originals", *(f"maps_{o}" for o in others)} != {"latents", "maps"}:
        raise ValueError(
            f"{folder / TENSORS}: expected latents and maps, got {', '.join(sorted(tensors))}"
        )
    if kind and kind not in others:
        raise ValueError(
            f"{folder / TENSORS} holds no maps of kind {kind!r}, but {sorted(others) or 'none'}: "
            "medsign_lite.sample_cache --kinds makes them"
        )
    prompts = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    latents = tensors["latents"][:limit]
    if "originals" in tensors:
        originals = tensors["originals"][:limit]
        _check_originals(folder, decoder, latents, originals)
    else:
        originals = _decode_all(decoder, latents, batch_size)
    maps = tensors[f"maps_{kind}" if kind else "maps"][:limit]
    return LatentCache(
        latents=latents, maps=maps, originals=originals, prompts=tuple(prompts[:limit])
    )


@torch.no_grad()
def decode_bytes(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 on the CPU of latents (B, C, h, w), in the decoder's precision."""
    weight = next(decoder.parameters())
    image = decoder(latents.to(weight.device, weight.dtype))
    return to_bytes(image).permute(0, 3, 1, 2)


def _decode_all(decoder: nn.Module, latents: Tensor, batch_size: int) -> Tensor:
    # Minutes for thousands of samples; where nobody watches a terminal the bar stays away.
    bar = tqdm(latents.split(batch_size), desc="original images", unit="batch", disable=None)
    return torch.cat([decode_bytes(decoder, part) for part in bar])


def with_mirrored(
    cache: LatentCache,
    decoder: nn.Module,
    *,
    originals: Tensor | None = None,
    batch_size: int = 32,
) -> LatentCache:
    """Entries, and each of them mirrored left to right, upside down, and both: four times as many.

    What is mirrored is latents and map; the image is what the original decoder makes of them. A
    few hundred samples cost minutes to make, and a decoder learns to spare the findings of just
    these: mirrored they are four times as many places to learn it from, for one decoding each.
    Words of the prompts like "left" are not mirrored: nothing reads them any more.

    Args:
        originals: of a result with the same latents, if there is one: then nothing is decoded.
    """
    parts = [cache]
    for index, axes in enumerate(((-1,), (-2,), (-2, -1)), start=1):
        latents, start = cache.latents.flip(axes), index * len(cache)
        parts.append(LatentCache(
            latents=latents, maps=cache.maps.flip(axes), prompts=cache.prompts,
            originals=_decode_all(decoder, latents, batch_size) if originals is None
            else originals[start : start + len(cache)],
        ))  # fmt: skip
    return joined(*parts)


def joined(*caches: LatentCache) -> LatentCache:
    """The entries of one after the other."""
    return LatentCache(
        **{name: torch.cat([getattr(cache, name) for cache in caches])
           for name in ("latents", "maps", "originals")},
        prompts=tuple(prompt for cache in caches for prompt in cache.prompts),
    )  # fmt: skip


def _check_originals(folder: Path, decoder: nn.Module, latents: Tensor, originals: Tensor) -> None:
    """Decode the first entry again: a set of another decoder's images would teach nonsense."""
    again = decode_bytes(decoder, latents[:1])
    same = again.shape == originals[:1].shape
    if not same or (again.float() - originals[:1].float()).abs().mean() > SAME_DECODER:
        raise ValueError(
            f"latent cache {folder}: its originals were made by another decoder; make it again"
        )
