"""WAM kind (our small re-implementation): a watermark that says where it is, a row of Table 1.

Watermark Anything (Sander et al., ICLR 2025) answers per pixel: one logit says whether a pixel is
marked, one per bit says what was written there. So a marked patch that was pasted into another
image is found and read. The embedder's residual is weighted by what the eye does not notice.

Departures from the paper: networks of a million weights each, convolutions only, where the paper's
extractor is a vision transformer; any image at its own size, where the paper goes through 256
pixels; one grey residual for the three colours, so that a picture saved as grey keeps its mark; a
residual of a given root mean square; one message in an image, not several in several places; and
no rotation, flip or resize in training, after which next to nothing is read.
What is drawn is a mixture of plane waves, and the extractor is given the energies of filters for
them beside the pixels. A network that draws on a grid of its own has to unlearn the grid before a
crop can be read; how strong a wave is reads alike wherever it is cut.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.baselines.noticeable import just_noticeable_difference
from medsign_lite.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from medsign_lite.extractor import MESSAGE_GAIN, Block, ExtractorConfig, fold_space
from medsign_lite.images import check_image, imagenet_normalise
from medsign_lite.messages import check_message, check_one_message_per_image
from medsign_lite.training.evaluation_mode import evaluation_mode

NAME = "WAM kind (our small re-implementation)"  # for tables and figures
FOLD = 4  # side of the square of pixels that the extractor gives one answer for
MINIMUM_SIDE = 16  # of an image, in pixels
HALF = 2  # energies are of images at half their size: JPEG leaves little finer
KERNEL = 17  # side of their filters there; smaller ones' bands overlap, and hold fewer bits
PHASE_SEED = 0  # of the waves, outside training
_LOUDEST = 2.0  # logarithm of how much louder or fainter than 1 a wave may be
_FAINT = 1e-4  # energy, in units of `imagenet_normalise`, below which nothing is told apart
_BLOCKS = ExtractorConfig()  # what the shared building block takes its kind from


@dataclass(frozen=True, kw_only=True)
class LocalisedConfig:
    """Architecture of a `LocalisedWatermark`."""

    bits: int = 32
    channels: int = 64  # at a quarter of the image's side, and twice as many below

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError(f"bits must be at least 1, got {self.bits}")
        if self.channels < max(16, self.bits) or self.channels % 16:
            raise ValueError(
                "channels must be a multiple of 16, and at least as many as bits, got "
                f"{self.channels} for {self.bits} bits"
            )


class _Pyramid(nn.Module):
    """A small U-Net at a quarter, an eighth and a sixteenth of the image's side."""

    def __init__(self, inputs: int, config: LocalisedConfig, *, padding: str, hears: bool):
        super().__init__()

        def block(before: int, after: int, stride: int = 1) -> Block:
            return Block(before, after, _BLOCKS, norm="group", stride=stride, padding=padding)

        fine, coarse = config.channels, 2 * config.channels
        self.down = nn.ModuleList([block(inputs, fine), block(fine, coarse, 2),
                                   block(coarse, coarse, 2)])  # fmt: skip
        self.deep = nn.ModuleList([block(fine, fine), block(coarse, coarse), block(coarse, coarse)])
        # Four answers for every square below, so that what is drawn knows where in a square of 16
        # pixels it is. With one, a mark repeats every 4 pixels, and 16 values cannot say 32 bits.
        self.narrow = nn.ModuleList(
            [nn.Conv2d(coarse, 4 * fine, 1), nn.Conv2d(coarse, 4 * coarse, 1)]
        )
        self.merge = nn.ModuleList([block(fine, fine), block(coarse, coarse)])
        # The message reaches the coarse levels on the way down, and every level on the way up.
        hearing = {"deep 1": coarse, "deep 2": coarse, "merge 1": coarse, "merge 0": fine}
        self.projections = nn.ModuleDict(
            {name: nn.Linear(config.bits, width, bias=False) for name, width in hearing.items()}
            if hears
            else {}
        )
        for projection in self.projections.values():
            nn.init.orthogonal_(projection.weight, gain=MESSAGE_GAIN)

    def forward(self, features: Tensor, signs: Tensor | None = None) -> Tensor:
        """features (B, inputs, h, w) and the message as signs (B, bits) to (B, channels, h, w)."""

        def shift(name: str) -> Tensor | None:
            if name not in self.projections:
                return None
            return self.projections[name](signs)[:, :, None, None]

        levels = []
        for level, (down, deep) in enumerate(zip(self.down, self.deep, strict=True)):
            features = deep(down(features), shift(f"deep {level}"))
            levels.append(features)
        for level in (1, 0):
            below = F.pixel_shuffle(self.narrow[level](features), 2)
            height, width = levels[level].shape[-2:]
            merged = levels[level] + below[..., :height, :width]
            features = self.merge[level](merged, shift(f"merge {level}"))
        return features


