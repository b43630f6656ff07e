import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medsign_lite.latent_cache import (
    LatentCache,
    joined,
    read_latent_cache,
    with_mirrored,
    write_latent_cache,
)


class Doubler(nn.Module):
    """Stands for a decoder: latents (B, 4, h, w) to images (B, 3, 2h, 2w)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, latents):
        return nn.functional.interpolate(self.scale * latents[:, :3], scale_factor=2)


def written(folder, count=5):
    generator = torch.Generator().manual_seed(0)
    latents = 2 * torch.rand(count, 4, 8, 8, generator=generator)
    maps = torch.rand(count, 8, 8, generator=generator)
    write_latent_cache(folder, latents, maps, [f"prompt {i}" for i in range(count)])
    return latents, maps


def test_cache_round_trip_decodes_the_originals_once(tmp_path):
    latents, maps = written(tmp_path)
    cache = read_latent_cache(tmp_path, Doubler(), batch_size=2)
    assert len(cache) == 5 and cache.prompts[3] == "prompt 3"
    original, batch, location = cache.batch(torch.tensor([4, 1]), "cpu")
    assert torch.allclose(batch, latents[[4, 1]], atol=1e-3)
    expected = nn.functional.interpolate(0.5 * latents[[4, 1], :3], scale_factor=2)
    assert torch.allclose(original, expected, atol=0.5 / 255 + 1e-3)
    assert location.shape == (2, 16, 16)
    assert location.mean().item() == pytest.approx(maps[[4, 1]].mean().item(), abs=0.02)


def test_cache_maps_of_the_images_size_are_left_alone():
    maps = torch.rand(2, 16, 16)
    cache = LatentCache(
        latents=torch.zeros(2, 4, 8, 8), maps=maps, prompts=("a", "b"),
        originals=torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
    )  # fmt: skip
    assert torch.equal(cache.batch(torch.arange(2), "cpu")[2], maps)


def test_cache_splits_without_overlap(tmp_path):
    written(tmp_path)
    cache = read_latent_cache(tmp_path, Doubler())
    first, rest = cache.split(3)
    assert (first.prompts, rest.prompts) == (cache.prompts[:3], cache.prompts[3:])
    assert torch.equal(torch.cat([first.latents, rest.latents]), cache.latents)


def test_cache_can_be_limited(tmp_path):
    written(tmp_path)
    assert len(read_latent_cache(tmp_path, Doubler(), limit=2)) == 2


def test_mirrored_entries_turn_latents_maps_and_images_together(tmp_path):
    written(tmp_path, count=3)
    cache = read_latent_cache(tmp_path, Doubler())
    all_four = with_mirrored(cache, Doubler(), batch_size=2)
    again = with_mirrored(cache, None, originals=all_four.originals)  # nothing is decoded
    assert torch.equal(again.originals, all_four.originals)
    assert len(all_four) == 12 and all_four.prompts == cache.prompts * 4
    # The decoder here works pixel by pixel, so a mirrored image is the image mirrored.
    for part, axes in enumerate(((), (-1,), (-2,), (-2, -1))):
        chosen = slice(3 * part, 3 * part + 3)
        assert torch.equal(all_four.originals[chosen], cache.originals.flip(axes))
        assert torch.equal(all_four.latents[chosen], cache.latents.flip(axes))
        assert torch.equal(all_four.maps[chosen], cache.maps.flip(axes))


def test_mirrored_images_are_the_decoders_not_flipped_pixels(tmp_path):
    class Tilted(Doubler):
        def forward(self, latents):
            image = super().forward(latents)
            return image * torch.linspace(0, 1, image.shape[-1])

    written(tmp_path, count=2)
    cache = read_latent_cache(tmp_path, Tilted())
    mirrored = with_mirrored(cache, Tilted()).split(2)[1].split(2)[0]
    assert not torch.equal(mirrored.originals, cache.originals.flip(-1))
    assert mirrored.originals[..., 0].max() == 0


def test_joined_caches_keep_their_order(tmp_path):
    written(tmp_path, count=4)
    cache = read_latent_cache(tmp_path, Doubler())
    first, rest = cache.split(1)
    again = joined(rest, first)
    assert again.prompts == (*cache.prompts[1:], cache.prompts[0])
    assert torch.equal(again.latents[-1], cache.latents[0])


def test_cache_with_originals_is_read_from_the_file(tmp_path):
    latents, maps = written(tmp_path)
    made = read_latent_cache(tmp_path, Doubler()).originals
    path = tmp_path / "cache.safetensors"
    marked = made.clone()
    marked[4, :, 0, 0] = 7  # not what the decoder makes: it is not asked again
    tensors = {"latents": latents.half(), "maps": maps.half(), "originals": marked}
    save_file(tensors, path)
    cache = read_latent_cache(tmp_path, Doubler())
    assert torch.equal(cache.originals, marked)
    assert len(read_latent_cache(tmp_path, Doubler(), limit=2).split(1)[1]) == 1
    other = Doubler()
    other.scale.data *= 1.1
    with pytest.raises(ValueError, match="originals were made by another decoder"):
        read_latent_cache(tmp_path, other)
    save_file({**tensors, "originals": marked[..., ::2].contiguous()}, path)  # another size
    with pytest.raises(ValueError, match="originals were made by another decoder"):
        read_latent_cache(tmp_path, Doubler())


def test_cache_larger_than_memory_is_read_where_it_is_used(tmp_path):
    """6,000 of 512 x 512 pixels, 8 GB on a disk that keeps zeros for nothing, in 200 MB."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        pytest.skip("this system does not say how much memory a process holds")

    class Enlarger(Doubler):
        def forward(self, latents):
            return nn.functional.interpolate(self.scale * latents[:, :3], scale_factor=8)

    shapes = {"latents": ("F16", [6000, 4, 64, 64], 2), "maps": ("F16", [6000, 512, 512], 2),
              "originals": ("U8", [6000, 3, 512, 512], 1)}  # fmt: skip
    header, offset = {}, 0
    for name, (dtype, shape, width) in shapes.items():
        end = offset + width * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "cache.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (tmp_path / "prompts.json").write_text(json.dumps(["no"] * 6000))
    before = int(statistics.read_text().split()[1])
    cache = read_latent_cache(tmp_path, Enlarger())
    train, test = cache.split(5900)
    originals, latents, maps = train.batch(torch.tensor([5, 5000, 17, 3]), "cpu")
    assert originals.shape == (4, 3, 512, 512) and maps.shape == (4, 512, 512)
    assert (len(train), len(test)) == (5900, 100)
    grown = (int(statistics.read_text().split()[1]) - before) * resource.getpagesize()
    assert grown < 200 * 2**20


def test_writing_refuses_another_number_of_prompts(tmp_path):
    with pytest.raises(ValueError, match="2 latents, 2 maps and 1 prompts"):
        write_latent_cache(tmp_path, torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8), ["one"])


def test_reading_names_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="cache.safetensors is missing"):
        read_latent_cache(tmp_path, Doubler())
    written(tmp_path)
    path = tmp_path / "cache.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_latent_cache(tmp_path, Doubler())
    save_file({"latents": torch.zeros(5, 4, 8, 8)}, path)
    with pytest.raises(ValueError, match="expected latents and maps, got latents"):
        read_latent_cache(tmp_path, Doubler())
    (tmp_path / "prompts.json").unlink()
    with pytest.raises(FileNotFoundError, match="prompts.json is missing"):
        read_latent_cache(tmp_path, Doubler())


def test_cache_refuses_parts_that_disagree(tmp_path):
    written(tmp_path)
    (tmp_path / "prompts.json").write_text('["one"]')
    with pytest.raises(ValueError, match="as many of each"):
        read_latent_cache(tmp_path, Doubler())
