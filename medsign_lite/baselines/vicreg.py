"""VICReg: what an image is, learnt from two distorted views of it, without labels.

Bardes, Ponce and LeCun, ICLR 2022. The views shall have the same embedding, every number of it
shall vary over the batch, and no two of them together. We chose it because it compares an image
with nothing but its own other view, so that a batch of 64 will do: contrastive losses want
thousands of others in the batch, DINO and BYOL a second network and its schedule. And what it asks
for, numbers that vary independently, is what whitening needs. The views are distorted by what a
watermark must survive, not by the colours and small crops of photographs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsign_lite.attacks import random_attack
from medsign_lite.baselines.backbone import SmallBackbone
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import descend

# A view meets one distortion of each row.
GEOMETRY = ("none", "crop", "rotation", "resize")
LIGHT = ("none", "brightness", "contrast", "jpeg", "blur", "noise")
WEIGHTS = (25.0, 25.0, 1.0)  # invariance, variance, covariance: the paper's


def distorted_view(
    image: Tensor, *, parts: int = 4, minimum: int, generator: torch.Generator
) -> list[Tensor]:
    """Images (B, 3, H, W) in [0, 1] in `parts` parts, in order, each of which meets one distortion
    of the geometry and one of the light; sizes differ, but no side goes below `minimum`."""
    view = []
    for part in image.chunk(parts):
        for names in (GEOMETRY, LIGHT):
            part = random_attack(part, names=names, minimum=minimum, generator=generator)
        view.append(part)
    return view


def vicreg_loss(
    first: Tensor, second: Tensor, *, weights: Sequence[float] = WEIGHTS
) -> tuple[Tensor, dict[str, float]]:
    """VICReg of the embeddings (B, E) of two views, B at least 2.

    Invariance is the mean squared difference of the views, variance the mean of what a number's
    standard deviation over the batch lacks to 1, averaged over the views; covariance the sum of the
    squared covariances of different numbers over E, added over the views, as the authors' code has
    them.

    Returns:
        The loss, a weighted sum, and its three parts.
    """
    invariance = (first - second).square().mean()
    variance = covariance = first.new_zeros(())
    for embedding in (first, second):
        batch, width = embedding.shape
        centred = embedding - embedding.mean(dim=0)
        matrix = centred.T @ centred / (batch - 1)
        deviation = (matrix.diagonal() + 1e-4).sqrt()
        variance = variance + F.relu(1 - deviation).mean() / 2
        squares = matrix.square().sum() - matrix.diagonal().square().sum()
        covariance = covariance + squares / width
    parts = {"invariance": invariance, "variance": variance, "covariance": covariance}
    loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def spread(embedding: Tensor) -> float:
    """How far embeddings (B, E) point in different directions: 0 for none, about 1 for random ones.

    The standard deviation over the batch of embeddings of length 1, times sqrt(E) (Chen and He,
    CVPR 2021, look for collapse so).
    """
    unit = F.normalize(embedding.detach().float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Number of independent directions in features (N, F): the exponential of the entropy of their
    normalised singular values (Roy and Vetterli, EUSIPCO 2007), after the mean is taken off."""
    centred = features.double() - features.double().mean(dim=0)
    share = torch.linalg.svdvals(centred)
    share = share / share.sum().clamp(min=1e-300)
    return float(torch.special.entr(share).sum().exp())


def projector(features: int, width: int = 512) -> nn.Sequential:
    """From features to the embedding that the loss looks at; thrown away after training."""
    return nn.Sequential(
        nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width),
    )  # fmt: skip


def vicreg_step(
    network: SmallBackbone,
    head: nn.Module,
    optimiser: torch.optim.Optimizer,
    image: Tensor,
    *,
    weights: Sequence[float] = WEIGHTS,
    generator: torch.Generator,
) -> dict[str, float]:
    """One step on images (B, 3, H, W) in [0, 1]: the loss, its parts, and the spread."""
    features = []
    for _ in range(2):
        view = distorted_view(image, minimum=network.minimum_side, generator=generator)
        with mixed_precision(image.device):
            features.append(torch.cat([network(part) for part in view]))
    first, second = (head(part.float()) for part in features)
    loss, parts = vicreg_loss(first, second, weights=weights)
    descend(loss, optimiser)
    return {"loss": float(loss.detach()), **parts, "spread": spread(first)}
