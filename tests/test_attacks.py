import dataclasses
import math

import pytest
import torch

from medsign_lite import attacks, images
from medsign_lite.adversary.attack_chains import chain


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(batch=2, height=64, width=48, seed=0):
    """Smooth coloured images, as photographs are."""
    return images.resize(torch.rand(batch, 3, 6, 5, generator=generator(seed)), (height, width))


def test_table_has_the_papers_attacks_in_the_papers_order():
    names = ["none", "brightness", "crop", "jpeg", "rotation", "resize"]
    assert list(attacks.PAPER_ATTACKS) == names
    assert list(attacks.ATTACK_TABLE)[:6] == names
    assert all(name == attack.name for name, attack in attacks.ATTACK_TABLE.items())


@pytest.mark.parametrize("attack", attacks.ATTACK_TABLE.values(), ids=attacks.ATTACK_TABLE)
def test_fields_say_what_the_attack_does(attack):
    bright = smooth(2, 64, 48) * 1.5  # over 1: only a clamp brings it back
    got = attack(bright)
    assert (got.max() <= 1) == attack.clamps
    steps = attack(smooth(2, 64, 48)) * 255
    assert ((steps - steps.round()).abs().max() < 1e-3) == attack.quantises
    if attack.measure:
        factor = dataclasses.replace(attack, parameters={**attack.parameters, "resize_back": False})
        height, width = factor(bright).shape[-2:]
        area = attack.parameters["area"]
        expected = {"area": area, "side": math.sqrt(area)}[attack.measure]
        share = {"area": height * width / (64 * 48), "side": height / 64}[attack.measure]
        assert share == pytest.approx(expected, abs=0.03)
        assert f"{round(expected * 100)} %" in attack.title
    assert (got.shape[-2:] == (64, 48)) == (attack.resized_back or not attack.measure)
    if attack.fill is not None:
        assert torch.allclose(got[..., 0, 0], torch.tensor(attack.fill))
    if attack.interpolation:  # nearest keeps the values, bilinear mixes them
        binary = (torch.rand(1, 3, 64, 48, generator=generator()) > 0.5).float()
        known = torch.tensor([0.0, 1.0, attack.fill or 0.0])
        assert torch.isin(attack(binary), known).all() == (attack.interpolation == "nearest")


@pytest.mark.parametrize("attack", attacks.ATTACK_TABLE.values(), ids=attacks.ATTACK_TABLE)
def test_every_attack_is_deterministic_per_image_and_differentiable(attack):
    image = (smooth() * 0.4 + 0.2).requires_grad_()
    got = attack(image)
    assert torch.equal(got, attack(image))
    assert got.dtype == image.dtype and got.shape[:2] == (2, 3)
    if attack.name != "noise":  # whose second image has other noise than a first one
        assert torch.allclose(attack(image[1:])[0], got[1], atol=1e-6)
    got.sum().backward()
    assert image.grad.abs().sum() > 0 and image.grad.isfinite().all()


@pytest.mark.parametrize("attack", attacks.ATTACK_TABLE.values(), ids=attacks.ATTACK_TABLE)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts_are_refused(attack, channels):
    with pytest.raises(ValueError, match=f"expected 3 channels .* got {channels}"):
        attack(torch.rand(1, channels, 64, 48))


def test_sweep_contains_the_papers_setting_and_starts_without_effect():
    for name in ("brightness", "crop", "jpeg", "rotation", "resize"):
        parameters = [attack.parameters for attack in attacks.sweep(name).values()]
        assert attacks.PAPER_ATTACKS[name].parameters in parameters
    image = smooth()
    for name in ("brightness", "crop", "rotation", "resize", "contrast", "noise"):
        mildest = next(iter(attacks.sweep(name).values()))
        assert torch.allclose(mildest(image), image, atol=1e-5), name
    assert list(attacks.sweep("jpeg", [30, 20])) == ["jpeg 30", "jpeg 20"]


def test_random_attack_without_strength_or_as_none_is_the_identity():
    image = smooth()
    assert attacks.random_attack(image, names=("none",), generator=generator()) is image
    for seed in range(20):
        got = attacks.random_attack(image, generator=generator(seed), strength=0.0)
        assert torch.equal(got, image)


def test_random_attack_repeats_with_its_generator_and_draws_every_name():
    image = smooth()
    first = attacks.random_attack(image, generator=generator(5))
    assert torch.equal(first, attacks.random_attack(image, generator=generator(5)))
    stream = generator()
    drawn = [attacks.random_attack(image, generator=stream) for _ in range(60)]
    assert len({tuple(x.shape) for x in drawn}) > 10  # crops and resizes
    assert any(torch.equal(x, image) for x in drawn)
    assert any(x.shape == image.shape and x[..., 0, 0].eq(0).all() for x in drawn)  # rotations


