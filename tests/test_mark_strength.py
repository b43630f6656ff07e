"""A trained mark made stronger or weaker: weights between and beyond original and decoder."""

import json

import pytest
import torch

from medsign_lite.extractor import Extractor, ExtractorConfig, save_extractor, whiten
from medsign_lite.latent_cache import write_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, copy_decoder, load_decoder, save_decoder
from medsign_lite.mark_strength import averaged, main, with_strength
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def vae():
    return tiny_pipeline().vae


def changed(vae):
    """A decoder whose last convolution was trained, so to speak."""
    decoder = copy_decoder(vae).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    weight = decoder.decoder.conv_out.weight
    weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return decoder.eval()


def test_the_mark_follows_the_factor_and_the_decoder_is_left_alone(vae):
    decoder, latents = changed(vae), torch.randn(2, 4, 8, 8)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    with torch.no_grad():
        original = LatentDecoder(vae).eval()(latents)
        mark = decoder(latents) - original
        for factor in (0.5, 1.0, 1.1):
            made = with_strength(decoder, vae, factor)
            # What was trained is the last layer, in which the image is linear.
            assert torch.allclose(made(latents) - original, factor * mark, atol=1e-5)
            assert not any(parameter.requires_grad for parameter in made.parameters())
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())


@pytest.mark.parametrize("factor", [0.0, 1.6, float("nan")])
def test_factors_that_draw_another_picture_are_refused(vae, factor):
    with pytest.raises(ValueError, match=f"factor: expected from 0.5 to 1.5, got {factor}"):
        with_strength(changed(vae), vae, factor)


def test_an_average_lies_between_its_decoders(vae):
    decoder, latents = changed(vae), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        original = LatentDecoder(vae).eval()(latents)
        made = averaged(decoder, copy_decoder(vae).eval(), 0.25)
        assert torch.allclose(
            made(latents) - original, 0.75 * (decoder(latents) - original), atol=1e-5
        )
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"share: expected above 0 and below 1, got {share}"):
            averaged(decoder, decoder, share)


def test_command_writes_a_decoder_that_says_its_strength(tmp_path, capsys):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    torch.manual_seed(2)
    extractor = Extractor(ExtractorConfig(bits=4, channels=16, stages=(1,), width=16,
                                          embedder_channels=16))  # fmt: skip
    extractor = whiten(extractor, [torch.rand(16, 3, 32, 32)])
    save_extractor(tmp_path / "extractor", extractor)
    write_latent_cache(
        tmp_path / "cache", torch.randn(6, 4, 16, 16), torch.rand(6, 16, 16), ["a"] * 6
    )
    about = {"message": "1011", "held_out": 4}
    save_decoder(tmp_path / "decoder", changed(pipeline.vae), about)
    command = [
        *("--cache", str(tmp_path / "cache"), "--extractor", str(tmp_path / "extractor")),
        *("--pipeline", str(tmp_path / "pipeline")),
    ]
    figures = []
    for start, out in (("decoder", "once"), ("once", "twice")):
        main([str(tmp_path / start), *command, "--factor", "1.2", "--out", str(tmp_path / out)])
        assert "psnr" in capsys.readouterr().out
        config = json.loads((tmp_path / out / "config.json").read_text())
        assert config["message"] == "1011" and {"psnr", "jpeg"} <= set(config["evaluation"])
        figures.append((config["mark_strength"], config["evaluation"]["psnr"]))
        load_decoder(tmp_path / out, pipeline.vae)  # made from this autoencoder, it still says
    average = ("--average", str(tmp_path / "twice"), "--share", "0.3", "--out")
    main([str(tmp_path / "once"), *command, *average, str(tmp_path / "both")])
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    load_decoder(tmp_path / "both", pipeline.vae)
    assert config["averaged_with"]["share"] == 0.3 and config["mark_strength"] == pytest.approx(1.2)
    assert figures[1][1] < config["evaluation"]["psnr"] < figures[0][1]
    save_decoder(tmp_path / "stranger", changed(pipeline.vae), about | {"message": "0000"})
    with pytest.raises(SystemExit):
        main([str(tmp_path / "once"), *command, "--average", str(tmp_path / "stranger"),
              "--out", str(tmp_path / "never")])  # fmt: skip
    assert "--average: expected the message 1011, got another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nowhere", *command, "--out", str(tmp_path / "never")])
    assert "expected a --factor other than 1 or --average" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nowhere", *command, "--factor", "2", "--out", str(tmp_path / "never")])
    assert "expected from 0.5 to 1.5, got 2.0" in capsys.readouterr().err
    assert [factor for factor, _ in figures] == pytest.approx([1.2, 1.44])
    assert figures[0][1] > figures[1][1]  # more of a mark, and worse images
