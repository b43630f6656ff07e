"""Words to tokens, and maps from prompts and words, on a tiny pipeline and the real tokenizer."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_pipeline import tiny_pipeline, tiny_tokenizer
from transformers import CLIPTokenizer

from medsign_lite.attention import record_attention
from medsign_lite.localisation import (
    attention_on_latents,
    encoded_map,
    pathology_map,
    scale_attention,
    select_token,
    word_tokens,
)

CLIP = Path(__file__).parents[2] / "shared/data/clip_bpe"
REPORT = "Mild Cardiomegaly  with\n small LEFT effusion, ground-glass opacity. No pneumothorax."


@pytest.fixture(scope="module")
def clip_tokenizer():
    if not CLIP.is_dir():
        pytest.skip(f"the real CLIP vocabulary is not at {CLIP}")
    return CLIPTokenizer(
        vocab=str(CLIP / "vocab.json"), merges=str(CLIP / "merges.txt"), model_max_length=77
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cardiomegaly", ["cardi", "ome", "gal", "y</w>"]),
        ("Effusion", ["ef", "fusion</w>"]),
        ("small left effusion", ["small</w>", "left</w>", "ef", "fusion</w>"]),
        ("with small", ["with</w>", "small</w>"]),
        ("ground-glass", ["ground</w>", "-</w>", "glass</w>"]),
        ("glass", ["glass</w>"]),
        ("pneumothorax", ["pneu", "mo", "thor", "ax</w>"]),
    ],
)
def test_word_tokens_finds_the_word_in_the_real_vocabulary(clip_tokenizer, word, expected):
    positions = word_tokens(clip_tokenizer, REPORT, word)
    ids = clip_tokenizer(REPORT, padding="max_length", truncation=True)["input_ids"]
    assert clip_tokenizer.convert_ids_to_tokens([ids[i] for i in positions]) == expected


def test_word_tokens_counts_the_start_token_as_0():
    """By hand: <start> no ef fusion , edema <end>."""
    tokenizer = tiny_tokenizer()
    assert word_tokens(tokenizer, "No effusion, edema", "effusion") == [2, 3]
    assert word_tokens(tokenizer, "No effusion, edema", "edema") == [5]
    assert word_tokens(tokenizer, "No effusion, edema", "no") == [1]


def test_word_tokens_takes_the_occurrence_asked_for():
    tokenizer = tiny_tokenizer()
    prompt = "edema, no EDEMA"
    assert word_tokens(tokenizer, prompt, "edema") == [1]
    assert word_tokens(tokenizer, prompt, "edema", occurrence=1) == [4]
    for occurrence in (2, -1):
        with pytest.raises(ValueError, match=r"contains it 2 time\(s\)"):
            word_tokens(tokenizer, prompt, "edema", occurrence=occurrence)


@pytest.mark.parametrize("prompt", ["No effusion", "pneumothoraxes", "pneumo thorax"])
def test_word_that_is_not_in_the_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="does not contain the word 'pneumothorax'"):
        word_tokens(tiny_tokenizer(), prompt, "pneumothorax")


def test_empty_word_is_refused():
    with pytest.raises(ValueError, match="at least one letter"):
        word_tokens(tiny_tokenizer(), "No effusion", "  ")


@pytest.mark.parametrize(
    ("length", "fits"), [(5, True), (4, False), (3, False)], ids=["fits", "half", "wholly"]
)
def test_word_cut_by_the_limit_is_refused(length, fits):
    """<start> no ef fusion <end> are 5 tokens; "edema" behind them never fits."""
    tokenizer = tiny_tokenizer(length)
    if fits:
        assert word_tokens(tokenizer, "No effusion edema", "effusion") == [2, 3]
        with pytest.raises(ValueError, match="limit of 5 cuts off the word 'edema'"):
            word_tokens(tokenizer, "No effusion edema", "edema")
    else:
        with pytest.raises(ValueError, match=f"limit of {length} cuts off the word 'effusion'"):
            word_tokens(tokenizer, "No effusion edema", "effusion")


def test_prompt_that_just_fits_is_not_cut():
    assert word_tokens(tiny_tokenizer(5), "No effusion", "effusion") == [2, 3]


def test_tokenizer_that_pads_on_the_left_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="right-padding tokenizer"):
        word_tokens(tokenizer, "No effusion", "effusion")


PROMPTS = ["No effusion, edema", "edema effusion"]
POSITIONS = [[2, 3], [2, 3]]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.mark.parametrize("guidance", [3.0, 1.0], ids=["guided", "unguided"])
def test_pathology_map_is_record_select_upsample_scale(pipeline, guidance):
    result = pathology_map(
        pipeline, PROMPTS, ["effusion", "effusion"], seeds=[1, 2], steps=2, guidance=guidance
    )
    with record_attention(pipeline, conditional="second_half" if guidance > 1 else "all") as record:
        latents = pipeline(
            PROMPTS,
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
            output_type="latent",
        ).images
    assert torch.equal(result.latents, latents)
    for image, positions in enumerate(POSITIONS):
        chosen = select_token(record.maps[image, positions], positions)
        assert result.selections[image][0].scores == chosen.scores
        upsampled = F.interpolate(chosen.map[None, None], (32, 32), mode="bilinear")[0, 0]
        torch.testing.assert_close(result.maps[image], scale_attention(upsampled))


def test_pathology_map_repeats_and_does_not_depend_on_the_rest_of_the_batch(pipeline):
    both = pathology_map(
        pipeline, PROMPTS, ["effusion", "edema"], seeds=[1, 2], steps=2, select="average"
    )
    alone = pathology_map(pipeline, PROMPTS[1:], ["edema"], seeds=[2], steps=2, select="average")
    torch.testing.assert_close(both.maps[1:], alone.maps, rtol=1e-3, atol=1e-4)
    assert both.selections == ((), ())


def test_several_words_are_joined_by_their_maximum_and_none_protects_nothing(pipeline):
    def run(words):
        return pathology_map(
            pipeline, PROMPTS[:1], [words], seeds=[1], steps=2, scale="sharp", size="latent"
        ).maps

    joined = torch.maximum(run("effusion"), run("edema"))
    assert torch.equal(run(["effusion", "edema"]), joined)
    assert torch.equal(run([]), torch.zeros(1, 16, 16))


def test_quantile_says_how_much_a_map_protects(pipeline):
    for quantile in (0.5, 0.9):
        hard = pathology_map(
            pipeline, PROMPTS[:1], ["edema"], seeds=[1], steps=2, scale="hard", quantile=quantile
        ).maps
        assert hard.mean().item() == pytest.approx(1 - quantile, abs=0.01)


@pytest.mark.parametrize("scale", ["literal", "sharp", "hard", None])
@pytest.mark.parametrize(("size", "side"), [("image", 32), ("latent", 16)])
def test_encoded_map_has_the_size_and_range_promised(pipeline, scale, size, side):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    result = encoded_map(
        pipeline,
        latents,
        PROMPTS,
        ["effusion", ["edema", "effusion"]],
        timesteps=[500],
        generator=torch.Generator().manual_seed(4),
        scale=scale,
        size=size,
        cas={"features": "grid"},
    )
    assert result.maps.shape == (2, side, side)
    assert 0 <= result.maps.min() < result.maps.max() <= 1
    assert [len(table) for table in result.selections] == [1, 2]


def test_attention_on_latents_is_the_sum_over_timesteps(pipeline):
    """Against the scheduler's own noising, on images that are not square."""
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    maps = attention_on_latents(
        pipeline,
        latents,
        PROMPTS,
        timesteps=[100, 700],
        generator=torch.Generator().manual_seed(5),
        tokens=[2, 3],
    )
    generator = torch.Generator().manual_seed(5)
    text = pipeline.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    total = 0
    with torch.no_grad():
        embedded = pipeline.text_encoder(text)[0]
        for step in (100, 700):
            noise = torch.randn(latents.shape, generator=generator)
            noisy = pipeline.scheduler.add_noise(latents, noise, torch.tensor([step]))
            with record_attention(pipeline.unet, conditional="all") as record:
                pipeline.unet(noisy, step, encoder_hidden_states=embedded)
            total = total + record.maps[:, [2, 3]]
    assert maps.shape == (2, 2, 16, 24)
    torch.testing.assert_close(maps, total)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ["effusion", "fracture"]}, "does not contain the word 'fracture'"),
        ({"words": ["effusion"]}, "as many words"),
        ({"prompts": "No effusion"}, "a list of prompts"),
        ({"select": "best"}, 'expected "cas" or "average"'),
        ({"quantile": 1.5}, "quantile: expected a number"),
        ({"select": "average", "cas": {"side": 64}}, 'only used with select="cas"'),
        ({"cas": {"feature": "grid"}}, r"CAS: expected some of .* got \['feature'\]"),
        ({"cas": {"quantile": 90}}, "quantile: expected a number"),
        ({"size": "pixels"}, 'expected "image" or "latent"'),
        ({"scale": "soft"}, "scale: expected one of"),
    ],
    ids=[
        "word",
        "count",
        "prompts",
        "select",
        "quantile",
        "cas",
        "cas name",
        "cas quantile",
        "size",
        "scale",
    ],
)
def test_bad_arguments_are_refused_before_sampling(pipeline, monkeypatch, changes, message):
    def fail(*_, **__):
        raise AssertionError("sampled before the arguments were checked")

    monkeypatch.setattr(pipeline.unet, "forward", fail)
    arguments = {"prompts": PROMPTS, "words": ["effusion", "edema"], "seeds": [1, 2]} | changes
    with pytest.raises(ValueError, match=message):
        pathology_map(pipeline, **arguments)


