"""Which part of a picture is marked: random regions, splicing, and attacks that move the region."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medsign_lite.attacks import PAPER_ATTACKS, random_attack

MOVING = ("crop", "rotation", "resize")  # attacks that the region must follow
ATTACKS = (*PAPER_ATTACKS, "flip")


def random_regions(
    count: int, size: tuple[int, int], *, generator: torch.Generator, figures: float = 1.0
) -> Tensor:
    """Where the mark is kept: (count, 1, H, W) in {0, 1} of images of size (H, W).

    All of the image, nothing, a rectangle, an ellipse, or all but one of these, each as likely. The
    sides of the figures are 30 to 90 % of the image's. A share of 1 - `figures` of them is replaced
    by all of the image, which is easier to learn from.
    """
    kind = torch.randint(5, (count,), generator=generator)
    kind[(kind > 1) & (torch.rand(count, generator=generator) >= figures)] = 0
    rectangle, ellipse = _figures(count, size, generator)
    round_hole = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    hole = ~torch.where(round_hole, ellipse, rectangle)
    whole = torch.ones_like(rectangle)
    kinds = torch.stack([whole, ~whole, rectangle, ellipse, hole])
    return kinds[kind, torch.arange(count)].float()


def random_patches(count: int, size: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """Rectangles and ellipses of the same sizes, (count, 1, H, W) in {0, 1}: what a thief takes."""
    rectangle, ellipse = _figures(count, size, generator)
    is_round = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(is_round, ellipse, rectangle).float()


def _figures(
    count: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rectangles (count, 1, H, W) bool, and the ellipses that touch their sides."""
    half = 0.15 + 0.3 * torch.rand(2, count, 1, 1, 1, generator=generator)
    centre = half + (1 - 2 * half) * torch.rand(2, count, 1, 1, 1, generator=generator)
    places = [(torch.arange(side) + 0.5) / side for side in size]
    down = (places[0][:, None] - centre[0]).abs() / half[0]  # (count, 1, H, 1); 1 at the rim
    across = (places[1] - centre[1]).abs() / half[1]
    return torch.maximum(down, across) <= 1, down.square() + across.square() <= 1


def splice(marked: Tensor, image: Tensor, region: Tensor, *, generator: torch.Generator) -> Tensor:
    """Keep marked images (B, 3, H, W) in a region (B, 1, H, W) in {0, 1}.

    The rest is the unmarked image itself or, for half of them, the next image of the batch.
    """
    foreign = torch.rand(len(image), 1, 1, 1, generator=generator) < 0.5
    rest = torch.where(foreign.to(image.device), image.roll(-1, dims=0), image)
    return torch.where(region.bool(), marked, rest)


def attack_with_region(
    image: Tensor,
    region: Tensor,
    *,
    names: Sequence[str] = ATTACKS,
    generator: torch.Generator,
    strength: float = 1.0,
    minimum: int = 16,
) -> tuple[Tensor, Tensor]:
    """Draw one attack for the whole batch; the region goes where the pixels go.

    Args:
        image: (B, 3, H, W) around [0, 1].
        region: (B, 1, H, W) in {0, 1}.
        names: "flip" (left to right or upside down) and what `random_attack` knows.
        generator, strength, minimum: as in `random_attack`.

    Returns:
        Both after the attack, (B, 3, h, w) and (B, 1, h, w); a pixel belongs to the region if more
        than half of it comes from there, and what comes into view does not.
    """
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    if name == "flip":
        side = -1 - int(torch.randint(2, (1,), generator=generator))
        return (image.flip(side), region.flip(side)) if strength > 0 else (image, region)
    again = torch.Generator()
    again.set_state(generator.get_state())  # the same draws for both
    options = {"names": (name,), "strength": strength, "minimum": minimum}
    image = random_attack(image, generator=generator, **options)
    if name in MOVING:
        moved = random_attack(region.expand(-1, 3, -1, -1), generator=again, **options)
        region = (moved[:, :1] > 0.5).to(region.dtype)
    return image, region
