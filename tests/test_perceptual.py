import math

import pytest
import torch
from torch.nn import functional as F

from medsign_lite.perceptual import MaskedPyramid, WatsonVGG, perceptual_loss, perceptual_of


@pytest.fixture(scope="module")
def watson():
    torch.manual_seed(0)
    return WatsonVGG()


def published_names():
    """The names and shapes in the published file, written down from its documentation."""
    shapes = {"shift": (1, 3, 1, 1), "scale": (1, 3, 1, 1), "beta": ()}
    for layer, channels in enumerate((64, 128, 256, 512, 512)):
        shapes[f"t{layer}_tild"], shapes[f"w{layer}_tild"] = (channels,), ()
    convolutions = {
        "slice1": {0: (3, 64), 2: (64, 64)},
        "slice2": {5: (64, 128), 7: (128, 128)},
        "slice3": {10: (128, 256), 12: (256, 256), 14: (256, 256)},
        "slice4": {17: (256, 512), 19: (512, 512), 21: (512, 512)},
        "slice5": {24: (512, 512), 26: (512, 512), 28: (512, 512)},
    }
    for name, layers in convolutions.items():
        for position, (inputs, outputs) in layers.items():
            shapes[f"vgg.{name}.{position}.weight"] = (outputs, inputs, 3, 3)
            shapes[f"vgg.{name}.{position}.bias"] = (outputs,)
    return shapes


def test_watson_vgg_has_exactly_the_published_names(watson):
    assert {name: tuple(w.shape) for name, w in watson.state_dict().items()} == published_names()


def test_watson_vgg_features_have_the_published_resolutions(watson):
    features = watson.vgg(torch.rand(1, 3, 32, 32))
    sizes = [tuple(f.shape[1:]) for f in features]
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


def test_watson_vgg_follows_the_published_formula(watson):
    """The distance again, written as in the reference with an explicit softmax over two values."""
    generator = torch.Generator().manual_seed(1)
    image, reference = torch.rand(2, 2, 3, 16, 16, generator=generator)
    total = torch.zeros(2)
    normalise = lambda x: (x - watson.shift) / watson.scale  # noqa: E731
    pairs = zip(watson.vgg(normalise(image)), watson.vgg(normalise(reference)), strict=True)
    for layer, (feature, target) in enumerate(pairs):
        feature, target = F.normalize(feature, dim=1), F.normalize(target, dim=1)
        t = watson.get_parameter(f"t{layer}_tild").exp().view(1, -1, 1, 1).expand_as(target)
        w = torch.sigmoid(watson.get_parameter(f"w{layer}_tild"))
        two = torch.stack([t, (target.abs() + 1e-10) ** w * t ** (1 - w)])
        threshold = (two * two.softmax(dim=0)).sum(dim=0)
        total += ((target - feature) / threshold).abs().sum(dim=(1, 2, 3)) / target[0, 0].numel()
    assert watson(image, reference).item() == pytest.approx(total.mean().item(), rel=1e-4)


def test_watson_vgg_gradient_is_finite_on_black_and_on_equal_images(watson):
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    watson(image, torch.zeros(1, 3, 16, 16)).backward()
    assert torch.isfinite(image.grad).all()


def test_watson_vgg_loads_a_file_of_the_published_kind(watson, tmp_path):
    torch.save(watson.state_dict(), tmp_path / "rgb_watson_vgg_trial0.pth")
    loaded = perceptual_loss(tmp_path / "rgb_watson_vgg_trial0.pth")
    image, reference = torch.rand(2, 1, 3, 16, 16)
    assert loaded.name == "watson-vgg"
    assert torch.equal(loaded(image, reference), watson(image, reference))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_perceptual_loss_is_never_silently_the_stand_in(tmp_path):
    assert perceptual_loss().name == "masked-pyramid"
    with pytest.raises(FileNotFoundError, match="no weights at .*watson.pth"):
        perceptual_loss(tmp_path / "watson.pth")


