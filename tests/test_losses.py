import math

import pytest
import torch

from medsign_lite.losses import (
    LossWeights,
    chest_weights,
    fundus_weights,
    message_loss,
    preservation_loss,
    total_variation_loss,
    weighted_sum,
)


def test_message_loss_by_hand():
    logits, message = torch.tensor([[0.0, 2.0]]), torch.tensor([1.0, 0.0])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert message_loss(logits, message).item() == pytest.approx(expected)


def test_message_loss_temperature_divides_the_logits():
    logits, message = torch.tensor([[0.3, -0.1]]), torch.tensor([[1.0, 1.0]])
    expected = message_loss(10 * logits, message)
    assert torch.allclose(message_loss(logits, message, temperature=0.1), expected)


def test_message_loss_refuses_other_shapes_and_temperatures():
    with pytest.raises(ValueError, match=r"got \(2, 48\) and \(47,\)"):
        message_loss(torch.zeros(2, 48), torch.zeros(47))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        message_loss(torch.zeros(2, 48), torch.zeros(48), temperature=0)


def test_total_variation_by_hand():
    residual = torch.tensor([[[[0.0, 0.2], [-0.4, 0.2]]]])
    # |.| rows: (0, .2) and (.4, .2); across |.2|, |.2|, mean .2; down |.4|, |0|, mean .2
    assert total_variation_loss(residual).item() == pytest.approx(0.4)


def test_total_variation_is_of_the_absolute_residual():
    checkerboard = torch.tensor([[[[0.1, -0.1], [-0.1, 0.1]]]])
    assert total_variation_loss(checkerboard).item() == 0


def test_total_variation_does_not_depend_on_batch_or_size():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    assert total_variation_loss(ramp).item() == pytest.approx(1.0)
    assert total_variation_loss(ramp.repeat(4, 1, 2, 1)).item() == pytest.approx(1.0)


def test_preservation_by_hand():
    reference = torch.zeros(1, 3, 2, 2)
    image = torch.full((1, 3, 2, 2), 0.2)
    location = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    # (.04 * 1 + .04 * .25) / 4 pixels, the same in every channel
    assert preservation_loss(image, reference, location).item() == pytest.approx(0.05 / 4)


def test_preservation_ignores_changes_off_the_map():
    reference, location = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
    location[:, :2] = 1
    image = reference.clone()
    image[..., 2:, :] = 1
    assert preservation_loss(image, reference, location).item() == 0


def test_preservation_refuses_a_map_of_another_size():
    with pytest.raises(ValueError, match=r"a map \(B, H, W\), got .*\(1, 2, 2\)"):
        preservation_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("weights", "paper"),
    [(chest_weights(), (2.1, 7.5, 3.0, 975)), (fundus_weights(), (1.9, 6.0, 10.0, 800))],
    ids=["chest", "fundus"],
)
def test_presets_equal_the_paper_in_its_own_units(weights, paper):
    """Eq. 2 on images in [-1, 1] with the paper's weights, against ours on [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    image, reference = torch.rand(2, 2, 3, 8, 8, generator=generator)
    location = torch.rand(2, 8, 8, generator=generator)
    zero = torch.zeros(())
    ours = weighted_sum(
        {
            "image": zero,
            "message": zero,
            "total_variation": total_variation_loss(image - reference),
            "preservation": preservation_loss(image, reference, location),
        },
        weights,
    )
    image, reference = 2 * image - 1, 2 * reference - 1
    theirs = paper[2] * total_variation_loss(image - reference)
    theirs = theirs + paper[3] * preservation_loss(image, reference, location)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert (weights.image, weights.message) == paper[:2]


def test_weighted_sum_by_hand():
    names = ("image", "message", "total_variation", "preservation")
    losses = {name: torch.tensor(float(i + 1)) for i, name in enumerate(names)}
    weights = LossWeights(image=1, message=10, total_variation=100, preservation=1000)
    assert weighted_sum(losses, weights).item() == 1 + 20 + 300 + 4000
    assert weighted_sum(losses, weights, quality=0.5).item() == 20 + (1 + 300 + 4000) / 2


def test_weights_may_not_be_negative():
    with pytest.raises(ValueError, match="weight of image must be 0 or more, got -1"):
        LossWeights(image=-1, message=1, total_variation=1, preservation=1)
