import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medsign_lite.latent_cache import LatentCache, read_latent_cache, write_latent_cache


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
