"""Patches and fully connected layers in place of convolutions (MLP-Mixer, Tolstikhin et al., 2021).

The second judge sees images through this, after two convolutions that find edges and dots: patches
of bare pixels learn those too slowly (Xiao et al., 2021). From there a convolutional network goes
on looking at neighbours and a mixer at all places at once, so the two err differently: what both
say is not one network's habit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixerBlock(nn.Module):
    """Mixes places, channel by channel, then channels, place by place; both are added to x.

    Args:
        places: P, how many patches there are.
        channels: C of each.
    """

    def __init__(self, places: int, channels: int) -> None:
        super().__init__()
        self.places = nn.Sequential(
            nn.Linear(places, places // 2), nn.ReLU(), nn.Linear(places // 2, places)
        )
        self.channels = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        # A block begins close to doing nothing, so that a deep stack can be trained from the start.
        self.amounts = nn.Parameter(torch.full((2, channels), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) to the same."""
        mixed = self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.amounts[0] * mixed
        return x + self.amounts[1] * self.channels(self.norms[1](x))


class PatchMixer(nn.Module):
    """An image's square patches as tokens, and `depth` mixer blocks over them.

    Args:
        inputs: channels of what comes in.
        side: of what comes in, H and W; patches need it to be a multiple of `patch`.
        channels: of a token.
        patch: side of a patch.
    """

    def __init__(self, *, inputs: int, side: int, channels: int, depth: int, patch: int) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"expected a side divisible into patches of {patch}, got {side}")
        self.patch = patch
        self.embed = nn.Linear(inputs * patch * patch, channels)
        self.blocks = nn.ModuleList(
            MixerBlock((side // patch) ** 2, channels) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, side, side) to (B, channels, side/patch, side/patch)."""
        grid = x.shape[-1] // self.patch
        tokens = self.embed(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens)  # (B, grid * grid, channels)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (grid, grid))
