import json

import pytest
import torch

from medsign_lite.baselines.localised_watermark import (
    LocalisedConfig,
    LocalisedWatermark,
    gabor_filters,
    load_localised_watermark,
    pooled_logits,
    save_localised_watermark,
    wave_phases,
)
from medsign_lite.checkpoints import load_checkpoint, save_checkpoint
from medsign_lite.metrics import psnr

CONFIG = LocalisedConfig(bits=8, channels=16)
MESSAGE = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])


@pytest.fixture(scope="module")
def watermark():
    torch.manual_seed(0)
    watermark = LocalisedWatermark(CONFIG)
    for layer in (watermark.extractor.head, watermark.extractor.direct):  # as if trained: not 0
        torch.nn.init.normal_(layer.weight, std=0.1)
    return watermark.eval().requires_grad_(False)


def images(*size, count=2, seed=0):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (61, 42), (17, 130)])
def test_any_size_is_marked_read_and_searched(watermark, size):
    image = images(*size)
    marked = watermark.embed(image, MESSAGE)
    assert marked.shape == image.shape
    assert watermark.extract(marked).shape == (2, 8)
    assert watermark.extractor(marked).shape == (2, 9, *size)
    found = watermark.detect(marked)
    assert found.shape == (2, *size) and 0 <= found.min() and found.max() <= 1


def test_default_networks_have_about_a_million_weights_and_carry_32_bits():
    watermark = LocalisedWatermark()
    assert watermark.bits == 32
    for network in (watermark.embedder, watermark.extractor):
        assert 5e5 < sum(p.numel() for p in network.parameters()) < 1e6


def test_filters_are_pairs_of_unit_energy_without_a_mean_at_many_places_of_the_spectrum():
    filters = gabor_filters(64, 11)
    assert filters.shape == (64, 2, 11, 11)
    assert torch.allclose(filters.square().sum(dim=(2, 3)), torch.ones(64, 2))
    assert torch.allclose(filters.mean(dim=(2, 3)), torch.zeros(64, 2), atol=1e-6)
    across = (filters[:, 0] * filters[:, 1]).sum(dim=(1, 2))
    assert torch.allclose(across, torch.zeros(64), atol=1e-5)
    power = torch.fft.fft2(filters[:, 0], s=(64, 64)).abs().flatten(1)
    highest = power.argmax(dim=1)
    assert len(set(highest.tolist())) > 50


def test_waves_fill_a_ring_of_the_spectrum_and_the_filters_hear_each_its_own():
    phases = wave_phases(16, 128, 128)
    assert phases.shape == (16, 128, 128) and torch.allclose(
        phases[:, 63:65, 63:65].mean(), phases.new_zeros(())
    )
    slopes = torch.stack([phases[:, 0, 1] - phases[:, 0, 0], phases[:, 1, 0] - phases[:, 0, 0]])
    periods = slopes.norm(dim=0) / (2 * torch.pi)  # in a pixel
    assert periods.min() > 0.05 and periods.max() < 0.2
    rings = torch.histc(periods.square(), bins=4, min=0.05**2, max=0.2**2)
    assert rings.tolist() == [4, 4, 4, 4]
    torch.manual_seed(0)
    extractor = LocalisedWatermark(CONFIG).extractor
    energies = (
        extractor.energies(phases.cos()[:, None].expand(-1, 3, -1, -1)).mean(dim=(2, 3)).detach()
    )
    assert torch.equal(energies.argmax(dim=1), torch.arange(16))


def test_the_waves_are_the_same_every_time_unless_a_generator_is_given(watermark):
    image = images(32, 32)[:1]
    once = watermark.embedder(image, MESSAGE[None])
    assert torch.equal(once, watermark.embedder(image, MESSAGE[None]))
    alike = [
        (once * watermark.embedder(image, MESSAGE[None], generator=generator)).mean().abs()
        for generator in (torch.Generator().manual_seed(seed) for seed in range(1, 13))
    ]
    assert torch.stack(alike).mean() < 0.3  # of 1 if they were alike


def test_a_mark_does_not_repeat(watermark):
    residual = watermark.embedder(torch.full((1, 3, 128, 128), 0.5), MESSAGE[None], masking=0.0)
    middle = residual[0, 0, 32:96, 32:96]
    for period in (1, 2, 4, 8, 16):
        assert not torch.allclose(middle[:16, :16], middle[period : period + 16, :16], atol=0.1)


def test_energies_are_of_what_is_there_wherever_it_is_cut(watermark):
    noise = torch.randn(1, 1, 132, 132, generator=torch.Generator().manual_seed(0)).expand(
        1, 3, -1, -1
    )
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    energies = [
        watermark.extractor.energies(picture).mean(dim=(2, 3))
        for picture in (noise[..., :128, :128], noise[..., 3:131, 2:130], smooth[..., :128, :128])
    ]
    assert energies[0].shape == (1, CONFIG.channels)
    assert (energies[0] - energies[1]).abs().mean() < 0.15  # in nats
    assert (energies[0] - energies[2]).mean() > 0.5


def test_psnr_of_marked_images_is_what_was_asked_for_and_can_be_changed(watermark):
    image = images(64, 64)
    strong = watermark.embed(image, MESSAGE)
    for decibels in (30.0, 42.0):
        watermark.psnr = decibels
        marked = watermark.embed(image, MESSAGE)
        assert psnr(marked, image, data_range=1.0).tolist() == pytest.approx(
            2 * [decibels], abs=0.01
        )
    watermark.psnr = 38.0
    assert torch.equal(watermark.embed(image, MESSAGE), strong)


