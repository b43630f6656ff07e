"""Sampling in parts: what is there is not made again, and what cannot work is said first."""

import pytest
import torch
from safetensors.torch import load_file

import medsign_lite.sample_cache as cache_module
from medsign_lite.data import Record
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, sample
from medsign_lite.localisation import pathology_map
from medsign_lite.sample_cache import choose_records, sample_with_maps
from tests.tiny_pipeline import tiny_pipeline

PROMPTS = ["no edema", "effusion", "edema effusion", "no"]
WORDS = [["edema"], ["effusion"], ["edema", "effusion"], []]
SEEDS = [5, 6, 7, 8]
OPTIONS = {"seeds": SEEDS, "steps": 2, "batch": 3, "progress": False}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def test_cache_holds_what_pathology_map_makes(pipeline, tmp_path):
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    cache = read_latent_cache(folder, LatentDecoder(pipeline.vae))
    assert cache.prompts == tuple(PROMPTS) and not (folder / "parts").exists()
    # In parts of three and one, so the last is alone; half precision keeps three digits.
    expected = pathology_map(pipeline, PROMPTS, WORDS, seeds=SEEDS, steps=2)
    torch.testing.assert_close(cache.latents.float(), expected.latents, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cache.maps.float(), expected.maps, rtol=2e-3, atol=2e-3)
    assert cache.maps[3].abs().sum() == 0  # no word, nothing to protect


def test_killed_run_goes_on(pipeline, tmp_path, monkeypatch):
    calls = []

    def killed(*arguments, **options):
        calls.append(options["seeds"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pathology_map(*arguments, **options)

    monkeypatch.setattr(cache_module, "pathology_map", killed)
    with pytest.raises(KeyboardInterrupt):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    first = load_file(tmp_path / "parts" / "000000-3.safetensors")
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert calls == [[5, 6, 7], [8], [8]]  # the first three are not sampled again
    cache = read_latent_cache(tmp_path, LatentDecoder(pipeline.vae))
    assert torch.equal(cache.latents[:3], first["latents"])
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert len(calls) == 3  # and a finished cache is left alone


def test_samples_of_other_settings_are_refused_or_replaced(pipeline, tmp_path):
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path / "a", **OPTIONS)
    before = read_latent_cache(folder, LatentDecoder(pipeline.vae))
    with pytest.raises(ValueError, match="a holds a run with other settings: scale was 'literal'"):
        sample_with_maps(pipeline, PROMPTS, WORDS, folder, **OPTIONS, scale="sharp")
    with pytest.raises(ValueError, match="settings: prompts was"):
        sample_with_maps(pipeline, PROMPTS, [[], *WORDS[1:]], folder, **OPTIONS)
    other = tiny_pipeline()
    other.unet.conv_out.bias.data += 0.1
    with pytest.raises(ValueError, match="settings: model was"):
        sample_with_maps(other, PROMPTS, WORDS, folder, **OPTIONS)
    sample_with_maps(pipeline, PROMPTS, WORDS, folder, **OPTIONS, scale="sharp", replace=True)
    after = read_latent_cache(folder, LatentDecoder(pipeline.vae))
    assert torch.equal(before.latents, after.latents) and not torch.equal(before.maps, after.maps)
    (folder / "settings.json").unlink()  # of unknown origin
    with pytest.raises(ValueError, match="scale was None, is 'sharp'"):
        sample_with_maps(pipeline, PROMPTS, WORDS, folder, **OPTIONS, scale="sharp")


def test_bad_word_is_found_before_anything_is_sampled(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "pathology_map", lambda *a, **o: pytest.fail("sampled"))
    words = [*WORDS[:3], ["drusen"]]
    with pytest.raises(ValueError, match="does not contain the word 'drusen'"):
        sample_with_maps(pipeline, PROMPTS, words, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="got 4, 3 and 4"):
        sample_with_maps(pipeline, PROMPTS, WORDS[:3], tmp_path, **OPTIONS)


def record(name: str, modality: str, split: str = "train") -> Record:
    return Record(id=name, image=f"{name}.png", modality=modality, split=split, report="no")


def test_records_are_repeated_where_too_few():
    records = [record("a", "chest"), record("b", "fundus"), record("c", "chest")]
    chosen = choose_records(records, modality="chest", split="train", count=3)
    assert [r.id for r in chosen] == ["a", "c", "a"]
    with pytest.raises(ValueError, match="no fundus image of the test split"):
        choose_records(records, modality="fundus", split="test", count=1)


def test_seed_makes_the_same_latents_as_sample(pipeline, tmp_path):
    folder = sample_with_maps(pipeline, PROMPTS[:1], WORDS[:1], tmp_path, seeds=[5], steps=2)
    latents = load_file(folder / "cache.safetensors")["latents"]
    expected = sample(pipeline, PROMPTS[:1], seeds=[5], steps=2)
    torch.testing.assert_close(latents.float(), expected, rtol=2e-3, atol=2e-3)