def test_perceptual_loss_refuses_other_files(watson, tmp_path):
    state = watson.state_dict()
    del state["beta"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(ValueError, match=r"1 missing \(beta\)"):
        perceptual_loss(tmp_path / "lacking.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match="expected plain tensors"):
        perceptual_loss(tmp_path / "text.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="expected plain tensors, got a Tensor"):
        perceptual_loss(tmp_path / "tensor.pth")


def test_masked_pyramid_of_a_brightness_step_by_hand():
    """A constant difference lies in the coarsest band alone: (d / threshold)^2 over 5 bands."""
    loss = MaskedPyramid(levels=4, threshold=0.01)
    reference = torch.full((1, 3, 64, 64), 0.5)
    assert loss(reference + 0.02, reference).item() == pytest.approx(4 / 5, rel=1e-4)
    assert loss(reference, reference).item() == 0


def test_masked_pyramid_forgives_more_in_texture():
    generator = torch.Generator().manual_seed(0)
    mark = 0.02 * torch.randn(1, 3, 64, 64, generator=generator)
    flat = torch.full((1, 3, 64, 64), 0.5)
    busy = 0.5 + 0.2 * torch.randn(1, 3, 64, 64, generator=generator)
    loss = MaskedPyramid()
    assert loss(busy + mark, busy) < 0.3 * loss(flat + mark, flat)


def test_pyramid_without_masking_forgives_nothing():
    generator = torch.Generator().manual_seed(0)
    mark = 0.02 * torch.randn(1, 3, 64, 64, generator=generator)
    flat = torch.full((1, 3, 64, 64), 0.5)
    busy = 0.5 + 0.2 * torch.randn(1, 3, 64, 64, generator=generator)
    loss = perceptual_loss(masking=0)
    assert loss(busy + mark, busy).item() == pytest.approx(loss(flat + mark, flat).item(), rel=1e-4)
    assert loss.name == "masked-pyramid-0"
    with pytest.raises(ValueError, match="masking: expected 0 to 1, got 1.5"):
        MaskedPyramid(masking=1.5)


def test_masked_pyramid_is_quadratic_and_its_mask_is_the_references():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(1, 3, 32, 32, generator=generator)
    mark = 0.01 * torch.randn(1, 3, 32, 32, generator=generator)
    loss = MaskedPyramid()
    once, twice = loss(reference + mark, reference), loss(reference + 2 * mark, reference)
    assert math.isclose(4 * once, twice, rel_tol=1e-3)


@pytest.mark.parametrize("loss", [MaskedPyramid(), WatsonVGG()], ids=lambda loss: loss.name)
def test_perceptual_losses_refuse_what_is_not_a_pair_of_images(loss):
    with pytest.raises(ValueError, match=r"one shape \(B, 3, H, W\)"):
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_structure_adds_one_minus_ssim():
    # One grey image against another: SSIM is (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2.
    reference, image = torch.full((2, 3, 32, 32), 0.5), torch.full((2, 3, 32, 32), 0.4)
    expected = 3 * (1 - (2 * 0.5 * 0.4 + 1e-4) / (0.5**2 + 0.4**2 + 1e-4))
    plain, loss = perceptual_loss(), perceptual_loss(structure=3)
    added = float(loss(image, reference) - plain(image, reference))
    assert added == pytest.approx(expected, abs=1e-4)  # beside a pyramid of about 70
    assert loss.name == "masked-pyramid+ssim-3"


def test_structure_forgives_slow_changes_and_its_gradient_is_finite():
    loss = perceptual_loss(structure=100)
    reference = torch.full((1, 3, 64, 64), 0.5)
    across = torch.linspace(0, math.pi, 64)
    slow, fast = (0.02 * torch.cos(across * turns).expand_as(reference) for turns in (1, 40))
    assert loss(reference + slow, reference) < loss(reference + fast, reference)
    image = reference.clone().requires_grad_()
    loss(image, reference).backward()
    assert image.grad.isfinite().all()


def test_evenness_of_an_even_grey_mark_is_its_squared_error_in_visible_units():
    reference = torch.full((2, 3, 32, 32), 0.5)
    plain, loss = perceptual_loss(), perceptual_loss(evenness=0.5)
    image = reference + 0.02
    added = float(loss(image, reference) - plain(image, reference))
    assert added == pytest.approx(0.5 * (0.02 / 0.01) ** 2, rel=1e-4)
    assert loss.name == "masked-pyramid+even-0.5"


def test_evenness_minds_a_speckle_and_a_colour_of_the_same_squared_error():
    reference = torch.full((1, 3, 64, 64), 0.5)
    even, speckle, colour = (torch.zeros_like(reference) for _ in range(3))
    even += 0.01
    speckle[..., 24:32, 24:32] = 0.01 * 8  # a 64th of the area, 64 times the squared error
    colour[:, 0], colour[:, 1] = 0.01 * math.sqrt(1.5), -0.01 * math.sqrt(1.5)
    assert speckle.square().mean().item() == pytest.approx(even.square().mean().item(), rel=1e-5)
    assert colour.square().mean().item() == pytest.approx(even.square().mean().item(), rel=1e-5)
    added = {}
    for name, mark in {"even": even, "speckle": speckle, "colour": colour}.items():
        loss, plain = perceptual_loss(evenness=1), perceptual_loss()
        added[name] = float(loss(reference + mark, reference) - plain(reference + mark, reference))
    assert added["speckle"] > 6 * added["even"]
    assert added["colour"] == pytest.approx(4 * added["even"], rel=1e-3)
    loss = perceptual_loss(evenness=1, colour=1)
    plain = perceptual_loss()(reference + colour, reference)
    only = float(loss(reference + colour, reference) - plain)
    assert only == pytest.approx(added["even"], rel=1e-3)


def test_evenness_has_a_finite_gradient_where_nothing_has_changed():
    reference = torch.full((1, 3, 64, 64), 0.5)
    image = reference.clone().requires_grad_()
    perceptual_loss(evenness=1)(image, reference).backward()
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_evenness_refuses_other_weights(weight):
    with pytest.raises(ValueError, match="evenness: expected a weight above 0"):
        perceptual_loss(evenness=weight)


@pytest.mark.parametrize("colour", [0.5, math.inf, math.nan])
def test_colour_counts_at_least_as_the_rest(colour):
    with pytest.raises(ValueError, match="colour: expected at least 1"):
        perceptual_loss(evenness=1, colour=colour)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_structure_refuses_other_weights(weight):
    with pytest.raises(ValueError, match="structure: expected a weight above 0"):
        perceptual_loss(structure=weight)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"masking": 0.0}, {"masking": 0.35, "structure": 6.5}, {"structure": 3},
        {"evenness": 0.5}, {"masking": 0.0, "structure": 20, "evenness": 0.4},
        {"masking": 1e-5, "structure": 1234567, "evenness": 1 / 3},
        {"structure": 50, "evenness": 0.25, "colour": 1}, {"evenness": 1, "colour": 2.5},
    ],
)  # fmt: skip
def test_perceptual_of_its_own_name_is_the_same_loss(options):
    loss, (image, reference) = perceptual_loss(**options), torch.rand(2, 1, 3, 32, 32)
    again = perceptual_of(loss.name)
    assert again.name == loss.name and again(image, reference) == loss(image, reference)


def test_another_pyramid_has_another_name():
    names = {MaskedPyramid(**o).name for o in ({}, {"levels": 3}, {"threshold": 0.02})}
    assert len(names) == 3 and "masked-pyramid" in names


@pytest.mark.parametrize(
    "name", ["mean square", "masked-pyramid-", "masked-pyramid-0.70", "watson-vgg", "lpips+ssim-1"]
)
def test_perceptual_of_refuses_other_names(name):
    with pytest.raises(ValueError, match="no perceptual loss of the name"):
        perceptual_of(name)