def test_residual_is_grey_and_depends_on_message_and_image(watermark):
    image = images(32, 32)
    residual = watermark.embed(image, MESSAGE) - image
    assert torch.allclose(residual[:, 0], residual[:, 2], atol=1e-6)
    other = watermark.embed(image, 1 - MESSAGE) - image
    assert (residual - other).abs().max() > 1e-4
    assert (residual[0] - residual[1]).abs().max() > 1e-4


def test_a_message_for_each_image(watermark):
    image = images(32, 32)
    both = watermark.embed(image, torch.stack([MESSAGE, 1 - MESSAGE]))
    assert torch.allclose(both[1:], watermark.embed(image[1:], 1 - MESSAGE), atol=1e-6)


def test_masking_spends_the_residual_where_it_is_not_noticed(watermark):
    image = torch.full((1, 3, 32, 64), 0.5)
    image[..., 32:] = 0  # 20 and 3 grey levels may change
    flat = watermark.embedder(image, MESSAGE[None], masking=0.0)
    masked = watermark.embedder(image, MESSAGE[None])
    ratio = (masked / flat)[0, 0]
    assert ratio[16, 60] / ratio[16, 4] == pytest.approx(20 / 3, rel=0.01)


def test_pooled_logits_by_hand():
    answers = torch.tensor([[9.0, 9], [1, -2], [4, 4]]).view(1, 3, 1, 2)  # detection, then two bits
    weight = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)
    assert torch.allclose(pooled_logits(answers, weight), torch.tensor([[0.25, 4.0]]))
    assert torch.equal(pooled_logits(answers, 0 * weight), torch.zeros(1, 2))


def test_extract_listens_to_where_the_mark_is_detected(watermark):
    class Answers(torch.nn.Module):
        def coarse(self, image):
            answers = torch.full((1, 9, 2, 2), 5.0)
            answers[:, :, 0, 0] = -1.0
            answers[:, 0] = torch.tensor([[30.0, -30.0], [-30.0, -30.0]])
            return answers

    certain = LocalisedWatermark(CONFIG)
    certain.extractor = Answers()
    assert torch.allclose(certain.extract(images(8, 8)), torch.full((1, 8), -1.0))


def test_detection_is_local(watermark):
    image = images(128, 128, count=1)
    changed = image.clone()
    changed[..., :16, :16] += 0.1
    difference = (watermark.extractor(changed) - watermark.extractor(image)).abs().amax(dim=1)[0]
    assert difference[:16, :16].max() > 20 * difference[112:, 112:].max()


def test_gradients_reach_the_image(watermark):
    image = images(32, 32).requires_grad_()
    watermark.extract(watermark.embed(image, MESSAGE)).sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_saved_watermark_writes_and_reads_the_same(watermark, tmp_path):
    save_localised_watermark(tmp_path, watermark, details={"steps": 7})
    loaded = load_localised_watermark(tmp_path)
    image = images(40, 40)
    marked = watermark.embed(image, MESSAGE)
    assert torch.equal(loaded.embed(image, MESSAGE), marked)
    assert torch.equal(loaded.extract(marked), watermark.extract(marked))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert load_localised_watermark(tmp_path, psnr=41.0).psnr == 41.0
    assert json.loads((tmp_path / "config.json").read_text())["details"] == {"steps": 7}


def test_saving_leaves_each_module_in_its_mode(tmp_path):
    watermark = LocalisedWatermark(CONFIG).train()
    watermark.extractor.eval()
    modes = [module.training for module in watermark.modules()]
    save_localised_watermark(tmp_path, watermark)
    assert [module.training for module in watermark.modules()] == modes
    assert watermark.training and not watermark.extractor.training


def test_load_refuses_other_weights_and_configurations(watermark, tmp_path):
    save_localised_watermark(tmp_path, watermark)
    state, config = load_checkpoint(tmp_path, kind="localised watermark")

    def rewrite(name, **changes):
        weights = changes.pop("state", state)
        return save_checkpoint(tmp_path / name, weights, config | changes)

    wider = rewrite("wider", architecture={"bits": 8, "channels": 32})
    with pytest.raises(ValueError, match="of another architecture.*of another shape"):
        load_localised_watermark(wider)
    with pytest.raises(ValueError, match="not a localised watermark's configuration.*depth"):
        load_localised_watermark(rewrite("unknown", architecture={"depth": 3}))
    with pytest.raises(ValueError, match="not a localised watermark's configuration.*'logits'"):
        load_localised_watermark(rewrite("incomplete", probe={"seed": 0}))
    with pytest.raises(ValueError, match="expected a model of kind 'localised watermark', got 'x'"):
        load_localised_watermark(rewrite("kind", kind="x"))
    other = {name: weight + 0.05 for name, weight in state.items()}
    with pytest.raises(RuntimeError, match="self-check failed, a logit of the probe"):
        load_localised_watermark(rewrite("weights", state=other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"channels": 40}, "channels must be a multiple of 16.*got 40 for 32 bits"),
        ({"bits": 40, "channels": 32}, "at least as many as bits, got 32 for 40 bits"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalisedConfig(**settings)


def test_bad_images_and_messages_are_named(watermark):
    with pytest.raises(ValueError, match="at least 16 pixels on each side, got .* = \\(12, 20\\)"):
        watermark.embed(images(12, 20), MESSAGE)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        watermark.extract(images(12, 20))
    with pytest.raises(ValueError, match="expected values in \\[0, 1\\]"):
        watermark.embed(255 * images(16, 16), MESSAGE)
    with pytest.raises(ValueError, match="message of 8 bits"):
        watermark.embed(images(16, 16), MESSAGE[:5])
    with pytest.raises(ValueError, match="one row per image"):
        watermark.embed(images(16, 16), torch.stack(3 * [MESSAGE]))
