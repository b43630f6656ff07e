"""Backbones: the published names, features worked out another way, whitening, and files."""

import pytest
import torch
from torch.nn import functional as F

from medsign_lite.baselines.backbone import (
    ResNet50,
    SmallBackbone,
    SmallBackboneConfig,
    WhitenedBackbone,
    load_backbone,
    load_resnet50,
    save_backbone,
    whiten_backbone,
)
from medsign_lite.images import imagenet_normalise

TINY = SmallBackboneConfig(channels=(16, 32))
DEPTHS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


def images(count=80, size=32):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def published_names() -> dict[str, tuple[int, ...]]:
    """He et al., Table 1, 50 layers, in torchvision's words: every entry and its shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(convolution: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{convolution}.weight"] = (outputs, inputs, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = (outputs,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    layer("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), start=1):
        for index in range(depth):
            block = f"layer{stage}.{index}"
            layer(f"{block}.conv1", f"{block}.bn1", width, inputs, 1)
            layer(f"{block}.conv2", f"{block}.bn2", width, width, 3)
            layer(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1)
            if index == 0:
                layer(f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    return shapes


def made_up_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in published_names().items():
        if len(shape) == 4:  # keeps the size of what passes through
            scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            state[name] = scale * torch.randn(shape, generator=generator)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith(("weight", "running_var")):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "dino_resnet50_pretrain.pth"
    state = made_up_state()
    torch.save(state, path)
    return path, state


def test_resnet50_has_the_published_names_shapes_and_parameters():
    network = ResNet50()
    found = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    assert found == published_names()
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - (2048 * 1000 + 1000)


def reference_features(state, image):
    """ResNet-50 from its state dict alone."""

    def layer(hidden, convolution, norm, stride=1, padding=0):
        hidden = F.conv2d(hidden, state[f"{convolution}.weight"], None, stride, padding)
        return F.batch_norm(
            hidden, state[f"{norm}.running_mean"], state[f"{norm}.running_var"],
            state[f"{norm}.weight"], state[f"{norm}.bias"],
        )  # fmt: skip

    hidden = layer(imagenet_normalise(image), "conv1", "bn1", 2, 3).relu()
    hidden = F.max_pool2d(hidden, 3, stride=2, padding=1)
    for stage, depth in enumerate(DEPTHS, start=1):
        for index in range(depth):
            block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            inner = layer(hidden, f"{block}.conv1", f"{block}.bn1").relu()
            inner = layer(inner, f"{block}.conv2", f"{block}.bn2", stride, 1).relu()
            inner = layer(inner, f"{block}.conv3", f"{block}.bn3")
            if index == 0:
                down = f"{block}.downsample"
                hidden = layer(hidden, f"{down}.0", f"{down}.1", stride)
            hidden = (inner + hidden).relu()
    return F.adaptive_avg_pool2d(hidden, 1).flatten(1)


def test_load_resnet50_computes_what_the_published_architecture_does(published):
    path, state = published
    network = load_resnet50(path)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    image = images(2, 64)
    torch.testing.assert_close(network(image), reference_features(state, image))


def test_load_resnet50_takes_old_files_without_counters(published, tmp_path):
    _, state = published
    old = {name: w for name, w in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    image = images(1, 32)
    torch.testing.assert_close(
        load_resnet50(tmp_path / "old.pth")(image), reference_features(state, image)
    )


def test_load_resnet50_names_what_is_wrong(published, tmp_path):
    _, state = published
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_resnet50(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not a state dict")
    with pytest.raises(ValueError, match="text.pth: expected plain tensors"):
        load_resnet50(tmp_path / "text.pth")
    torch.save({"student": {"conv1.weight": torch.zeros(1)}}, tmp_path / "training.pth")
    with pytest.raises(ValueError, match="a training checkpoint"):
        load_resnet50(tmp_path / "training.pth")
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"without its fc layer.*1 unexpected \(fc.weight\)"):
        load_resnet50(tmp_path / "classifier.pth")
    fewer = {name: weight for name, weight in state.items() if name != "layer4.2.conv3.weight"}
    torch.save(fewer, tmp_path / "fewer.pth")
    with pytest.raises(ValueError, match=r"1 missing \(layer4.2.conv3.weight\)"):
        load_resnet50(tmp_path / "fewer.pth")


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_load_resnet50_runs_no_pickle(tmp_path):
    torch.save({"conv1.weight": Danger()}, tmp_path / "danger.pth")
    with pytest.raises(ValueError, match="expected plain tensors"):
        load_resnet50(tmp_path / "danger.pth")


def test_small_backbone_has_about_a_million_parameters_and_one_image_does_not_see_another():
    network = SmallBackbone()
    assert 0.9e6 < sum(p.numel() for p in network.parameters()) < 1.3e6
    image = images(3, 64)
    features = network(image)
    assert features.shape == (3, 256)
    torch.testing.assert_close(network(image[:1]), features[:1])


@pytest.mark.parametrize("size", [(32, 32), (90, 107)])
def test_small_backbone_reads_any_size_from_its_smallest(size):
    image = F.interpolate(images(1), size=size, mode="bilinear")
    assert SmallBackbone()(image).shape == (1, 256)


@pytest.mark.parametrize("network", [SmallBackbone(), ResNet50()], ids=["small", "resnet50"])
def test_backbones_refuse_small_images(network):
    with pytest.raises(ValueError, match="at least 32 pixels"):
        network(torch.rand(1, 3, 31, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fold": 3}, "fold"), ({"channels": ()}, "channels"), ({"channels": (20,)}, "channels")],
)
def test_small_backbone_config_names_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallBackboneConfig(**settings)


def test_whiten_backbone_leaves_mean_zero_and_identity_covariance():
    backbone = whiten_backbone(SmallBackbone(TINY), images().split(32), floor=1e-12)
    features = backbone(images()).double()
    assert features.mean(dim=0).abs().max() < 1e-3
    covariance = features.T @ features / len(features)
    assert (covariance - torch.eye(backbone.dimensions)).abs().max() < 0.01


class Planes(torch.nn.Module):
    """Features: the channels' means and a hundredth of the first pixel's."""

    minimum_side, features = 2, 4

    def forward(self, image):
        return torch.cat([image.mean(dim=(2, 3)), image[:, :1, 0, 0] / 100], dim=1)


def test_whiten_backbone_leaves_out_directions_below_the_floor():
    noise = torch.rand(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert whiten_backbone(Planes(), [noise], floor=1e-6).dimensions == 4
    assert whiten_backbone(Planes(), [noise], floor=1e-2).dimensions == 3


def test_whiten_backbone_names_what_it_cannot_whiten():
    with pytest.raises(
        ValueError, match="whitening 32 features needs more images than that, got 32"
    ):
        whiten_backbone(SmallBackbone(TINY), [images(32)])
    with pytest.raises(ValueError, match="the same for every image"):
        whiten_backbone(SmallBackbone(TINY), [torch.full((40, 3, 32, 32), 0.5)])


def test_a_saved_backbone_is_read_back(tmp_path):
    backbone = whiten_backbone(SmallBackbone(TINY), images().split(32))
    read = load_backbone(save_backbone(tmp_path, backbone, details={"steps": 3}))
    assert torch.equal(read(images(4)), backbone(images(4)))
    assert read.dimensions == backbone.dimensions and read.minimum_side == 16
    assert not read.training and not any(p.requires_grad for p in read.parameters())


def test_a_saved_resnet50_is_read_back(tmp_path):
    network = ResNet50()
    backbone = WhitenedBackbone(network, torch.rand(2048), torch.rand(5, 2048))
    read = load_backbone(save_backbone(tmp_path, backbone))
    assert torch.equal(read(images(1)), backbone(images(1)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"small"', '"vgg"', "not a backbone's configuration.*vgg"),
        ('"fold"', '"folds"', "not a backbone's configuration.*folds"),
        ('"dimensions": ', '"dimensions": 1', "other|another"),
    ],
    ids=["network", "architecture", "weights"],
)
def test_load_backbone_names_what_is_wrong(tmp_path, old, new, message):
    save_backbone(tmp_path, whiten_backbone(SmallBackbone(TINY), images().split(32)))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)
