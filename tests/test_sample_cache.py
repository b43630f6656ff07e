"""Sampling in parts: what is there is not made again, and what cannot work is said first."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import medsign_lite.sample_cache as cache_module
from medsign_lite.data import Record, write_manifest
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, decode, sample
from medsign_lite.localisation import WordCutOff, WordNotFound, cas_settings, pathology_map
from medsign_lite.sample_cache import choose_records, main, sample_with_maps
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
    assert cache.prompts == tuple(PROMPTS) and not (folder / "shards").exists()
    # In shards of three and one, so the last is alone; half precision keeps three digits.
    expected = pathology_map(pipeline, PROMPTS, WORDS, seeds=SEEDS, steps=2)
    torch.testing.assert_close(cache.latents.float(), expected.latents, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cache.maps.float(), expected.maps, rtol=2e-3, atol=2e-3)
    assert cache.maps[3].abs().sum() == 0  # no word, nothing to protect
    image = decode(pipeline.vae, cache.latents.float()).clamp(0, 1)
    assert (cache.originals - 255 * image).abs().max() < 0.51  # rounded, nothing else


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
    first = load_file(tmp_path / "shards" / "000000-3.safetensors")
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert calls == [[5, 6, 7], [8], [8]]  # the first three are not sampled again
    cache = read_latent_cache(tmp_path, LatentDecoder(pipeline.vae))
    assert torch.equal(cache.latents[:3], first["latents"])
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert len(calls) == 3  # and a finished cache is left alone


KILLED = """
import os, signal, sys
import medsign_lite.sample_cache as module
from tests.test_sample_cache import OPTIONS, PROMPTS, WORDS
from tests.tiny_pipeline import tiny_pipeline
write = module.write_shard
def write_and_die(path, tensors):
    write(path, tensors)
    os.kill(os.getpid(), signal.SIGKILL)
