"""An extractor that reads the power spectrum: what HiDDeN's network must learn, built in.

The message is carried by textures, and a texture that was shifted, cropped, turned or resized must
read as the same message. A convolutional extractor learns that from millions of images. Here it
follows from three facts that watermarking has used since its first decade (O'Ruanaidh and Pun,
1998): the power spectrum of a window does not change when its content is shifted; a crop only
leaves fewer windows to average over; and over logarithmic radius and angle, a rotation or a resize
merely moves the whole spectrum along one of the two axes. So the extractor tries every such move
and lets the spectrum itself say which one fits.

The networks are trained like HiDDeN's, by the message's loss alone (`pretraining.py`), and stand in
for them wherever an extractor is expected. They are this project's own, not the paper's.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.images import check_image, luma
from medsign_lite.messages import check_one_message_per_image


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """Architecture of a `SpectralExtractor` and of the `SpectralEmbedder` trained with it."""

    bits: int = 48
    window: int = 64  # side of the windows in pixels
    stride: int = 16  # pixels between windows
    radii: int = 22  # rows of the log-polar spectrum, from `lowest` to `highest` frequency
    angles: int = 60  # columns over half a turn; the other half mirrors it
    lowest: float = 3.0  # periods in a window
    highest: float = 30.0
    channels: int = 16
    turns: int = 15  # rotations tried: this many columns either way, 45 degrees by default
    shrinks: int = 6  # resizes tried: this many rows towards smaller images (0.5 by default)
    grows: int = 5  # and towards larger ones (1.7)
    certainty: float = 4.0  # how much a move's mean |whitened logit| counts beside its fit
    finer: int = 3  # rotations tried between two columns and the next
    whitened: bool = False

    def __post_init__(self) -> None:
        for name in ("bits", "window", "stride", "radii", "angles", "channels", "finer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, limit in (("turns", self.angles / 2), ("shrinks", self.radii - 1),
                            ("grows", self.radii - 1)):  # fmt: skip
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be from 0 to {limit:g}, got {getattr(self, name)}")
        if not 0 <= self.certainty < math.inf:
            raise ValueError(f"certainty must be 0 or more, got {self.certainty}")
        if self.window % 2 or not 1 <= self.lowest < self.highest <= self.window / 2 - 1:
            raise ValueError(
                "expected an even window and 1 <= lowest < highest <= window / 2 - 1, got window "
                f"{self.window}, lowest {self.lowest:g}, highest {self.highest:g}"
            )

    @property
    def degrees(self) -> float:
        """Rotation from one column of the log-polar spectrum to the next."""
        return 180 / self.angles

    @property
    def ratio(self) -> float:
        """Factor from one row's frequency to the next one's."""
        return (self.highest / self.lowest) ** (1 / max(1, self.radii - 1))


def log_polar_matrix(config: SpectralConfig) -> Tensor:
    """Bilinear sampling of half a power spectrum at logarithmic radii and even angles.

    Returns:
        (radii * angles, window * (window / 2 + 1)): times a flattened `rfft2` power spectrum, it
        gives the log-polar one, radius by radius.
    """
    rows, columns = config.window, config.window // 2 + 1
    radius = config.lowest * config.ratio ** torch.arange(config.radii, dtype=torch.float64)
    angle = torch.arange(config.angles, dtype=torch.float64) * (math.pi / config.angles)
    across = radius[:, None] * angle.cos()  # (radii, angles)
    down = radius[:, None] * angle.sin()
    # The spectrum of a real image is symmetric, and rfft2 keeps the half of across >= 0.
    down, across = torch.where(across < 0, -down, down), across.abs()
    matrix = torch.zeros(config.radii * config.angles, rows, columns, dtype=torch.float64)
    point = torch.arange(len(matrix))
    for right in (0, 1):
        for below in (0, 1):
            column, row = across.floor() + right, down.floor() + below
            weight = (1 - (across - column).abs()) * (1 - (down - row).abs())
            index = (point, row.long().flatten() % rows, column.long().flatten())
            matrix.index_put_(index, weight.flatten(), accumulate=True)
    return matrix.flatten(1).float()


class SpectralExtractor(nn.Module):
    """Reads a message from the log-polar power spectrum of an image's windows."""

    @property
    def minimum_side(self) -> int:
        """Of an image, in pixels."""
        return self.config.window // 2

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        taper = torch.hann_window(config.window, periodic=False)
        self.register_buffer("taper", taper[:, None] * taper, persistent=False)
        self.register_buffer("sampling", log_polar_matrix(config), persistent=False)
        size = (config.radii, config.angles)
        self.norm = nn.BatchNorm1d(size[0] * size[1])
        self.trust = nn.Linear(size[0] * size[1], 1)  # of each window
        nn.init.zeros_(self.trust.weight)
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, config.channels, 3), nn.BatchNorm2d(config.channels))
            for inputs in (2, config.channels)
        )
        # One template per bit, and one that says how well a rotation and a size fit.
        self.templates = nn.Parameter(torch.empty(config.bits + 1, config.channels, *size))
        nn.init.normal_(self.templates, std=(config.channels * size[0] * size[1]) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(config.bits))
        # At first it prefers no move. Without this, what counts as upright is anybody's choice, and
        # training may choose the end of a range, beyond which the other moves are missing.
        rows = torch.arange(-config.grows, config.shrinks + 1).abs()
        columns = torch.arange(-config.turns, config.turns + 1).abs()
        self.prior = nn.Parameter(-2.0 * rows[:, None] - 0.5 * columns)
        self.whitening = nn.Linear(config.bits, config.bits) if config.whitened else None

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W) around [0, 1], H and W at least half a window, to logits (B, bits).

        A logit above 0 reads as bit 1. Nothing is clamped: gradients reach the image. The one move
        counts that fits and, once logits are whitened, answers best: a mark that is looked at
        askew gives logits nearer to 0. Large images are looked at in halves of their size as well,
        since they may have been enlarged. Which message is looked for plays no part in all that,
        so fair bits stay fair. In training mode it is a `look`.
        """
        if self.training:
            return self.look(image)
        with torch.autocast(image.device.type, enabled=False):
            logits, score = self._surest(image)
            while min(image.shape[-2:]) >= 3 * self.config.window:
                image = F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)
                smaller, its_score = self._surest(image)
                logits = torch.where((its_score > score)[:, None], smaller, logits)
                score = torch.maximum(score, its_score)
            return logits

    def look(self, image: Tensor) -> Tensor:
        """As `forward`, with all moves' answers averaged by how well each fits.

        What networks are trained with, extractors and decoders alike: the message's loss then
        teaches how moves fit as well, of which a single move's answer says nothing.
        """
        with torch.autocast(image.device.type, enabled=False):
            answers, fit = self._answers(image.float())
            share = fit.flatten(1).softmax(dim=1)
            return self._whitened((answers * share[:, None]).sum(dim=2))

    def _surest(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, bits) of the move for which most speaks, and how much does (B,)."""
        logits, score = self._scored(image, finer=self.config.finer)
        score, best = score.flatten(1).max(dim=1)
        return logits[torch.arange(len(logits), device=best.device), best], score

    @torch.no_grad()
    def pose(self, image: Tensor) -> Tensor:
        """How likely it thinks each move of the spectrum: (B, shrinks + grows + 1, 2 turns + 1).

        Rows go from enlarged images to shrunken ones, columns from images turned counter-clockwise
        to clockwise, in steps of `config.ratio` and `config.degrees`; the move that changes
        nothing is at [grows, turns].
        """
        _, score = self._scored(image)
        return score.flatten(1).softmax(dim=1).reshape(score.shape)

    def _scored(self, image: Tensor, finer: int = 1) -> tuple[Tensor, Tensor]:
        """Logits (B, moves, bits) of every move, and what speaks for it (B, rows, columns)."""
        answers, fit = self._answers(image.float(), finer)
        logits = self._whitened(answers.transpose(1, 2))
        if self.whitening is not None:  # before, logits lean, and their size says little
            fit = fit + self.config.certainty * logits.abs().mean(dim=2).view_as(fit)
        return logits, fit

    def _whitened(self, logits: Tensor) -> Tensor:
        return logits if self.whitening is None else self.whitening(logits)

    def _answers(self, image: Tensor, finer: int = 1) -> tuple[Tensor, Tensor]:
        """(B, bits, moves) and the fit of every move (B, rows, columns).

        `finer` rotations for every column of the spectrum: 2 * turns * finer + 1 columns.
        """
        config = self.config
        features = self.spectrum(image)
        for index, mix in enumerate(self.mix):
            hidden = F.relu(mix(_pad(features, (1, 1), (1, 1))))
            features = hidden if index == 0 else features + hidden
        # Every template against every move of the features: a correlation, which goes round in
        # the angle and so is a product of Fourier transforms there.
        features = _pad(features, (config.grows, config.shrinks))
        moved = torch.fft.rfft(features, dim=3).unfold(2, config.radii, 1)
        templates = torch.fft.rfft(self.templates, dim=3).conj()
        product = torch.einsum("bcmkr,ocrk->bomk", moved, templates)
        # A longer inverse transform interpolates between the columns, and scales. What was the
        # highest of its frequencies is then two, of half the amplitude each.
        columns = config.angles * finer
        if finer > 1 and config.angles % 2 == 0:
            product = torch.cat([product[..., :-1], product[..., -1:] / 2], dim=3)
        answers = finer * torch.fft.irfft(product, n=columns, dim=3)  # (B, bits + 1, rows, columns)
        turns = torch.arange(-config.turns * finer, config.turns * finer + 1, device=image.device)
        answers = answers[..., turns % columns]
        prior = F.interpolate(
            self.prior[None], size=len(turns), mode="linear", align_corners=True
        )[0]  # fmt: skip
        return answers[:, :-1].flatten(2) + self.bias[:, None], answers[:, -1] + prior

    def spectrum(self, image: Tensor) -> Tensor:
        """Normalised log-polar power spectrum (B, 2, radii, angles) of (B, 3, H, W), float32.

        Of the image's luma: colour is what JPEG and a conversion to grey lose.
        Channel 0 is the windows' mean of the logarithm, in which flat windows count as much as
        those with edges; channel 1 weighs each window by how far the network trusts it.
        """
        config = self.config
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < self.minimum_side:
            check_image(image, minimum=self.minimum_side)
        grey = 4 * luma(image)
        short = [max(0, config.window - side) for side in image.shape[-2:]]
        if any(short):
            grey = F.pad(grey, (0, short[1], 0, short[0]), mode="replicate")
        windows = F.unfold(grey, config.window, stride=config.stride)
        windows = windows.transpose(1, 2).unflatten(2, (config.window, config.window))
        windows = (windows - windows.mean(dim=(2, 3), keepdim=True)) * self.taper  # (B, N, w, w)
        spectrum = torch.fft.rfft2(windows)
        power = spectrum.real.square() + spectrum.imag.square()
        # The floor is about the power that rounding to 8 bits leaves.
        level = (power.flatten(2) @ self.sampling.T + 0.01).log()  # (B, N, radii * angles)
        level = self.norm(level.flatten(0, 1)).view_as(level)
        trust = self.trust(level).softmax(dim=1)  # (B, N, 1)
        pooled = torch.stack([level.mean(dim=1), (level * trust).sum(dim=1)], dim=1)
        return pooled.unflatten(2, (config.radii, config.angles))


