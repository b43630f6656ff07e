"""The watermark networks of HiDDeN (Sec. 2.1): an embedder, and the extractor that is kept.

Departures from the published replica, each of them an argument: space folded into channels at the
input, a mean over colours (so that a picture saved as grey keeps its mark), a residual of a given
root mean square, messages injected through an orthogonal projection at two depths, and a wide
block before the pooling. `published_config` is the architecture of the Stable Signature replica.
`spectral.py` has an extractor of another kind; this module's files hold either.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from medsign_lite.images import check_image, imagenet_normalise
from medsign_lite.messages import check_one_message_per_image
from medsign_lite.spectral import SpectralConfig, SpectralEmbedder, SpectralExtractor
from medsign_lite.whitening import whitening_transform

MESSAGE_GAIN = 8.0  # of the projections at first: what they say must not drown in the picture
MINIMUM_SIDE = 32  # pixels of an image that is decided about; an attack may halve it before


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Architecture of an `Extractor` and of the `Embedder` trained with it."""

    bits: int = 48
    fold: int = 4  # side of the square of pixels folded into channels
    channels: int = 64  # doubled by every further stage
    stages: tuple[int, ...] = (2, 2)  # 3x3 blocks per stage; the side halves between stages
    width: int = 256  # channels of the last block, which is averaged over space
    norm: str = "group"  # "group", or "batch" (the published one), which mixes up attacks
    activation: str = "relu"  # or "gelu" (the published one), which costs as much as a convolution
    residual: bool = True  # add each block's input to its output where shapes agree
    grey: bool = True  # average the colours first
    embedder_fold: int = 8  # the grid of Stable Diffusion's latents: patterns 8 pixels wide
    embedder_norm: str = "batch"
    embedder_channels: int = 128
    embedder_padding: str = "replicate"  # "zeros" would let it lean on the edges of small crops
    embedder_depth: int = 3
    unit_residual: bool = True  # scale every residual to the same root mean square
    whitened: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.bits < 1:
            raise ValueError(f"bits must be at least 1, got {self.bits}")
        for name in ("fold", "embedder_fold"):
            if getattr(self, name) not in (1, 2, 4, 8):
                raise ValueError(f"{name} must be 1, 2, 4 or 8, got {getattr(self, name)}")
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f"stages must hold at least one positive number, got {self.stages}")
        norms = ("group", "batch")
        choices = {"norm": norms, "embedder_norm": norms, "activation": ("relu", "gelu"),
                   "embedder_padding": ("replicate", "zeros")}  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.embedder_channels < self.bits:
            raise ValueError(
                f"an orthogonal projection of {self.bits} bits needs embedder_channels of at "
                f"least {self.bits}, got {self.embedder_channels}"
            )


def published_config(*, bits: int = 48) -> ExtractorConfig:
    """The Stable Signature replica of HiDDeN: unfolded, 8 blocks of 64, then one of `bits`."""
    return ExtractorConfig(
        bits=bits, fold=1, channels=64, stages=(7,), width=bits, norm="batch",
        activation="gelu", residual=False, grey=False, embedder_fold=1, embedder_channels=64,
        embedder_depth=4, embedder_padding="zeros", unit_residual=False,
    )  # fmt: skip


