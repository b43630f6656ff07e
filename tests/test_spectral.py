import json
import math

import pytest
import torch

from medsign_lite.distortions import rotate
from medsign_lite.extractor import build_networks, load_extractor, save_extractor, whiten
from medsign_lite.latent_diffusion import BUNDLED
from medsign_lite.pretraining import read_under_attack
from medsign_lite.spectral import (
    SpectralConfig,
    SpectralEmbedder,
    SpectralExtractor,
    log_polar_matrix,
)

SMALL = {"bits": 4, "window": 32, "lowest": 2.0, "highest": 15.0, "radii": 10,
         "angles": 24, "turns": 6, "shrinks": 3, "grows": 1, "channels": 4}  # fmt: skip


def config(**changes):
    return SpectralConfig(**(SMALL | changes))


def extractor(**changes):
    torch.manual_seed(0)
    return SpectralExtractor(config(**changes)).eval()


def wave(periods, degrees, side=64, phase=0.0):
    """A sinusoid with so many periods in 32 pixels, its crests turned by so many degrees."""
    axis = torch.arange(side, dtype=torch.float32)
    angle = math.radians(degrees)
    along = axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    plane = 0.5 + 0.1 * torch.sin(2 * math.pi * periods * along / 32 + phase)
    return plane.expand(1, 3, -1, -1)


def peak(reader, image):
    """(radius, angle) index of the strongest point of the log-polar spectrum."""
    level = reader.spectrum(image)[0, 0].detach()
    return divmod(int(level.argmax()), level.shape[1])


def test_log_polar_matrix_samples_one_point_per_row():
    matrix = log_polar_matrix(config())
    assert matrix.shape == (10 * 24, 32 * 17)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(240), atol=1e-6)
    assert (matrix >= 0).all() and ((matrix > 0).sum(dim=1) <= 4).all()


@pytest.mark.parametrize("angle", [0, 5, 12, 17, 23])
@pytest.mark.parametrize("radius", [1, 4, 8])
def test_a_wave_is_found_at_its_frequency_and_angle(radius, angle):
    reader = extractor()
    periods = reader.config.lowest * reader.config.ratio**radius
    found = peak(reader, wave(periods, angle * reader.config.degrees))
    turn = (found[1] - angle) % 24  # at the lowest frequencies, angles lie close together
    assert abs(found[0] - radius) <= 1 and min(turn, 24 - turn) <= (2 if radius == 1 else 1)


def test_spectrum_does_not_see_shifts():
    reader = extractor()
    still, moved = (reader.spectrum(wave(6.0, 30.0, phase=phase)) for phase in (0.0, 2.0))
    assert (still - moved).abs().max() < 0.1 * still.abs().max()


def test_a_turn_and_a_resize_move_the_spectrum_along_one_axis_each():
    reader = extractor()
    step, ratio = reader.config.degrees, reader.config.ratio
    radius, angle = peak(reader, wave(5.0, 4 * step))
    assert peak(reader, wave(5.0, 7 * step)) == (radius, angle + 3)
    assert peak(reader, wave(5.0 * ratio**2, 4 * step)) == (radius + 2, angle)


def test_all_moves_are_the_templates_correlation():
    reader = extractor()
    image = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    answers, fit = reader._answers(image)
    features = reader.spectrum(image)
    for index, mix in enumerate(reader.mix):
        around = torch.nn.functional.pad(features, (1, 1, 0, 0), mode="circular")
        hidden = mix(torch.nn.functional.pad(around, (0, 0, 1, 1))).relu()
        features = hidden if index == 0 else features + hidden
    around = torch.nn.functional.pad(features, (6, 6, 0, 0), mode="circular")
    around = torch.nn.functional.pad(around, (0, 0, 1, 3))
    expected = torch.nn.functional.conv2d(around, reader.templates)  # (2, 5, 5, 13)
    assert torch.allclose(fit, expected[:, -1] + reader.prior, atol=1e-4)
    assert torch.allclose(answers, expected[:, :-1].flatten(2), atol=1e-4)


@pytest.mark.parametrize("size", [(16, 40), (32, 32), (45, 70), (128, 96)])
def test_extractor_reads_any_size_and_passes_gradients(size):
    image = torch.rand(2, 3, *size, requires_grad=True)
    logits = extractor()(image)
    assert logits.shape == (2, 4) and logits.dtype == torch.float32
    logits.sum().backward()
    assert torch.isfinite(image.grad).all() and image.grad.abs().sum() > 0