def _pad(features: Tensor, radii: tuple[int, int], angles: tuple[int, int] = (0, 0)) -> Tensor:
    """Angles go round; beyond the last radius there is nothing."""
    return F.pad(F.pad(features, (*angles, 0, 0), mode="circular"), (0, 0, *radii))


class SpectralEmbedder(nn.Module):
    """Writes a message by filtering the image, and as a texture where there is little to filter.

    Each bit has its say in the gain and in the amplitude at every frequency. The filter works with
    the image: what is there grows or shrinks, which changes the spectrum's logarithm alike in
    strong and weak parts, while an added texture of this power would drown in the strong ones.
    The texture's phases are random, because the extractor cannot see them. Like HiDDeN's embedder
    it only exists to train the extractor and is thrown away.
    """

    grid = 1  # pixels: the texture begins anywhere
    filter_share = 0.95  # of the residual's amplitude that filtering may take

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        points = config.radii * config.angles
        self.amplitude = nn.Linear(config.bits, points)
        self.gain = nn.Linear(config.bits, points)
        for code in (self.amplitude, self.gain):
            nn.init.normal_(code.weight, std=1.5 * config.bits**-0.5)
            nn.init.zeros_(code.bias)
        sampling = log_polar_matrix(config)  # (points, bins)
        total = sampling.sum(dim=0)
        self.register_buffer("spread", sampling / total.clamp(min=1e-3), persistent=False)
        self.register_buffer("used", (total > 0.05).float(), persistent=False)

    def forward(
        self, image: Tensor, message: Tensor, *,
        strength: float = 1.0, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Residual (B, 1, H, W) of root mean square 1 for an image (B, 3, H, W) and a message
        (B, bits) in {0, 1}.

        `strength` is what it will be multiplied by: the filter changes each amplitude by no more
        than itself, and the texture takes up what is left of the strength. `generator` (CPU) draws
        its phases and where it begins.
        """
        check_one_message_per_image(message, image, self.config.bits)
        signs = 2 * message - 1
        filtered = self._filtered(image, signs)
        power = filtered.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12
        allowed = (self.filter_share * strength) ** 2
        filtered = filtered * (allowed / power).clamp(max=1).sqrt()
        left = strength**2 - power.clamp(max=allowed)
        return _unit_power(filtered + left.sqrt() * self._texture(image, signs, generator))

    def embed(
        self, image: Tensor, message: Tensor, strength: float,
        *, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Image plus `strength` times the residual, unclamped: (B, 3, H, W) around [0, 1]."""
        residual = self(image, message, strength=strength, generator=generator)
        return image + strength * residual

    def _filtered(self, image: Tensor, signs: Tensor) -> Tensor:
        """What the message's filter adds to the image, (B, 1, H, W)."""
        side, (height, width) = self.config.window, image.shape[-2:]
        gain = torch.tanh(self.gain(signs) @ self.spread) * self.used  # (B, bins)
        kernel = torch.fft.irfft2(gain.unflatten(1, (side, side // 2 + 1)), s=(side, side))
        taper = torch.hann_window(side, device=image.device)
        kernel = kernel.roll((side // 2, side // 2), (1, 2)) * taper[:, None] * taper
        grey = luma(image.float())
        grey = grey - grey.mean(dim=(2, 3), keepdim=True)
        grey = F.pad(grey, (side // 2,) * 4, mode="replicate")[:, 0]
        size = (height + side, width + side)
        product = torch.fft.rfft2(grey) * torch.fft.rfft2(kernel, s=size)
        return torch.fft.irfft2(product, s=size)[:, None, side:, side:]

    def _texture(self, image: Tensor, signs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Random phases under the message's amplitudes, (B, 1, H, W), root mean square 1."""
        side, (height, width) = self.config.window, image.shape[-2:]
        amplitude = F.softplus(self.amplitude(signs) @ self.spread) * self.used  # (B, bins)
        phase = 2 * math.pi * torch.rand(amplitude.shape, generator=generator).to(amplitude)
        texture = torch.fft.irfft2(
            torch.polar(amplitude, phase).unflatten(1, (side, side // 2 + 1)), s=(side, side)
        )
        top, left = torch.randint(side, (2,), generator=generator).tolist()
        texture = texture.repeat(1, -(-(height + top) // side), -(-(width + left) // side))
        texture = texture[:, None, top : top + height, left : left + width]
        return _unit_power(texture)


def _unit_power(residual: Tensor) -> Tensor:
    return residual * (residual.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12).rsqrt()
