"""CAS and AAS on maps whose clusters, and values whose scaling, can be worked out by hand."""

import math

import numpy as np
import pytest
import torch

from medsign_lite.selection import average_tokens, scale_attention, select_token


def blob_map(*centres, size=64, width=6.4):
    """(size, size): equal Gaussian bumps at the centres."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    bumps = [
        torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2)) for y, x in centres
    ]
    return torch.stack(bumps).sum(dim=0)


ONE = blob_map((32, 32))
FOUR = blob_map((16, 16), (16, 48), (48, 16), (48, 48))


def squares(*corners, side=3, size=16):
    """(size, size): 1 on squares with these upper-left corners, else 0."""
    mask = torch.zeros(size, size)
    for y, x in corners:
        mask[y : y + side, x : x + side] = 1
    return mask


def test_select_token_takes_the_map_with_fewest_clusters():
    selection = select_token(torch.stack([FOUR, ONE]), [3, 4])
    assert selection.index == 1
    assert torch.equal(selection.map, ONE)
    assert [score.clusters for score in selection.scores] == [4, 1]
    assert [score.chosen for score in selection.scores] == [False, True]
    assert [score.token for score in selection.scores] == [3, 4]


def test_grid_features_count_connected_regions():
    """Nine-pixel squares: every pixel of one has a neighbour with five or more in reach."""
    maps = torch.stack([squares((1, 1), (1, 8), (10, 4)), squares((1, 1), (10, 10))])
    selection = select_token(maps, [1, 2], features="grid")
    assert [score.clusters for score in selection.scores] == [3, 2]
    assert [score.noise for score in selection.scores] == [0.0, 0.0]
    assert selection.index == 1


def test_noise_is_the_share_of_pixels_in_no_cluster():
    maps = squares((1, 1))
    maps[10, 10] = 1  # alone: 1 of 10 pixels
    selection = select_token(maps[None], [0], features="grid")
    assert selection.scores[0].noise == pytest.approx(0.1)


def test_spread_is_the_distance_from_the_centre_in_map_sides():
    """Nine pixels of a square: mean squared offset 2/3 per axis, on 16 pixels: sqrt(4/3) / 16."""
    selection = select_token(squares((5, 2))[None], [0], features="grid")
    assert selection.scores[0].spread == pytest.approx(math.sqrt(4 / 3) / 16)


def test_no_cluster_is_the_worst_score_not_the_best():
    scattered = torch.zeros(16, 16)
    scattered[::5, ::5] = 1  # isolated pixels: DBSCAN finds nothing dense
    maps = torch.stack([scattered, squares((1, 1), (1, 8), (10, 4))])
    selection = select_token(maps, [1, 2], features="grid")
    assert [score.clusters for score in selection.scores] == [0, 3]
    assert selection.index == 1


def test_nearly_constant_map_is_rejected():
    flat = 1 + 1e-4 * ONE
    selection = select_token(torch.stack([flat, FOUR]), [1, 2])
    assert [score.constant for score in selection.scores] == [True, False]
    assert selection.scores[0].clusters < selection.scores[1].clusters  # it would have won
    assert selection.index == 1


def test_every_map_nearly_constant_is_an_error():
    with pytest.raises(ValueError, match=r"tokens \[4, 5\] is nearly constant"):
        select_token(torch.ones(2, 8, 8), [4, 5])


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (squares((1, 1)) + squares((10, 10), side=1), squares((1, 1))),
        (squares((1, 1), (1, 12)), squares((1, 1), (1, 6))),
    ],
    ids=["noise", "spread"],
)
def test_ties_break_by_noise_then_spread(worse, better):
    selection = select_token(torch.stack([worse, better]), [0, 1], features="grid")
    first, second = selection.scores
    assert first.clusters == second.clusters
    assert selection.index == 1


def test_full_ties_break_by_order_in_the_prompt():
    selection = select_token(torch.stack([ONE, ONE, ONE]), [5, 6, 7])
    assert selection.index == 0


def test_selection_does_not_depend_on_the_scale_of_attention():
    maps = torch.stack([FOUR, ONE])
    small, large = select_token(maps, [0, 1]), select_token(maps * 4096, [0, 1])
    assert small.scores == large.scores


def test_scikit_learn_defaults_on_plain_pixels_say_nothing():
    """Why CAS here clusters (x, y, value): integer pixels give no cluster for any map."""
    for one in (ONE, FOUR):
        score = select_token(one[None], [0], features="grid", eps=0.5).scores[0]
        assert (score.clusters, score.noise) == (0, 1.0)


def test_side_gives_small_maps_enough_pixels():
    small = torch.stack([blob_map((8, 8), size=16, width=1.6)])
    assert select_token(small, [0]).scores[0].clusters == 0
    selection = select_token(small, [0], side=64)
    assert selection.scores[0].clusters == 1
    assert selection.map.shape == (16, 16)


def test_rows_hold_the_whole_table():
    rows = select_token(torch.stack([FOUR, ONE]), [3, 4]).rows()
    assert [row["token"] for row in rows] == [3, 4]
    assert list(rows[0]) == ["token", "clusters", "noise", "spread", "constant", "chosen"]


@pytest.mark.parametrize(
    ("maps", "tokens", "options", "message"),
    [
        (torch.rand(2, 4, 4), [1], {}, "expected maps"),
        (torch.rand(4, 4), [1], {}, "expected maps"),
        (torch.rand(0, 4, 4), [], {}, "expected maps"),
        (torch.rand(1, 4, 4), [1], {"features": "pixels"}, "features: expected one of"),
        (torch.rand(1, 4, 4), [1], {"quantile": 90}, r"quantile: expected .* in \[0, 1\], got 90"),
        (torch.rand(1, 4, 4), [1], {"min_samples": 0}, "min_samples: expected a positive number"),
        (torch.full((1, 4, 4), torch.nan), [7], {}, r"tokens \[7\]: expected finite numbers"),
    ],
    ids=["count", "dimensions", "none", "features", "quantile", "samples", "nan"],
)
def test_select_token_refuses_bad_arguments(maps, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        select_token(maps, tokens, **options)


def test_average_tokens_is_the_mean_over_tokens():
    maps = torch.tensor([[[0.0, 2.0]], [[4.0, 4.0]]])
    assert torch.equal(average_tokens(maps), torch.tensor([[2.0, 3.0]]))
    assert average_tokens(maps[None]).shape == (1, 1, 2)
    with pytest.raises(ValueError, match="expected maps"):
        average_tokens(maps[0])


def independent_scaling(one: np.ndarray, quantile: float) -> tuple[np.ndarray, float]:
    """A and tau of Eq. 1, in NumPy."""
    sigmoid = 1 / (1 + np.exp(-(one - one.mean()) / one.std()))
    refined = (sigmoid - sigmoid.min()) / (sigmoid.max() - sigmoid.min())
    return refined, np.quantile(refined, quantile)


@pytest.mark.parametrize("quantile", [0.5, 0.7])
def test_literal_scaling_is_equation_1(quantile):
    maps = torch.stack([ONE, FOUR]).double()
    scaled = scale_attention(maps, quantile=quantile)
    for one, result in zip(maps.numpy(), scaled, strict=True):
        refined, tau = independent_scaling(one, quantile)
        np.testing.assert_allclose(result, 1 / (1 + np.exp(tau - refined)), rtol=1e-5)


def test_literal_scaling_stays_in_a_narrow_band_and_sharp_does_not():
    noise = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([ONE, FOUR, noise])
    literal, sharp = scale_attention(maps), scale_attention(maps, preset="sharp")
    assert 0.32 < literal.min() and literal.max() < 0.735
    assert (literal.amax((1, 2)) - literal.amin((1, 2))).max() < 0.25
    assert torch.equal(sharp.amin((1, 2)), torch.zeros(3))
    assert torch.equal(sharp.amax((1, 2)), torch.ones(3))


def test_gain_replaces_the_gain_of_a_preset():
    maps = torch.stack([ONE, FOUR])
    assert torch.equal(scale_attention(maps), scale_attention(maps, gain=1))
    sharp = scale_attention(maps, preset="sharp")
    assert torch.equal(sharp, scale_attention(maps, preset="sharp", gain=20))
    literal = scale_attention(maps, gain=20).double()
    low, high = literal.amin((1, 2), keepdim=True), literal.amax((1, 2), keepdim=True)
    torch.testing.assert_close(((literal - low) / (high - low)).float(), sharp)


def test_hard_scaling_keeps_the_top_30_percent():
    """By hand: of 0..9 the 0.7 quantile is 6.3, so 7, 8 and 9 stay."""
    maps = torch.arange(10.0).reshape(1, 2, 5)
    expected = torch.tensor([[[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]], dtype=torch.float32)
    assert torch.equal(scale_attention(maps, preset="hard"), expected)


def test_no_scaling_only_stretches():
    maps = torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    expected = torch.tensor([[0.0, 0.5], [0.25, 1.0]])
    assert torch.equal(scale_attention(maps, preset=None), expected)


def test_scaling_treats_every_map_by_itself():
    maps = torch.stack([ONE, 100 * FOUR + 7])
    for preset in ("literal", "sharp", "hard", None):
        together = scale_attention(maps, preset=preset)
        torch.testing.assert_close(together[1], scale_attention(maps[1], preset=preset))
        torch.testing.assert_close(
            together[1], scale_attention(FOUR, preset=preset), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (ONE, {"preset": "soft"}, "preset: expected one of"),
        (ONE, {"preset": "hard", "gain": 5}, "has no gain"),
        (ONE, {"quantile": 70}, r"expected a number in \[0, 1\], got 70"),
        (torch.ones(4, 4), {}, "constant"),
        (torch.full((4, 4), torch.nan), {"preset": None}, "constant"),
    ],
    ids=["preset", "gain", "quantile", "constant", "nan"],
)
def test_scaling_refuses_bad_arguments(maps, options, message):
    with pytest.raises(ValueError, match=message):
        scale_attention(maps, **options)
