"""Maps of the ablations: each kind is what it is called, and controls keep what they must."""

import pytest
import torch
from PIL import Image
from tiny_pipeline import tiny_pipeline

from medsign_lite.data import Record
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, encode
from medsign_lite.localisation import pathology_map
from medsign_lite.map_variants import (
    MAP_KINDS,
    agreement,
    mask_cache,
    mask_maps,
    mirrored_map,
    moved_residual,
    uniform_map,
)
from medsign_lite.sample_cache import sample_with_maps

PROMPTS = ["no effusion", "edema effusion", "no"]
WORDS, SEEDS = [["effusion"], ["edema"], []], [3, 4, 5]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def test_uniform_map_keeps_the_mean_and_nothing_else():
    maps = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    uniform = uniform_map(maps)
    torch.testing.assert_close(uniform.mean(dim=(1, 2)), maps.mean(dim=(1, 2)))
    assert (uniform.std(dim=(1, 2)) < 1e-6).all()


def test_mirrored_map_goes_to_the_other_side():
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 1] = 1
    assert mirrored_map(maps, "chest").nonzero().tolist() == [[0, 0, 2]]
    assert mirrored_map(maps, "fundus").nonzero().tolist() == [[0, 3, 1]]
    with pytest.raises(ValueError, match=r"expected one of \('chest', 'fundus'\), got 'knee'"):
        mirrored_map(maps, "knee")


def test_agreement_is_a_correlation():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    values = agreement(torch.stack([maps[0], 1 - maps[1]]), 0.2 + 0.5 * maps)
    assert values.tolist() == pytest.approx([1, -1], abs=1e-6)
    expected = torch.corrcoef(maps.flatten(1).double())[0, 1]
    assert float(agreement(maps[:1], maps[1:])) == pytest.approx(float(expected))
    assert agreement(maps[:1], torch.full((1, 4, 4), 0.3)).isnan()
    assert agreement(maps, torch.rand(2, 8, 8)).shape == (2,)


def test_moved_residual_keeps_energy_and_grain():
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(3, 3, 8, 8, generator=generator)
    residual = torch.zeros(3, 3, 8, 8)
    residual[:, :, 2:4, 2:4] = torch.rand(3, 3, 2, 2, generator=generator)
    moved = moved_residual(plain + residual, plain, generator=generator) - plain
    for before, after in zip(residual, moved, strict=True):
        sizes = [some.flatten().sort().values for some in (before, after)]
        torch.testing.assert_close(sizes[0], sizes[1])
        shifts = [before.roll((i, j), (1, 2)) for i in range(8) for j in range(8)]
        assert min((after - some).abs().max() for some in shifts) < 1e-6
    assert any(
        (before - after).abs().max() > 0.1 for before, after in zip(residual, moved, strict=True)
    )


def test_kinds_are_made_of_the_attention_of_one_sampling(pipeline, tmp_path):
    options = {"seeds": SEEDS, "steps": 2, "scale": "sharp", "kinds": list(MAP_KINDS), "batch": 2}
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **options, progress=False)
    decoder = LatentDecoder(pipeline.vae)
    own = read_latent_cache(folder, decoder)
    for kind, changes in MAP_KINDS.items():
        expected = pathology_map(pipeline, PROMPTS, WORDS, seeds=SEEDS, steps=2, **changes)
        found = read_latent_cache(folder, decoder, kind=kind)
        assert torch.equal(found.latents, own.latents)
        torch.testing.assert_close(found.maps.float(), expected.maps, atol=2e-3, rtol=0)
    assert torch.equal(own.maps, read_latent_cache(folder, decoder, kind="sharp").maps)
    others = [read_latent_cache(folder, decoder, kind=kind).maps[:2] for kind in MAP_KINDS]
    pairs = [(a, b) for i, a in enumerate(others) for b in others[:i]]
    assert all((a.float() - b.float()).abs().max() > 0.01 for a, b in pairs)
    with pytest.raises(ValueError, match="holds no maps of kind 'round', but .*'literal'"):
        read_latent_cache(folder, decoder, kind="round")


def test_kinds_refuse_others_and_leave_earlier_caches_as_they_are(pipeline, tmp_path):
    arguments = (pipeline, PROMPTS[:1], WORDS[:1], tmp_path)
    options = {"seeds": SEEDS[:1], "steps": 2, "progress": False}
    with pytest.raises(ValueError, match=r"kinds: expected some of .*, got \['round'\]"):
        sample_with_maps(*arguments, **options, kinds=["round"])
    with pytest.raises(ValueError, match=r"kinds: expected changes of .*, got \['size'\]"):
        pathology_map(*arguments[:3], seeds=[1], kinds={"a": {"size": "latent"}})
    with pytest.raises(ValueError, match="scale: expected one of"):
        pathology_map(*arguments[:3], seeds=[1], kinds={"a": {"scale": "round"}})
    sample_with_maps(*arguments, **options)
    assert "kinds" not in (tmp_path / "settings.json").read_text()
    with pytest.raises(ValueError, match="holds no maps of kind 'sharp', but none"):
        read_latent_cache(tmp_path, LatentDecoder(pipeline.vae), kind="sharp")
    with pytest.raises(ValueError, match="settings: kinds was None"):
        sample_with_maps(*arguments, **options, kinds=["sharp"])


@pytest.fixture
def records(tmp_path):
    """Two findings whose masks are the left quarter and the upper row; and nothing."""
    Image.new("L", (32, 32), 90).save(tmp_path / "image.png")
    for name, box in (("left", (0, 0, 8, 32)), ("upper", (0, 0, 32, 1))):
        mask = Image.new("L", (32, 32))
        mask.paste(255, box)
        mask.save(tmp_path / f"{name}.png")
    row = {"image": tmp_path / "image.png", "modality": "chest", "split": "train"}
    found = {"findings": ("edema", "effusion"), "words": ("edema", ""), "sides": ("", ""),
             "masks": (tmp_path / "left.png", tmp_path / "upper.png")}  # fmt: skip
    return [Record(id="a", report="edema", **row, **found), Record(id="b", report="no", **row)]


def test_mask_cache_holds_encoded_images_and_joined_masks(records, pipeline, tmp_path):
    decoder = LatentDecoder(pipeline.vae)
    cache = mask_cache(records, pipeline.vae, decoder, tmp_path / "cache", size=(32, 32))
    assert cache.maps[0, :, :8].all() and cache.maps[0, 0].all()
    assert cache.maps.sum().item() == 8 * 32 + 24 and not cache.maps[1].any()
    expected = encode(pipeline.vae, torch.full((1, 3, 32, 32), 90 / 255))
    torch.testing.assert_close(cache.latents[:1].float(), expected, atol=2e-2, rtol=0)
    again = mask_cache(records, pipeline.vae, decoder, tmp_path / "cache", size=(32, 32))
    assert torch.equal(again.maps, cache.maps) and again.prompts == ("edema", "no")


def test_mask_maps_name_the_finding_without_a_mask(records):
    bare = Record(id="c", image=records[0].image, modality="chest", split="train", report="edema",
                  findings=("edema",), words=("edema",), sides=("",), masks=(None,))  # fmt: skip
    with pytest.raises(ValueError, match="record 'c' has no mask of its edema"):
        mask_maps([bare], (32, 32))
