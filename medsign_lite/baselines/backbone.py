"""Self-supervised backbones: networks that were taught, without labels, what an image is.

SSL Watermark writes into the features of such a network. Here are a small one for phantoms, which
`backbone_training` trains, and ResNet-50 (He et al., CVPR 2016) under the names of torchvision's
state dict, so that the file of a published one, DINO's for example, loads strictly. Both are used
whitened: on unmarked images every feature then has mean 0, variance 1, and nothing to do with the
others, so that any direction can carry a bit.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.checkpoints import (
    load_checkpoint,
    load_strictly,
    read_plain_tensors,
    save_checkpoint,
)
from medsign_lite.extractor import fold_space
from medsign_lite.images import check_image, imagenet_normalise
from medsign_lite.whitening import whitening_transform


@dataclass(frozen=True, kw_only=True)
class SmallBackboneConfig:
    """What must be saved with its weights.

    fold: squares of as many pixels a side become the channels of one, which keeps every pixel and
    costs a fraction. channels: of the layers at 1, 1/2, 1/4, ... of the side that leaves, multiples
    of 16; the last are the features.
    """

    fold: int = 4
    channels: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.fold not in (1, 2, 4, 8):
            raise ValueError(f"fold: expected 1, 2, 4 or 8, got {self.fold}")
        if not self.channels or any(width < 16 or width % 16 for width in self.channels):
            raise ValueError(f"channels: expected multiples of 16, got {self.channels}")


class _Block(nn.Module):
    """Two convolutions beside a shorter way; half the side."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.first_norm = nn.GroupNorm(outputs // 16, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(outputs // 16, outputs)
        self.shorter = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(hidden)))
        inner = self.second_norm(self.second(inner))
        return F.relu(inner + self.shorter(F.avg_pool2d(hidden, 2, ceil_mode=True)))


class SmallBackbone(nn.Module):
    """A residual network of 1.2 million parameters, for images of 64 to 256 pixels.

    Groups are normalised, not batches: an image's features do not depend on what is beside it.
    """

    def __init__(self, config: SmallBackboneConfig | None = None):
        super().__init__()
        self.config = config or SmallBackboneConfig()
        channels = self.config.channels
        first, self.features = channels[0], channels[-1]
        self.minimum_side = self.config.fold * 2 ** len(channels)  # 2 x 2 are left
        self.stem = nn.Conv2d(3 * self.config.fold**2, first, 3, 1, 1, bias=False)
        self.stem_norm = nn.GroupNorm(first // 16, first)
        self.blocks = nn.Sequential(*map(_Block, channels[:-1], channels[1:]))

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], to features (B, F) of at least 0."""
        check_image(image, minimum=self.minimum_side, in_range=False)
        folded = fold_space(imagenet_normalise(image), self.config.fold)
        hidden = F.relu(self.stem_norm(self.stem(folded)))
        return self.blocks(hidden).float().mean(dim=(2, 3))


class _Bottleneck(nn.Module):
    """ResNet-50's block. The stride is that of the 3 x 3 convolution, as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(hidden)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return F.relu(inner + (hidden if self.downsample is None else self.downsample(hidden)))


class ResNet50(nn.Module):
    """ResNet-50 without its classification layer: 23,508,032 parameters, 2,048 features."""

    features = 2048
    minimum_side = 32  # of an image, in pixels

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, depth in enumerate((3, 4, 6, 3), start=1):
            width, stride = 32 * 2**number, 1 if number == 1 else 2
            blocks = [_Bottleneck(inputs, width, stride)]
            inputs = 4 * width
            blocks += [_Bottleneck(inputs, width, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], to features (B, 2048) of at least 0."""
        check_image(image, minimum=self.minimum_side, in_range=False)
        hidden = F.relu(self.bn1(self.conv1(imagenet_normalise(image))))
        hidden = F.max_pool2d(hidden, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = layer(hidden)
        return hidden.float().mean(dim=(2, 3))


Backbone = SmallBackbone | ResNet50


def load_resnet50(path: str | Path) -> ResNet50:
    """Read a ResNet-50 of torchvision's names without "fc.", `dino_resnet50_pretrain.pth` for one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a state dict of tensors, or not that of this network.
    """
    path = Path(path)
    state = read_plain_tensors(path)
    network = ResNet50()
    # Old files lack these counters of training batches, which nothing reads.
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    load_strictly(network, counters | state, name=f"ResNet-50 without its fc layer in {path.name}")
    return network.eval().requires_grad_(False)


class WhitenedBackbone(nn.Module):
    """A frozen backbone followed by PCA whitening to D of its F features, or fewer.

    mean: (F,); matrix: (D, F), as `whitening_transform` returns it.
    """

    def __init__(self, network: Backbone, mean: Tensor, matrix: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())
        self.eval().requires_grad_(False)

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.matrix)

    @property
    def minimum_side(self) -> int:
        """Pixels that an image needs on each side."""
        return self.network.minimum_side

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], to whitened features (B, D), float32."""
        features = self.network(image)
        with torch.autocast(image.device.type, enabled=False):
            return (features.float() - self.mean) @ self.matrix.T


@torch.no_grad()
def whiten_backbone(
    network: Backbone, images: Iterable[Tensor], *, floor: float = 1e-6
) -> WhitenedBackbone:
    """Whiten a backbone's features on unmarked images.

    Args:
        network: in evaluation mode from now on, and frozen.
        images: batches (B, 3, H, W) in [0, 1], more images in all than features.
        floor: directions of less than this fraction of the largest variance are left out: they
            hold rounding errors, which whitening would blow up.

    Raises:
        ValueError: for too few images, or features that are the same for every image.
    """
    network.eval()
    features = torch.cat([network(batch) for batch in images])  # (N, F)
    if len(features) <= features.shape[1]:
        number, width = features.shape
        raise ValueError(f"whitening {width} features needs more images than that, got {number}")
    mean, matrix = whitening_transform(features, floor=floor)
    lengths = matrix.norm(dim=1)  # one over the deviation: rising, and the same at the floor
    kept = lengths < 0.999 * lengths[0] * floor**-0.5
    return WhitenedBackbone(network, mean, matrix[kept])


def save_backbone(
    folder: str | Path, backbone: WhitenedBackbone, *, details: dict | None = None
) -> Path:
    """Weights, whitening and configuration; `details` go into the JSON."""
    small = isinstance(backbone.network, SmallBackbone)
    config = {
        "kind": "backbone",
        "network": "small" if small else "resnet50",
        "architecture": asdict(backbone.network.config) if small else {},
        "dimensions": backbone.dimensions,
        "details": details or {},
    }
    return save_checkpoint(folder, backbone.state_dict(), config)


def load_backbone(folder: str | Path, *, device: str | torch.device = "cpu") -> WhitenedBackbone:
    """Read what `save_backbone` wrote: strictly, frozen, in evaluation mode.

    Raises:
        FileNotFoundError: if the folder or one of its two files is missing.
        ValueError: for an unknown or incomplete configuration or other weights than it says.
    """
    state, config = load_checkpoint(folder, kind="backbone", device=device)
    try:
        build = {"small": lambda **options: SmallBackbone(SmallBackboneConfig(**options)),
                 "resnet50": ResNet50}[config["network"]]  # fmt: skip
        network = build(**config["architecture"])
        matrix = torch.zeros(config["dimensions"], network.features)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a backbone's configuration: {error!r}") from error
    backbone = WhitenedBackbone(network, torch.zeros(network.features), matrix).to(device)
    load_strictly(backbone, state, name=f"backbone in {folder}")
    return backbone.eval()