def wave_phases(count: int, height: int, width: int) -> Tensor:
    """Phases of `count` plane waves in radians, (count, height, width), 0 in the middle.

    They have .05 to .2 periods in a pixel and any angle, evenly spread over that ring of the
    spectrum.
    """
    index = torch.arange(count)
    # The golden ratio's multiples leave no two angles alike, however many waves there are.
    angle = math.pi * (index * (5**0.5 - 1) / 2 % 1)
    radius = (0.05**2 + (0.2**2 - 0.05**2) * (index + 0.5) / count).sqrt()
    across, down = (2 * math.pi * radius * part for part in (angle.cos(), angle.sin()))
    x, y = (torch.arange(side) - (side - 1) / 2 for side in (width, height))
    return across[:, None, None] * x + down[:, None, None] * y[:, None]


def gabor_filters(count: int, size: int) -> Tensor:
    """What the extractor's filters begin as: `count` pairs, (count, 2, size, size).

    Cosine and sine of the waves in an image at half its size, under a Gaussian window; each of unit
    energy and without a mean.
    """
    place = torch.arange(size) - (size - 1) / 2
    window = torch.exp(-place.square() / (2 * (size / 5) ** 2))
    phase = HALF * wave_phases(count, size, size)
    filters = torch.stack([phase.cos(), phase.sin()], dim=1) * window * window[:, None]
    filters = filters - filters.mean(dim=(2, 3), keepdim=True)
    return filters / filters.square().sum(dim=(2, 3), keepdim=True).sqrt()


