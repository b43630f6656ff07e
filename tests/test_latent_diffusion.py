"""The diffusers boundary: ranges, scaling, seeds, and decoders that can be swapped."""

import copy

import pytest
import torch

from medsign_lite.latent_diffusion import (
    LatentDecoder,
    check_prompts,
    copy_decoder,
    decode,
    encode,
    freeze,
    image_size,
    install,
    load_decoder,
    load_pipeline,
    sample,
    save_decoder,
    scale_factor,
)
from tests.tiny_pipeline import tiny_autoencoder, tiny_pipeline, tiny_tokenizer


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


def test_decode_is_the_autoencoders_own_in_unit_range(pipeline):
    latents = torch.randn(3, 4, 8, 8)
    scaled = latents * pipeline.vae.config.scaling_factor
    with torch.no_grad():
        expected = pipeline.vae.decode(latents).sample / 2 + 0.5
    torch.testing.assert_close(decode(pipeline.vae, scaled, batch=2), expected)


def test_encode_is_the_scaled_mean(pipeline):
    image = torch.rand(3, 3, 16, 24)
    with torch.no_grad():
        mean = pipeline.vae.encode(2 * image - 1).latent_dist.mean
    expected = mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(encode(pipeline.vae, image, batch=2), expected)
    assert expected.shape == (3, 4, 8, 12)


def test_tiny_autoencoder_has_its_own_scaling():
    vae = tiny_autoencoder()
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latents = vae.encode(2 * image - 1).latents
        expected = vae.decode(latents).sample / 2 + 0.5
    assert scale_factor(vae) == 4
    torch.testing.assert_close(encode(vae, image), latents)  # its factor is one
    torch.testing.assert_close(decode(vae, latents), expected)


def test_encode_refuses_sides_that_do_not_divide(pipeline):
    with pytest.raises(ValueError, match=r"divisible by 2, got \(15, 16\)"):
        encode(pipeline.vae, torch.rand(1, 3, 15, 16))


def test_shift_factor_is_undone():
    vae = tiny_pipeline().vae
    vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents / 2 + 0.5).sample / 2 + 0.5
    torch.testing.assert_close(decode(vae, latents), expected)


def test_sample_depends_on_its_own_seed_only(pipeline):
    both = sample(pipeline, ["edema", "effusion"], seeds=[3, 4], steps=2)
    alone = sample(pipeline, ["effusion"], seeds=[4], steps=2)
    assert both.shape == (2, 4, 16, 16)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    other = sample(pipeline, ["effusion"], seeds=[5], steps=2)
    assert not torch.allclose(alone, other, atol=1e-2)


def test_sample_without_guidance_is_the_conditional_model(pipeline):
    plain = sample(pipeline, ["edema"], seeds=[0], steps=2, guidance=1.0)
    guided = sample(pipeline, ["edema"], seeds=[0], steps=2, guidance=5.0)
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_sample_of_another_shape(pipeline):
    assert sample(pipeline, ["edema"], seeds=[0], steps=1, size=(16, 40)).shape == (1, 4, 8, 20)
    assert image_size(pipeline) == (32, 32)


def test_sample_refuses_a_missing_seed(pipeline):
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        sample(pipeline, ["edema", "effusion"], seeds=[0])


def test_image_size_that_is_not_said_is_refused():
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="no sample_size: give the image's size"):
        image_size(pipeline)
    assert sample(pipeline, ["edema"], seeds=[0], steps=1, size=(16, 16)).shape == (1, 4, 8, 8)


def test_prompts_beyond_the_tokenizers_length_are_refused():
    """<start> no edema <end> are four tokens."""
    check_prompts(tiny_tokenizer(4), ["no edema", "edema"])
    with pytest.raises(ValueError, match=r"2 of 3 .* 4 tokens .* first is number 1 .* with 5"):
        check_prompts(tiny_tokenizer(4), ["no edema", "no no edema", "no no no edema"])


def test_copied_decoder_is_independent(pipeline):
    decoder = copy_decoder(pipeline.vae)
    before = decode(pipeline.vae, torch.ones(1, 4, 8, 8))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1)
    assert torch.equal(decode(pipeline.vae, torch.ones(1, 4, 8, 8)), before)
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_decoder_passes_gradients_beyond_the_unit_range(pipeline):
    latents = torch.full((1, 4, 4, 4), 50.0, requires_grad=True)
    LatentDecoder(pipeline.vae)(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


def test_installed_decoder_draws_and_leaves_the_pipeline_alone(pipeline):
    decoder = copy_decoder(pipeline.vae)
    with torch.no_grad():
        decoder.decoder.conv_out.bias.add_(0.5)  # a quarter brighter in [0, 1]
    marked = install(decoder, pipeline)
    latents = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(decode(marked.vae, latents), decode(pipeline.vae, latents) + 0.25)
    assert marked.unet is pipeline.unet


def test_decoder_round_trip_on_disk(pipeline, tmp_path):
    decoder = freeze(copy_decoder(pipeline.vae))
    save_decoder(tmp_path, decoder, {"message": "01"}, dtype=None)
    loaded, config = load_decoder(tmp_path, pipeline.vae)
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(decode(loaded, latents), decode(decoder, latents))
    assert config["message"] == "01" and not any(p.requires_grad for p in loaded.parameters())


def test_decoder_of_another_autoencoder_is_refused(pipeline, tmp_path):
    save_decoder(tmp_path, copy_decoder(tiny_autoencoder()), {}, dtype=None)
    with pytest.raises(ValueError, match="another architecture"):
        load_decoder(tmp_path, pipeline.vae)


def test_a_decoder_knows_its_autoencoder_after_training_and_in_half_precision(pipeline, tmp_path):
    decoder = copy.deepcopy(copy_decoder(pipeline.vae))  # as running averages are made
    with torch.no_grad():
        decoder.decoder.conv_out.weight.mul_(-3)
    save_decoder(tmp_path, decoder, {"message": "01"})
    half = copy.deepcopy(pipeline.vae).to(torch.bfloat16)
    assert load_decoder(tmp_path, half)[1]["origin"] == decoder.origin
    with torch.no_grad():
        half.decoder.conv_out.bias.add_(0.1)
    with pytest.raises(ValueError, match=r"was made from another autoencoder .* differ by 0\.0"):
        load_decoder(tmp_path, half)


def test_a_decoder_without_an_origin_is_taken_as_it_is(pipeline, tmp_path):
    decoder = copy_decoder(pipeline.vae)
    decoder.origin = None
    save_decoder(tmp_path, decoder, {})
    assert load_decoder(tmp_path, pipeline.vae)[1]["origin"] is None


def test_pipeline_folder_round_trip(pipeline, folder):
    loaded = load_pipeline(folder)
    assert not any(p.requires_grad for p in loaded.unet.parameters())
    assert torch.equal(
        sample(loaded, ["edema"], seeds=[1], steps=2),
        sample(pipeline, ["edema"], seeds=[1], steps=2),
    )


def test_pipeline_stored_in_half_precision_is_float_in_memory(tmp_path):
    """transformers would keep the text encoder in half, and its first matrix product would fail."""
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    parts = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert sample(loaded, ["edema"], seeds=[1], steps=2).isfinite().all()