def test_random_attack_flips_left_and_right_as_often_as_it_is_strong():
    image, stream = smooth(), generator()

    def flips(strength):
        drawn = [attacks.random_attack(image, names=("flip",), generator=stream, strength=strength)
                 for _ in range(40)]  # fmt: skip
        assert all(torch.equal(x, image) or torch.equal(x, image.flip(-1)) for x in drawn)
        return sum(not torch.equal(x, image) for x in drawn)

    assert 5 < flips(0.5) < 35 and flips(1.0) == 40


def test_stable_signatures_attacks_can_be_drawn_and_neither_turn_nor_brighten():
    attacks.check_training_attacks(attacks.STABLE_SIGNATURE_ATTACKS)
    assert not {"rotation", "brightness", "blur"} & set(attacks.STABLE_SIGNATURE_ATTACKS)
    assert sorted(attacks.STABLE_SIGNATURE_ATTACKS).count("jpeg") == 2


def test_specification_changes_with_what_an_attack_does():
    names = attacks.PAPER_ATTACKS
    first = attacks.specification(names.values())
    assert first == attacks.specification([*names.values()]) and len(first) == 12
    other = names | {"jpeg": dataclasses.replace(names["jpeg"], parameters={"quality": 51})}
    assert attacks.specification(other.values()) != first
    weak, strong, again = (attacks.specification([chain("chain", x)]) for x in (0.5, 0.8, 0.5))
    assert weak == again != strong


def test_every_sweep_lies_in_its_range():
    assert set(attacks.RANGES) == set(attacks.SWEEPS)
    for name, values in attacks.SWEEPS.items():
        low, high = attacks.RANGES[name]
        assert [*attacks.sweep(name, (low, high))] == [f"{name} {low:g}", f"{name} {high:g}"]
        assert low <= min(values) and max(values) <= high


@pytest.mark.parametrize("name", attacks.TRAINING_RANGES)
def test_random_attack_stays_in_its_range_and_grows_with_strength(name):
    image = smooth(1) * 0.4 + 0.2
    distance = []
    for strength in (0.1, 1.0):
        stream, total = generator(1), 0.0
        for _ in range(30):
            got = attacks.random_attack(image, names=(name,), generator=stream, strength=strength)
            total += abs(got.numel() / image.numel() - 1)
            if got.shape == image.shape:
                total += float((got - image).abs().mean())
            if name in ("crop", "resize"):
                low, high = (0.3, 1.0) if name == "crop" else (0.3, 1.2)
                assert low - 0.03 <= got.numel() / image.numel() <= high
        distance.append(total)
    assert distance[0] < distance[1] / 1.5


def test_random_crops_move_in_both_directions_and_half_are_central():
    rows = torch.arange(64.0).view(64, 1).expand(64, 64) / 64
    image = torch.stack([rows, rows.T, rows])[None]
    stream, tops, lefts, central = generator(), set(), set(), 0
    for _ in range(200):
        crop = attacks.random_attack(image, names=("crop",), generator=stream)
        top, left = int(crop[0, 0, 0, 0] * 64), int(crop[0, 1, 0, 0] * 64)
        tops.add(top)
        lefts.add(left)
        free = 64 - crop.shape[-1]
        central += max(abs(top - free / 2), abs(left - free / 2)) <= 1
    assert len(tops) > 15 and len(lefts) > 15
    assert 80 < central < 150


def test_random_attack_leaves_the_extractor_enough_pixels():
    stream = generator()
    for _ in range(60):
        got = attacks.random_attack(
            torch.rand(1, 3, 24, 40), names=("crop", "resize"), generator=stream, minimum=20
        )
        assert min(got.shape[-2:]) >= 20
    small = torch.rand(1, 3, 12, 12)  # smaller than the minimum: left whole, not refused
    assert (
        attacks.random_attack(small, names=("crop",), generator=stream, minimum=20).shape
        == small.shape
    )


def test_random_attack_takes_unclamped_images_and_passes_gradients():
    stream = generator()
    for _ in range(30):
        image = (smooth() * 1.2 - 0.1).requires_grad_()
        attacks.random_attack(image, generator=stream).sum().backward()
        assert image.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda x: attacks.sweep("shear"), "expected one of brightness, .* got 'shear'"),
        (lambda x: attacks.sweep("jpeg", (50, 0)), r"jpeg: .* in \[1, 100\], got 0"),
        (lambda x: attacks.sweep("blur", (0.0,)), r"blur: .* in \[0.1, 10\], got 0.0"),
        (lambda x: attacks.random_attack(x, names=("shear",), generator=generator()), "'shear'"),
        (
            lambda x: attacks.random_attack(x, generator=generator(), strength=2),
            r"attack's strength in \[0, 1\], got 2",
        ),
        (lambda x: attacks.random_attack(x, names=(), generator=generator()), "got 'none'"),
    ],
)
def test_unknown_names_and_strengths_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(smooth())
