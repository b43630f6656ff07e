import pytest
import torch

from medsign_lite.adversary.attack_chains import CHAINS, chain, in_turn
from medsign_lite.distortions import brightness, centre_crop, identity, jpeg, resize_area


@pytest.fixture
def image():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CHAINS)
def test_chain_of_no_strength_changes_nothing(name, image):
    attack = chain(name, 0)
    assert attack.parameters["steps"] == () and not attack.clamps and not attack.quantises
    assert torch.equal(attack(image), identity(image))


def test_screenshot_at_full_strength_by_hand(image):
    expected = jpeg(brightness(centre_crop(resize_area(image, 0.5), 0.7), 1.25), 60)
    attack = chain("screenshot", 1)
    assert torch.equal(attack(image), expected)
    assert attack.clamps and attack.quantises


def test_chain_strength_moves_every_parameter_in_proportion():
    steps = chain("screenshot", 0.5).parameters["steps"]
    values = [next(iter(step.parameters.values())) for step in steps]
    assert values == pytest.approx([0.75, 0.85, 1.125, 80])
    assert [step.function.__name__ for step in steps] == [
        "resize_area", "centre_crop", "brightness", "jpeg",
    ]  # fmt: skip


def test_chain_leaves_out_a_step_that_rounds_to_no_effect():
    names = [step.name.split()[0] for step in chain("screenshot", 0.01).parameters["steps"]]
    assert names == ["resize", "crop", "brightness"]  # JPEG 99.6 is JPEG 100


def test_in_turn_takes_the_steps_in_their_order(image):
    steps = [chain("screenshot", 1), chain("chain", 1)]
    assert torch.equal(in_turn(image, steps), steps[1](steps[0](image)))
    assert not torch.equal(in_turn(image, steps), in_turn(image, steps[::-1]))


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_chain_refuses_a_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=r"screenshot of a strength in \[0, 1\], got"):
        chain("screenshot", strength)


def test_chain_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="a chain among chain, screenshot, got 'scan'"):
        chain("scan", 0.5)