class Block(nn.Module):
    """3x3 convolution, normalisation, optional shift by the message, activation, optional skip."""

    def __init__(
        self, inputs: int, outputs: int, config: ExtractorConfig, *, norm: str, stride: int = 1,
        padding: str = "zeros",
    ):  # fmt: skip
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode=padding)
        self.norm = (
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
            if norm == "batch"
            else nn.GroupNorm(max(1, outputs // 16), outputs)
        )
        self.activation = {"relu": F.relu, "gelu": F.gelu}[config.activation]
        self.skip = config.residual and stride == 1 and inputs == outputs

    def forward(self, features: Tensor, shift: Tensor | None = None) -> Tensor:
        hidden = self.norm(self.convolution(features))
        hidden = self.activation(hidden if shift is None else hidden + shift.to(hidden.dtype))
        return features + hidden if self.skip else hidden


def fold_space(image: Tensor, fold: int) -> Tensor:
    """(B, C, H, W) to (B, C fold^2, ceil(H / fold), ceil(W / fold)); edges are repeated."""
    height, width = image.shape[-2:]
    padding = (0, -width % fold, 0, -height % fold)
    return F.pixel_unshuffle(F.pad(image, padding, mode="replicate"), fold)


class Extractor(nn.Module):
    """Reads a message from an image; the spatial mean makes it care little about crops."""

    minimum_side = MINIMUM_SIDE // 2  # of an image, in pixels

    def __init__(self, config: ExtractorConfig):
        super().__init__()
        self.config = config
        inputs = (1 if config.grey else 3) * config.fold**2
        blocks = []
        for stage, depth in enumerate(config.stages):
            outputs = config.channels * 2**stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(inputs, outputs, config, norm=config.norm, stride=stride))
                inputs = outputs
        blocks.append(Block(inputs, config.width, config, norm=config.norm))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(config.width, config.bits)
        self.whitening = nn.Linear(config.bits, config.bits) if config.whitened else None

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], H and W at least 16, to logits (B, bits), float32.

        A logit above 0 reads as bit 1. Nothing is clamped: gradients reach the image.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < self.minimum_side:
            check_image(image, minimum=self.minimum_side)
        pixels = imagenet_normalise(image)
        pixels = pixels.mean(dim=1, keepdim=True) if self.config.grey else pixels
        features = self.blocks(fold_space(pixels, self.config.fold))  # (B, width, h, w)
        pooled = features.float().mean(dim=(2, 3))
        with torch.autocast(image.device.type, enabled=False):
            logits = self.head(pooled)
            return logits if self.whitening is None else self.whitening(logits)