class LocalisedEmbedder(nn.Module):
    """Writes a message everywhere into an image."""

    def __init__(self, config: LocalisedConfig):
        super().__init__()
        self.config = config
        # "zeros" would let it lean on the edges of small crops.
        self.pyramid = _Pyramid(3 * FOLD**2, config, padding="replicate", hears=True)
        self.last = nn.Conv2d(config.channels, config.channels, 1)
        # The message's own way to the waves: each of them hears every bit from the start.
        self.direct = nn.Linear(config.bits, config.channels, bias=False)
        nn.init.orthogonal_(self.direct.weight)
        nn.init.zeros_(self.last.weight)

    def forward(
        self,
        image: Tensor,
        message: Tensor,
        *,
        masking: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A residual (B, 1, H, W) whose root mean square is 1 per image.

        image: (B, 3, H, W) in [0, 1]; message: (B, bits) in {0, 1}; masking: in [0, 1], how far
        the residual follows the just noticeable difference; at 0 all pixels are alike; generator:
        (CPU) of how far all images' waves are shifted, default: the same every time.
        """
        check_one_message_per_image(message, image, self.config.bits)
        height, width = image.shape[-2:]
        signs = 2 * message - 1
        features = self.pyramid(fold_space(imagenet_normalise(image), FOLD), signs)
        gains = self.last(features) + self.direct(signs)[:, :, None, None]
        # The extractor sees logarithms of energies, to which an exponential adds.
        amounts = (_LOUDEST * torch.tanh(gains / _LOUDEST)).exp()
        amounts = F.interpolate(amounts, scale_factor=float(FOLD), mode="bilinear")
        generator = generator or torch.Generator().manual_seed(PHASE_SEED)
        shift = 2 * math.pi * torch.rand(self.config.channels, 1, 1, generator=generator)
        waves = (wave_phases(self.config.channels, height, width) + shift).cos().to(image)
        residual = (amounts[..., :height, :width] * waves).sum(dim=1, keepdim=True).float()
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            weight = just_noticeable_difference(image)
            weight = 1 - masking + masking * weight / weight.mean(dim=(1, 2, 3), keepdim=True)
        residual = weight * residual
        power = residual.square().mean(dim=(1, 2, 3), keepdim=True)
        return residual * (power + 1e-6).rsqrt()


class LocalisedExtractor(nn.Module):
    """Says of every pixel whether it is marked, and with what."""

    minimum_side = MINIMUM_SIDE

    def __init__(self, config: LocalisedConfig):
        super().__init__()
        self.config = config
        self.filters = nn.Conv2d(1, 2 * config.channels, KERNEL, padding=KERNEL // 2, bias=False)
        with torch.no_grad():
            self.filters.weight.copy_(
                gabor_filters(config.channels, KERNEL).flatten(0, 1).unsqueeze(1)
            )
        self.pyramid = _Pyramid(FOLD**2 + config.channels, config, padding="zeros", hears=False)
        self.wide = nn.Conv2d(config.channels, 4 * config.channels, 1)
        self.head = nn.Conv2d(4 * config.channels, 1 + config.bits, 1)
        # The energies' own way to the answers, as the message has one to the waves. At first there
        # is no other: see `localised_training.calibrate`.
        self.direct = nn.Conv2d(config.channels, 1 + config.bits, 1)
        for layer in (self.head, self.direct):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def coarse(self, image: Tensor) -> Tensor:
        """Answers (B, 1 + bits, ceil(H / 4), ceil(W / 4)), float32; these are trained."""
        check_image(image, minimum=self.minimum_side, in_range=False)
        pixels, energies = fold_space(self._grey(image), FOLD), self.energies(image)
        features = self.wide(self.pyramid(torch.cat([pixels, energies], dim=1)))
        return (self.head(F.relu(features)) + self.direct(energies)).float()

    def energies(self, image: Tensor) -> Tensor:
        """Logarithms of the filters' energies, (B, channels, ceil(H / 4), ceil(W / 4)), in images
        (B, 3, H, W) around [0, 1]."""
        pairs = self.filters(F.avg_pool2d(self._grey(image), HALF, ceil_mode=True))
        energy = pairs.float().unflatten(1, (-1, 2)).square().sum(dim=2)
        size = [math.ceil(side / FOLD) for side in image.shape[-2:]]
        return (F.adaptive_avg_pool2d(energy, size) + _FAINT).log()

    @staticmethod
    def _grey(image: Tensor) -> Tensor:
        return imagenet_normalise(image).mean(dim=1, keepdim=True)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1] to logits (B, 1 + bits, H, W): marked, then the bits.

        Nothing is clamped: gradients reach the image.
        """
        answers = F.interpolate(self.coarse(image), scale_factor=float(FOLD), mode="bilinear")
        return answers[..., : image.shape[-2], : image.shape[-1]]


def pooled_logits(answers: Tensor, weight: Tensor) -> Tensor:
    """The bits' logits (B, bits) of answers (B, 1 + bits, h, w), averaged with weights (B, 1, h, w)
    of at least 0. Where all weights are 0, so are the logits."""
    total = (answers[:, 1:] * weight).sum(dim=(2, 3))
    return total / weight.sum(dim=(2, 3)).clamp(min=1e-6)


class LocalisedWatermark(nn.Module):
    """Both networks, with the strength that `embed` writes at.

    psnr: in dB, of the images that `embed` returns, before they are clamped. It may be set at any
    time; the strength that training ended with is the best place to start.
    """

    def __init__(self, config: LocalisedConfig | None = None, *, psnr: float = 38.0):
        super().__init__()
        self.config = config or LocalisedConfig()
        self.embedder = LocalisedEmbedder(self.config)
        self.extractor = LocalisedExtractor(self.config)
        self.psnr = psnr

    @property
    def bits(self) -> int:
        return self.config.bits

    def embed(self, image: Tensor, message: Tensor) -> Tensor:
        """Write a message (K,) or (B, K) into images (B, 3, H, W) in [0, 1]; not clamped.

        Raises:
            ValueError: if a side is below 16 pixels, or the message is not of `bits` bits.
        """
        check_image(image, minimum=MINIMUM_SIDE)
        check_message(message, self.bits)
        message = message.to(image)
        message = message.expand(len(image), -1) if message.ndim == 1 else message
        return image + 10 ** (-self.psnr / 20) * self.embedder(image, message)

    def extract(self, image: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) around [0, 1]: means over what looks marked."""
        answers = self.extractor.coarse(image)
        return pooled_logits(answers, answers[:, :1].sigmoid())

    def detect(self, image: Tensor) -> Tensor:
        """How likely each pixel of images (B, 3, H, W) around [0, 1] is marked: (B, H, W)."""
        return self.extractor(image)[:, 0].sigmoid()


def _probe_logits(watermark: LocalisedWatermark, seed: int) -> Tensor:
    """What is read from a made-up image after writing to it: it takes all the weights."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    image = F.interpolate(image, size=(64, 64), mode="bilinear")
    message = torch.randint(0, 2, (watermark.bits,), generator=generator).float()
    image = image.to(next(watermark.parameters()).device)
    with torch.no_grad():
        return watermark.extract(watermark.embed(image, message))[0].cpu()


def save_localised_watermark(
    folder: str | Path, watermark: LocalisedWatermark, *, details: dict | None = None
) -> Path:
    """Weights, configuration and the logits of a probe; `details` go into the JSON."""
    with evaluation_mode(watermark):
        logits = _probe_logits(watermark, 0).tolist()
    config = {
        "kind": "localised watermark",
        "architecture": asdict(watermark.config),
        "psnr": watermark.psnr,
        "probe": {"seed": 0, "logits": logits},
        "details": details or {},
    }
    return save_checkpoint(folder, watermark.state_dict(), config)


def load_localised_watermark(
    folder: str | Path, *, psnr: float | None = None, device: str | torch.device = "cpu"
) -> LocalisedWatermark:
    """Strictly loaded, frozen, in evaluation mode, and checked to read its probe as saved.

    Args:
        psnr: of the images to come, in dB; default: what the watermark was saved with.

    Raises:
        ValueError: for an incomplete configuration or other weights than it says.
        RuntimeError: if the logits of the probe differ from the saved ones.
    """
    state, config = load_checkpoint(folder, kind="localised watermark", device=device)
    try:
        architecture = LocalisedConfig(**config["architecture"])
        watermark = LocalisedWatermark(architecture, psnr=config["psnr"])
        seed, expected = config["probe"]["seed"], torch.tensor(config["probe"]["logits"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a localised watermark's configuration: {error}") from error
    watermark = watermark.to(device).eval().requires_grad_(False)
    load_strictly(watermark, state, name=f"localised watermark in {folder}")
    difference = (_probe_logits(watermark, seed) - expected).abs().max()
    if not difference <= 0.01 * (1 + expected.abs().max()):
        raise RuntimeError(
            f"{folder}: self-check failed, a logit of the probe is off by {difference:.3g}; "
            "the weights are not those that were saved with this configuration"
        )
    watermark.psnr = watermark.psnr if psnr is None else psnr
    return watermark