module.write_shard = write_and_die
module.sample_with_maps(tiny_pipeline(), PROMPTS, WORDS, sys.argv[1], **OPTIONS)
"""


@pytest.mark.slow
def test_process_killed_between_shards_leaves_whole_ones(pipeline, root, tmp_path, monkeypatch):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=root)
    assert process.returncode == -9
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000-3.safetensors"]
    sampled = []

    def noting(*arguments, **options):
        sampled.extend(options["seeds"])
        return pathology_map(*arguments, **options)

    monkeypatch.setattr(cache_module, "pathology_map", noting)
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert sampled == [8]
    whole = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path / "whole", **OPTIONS)
    tensors, expected = (load_file(f / "cache.safetensors") for f in (folder, whole))
    for name in ("latents", "maps", "originals"):
        assert torch.equal(tensors[name], expected[name])


def test_workers_share_the_shards_and_a_last_call_joins_them(pipeline, tmp_path, monkeypatch):
    options = OPTIONS | {"batch": 1}
    for worker, expected in ((1, ["000001-1", "000003-1"]), (0, [f"00000{i}-1" for i in range(4)])):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **options, worker=worker, workers=2)
        assert sorted(path.stem for path in (tmp_path / "shards").iterdir()) == expected
    assert not (tmp_path / "cache.safetensors").exists()
    monkeypatch.setattr(cache_module, "pathology_map", lambda *a, **o: pytest.fail("sampled"))
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **options)
    cache = read_latent_cache(tmp_path, LatentDecoder(pipeline.vae))
    assert cache.prompts == tuple(PROMPTS) and not (tmp_path / "shards").exists()
    with pytest.raises(ValueError, match=r"expected a worker in \[0, 2\), got 2"):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **options, worker=2, workers=2)


def test_another_decoder_is_another_cache_and_caches_without_originals_are_kept(
    pipeline, tmp_path, monkeypatch
):
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    other = tiny_pipeline()
    other.vae.decoder.conv_out.bias.data += 0.1
    with pytest.raises(ValueError, match="settings: decoder was"):
        sample_with_maps(other, PROMPTS, WORDS, folder, **OPTIONS)
    sample_with_maps(other, PROMPTS, WORDS, folder, **OPTIONS, replace=True)
    read_latent_cache(folder, LatentDecoder(other.vae))
    settings = json.loads((folder / "settings.json").read_text())
    del settings["decoder"]
    (folder / "settings.json").write_text(json.dumps(settings))
    monkeypatch.setattr(cache_module, "pathology_map", lambda *a, **o: pytest.fail("sampled"))
    sample_with_maps(pipeline, PROMPTS, WORDS, folder, **OPTIONS)


def test_half_precision_samples_and_says_so_in_its_settings(tmp_path):
    pipeline = tiny_pipeline().to(torch.bfloat16)
    folder = sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert json.loads((folder / "settings.json").read_text())["precision"] == "bfloat16"
    # The originals are exact, whatever the samples were made in.
    cache = read_latent_cache(folder, LatentDecoder(pipeline.vae.float()))
    image = decode(pipeline.vae, cache.latents.float()).clamp(0, 1)
    assert (cache.originals - 255 * image).abs().max() < 0.51


def test_samples_that_overflow_are_refused(pipeline, tmp_path, monkeypatch):
    def overflowing(*arguments, **options):
        result = pathology_map(*arguments, **options)
        result.latents[0] *= 1e9
        return result

    monkeypatch.setattr(cache_module, "pathology_map", overflowing)
    with pytest.raises(RuntimeError, match="seeds 5 to 7 are not finite in torch.float32"):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    assert not (tmp_path / "shards").exists()


def test_too_little_memory_or_disk_is_said_before_anything_is_sampled(
    pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache_module, "pathology_map", lambda *a, **o: pytest.fail("sampled"))
    with monkeypatch.context() as patch:
        patch.setattr("medsign_lite.memory_estimate.free_memory", lambda device: 1000)
        with pytest.raises(MemoryError, match="sampling needs .* and cpu has 0.00 GiB free"):
            sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("medsign_lite.shards.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="GiB on a disk with 0.00 GiB free"):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    monkeypatch.undo()  # what the error advises is not refused as other settings
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS | {"batch": 2})


def test_settings_without_a_sample_bind_nobody(pipeline, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing = lambda *a, **o: (_ for _ in ()).throw(RuntimeError("overflow"))  # noqa: E731
        patch.setattr(cache_module, "pathology_map", failing)
        with pytest.raises(RuntimeError, match="overflow"):
            sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="steps was 2, is 3"):  # another may have just begun
        changed = OPTIONS | {"steps": 3}
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, workers=2, worker=1, **changed)
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS | {"steps": 3})
    with pytest.raises(ValueError, match="steps was 3, is 2"):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)


def test_another_scheduler_is_another_setting(tmp_path):
    pipeline = tiny_pipeline()
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, prediction_type="sample"
    )
    with pytest.raises(ValueError, match="other settings: scheduler was"):
        sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)


def test_long_prompts_are_refused_or_cut(pipeline, tmp_path):
    prompts = ["edema " * 20, *PROMPTS[1:]]
    with pytest.raises(ValueError, match="1 of 4 prompts are longer than the 16 tokens"):
        sample_with_maps(pipeline, prompts, WORDS, tmp_path, **OPTIONS)
    sample_with_maps(pipeline, prompts, WORDS, tmp_path, **OPTIONS, truncate=True)
    assert read_latent_cache(tmp_path, LatentDecoder(pipeline.vae)).prompts[0] == prompts[0]


def test_words_that_are_cut_off_or_that_a_report_has_not_are_left_out(pipeline, tmp_path, capsys):
    prompts = ["no " * 20 + "edema", "no edema", "effusion"]
    words, options = [["edema"], ["edema", ""], [""]], OPTIONS | {"seeds": SEEDS[:3]}
    with pytest.raises(WordCutOff, match="prompt 0: .* cuts off the word 'edema'") as error:
        sample_with_maps(pipeline, prompts, words, tmp_path, **options)
    assert "no no" not in str(error.value)  # a patient's report is not quoted
    sample_with_maps(pipeline, prompts, words, tmp_path, **options, truncate=True)
    assert "1 words are cut off with their prompts" in capsys.readouterr().err
    maps = read_latent_cache(tmp_path, LatentDecoder(pipeline.vae)).maps
    assert [bool(some.any()) for some in maps] == [False, True, False]


def test_attention_that_was_trained_alone_is_another_model(tmp_path, monkeypatch):
    pipeline, other = tiny_pipeline(), tiny_pipeline()
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)
    for name, weight in other.unet.named_parameters():
        if "attn2" in name:
            weight.data *= 3
    with pytest.raises(ValueError, match="settings: model was"):
        sample_with_maps(other, PROMPTS, WORDS, tmp_path, **OPTIONS)
    # Caches of earlier versions name the networks by their ends, and stay what they are.
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | cache_module._ends(pipeline)))
    monkeypatch.setattr(cache_module, "pathology_map", lambda *a, **o: pytest.fail("sampled"))
    sample_with_maps(pipeline, PROMPTS, WORDS, tmp_path, **OPTIONS)


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
    with pytest.raises(WordNotFound, match="prompt 3: .* does not contain the word 'drusen'"):
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


def test_command_line_makes_a_cache_of_a_manifest(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    records = []
    for name, report, word in (("a", "no edema", "edema"), ("b", "effusion", "effusion")):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
        named = {"findings": (word,), "words": (word,), "sides": ("",), "masks": (None,)}
        records.append(Record(id=name, image=tmp_path / f"{name}.png", modality="chest",
                              split="train", report=report, **named))  # fmt: skip
    manifest = write_manifest(tmp_path / "manifest.csv", records)
    main([
        "--data", str(manifest), "--modality", "chest", "--count", "3", "--batch", "2",
        "--pipeline", str(tmp_path / "pipeline"), "--out", str(tmp_path / "out"), "--steps", "1",
        "--precision", "bfloat16", "--attention-slicing", "--device", "cpu", "--cas-side", "32",
    ])  # fmt: skip
    cache = read_latent_cache(tmp_path / "out", LatentDecoder(pipeline.vae))
    assert cache.prompts == ("no edema", "effusion", "no edema")
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["precision"] == "bfloat16" and settings["cas"] == {"quantile": 0.9, "side": 32}


def test_cas_has_its_own_settings_where_latents_are_small():
    assert cas_settings(tiny_pipeline()) == {"side": 64, "quantile": 0.9}
    large = SimpleNamespace(
        vae=tiny_pipeline().vae,
        unet=SimpleNamespace(config=SimpleNamespace(sample_size=(64, 96))),
    )
    assert cas_settings(large) == {}
