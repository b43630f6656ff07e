import math

import pytest
import torch

from medsign_lite.baselines.noticeable import just_noticeable_difference


def test_just_noticeable_difference_by_hand():
    def at(grey):
        image = torch.full((1, 3, 8, 8), grey / 255)
        return 255 * just_noticeable_difference(image)[0, 0, 4, 4].item()

    assert at(0) == pytest.approx(20)
    assert at(127) == pytest.approx(3)
    assert at(127 / 4) == pytest.approx(3 + 17 / 2, abs=1e-3)
    assert at(255) == pytest.approx(6)
    step = torch.full((1, 3, 8, 8), 0.0)
    step[..., 4:] = 127 / 255
    # Left of the edge Sobel's slope is 4 * 127, and the bright neighbours weigh 8 + 5 of 32.
    around = 17 * (1 - math.sqrt(13 / 32)) + 3
    hidden = 0.117 * 16 * 508**2.4 / (508**2 + 26**2)
    expected = around + hidden - 0.3 * min(around, hidden)
    got = 255 * just_noticeable_difference(step)[0, 0, 4, 3].item()
    assert got == pytest.approx(expected, rel=1e-4)