def test_a_look_averages_the_moves_by_how_well_they_fit():
    reader, images = extractor(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        answers, fit = reader._answers(images)
        expected = (answers * fit.flatten(1).softmax(dim=1)[:, None]).sum(dim=2)
        assert torch.allclose(reader.look(images), expected, atol=1e-6)
        assert not torch.allclose(reader(images), expected, atol=1e-3)
        assert torch.equal(reader.train()(images), reader.look(images))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_networks_are_trained_with_looks(strength):
    reader, images = extractor(), torch.rand(2, 3, 40, 40)
    reader.forward = None
    generator = torch.Generator().manual_seed(0)
    logits = read_under_attack(reader, images, strength=strength, generator=generator)
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("certainty", [0.0, 1e6])
def test_the_move_that_fits_and_answers_best_is_read(certainty):
    reader = extractor(certainty=certainty, finer=1, whitened=True)
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():  # of four bits the last is left, thrice as large
        reader.whitening.weight.copy_(torch.diag(torch.tensor([0.0, 0.0, 0.0, 3.0])))
        reader.whitening.bias.zero_()
        answers, fit = reader._answers(images)  # (3, bits, moves)
        read = reader(images)
        best = (answers[:, 3].abs() if certainty else fit.flatten(1)).argmax(dim=1)
        assert torch.allclose(read[:, 3], 3 * answers[torch.arange(3), 3, best], atol=1e-5)
        assert torch.allclose(reader(images[1:]), read[1:], atol=1e-5)  # in whichever batch


def test_before_whitening_the_move_that_fits_best_is_read():
    reader, images = extractor(certainty=100.0, finer=1), torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        answers, fit = reader._answers(images)
        best = fit.flatten(1).argmax(dim=1)
        assert torch.allclose(reader(images), answers[torch.arange(3), :, best], atol=1e-6)


def test_between_two_columns_finer_moves_are_interpolated():
    reader, images = extractor(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        (answers, fit), (finer_answers, finer_fit) = (
            reader._answers(images, finer) for finer in (1, 3)
        )
    assert finer_fit.shape == (*fit.shape[:2], 3 * (fit.shape[2] - 1) + 1)
    assert torch.allclose(finer_fit[..., ::3], fit, atol=1e-4)
    rows = finer_answers.unflatten(2, finer_fit.shape[1:])
    assert torch.allclose(rows[..., ::3], answers.unflatten(2, fit.shape[1:]), atol=1e-4)
    assert not torch.allclose(finer_fit[..., 1::3], fit[..., :-1], atol=1e-2)


def test_extractor_keeps_full_precision_under_autocast():
    reader, image = extractor(), torch.rand(1, 3, 40, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reader(image), reader(image.clone()))
    with torch.no_grad():
        plain = reader(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(reader(image), plain, atol=0.05)


def test_pose_is_a_distribution_over_moves():
    pose = extractor().pose(torch.rand(3, 3, 64, 64))
    assert pose.shape == (3, 3 + 1 + 1, 2 * 6 + 1)
    assert torch.allclose(pose.sum(dim=(1, 2)), torch.ones(3))


@pytest.mark.parametrize(("degrees", "column"), [(0, 0), (15, -2), (-30, 4)])
def test_pose_says_how_far_the_image_was_turned(degrees, column):
    reader = extractor()
    coarse = torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(3))
    texture = torch.nn.functional.interpolate(coarse, size=(240, 240), mode="bicubic")
    texture = texture.expand(-1, 3, -1, -1)

    def middle(angle):
        return rotate(texture, float(angle), interpolation="bilinear")[..., 48:-48, 48:-48]

    features = []
    hook = reader.mix[1].register_forward_hook(lambda _, inputs, output: features.append(output))
    reader.pose(middle(0))
    hook.remove()
    with torch.no_grad():  # look for this very spectrum
        template = features[0].relu() - features[0].relu().mean(dim=(2, 3), keepdim=True)
        reader.templates[-1] = 10 * template[0]
        reader.prior.zero_()
    found = divmod(int(reader.pose(middle(degrees))[0].argmax()), 13)
    assert found == (reader.config.grows, reader.config.turns + column)


@pytest.mark.parametrize("image", [torch.rand(1, 3, 15, 64), torch.rand(1, 1, 64, 64)],
                         ids=["small", "one channel"])  # fmt: skip
def test_extractor_refuses_what_it_cannot_read(image):
    with pytest.raises(ValueError, match="expected"):
        extractor()(image)


def test_residual_has_unit_power_and_follows_generator_and_message():
    torch.manual_seed(0)
    embedder = SpectralEmbedder(config())
    image, message = torch.rand(2, 3, 40, 70), torch.tensor([[0.0, 1, 0, 1], [1, 1, 0, 0]])
    first, again, other = (
        embedder(image, message, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 1, 40, 70)
    assert torch.allclose(first.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    marked = embedder.embed(image, message, 0.05, generator=torch.Generator().manual_seed(1))
    residual = (marked - image) / 0.05
    assert torch.allclose(residual.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-3)
    assert torch.allclose(residual[:, :1].expand(-1, 3, -1, -1), residual, atol=1e-5)


def test_filtering_works_with_the_image_and_texture_fills_what_it_leaves():
    torch.manual_seed(0)
    embedder, message = SpectralEmbedder(config()), torch.tensor([[0.0, 1, 0, 1]])
    flat, busy = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 1, 64, 64).expand(-1, 3, -1, -1)

    def residuals(image, strength):
        return [
            embedder(image, message, strength=strength, generator=torch.Generator().manual_seed(s))
            for s in (1, 2)
        ]

    def alike(first, second):
        return float((first * second).mean().detach())

    assert abs(alike(*residuals(flat, 0.01))) < 0.5  # nothing to filter: phases of its own
    assert alike(*residuals(busy, 0.01)) > 0.8  # nothing but the image's own phases
    assert alike(*residuals(busy, 1.0)) < 0.5  # as much as there is to filter, the rest texture


def test_embedder_refuses_a_message_of_another_length():
    with pytest.raises(ValueError, match=r"expected a message \(1, 4\)"):
        SpectralEmbedder(config())(torch.rand(1, 3, 32, 32), torch.ones(1, 5))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bits": 0}, "bits must be at least 1"),
        ({"turns": 13}, "turns must be from 0 to 12"),
        ({"certainty": -0.1}, "certainty must be 0 or more, got -0.1"),
        ({"certainty": math.inf}, "certainty must be 0 or more, got inf"),
        ({"finer": 0}, "finer must be at least 1, got 0"),
        ({"shrinks": 10}, "shrinks must be from 0 to 9"),
        ({"window": 31}, "even window"),
        ({"highest": 16.0}, "highest <= window / 2 - 1"),
        ({"lowest": 15.0}, "lowest < highest"),
    ],
)
def test_config_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        config(**changes)


def test_saved_and_whitened_extractor_reads_as_before(tmp_path):
    _, reader = build_networks(config(certainty=0.0))
    images = torch.rand(32, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    whitened = whiten(reader, images.split(8))
    logits = whitened(images)
    assert logits.mean(dim=0).abs().max() < 1e-3
    save_extractor(tmp_path / "extractor", whitened)
    assert json.loads((tmp_path / "extractor/config.json").read_text())["network"] == "spectral"
    again = load_extractor(tmp_path / "extractor")
    assert isinstance(again, SpectralExtractor) and torch.allclose(again(images), logits, atol=1e-5)


def test_extractor_of_large_windows_is_saved_and_read(tmp_path):
    _, reader = build_networks(config(window=256, lowest=12.0, highest=120.0))
    assert reader.minimum_side == 128  # more than the probe image of most extractors has
    image = torch.rand(1, 3, 128, 150, generator=torch.Generator().manual_seed(0))
    again = load_extractor(save_extractor(tmp_path / "extractor", reader))
    assert torch.allclose(again(image), reader.eval()(image))


def test_shipped_extractor_still_reads_its_probe_image():
    assert load_extractor(BUNDLED.parent / "extractor").minimum_side <= 64


def test_large_images_are_looked_at_in_halves_of_their_size():
    reader, seen = extractor(), []
    scored = reader._scored

    def watched(image, finer=1):
        seen.append(image.shape[-2:])
        return scored(image, finer)

    reader._scored = watched
    with torch.no_grad():
        reader(torch.rand(1, 3, 95, 400))
        assert seen == [(95, 400)]  # 96 is three windows
        seen.clear()
        image = torch.rand(2, 3, 200, 192)
        read = reader(image)
    assert seen == [(200, 192), (100, 96), (50, 48)]
    looks = [image]
    for _ in range(2):
        looks.append(torch.nn.functional.interpolate(
            looks[-1], scale_factor=0.5, mode="bilinear", antialias=True))  # fmt: skip
    with torch.no_grad():
        logits, scores = zip(*(reader._surest(look) for look in looks), strict=True)
    best = torch.stack(scores).argmax(dim=0)
    expected = torch.stack(logits)[best, torch.arange(2)]
    assert torch.allclose(read, expected, atol=1e-6)
