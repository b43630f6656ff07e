"""Perceptual losses: Watson-VGG with its published weights, and a stand-in without weights.

Watson-VGG (Czolbe et al., NeurIPS 2020) is what the paper uses. Its trained weights are a
download (`rgb_watson_vgg_trial0.pth`, https://github.com/SteffenCzolbe/PerceptualSimilarity).
Where the file is absent `MaskedPyramid` stands in, and says so in its `name`.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.checkpoints import load_strictly, read_plain_tensors
from medsign_lite.metrics import ssim

# Channels of the convolutions of VGG-16, stage by stage; a stage starts with a 2x2 maximum.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SMALL = 1e-10
COLOUR = 4.0  # times that a colour counts where evenness is asked for


class VGGFeatures(nn.Module):
    """Features of VGG-16 after relu1_2, 2_2, 3_3, 4_3 and 5_3, under the published names."""

    def __init__(self):
        super().__init__()
        inputs, position = 3, 0  # position counts the layers of VGG-16, which name the weights
        for stage, widths in enumerate(_VGG_STAGES, start=1):
            slice_ = nn.Sequential()
            if stage > 1:
                slice_.add_module(str(position), nn.MaxPool2d(2))
                position += 1
            for outputs in widths:
                slice_.add_module(str(position), nn.Conv2d(inputs, outputs, 3, padding=1))
                slice_.add_module(str(position + 1), nn.ReLU())
                inputs, position = outputs, position + 2
            self.add_module(f"slice{stage}", slice_)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        for slice_ in self.children():
            image = slice_(image)
            features.append(image)
        return features


class WatsonVGG(nn.Module):
    """Watson's distance on VGG features: differences weigh less where the target is busy.

    Features are scaled to length 1 over channels. A difference is divided by the larger (softly)
    of a learnt sensitivity t and the masked |target|^w t^(1 - w). Absolute values to the power
    beta are summed over channels, averaged over space, summed over layers.
    """

    name = "watson-vgg"

    def __init__(self):
        super().__init__()
        self.vgg = VGGFeatures()
        self.shift = nn.Parameter(torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.scale = nn.Parameter(torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for layer, widths in enumerate(_VGG_STAGES):
            self.register_parameter(f"t{layer}_tild", nn.Parameter(torch.zeros(widths[-1])))
            mixing = torch.tensor(math.log(0.2 / 0.8))  # the inverse sigmoid of .2
            self.register_parameter(f"w{layer}_tild", nn.Parameter(mixing))
        self.beta = nn.Parameter(torch.tensor(1.0))
        self.requires_grad_(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """image, reference: (B, 3, H, W) in [0, 1], H and W at least 16, to a scalar: the mean
        over images. The mask comes from the reference, so the order matters."""
        _check_pair(image, reference, minimum=16)
        features = self.vgg((image - self.shift) / self.scale)
        targets = self.vgg((reference - self.shift) / self.scale)
        distance = image.new_zeros(len(image))
        for layer, (feature, target) in enumerate(zip(features, targets, strict=True)):
            target = target / (target.norm(dim=1, keepdim=True) + _SMALL)
            feature = feature / (_safe_norm(feature) + _SMALL)
            sensitivity = getattr(self, f"t{layer}_tild").exp().view(1, -1, 1, 1)
            mixing = getattr(self, f"w{layer}_tild").sigmoid()
            masked = (target.abs() + _SMALL) ** mixing * sensitivity ** (1 - mixing)
            share = torch.sigmoid(masked - sensitivity)  # a softmax over the two
            threshold = share * masked + (1 - share) * sensitivity
            error = (((target - feature) / threshold).abs() + _SMALL) ** self.beta
            distance = distance + error.sum(dim=1).mean(dim=(1, 2))
        return (distance ** (1 / self.beta)).mean()


def _safe_norm(feature: Tensor) -> Tensor:
    """Length over channels whose gradient is finite where every channel is 0."""
    return (feature.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()


class MaskedPyramid(nn.Module):
    """A stand-in for Watson-VGG without trained weights: masked errors of a Laplacian pyramid.

    The difference of each band is divided by what could just be seen there, Watson's contrast
    masking: `threshold * max(1, m / threshold)^masking`, m the mean absolute value of the
    reference's band nearby. The result is the mean square of that ratio over the bands, so 1 is
    about a just visible mark. It knows edges and texture, but nothing that VGG has learnt.

    Args:
        levels: bands; each next one has half the side. Small images use fewer.
        threshold: just visible contrast in a flat place, in [0, 1] units.
        masking: from 0, where an error weighs the same everywhere, to 1. A lesion is busier than
            what surrounds it: what an eye forgives there is not what a diagnosis forgives.
    """

    def __init__(self, *, levels: int = 4, threshold: float = 0.01, masking: float = 0.7):
        super().__init__()
        if not 0 <= masking <= 1:
            raise ValueError(f"masking: expected 0 to 1, got {masking}")
        self.levels, self.threshold, self.masking = levels, threshold, masking
        self.name = "masked-pyramid" + ("" if masking == 0.7 else f"-{_number(masking)}")
        if (levels, threshold) != (4, 0.01):
            self.name += f" of {levels} levels from {_number(threshold)}"
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", (kernel[:, None] * kernel)[None, None], persistent=False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """image, reference: (B, 3, H, W) in [0, 1], H and W at least 16, to a scalar: the mean
        over images. The mask comes from the reference, so the order matters."""
        _check_pair(image, reference, minimum=16)
        difference = image - reference
        total, bands = image.new_zeros(()), 0
        while bands < self.levels and min(difference.shape[-2:]) >= 8:
            difference_low, reference_low = self._blur(difference), self._blur(reference)
            busy = self._blur((reference - reference_low).abs())
            visible = self.threshold * (busy / self.threshold).clamp(min=1) ** self.masking
            total = total + ((difference - difference_low) / visible).square().mean()
            difference, reference = difference_low[..., ::2, ::2], reference_low[..., ::2, ::2]
            bands += 1
        rest = (difference / self.threshold).square().mean()  # the coarsest: plain brightness
        return (total + rest) / (bands + 1)

    def _blur(self, image: Tensor) -> Tensor:
        batch, channels, height, width = image.shape
        padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
        planes = padded.reshape(batch * channels, 1, height + 4, width + 4)
        return F.conv2d(planes, self.kernel.to(image.dtype)).view(image.shape)


def _number(value: float) -> str:
    """As short as possible, and exactly this number when it is read again."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


