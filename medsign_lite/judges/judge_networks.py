"""The networks of the independent judges: a classifier and a segmenter of findings.

The judges answer two questions that the method must not answer about itself: "is the finding in
this image, and on which side?" and "where is it?". They are small, see phantoms only, and share
nothing with the generator, its attention or the watermark.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.checkpoints import load_checkpoint, load_strictly, save_checkpoint
from medsign_lite.data import CHEST_FINDINGS, FUNDUS_FINDINGS
from medsign_lite.images import check_image, resize
from medsign_lite.judges.patch_mixer import PatchMixer

HALVES = {"chest": ("right", "left"), "fundus": ("superior", "inferior")}
WIDTHS = {"convolutional": (32, 64, 96, 128), "mixer": (32, 48, 128, 128, 128, 128)}


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What must be saved with a judge's weights.

    Attributes:
        kind: "classifier" or "segmenter".
        findings: names of the outputs, in order.
        size: side in pixels at which the judge looks; other sizes are resized to it.
        widths: channels at size/2, size/4, size/8 and size/16; of a mixer those of the two
            convolutions before it, and of each of its blocks. Default: see `WIDTHS`.
        architecture: "convolutional" or, for a classifier, "mixer" (see `patch_mixer.py`): a second
            judge whose answers do not come from the same kind of network.
    """

    kind: str
    findings: tuple[str, ...] = CHEST_FINDINGS + FUNDUS_FINDINGS
    size: int = 128
    widths: tuple[int, ...] = ()
    architecture: str = "convolutional"

    def __post_init__(self) -> None:
        if self.kind not in ("classifier", "segmenter"):
            raise ValueError(f"expected kind 'classifier' or 'segmenter', got {self.kind!r}")
        if self.architecture not in WIDTHS:
            raise ValueError(
                f"expected an architecture of {tuple(WIDTHS)}, got {self.architecture!r}"
            )
        if self.kind == "segmenter" and self.architecture != "convolutional":
            raise ValueError(f"a segmenter is convolutional, got {self.architecture!r}")
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "widths", tuple(self.widths) or WIDTHS[self.architecture])
        known = CHEST_FINDINGS + FUNDUS_FINDINGS
        strange = [name for name in self.findings if name not in known]
        if strange or len(set(self.findings)) < len(self.findings) or not self.findings:
            raise ValueError(f"expected distinct findings of {known}, got {self.findings}")
        if self.size % 16 or self.size < 32:
            raise ValueError(f"expected size a multiple of 16 of at least 32, got {self.size}")
        if self.architecture == "mixer":
            if len(self.widths) < 3 or len(set(self.widths[2:])) > 1:
                raise ValueError(
                    f"expected two widths and then one or more equal ones, got {self.widths}"
                )
        elif len(self.widths) != 4:
            raise ValueError(f"expected four widths, multiples of 8, got {self.widths}")
        if any(width % 8 for width in self.widths):
            raise ValueError(f"expected widths that are multiples of 8, got {self.widths}")


class Reading(NamedTuple):
    """What the classifier says of a batch; every entry is a logit, positive for yes.

    `presence` (B, F) is the larger of the two `sides` (B, F, 2). For a chest finding the sides are
    the patient's right (the left half of the image) and left; for a fundus finding the superior
    (upper) and inferior half. `eye` (B,) is positive for a right eye and means nothing for a chest.
    """

    presence: Tensor
    sides: Tensor
    eye: Tensor


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels_in, channels_out, stride=2), _convolution(channels_out, channels_out)
    )


def _coordinates(like: Tensor) -> Tensor:
    """(B, 2, H, W) in [-1, 1]: where a pixel lies, without which no convolution knows a side."""
    batch, _, height, width = like.shape
    rows = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    columns = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, -1, -1, -1)