def test_overflow_while_sampling_is_named_as_such(pipeline, monkeypatch):
    forward = pipeline.unet.forward

    def overflowing(*arguments, **options):
        found = forward(*arguments, **options)
        return (found[0] * torch.inf,)

    monkeypatch.setattr(pipeline.unet, "forward", overflowing)
    with pytest.raises(RuntimeError, match="seeds 1 to 2 are not finite in torch.float32: sample"):
        pathology_map(pipeline, PROMPTS, ["effusion", "edema"], seeds=[1, 2], steps=2)


def test_a_map_without_structure_is_named(pipeline, monkeypatch):
    flat = lambda maps: torch.ones_like(maps[..., 0, :, :])  # noqa: E731
    monkeypatch.setattr("medsign_lite.localisation.average_tokens", flat)
    with pytest.raises(ValueError, match="image 0, seed 4: a map is constant"):
        pathology_map(
            pipeline, PROMPTS, ["effusion", "edema"], seeds=[4, 5], steps=1, select="average"
        )


@pytest.mark.parametrize(
    ("latents", "timesteps", "message"),
    [
        (torch.zeros(1, 4, 16, 16), [10], r"expected latents \(B, C, h, w\) and B prompts"),
        (torch.zeros(2, 4, 16, 16), [1000], r"timesteps: expected some in \[0, 1000\)"),
        (torch.zeros(2, 4, 16, 16), [], "timesteps: expected some"),
    ],
    ids=["batch", "timestep", "none"],
)
def test_attention_on_latents_refuses_bad_arguments(pipeline, latents, timesteps, message):
    with pytest.raises(ValueError, match=message):
        attention_on_latents(
            pipeline, latents, PROMPTS, timesteps=timesteps, generator=torch.Generator()
        )
