"""VICReg: its loss by hand, what its measures say of known clouds, and one step."""

import pytest
import torch

from medsign_lite.baselines.backbone import SmallBackbone, SmallBackboneConfig
from medsign_lite.baselines.vicreg import (
    distorted_view,
    effective_rank,
    projector,
    spread,
    vicreg_loss,
    vicreg_step,
)


def images(count=16, size=32):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def test_vicreg_loss_by_hand():
    """Two numbers of variance 1/2 and covariance 1/2, in both views; the second is moved by 3."""
    first = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    loss, parts = vicreg_loss(first, first + 3.0, weights=(2.0, 10.0, 4.0))
    lacking = 1 - (0.5 + 1e-4) ** 0.5
    expected = {
        "invariance": 9.0,
        "variance": lacking,
        "covariance": 0.5,
    }  # .5^2 twice, of 2, in 2 views
    assert parts == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(2 * 9 + 10 * lacking + 4 * 0.5, rel=1e-4)


def test_vicreg_loss_wants_no_more_variance_than_one():
    wide = 5 * torch.eye(4)
    assert vicreg_loss(wide, wide)[1]["variance"] == 0.0


def test_spread_is_one_of_random_embeddings_and_none_of_equal_ones():
    random = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(random) == pytest.approx(1.0, abs=0.02)
    assert spread(1e-6 * random) == pytest.approx(1.0, abs=0.02)  # the size does not matter
    assert spread(torch.ones(10, 64)) < 1e-5


def test_effective_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    three = torch.randn(5000, 3, generator=generator) @ torch.linalg.qr(torch.randn(16, 3))[0].T
    assert effective_rank(three + 7) == pytest.approx(3, abs=0.01)
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1)


def test_distorted_view_keeps_the_order_and_the_smallest_side():
    steps = torch.arange(1, 9)[:, None, None, None] / 10
    batch = steps * torch.ones(8, 3, 40, 40)
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(8):
        view = distorted_view(batch, minimum=32, generator=generator)
        assert [len(part) for part in view] == [2, 2, 2, 2]
        assert all(a.mean() <= b.mean() + 0.02 for a, b in (part for part in view))
        sizes |= {part.shape[-2:] for part in view}
    assert min(min(size) for size in sizes) >= 32 and len(sizes) > 1


def test_vicreg_step_brings_the_views_of_one_batch_together():
    torch.manual_seed(0)
    network, head = SmallBackbone(SmallBackboneConfig(channels=(16, 32))), projector(32, 64)
    optimiser = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    history = [
        vicreg_step(network, head, optimiser, images(8), generator=generator) for _ in range(40)
    ]
    mean = [sum(row["loss"] for row in rows) / 10 for rows in (history[:10], history[-10:])]
    assert mean[1] < 0.9 * mean[0]
    assert history[-1]["spread"] > 0.3