class Judge(nn.Module):
    """What the judges share: the stages that see the image and the names of the findings."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        first = _convolution(14, widths[0])  # 3 colours x 2 x 2 pixels and 2 coordinates
        if config.architecture == "mixer":
            mixer = PatchMixer(
                inputs=widths[1], side=config.size // 4, channels=widths[2],
                depth=len(widths) - 2, patch=2,
            )  # fmt: skip
            later = [_convolution(widths[0], widths[1], stride=2), mixer]
        else:
            later = [_stage(widths[level], widths[level + 1]) for level in range(3)]
        self.stages = nn.ModuleList([first, *later])

    def features(self, image: Tensor) -> list[Tensor]:
        """Features at size/2, size/4, size/8 and size/16 of an image (B, 3, H, W) in [0, 1].

        A mixer has three: at size/2, size/4 and, of its patches, at size/8.
        """
        check_image(image, minimum=32, in_range=not self.training)
        size = (self.config.size, self.config.size)
        if image.shape[2:] != size:
            image = resize(image, size)
        x = F.pixel_unshuffle(2 * image - 1, 2)  # (B, 12, size/2, size/2): every pixel is kept
        x = torch.cat([x, _coordinates(x)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels

    def start_from(self, other: "Judge") -> None:
        """Copy another judge's stages, the part that sees the image.

        A segmenter that starts from a trained classifier needs a fraction of the steps.

        Raises:
            ValueError: if the stages are of another shape.
        """
        load_strictly(self.stages, other.stages.state_dict(), name="stages to start from")

    def indices(self, names: Sequence[str]) -> list[int]:
        """Positions of findings among the outputs.

        Raises:
            ValueError: if a name is not among `config.findings`.
        """
        lacking = [name for name in names if name not in self.config.findings]
        if lacking:
            raise ValueError(
                f"this {self.config.kind} knows {', '.join(self.config.findings)}; "
                f"it has no {', '.join(lacking)}"
            )
        return [self.config.findings.index(name) for name in names]


class FindingClassifier(Judge):
    """Says which findings an image shows, and on which side.

    Four stages of two convolutions, or a mixer, then one attention pooling per finding and side:
    each of them looks at the place where it expects its evidence.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        config = config or JudgeConfig(kind="classifier")
        if config.kind != "classifier":
            raise ValueError(f"expected a classifier's configuration, got kind {config.kind!r}")
        super().__init__(config)
        outputs = 2 * len(config.findings) + 1
        self.evidence = nn.Conv2d(config.widths[-1] + 2, outputs, 1)
        self.gaze = nn.Conv2d(config.widths[-1] + 2, outputs, 1)

    def forward(self, image: Tensor) -> Reading:
        """Read an image (B, 3, H, W) in [0, 1] of any size from 32 px; see `Reading`."""
        x = self.features(image)[-1]
        x = torch.cat([x, _coordinates(x)], dim=1)
        evidence, gaze = self.evidence(x).flatten(2).float(), self.gaze(x).flatten(2).float()
        logits = (evidence * gaze.softmax(dim=2)).sum(dim=2)  # (B, 2 F + 1)
        sides = logits[:, :-1].unflatten(1, (-1, 2))  # (B, F, 2)
        return Reading(presence=sides.amax(dim=2), sides=sides, eye=logits[:, -1])

    def probability(self, image: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Probability of presence of the named findings (default: all): (B, names) in [0, 1]."""
        chosen = self.indices(self.config.findings if names is None else names)
        return self(image).presence[:, chosen].sigmoid()

    def sides(self, image: Tensor, name: str) -> list[str]:
        """The side that each image (B, 3, H, W) in [0, 1] shows one finding on, if it shows it.

        Returns:
            B words: "bilateral" if both sides are positive, otherwise the likelier of "right" and
            "left" (patient's, chest) or "superior" and "inferior" (fundus).
        """
        (index,) = self.indices([name])
        first, second = HALVES["chest" if name in CHEST_FINDINGS else "fundus"]
        return [
            "bilateral" if min(pair) > 0 else first if pair[0] >= pair[1] else second
            for pair in self(image).sides[:, index].tolist()
        ]


class FindingSegmenter(Judge):
    """Says where each finding is: a small U-Net whose logits are at half its size.

    Twice as fine would cost four times the training time for masks that agree with the exact ones
    to a Dice of .97 to 1.00 already (see `judge_scores` for what is reached).
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        config = config or JudgeConfig(kind="segmenter")
        if config.kind != "segmenter":
            raise ValueError(f"expected a segmenter's configuration, got kind {config.kind!r}")
        super().__init__(config)
        widths = config.widths
        self.narrow = nn.ModuleList(
            nn.Conv2d(widths[level + 1], widths[level], 1) for level in range(3)
        )
        self.merge = nn.ModuleList(_convolution(widths[level], widths[level]) for level in range(3))
        self.head = nn.Conv2d(widths[0], len(config.findings), 1)
        nn.init.constant_(self.head.bias, -3.0)  # most pixels are outside of most findings

    def coarse(self, image: Tensor) -> Tensor:
        """Logits (B, F, size/2, size/2) of an image (B, 3, H, W) in [0, 1]; these are trained."""
        *skips, x = self.features(image)
        for level in (2, 1, 0):
            x = F.interpolate(self.narrow[level](x), scale_factor=2.0) + skips[level]
            x = self.merge[level](x)
        return self.head(x).float()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, F, H, W), positive inside a finding, of an image (B, 3, H, W) in [0, 1]."""
        return F.interpolate(self.coarse(image), size=image.shape[2:], mode="bilinear")

    def mask(self, image: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Mask (B, names, H, W) bool of the named findings (default: all)."""
        chosen = self.indices(self.config.findings if names is None else names)
        return self(image)[:, chosen] > 0


def save_judge(folder: str | Path, judge: Judge) -> Path:
    """Write a judge's weights (half floats) and configuration into a folder."""
    return save_checkpoint(folder, judge.state_dict(), asdict(judge.config), dtype=torch.float16)


def _load_judge(folder: str | Path, kind: str, network: type[Judge], device: str) -> Judge:
    state, config = load_checkpoint(folder, kind=kind, device=device)
    judge = network(JudgeConfig(**config)).to(device)
    load_strictly(judge, state, name=f"{kind} {folder}")
    return judge.eval().requires_grad_(False)


def load_classifier(folder: str | Path, *, device: str = "cpu") -> FindingClassifier:
    """Read a classifier written by `save_judge`, frozen and in evaluation mode."""
    return _load_judge(folder, "classifier", FindingClassifier, device)


def load_segmenter(folder: str | Path, *, device: str = "cpu") -> FindingSegmenter:
    """Read a segmenter written by `save_judge`, frozen and in evaluation mode."""
    return _load_judge(folder, "segmenter", FindingSegmenter, device)