class _WithTerm(nn.Module):
    """A perceptual loss plus `weight` times a term of its own, which its name tells."""

    option, label = "", ""

    def __init__(self, loss: nn.Module, weight: float):
        super().__init__()
        if not 0 < weight < math.inf:
            raise ValueError(f"{self.option}: expected a weight above 0, got {weight}")
        self.loss, self.weight = loss, weight
        self.name = f"{loss.name}+{self.label}-{_number(weight)}"

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """image, reference: (B, 3, H, W) in [0, 1], H and W at least 16, to a scalar."""
        return self.loss(image, reference) + self.weight * self.term(image, reference)


class WithStructure(_WithTerm):
    """A perceptual loss plus `weight` times one minus SSIM, the mean over images.

    SSIM (Wang et al., 2004) forgives what changes slowly and what lies in texture. What it scores
    worst is fine grain in a flat place, which is where a mark goes that is kept off a finding.
    """

    option, label = "structure", "ssim"

    def term(self, image: Tensor, reference: Tensor) -> Tensor:
        return 1 - ssim(image, reference, data_range=1.0).mean()


class WithEvenness(_WithTerm):
    """A perceptual loss plus `weight` times the root mean square, over windows, of their error.

    A window's error is the mean of its squared differences, in units of a just visible one (.01
    squared), in which that of colour counts `colour` times: a radiograph has none. Where the mark
    is spread evenly and grey this is its mean squared error. A speckle raises it far more than it
    raises that mean, and SSIM, which is bounded, hardly sees it.
    """

    option, label = "evenness", "even"

    def __init__(self, loss: nn.Module, weight: float, *, colour: float = COLOUR):
        super().__init__(loss, weight)
        if not 1 <= colour < math.inf:
            raise ValueError(f"colour: expected at least 1, as the rest counts, got {colour}")
        self.colour = colour
        if colour != COLOUR:
            self.name += f"-colour-{_number(colour)}"

    def term(self, image: Tensor, reference: Tensor) -> Tensor:
        difference = (image - reference) / 0.01
        colour = difference - difference.mean(dim=1, keepdim=True)
        squared = (difference.square() + (self.colour - 1) * colour.square()).mean(dim=1)
        windows = F.avg_pool2d(squared, 8, stride=4)  # (B, h, w), half over one another
        return (windows.square().mean(dim=(1, 2)) + _SMALL).sqrt().mean()


