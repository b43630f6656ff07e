"""What an eye would just notice, by which watermarks weigh the change of each pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.images import luma


def just_noticeable_difference(image: Tensor) -> Tensor:
    """By how much the grey of each pixel may change before the eye notices.

    The eye misses more where the surroundings are dark or very bright, and where there is much
    contrast; the two are added but for an overlap (Chou and Li, IEEE Trans. Circuits Syst. Video
    Technol. 1995; Yang et al., Signal Process. Image Commun. 2005). Watermark Anything weights its
    residual by such a map.

    Args:
        image: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) in [0, 1] units: 20/255 on black, about 3/255 on plain middle grey.
    """
    grey = 255 * luma(image.float().clamp(0, 1))
    around = torch.ones(5, 5, device=image.device)
    around[1:4, 1:4] = 2
    around[2, 2] = 0
    mean = F.conv2d(F.pad(grey, (2,) * 4, mode="replicate"), around[None, None] / 32)
    dark = 17 * (1 - (mean.clamp(max=127) / 127).sqrt())
    bright = 3 / 128 * (mean - 127).clamp(min=0)
    adaptation = 3 + dark + bright
    slope = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=image.device)
    edges = F.conv2d(
        F.pad(grey, (1,) * 4, mode="replicate"), torch.stack([slope, slope.T])[:, None]
    )
    contrast = edges.square().sum(dim=1, keepdim=True)  # squared
    hidden = 0.117 * 16 * contrast**1.2 / (contrast + 26**2)
    return (adaptation + hidden - 0.3 * torch.minimum(adaptation, hidden)) / 255
