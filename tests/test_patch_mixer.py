"""The mixer: patches become tokens in place, and every place reaches every other."""

import pytest
import torch

from medsign_lite.judges.patch_mixer import MixerBlock, PatchMixer


def mixer(depth=1):
    torch.manual_seed(0)
    return PatchMixer(inputs=3, side=8, channels=16, depth=depth, patch=2)


def test_tokens_lie_where_their_patches_are():
    """Without blocks nothing is mixed: a changed pixel changes its own patch alone."""
    network, image = mixer(depth=0), torch.rand(1, 3, 8, 8)
    other = image.clone()
    other[0, 1, 5, 2] += 1  # in the patch of row 2, column 1
    changed = (network(other) - network(image)).abs().amax(dim=1)[0] > 0
    assert changed.shape == (4, 4) and changed.nonzero().tolist() == [[2, 1]]


def test_every_place_reaches_every_other():
    network, image = mixer(), torch.rand(1, 3, 8, 8)
    other = image.clone()
    other[0, 1, 5, 2] += 1
    assert ((network(other) - network(image)).abs().amax(dim=1) > 0).all()


def test_block_adds_what_both_layers_make():
    torch.manual_seed(0)
    block, x = MixerBlock(4, 8), torch.rand(2, 4, 8)
    places = block.places(block.norms[0](x).mT).mT
    half = x + 0.1 * places
    torch.testing.assert_close(block(x), half + 0.1 * block.channels(block.norms[1](half)))


def test_side_must_be_made_of_patches():
    with pytest.raises(ValueError, match="divisible into patches of 3, got 8"):
        PatchMixer(inputs=3, side=8, channels=16, depth=1, patch=3)