class Embedder(nn.Module):
    """Writes a message into an image; it only exists to train the extractor and is thrown away."""

    def __init__(self, config: ExtractorConfig):
        super().__init__()
        self.config = config
        inputs, channels = 3 * config.embedder_fold**2, config.embedder_channels
        self.blocks = nn.ModuleList(
            Block(
                inputs if index == 0 else channels,
                channels,
                config,
                norm=config.embedder_norm,
                padding=config.embedder_padding,
            )  # fmt: skip
            for index in range(config.embedder_depth)
        )
        self.injected = (0, config.embedder_depth // 2)  # blocks that receive the message
        projections = nn.ModuleList(
            nn.Linear(config.bits, channels, bias=False) for _ in self.injected
        )
        for projection in projections:
            nn.init.orthogonal_(projection.weight, gain=MESSAGE_GAIN)
        self.projections = projections
        self.colours = 1 if config.grey else 3
        self.last = nn.Conv2d(channels, self.colours * config.embedder_fold**2, 1)

    def forward(self, image: Tensor, message: Tensor) -> Tensor:
        """image: (B, 3, H, W) in [0, 1], message: (B, bits) in {0, 1}, to a residual
        (B, 1 or 3, H, W) whose root mean square is 1 per image (`unit_residual`), or in [-1, 1]."""
        check_one_message_per_image(message, image, self.config.bits)
        signs = 2 * message - 1
        features = fold_space(imagenet_normalise(image), self.config.embedder_fold)
        for index, block in enumerate(self.blocks):
            shift = None
            if index in self.injected:
                shift = self.projections[self.injected.index(index)](signs)[:, :, None, None]
            features = block(features, shift)
        residual = F.pixel_shuffle(self.last(features).float(), self.config.embedder_fold)
        residual = torch.tanh(residual[..., : image.shape[-2], : image.shape[-1]])
        if self.config.unit_residual:
            power = residual.square().mean(dim=(1, 2, 3), keepdim=True)
            residual = residual * (power + 1e-6).rsqrt()
        return residual

    @property
    def grid(self) -> int:
        """Side of the squares of pixels it draws in."""
        return self.config.embedder_fold

    def embed(
        self, image: Tensor, message: Tensor, strength: float,
        *, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Image plus `strength` times the residual, unclamped: (B, 3, H, W) around [0, 1].

        Nothing is random here; `generator` is for embedders that draw. With `unit_residual`,
        strength is the root mean square error in [0, 1] units, so the PSNR before clamping is
        -20 log10(strength): .0126 is 38 dB.
        """
        return image + strength * self(image, message)


# By the name that a saved extractor's configuration gives: HiDDeN's networks, and our own.
NETWORKS = {
    "hidden": (ExtractorConfig, Embedder, Extractor),
    "spectral": (SpectralConfig, SpectralEmbedder, SpectralExtractor),
}
AnyConfig = ExtractorConfig | SpectralConfig
AnyExtractor = Extractor | SpectralExtractor
AnyEmbedder = Embedder | SpectralEmbedder


def network_name(config: AnyConfig) -> str:
    """The key of `NETWORKS` that a configuration belongs to."""
    return next(name for name, (kind, _, _) in NETWORKS.items() if isinstance(config, kind))


def build_networks(config: AnyConfig) -> tuple[AnyEmbedder, AnyExtractor]:
    """An embedder and an extractor with fresh weights."""
    _, embedder, extractor = NETWORKS[network_name(config)]
    return embedder(config), extractor(config)


@torch.no_grad()
def whiten(extractor: AnyExtractor, images: Iterable[Tensor]) -> AnyExtractor:
    """A copy with PCA whitening of its logits on unmarked images appended as a linear layer.

    Args:
        extractor: not yet whitened.
        images: batches (B, 3, H, W) in [0, 1] of unmarked images, more of them than bits.

    Returns:
        An extractor in evaluation mode whose logits on those images have mean 0 and covariance 1;
        a spectral one's, as far as it reads the moves that it read before.
    """
    if extractor.config.whitened:
        raise ValueError("this extractor is whitened already: whiten the one it came from")
    extractor = copy.deepcopy(extractor).eval()
    logits = torch.cat([extractor(batch) for batch in images])  # (N, bits)
    mean, matrix = whitening_transform(logits)
    whitened = type(extractor)(replace(extractor.config, whitened=True)).to(logits.device).eval()
    state = extractor.state_dict()
    state["whitening.weight"] = matrix.float()
    state["whitening.bias"] = -(matrix @ mean).float()
    load_strictly(whitened, state, name="whitened extractor")
    return whitened


def _probe_logits(extractor: AnyExtractor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 16, 16, generator=generator)
    side = max(64, extractor.minimum_side)  # 64 is what saved logits are of
    image = F.interpolate(coarse, size=(side, side), mode="bilinear")
    device = next(extractor.parameters()).device
    with torch.no_grad():
        return extractor(image.to(device))[0].cpu()


def save_extractor(
    folder: str | Path, extractor: AnyExtractor, *, dtype: torch.dtype | None = None,
    details: dict | None = None,
) -> Path:  # fmt: skip
    """Weights, configuration and the logits of a fixed probe image; `details` go into the JSON."""
    stored = copy.deepcopy(extractor).eval()
    if dtype is not None:  # the probe must see what the file holds
        stored = stored.to(dtype).float()
    config = {
        "kind": "extractor",
        "network": network_name(stored.config),
        "architecture": asdict(stored.config),
        "probe": {"seed": 0, "logits": _probe_logits(stored, 0).tolist()},
        "details": details or {},
    }
    return save_checkpoint(folder, stored.state_dict(), config, dtype=dtype)


def load_extractor(folder: str | Path, *, device: str | torch.device = "cpu") -> AnyExtractor:
    """Strictly loaded, frozen, in evaluation mode, and checked to read its probe image as saved.

    Raises:
        ValueError: for an unknown or incomplete configuration or other weights than it says.
        RuntimeError: if the loaded network's logits of the probe image differ from the saved ones.
    """
    state, config = load_checkpoint(folder, kind="extractor", device=device)
    try:
        configuration, _, network = NETWORKS[config["network"]]
        architecture = configuration(**config["architecture"])
        seed, expected = config["probe"]["seed"], torch.tensor(config["probe"]["logits"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not an extractor's configuration: {error}") from error
    extractor = network(architecture).to(device).eval().requires_grad_(False)
    load_strictly(extractor, state, name=f"extractor in {folder}")
    difference = (_probe_logits(extractor, seed) - expected).abs().max()
    if not difference <= 0.01 * (1 + expected.abs().max()):
        raise RuntimeError(
            f"{folder}: self-check failed, a logit of the probe image is off by {difference:.3g}; "
            "the weights are not those that were saved with this configuration"
        )
    return extractor