def perceptual_loss(
    weights: str | Path | None = None,
    *,
    masking: float = 0.7,
    structure: float = 0.0,
    evenness: float = 0.0,
    colour: float = COLOUR,
) -> nn.Module:
    """Watson-VGG with its published weights, or the stand-in if `weights` is None.

    Record the result's `name` ("watson-vgg", "masked-pyramid") with whatever is trained.

    Args:
        weights: the published .pth file.
        masking: of the stand-in.
        structure: above 0, the weight of one minus SSIM, which is added to either.
        evenness: above 0, the weight of `WithEvenness`, which is added to either.
        colour: how many times it counts what an error has of colour, at least 1.

    Raises:
        FileNotFoundError: if the file is named but absent: nothing else stands in for it then.
        ValueError: if it is not a state dict, or not that of Watson-VGG.
    """
    if weights is None:
        return _with(MaskedPyramid(masking=masking), structure, evenness, colour)
    state = read_plain_tensors(weights)
    loss = WatsonVGG()
    load_strictly(loss, state, name=f"Watson-VGG in {Path(weights).name}")
    return _with(loss.eval(), structure, evenness, colour)


def perceptual_of(name: str, weights: str | Path | None = None) -> nn.Module:
    """The loss that calls itself `name`, as a decoder's configuration records it.

    Args:
        name: such as "masked-pyramid-0+ssim-6+even-0.5", or "...+even-0.5-colour-1".
        weights: the published file, for "watson-vgg".

    Raises:
        ValueError: if no loss has that name, or Watson-VGG is named without its file.
    """
    number = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    found = re.fullmatch(
        rf"(masked-pyramid|watson-vgg)(?:-{number})?(?:\+ssim-{number})?"
        rf"(?:\+even-{number}(?:-colour-{number})?)?",
        name,
    )
    if found and (found[1] == "masked-pyramid" or (weights is not None and not found[2])):
        loss = perceptual_loss(
            weights if found[1] == "watson-vgg" else None,
            masking=float(found[2] or 0.7), structure=float(found[3] or 0),
            evenness=float(found[4] or 0), colour=float(found[5] or COLOUR),
        )  # fmt: skip
        if loss.name == name:
            return loss
    raise ValueError(
        f"no perceptual loss of the name {name!r}; Watson-VGG also needs its file of weights"
    )


def _with(loss: nn.Module, structure: float, evenness: float, colour: float) -> nn.Module:
    loss = WithStructure(loss, structure) if structure else loss
    return WithEvenness(loss, evenness, colour=colour) if evenness else loss


def _check_pair(image: Tensor, reference: Tensor, *, minimum: int) -> None:
    if image.shape != reference.shape or image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(
            "expected image and reference of one shape (B, 3, H, W), got "
            f"{tuple(image.shape)} and {tuple(reference.shape)}"
        )
    if min(image.shape[-2:]) < minimum:
        raise ValueError(
            f"a perceptual loss needs at least {minimum} pixels a side, got "
            f"(H, W) = {tuple(image.shape[-2:])}"
        )
