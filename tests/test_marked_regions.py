import pytest
import torch

from medsign_lite.baselines.marked_regions import (
    attack_with_region,
    random_patches,
    random_regions,
    splice,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quadrant(side=32):
    """The top left quarter of a grey image is white, and is the region."""
    region = torch.zeros(1, 1, side, side)
    region[..., : side // 2, : side // 2] = 1
    return 0.25 + 0.5 * region.expand(-1, 3, -1, -1), region


def test_random_regions_are_of_every_kind():
    share = random_regions(400, (32, 48), generator=generator()).mean(dim=(1, 2, 3))
    assert ((share == 1).float().mean() - 0.2).abs() < 0.06
    assert ((share == 0).float().mean() - 0.2).abs() < 0.06
    partly = share[(share > 0) & (share < 1)]
    assert partly.min() > 0.04 and partly.max() < 0.97
    assert ((partly > 0.5).float().mean() - 0.5).abs() < 0.2  # a third of them are complements


def test_random_regions_are_rectangles_ellipses_and_their_complements():
    regions = random_regions(200, (64, 64), generator=generator())[:, 0].bool()
    seen = {"rectangle": 0, "ellipse": 0, "rectangle hole": 0, "ellipse hole": 0}
    for region in regions:
        if region.all() or not region.any():
            continue
        inverse = bool(region[0, 0] & region[0, -1] & region[-1, 0] & region[-1, -1])
        figure = ~region if inverse else region
        rows, columns = figure.any(dim=1).sum(), figure.any(dim=0).sum()
        filled = float(figure.sum() / (rows * columns))  # 1, or pi / 4 of the box around it
        name = "rectangle" if filled == 1 else "ellipse"
        assert filled == 1 or filled == pytest.approx(torch.pi / 4, abs=0.06)
        seen[name + " hole" * inverse] += 1
    assert min(seen.values()) > 5


def test_random_regions_without_figures_are_all_or_nothing():
    regions = random_regions(200, (16, 16), generator=generator(), figures=0.0)
    share = regions.mean(dim=(1, 2, 3))
    assert set(share.tolist()) == {0.0, 1.0} and (share.mean() - 0.8).abs() < 0.08
    some = random_regions(400, (16, 16), generator=generator(), figures=0.5).mean(dim=(1, 2, 3))
    assert (((some > 0) & (some < 1)).float().mean() - 0.3).abs() < 0.08


def test_random_regions_repeat_with_the_seed():
    one, same, other = (random_regions(8, (16, 16), generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_random_patches_are_parts_of_the_image():
    patches = random_patches(200, (64, 64), generator=generator())
    share = patches.mean(dim=(1, 2, 3))
    assert patches.shape == (200, 1, 64, 64) and set(patches.unique().tolist()) == {0.0, 1.0}
    assert share.min() > 0.04 and share.max() <= 0.81
    rows, columns = (patches.amax(dim=dim).sum(dim=-1)[:, 0] for dim in (3, 2))
    whole = patches.sum(dim=(1, 2, 3)) == rows * columns  # else an ellipse
    assert 0.35 < whole.float().mean() < 0.65


def test_splice_changes_nothing_outside_the_region():
    image = torch.rand(64, 3, 16, 16, generator=generator())
    region = random_regions(64, (16, 16), generator=generator(1))
    spliced = splice(image + 0.1, image, region, generator=generator(2))
    inside, outside = region.expand_as(image).bool(), ~region.expand_as(image).bool()
    assert torch.equal(spliced[inside], (image + 0.1)[inside])
    own = torch.where(outside, spliced - image, 0).flatten(1).abs().amax(dim=1) == 0
    following = torch.where(outside, spliced - image.roll(-1, 0), 0).flatten(1).abs().amax(1) == 0
    assert (own | following).all()
    assert own.sum() > 16 and following.sum() > 16


@pytest.mark.parametrize("name", ["crop", "rotation", "resize", "flip"])
@pytest.mark.parametrize("seed", range(4))
def test_region_moves_with_the_pixels(name, seed):
    image, region = quadrant()
    moved, place = attack_with_region(image, region, names=(name,), generator=generator(seed))
    assert place.shape[-2:] == moved.shape[-2:] and place.shape[:2] == (1, 1)
    assert set(place.unique().tolist()) <= {0.0, 1.0}
    # The region is white and the rest is not, wherever both are now, but for blurred borders.
    assert (place.bool() != (moved[:, :1] > 0.5)).float().mean() < 0.01


def test_flip_takes_the_quadrant_to_a_neighbour():
    image, region = quadrant(4)
    corners = set()
    for seed in range(8):
        moved, place = attack_with_region(image, region, names=("flip",), generator=generator(seed))
        assert torch.equal(place, (moved[:, :1] > 0.5).float())
        corners.add(tuple(place[0, 0, [0, 0, 3, 3], [0, 3, 0, 3]].tolist()))
    assert corners == {(0, 1, 0, 0), (0, 0, 1, 0)}  # top right, bottom left


def test_rotation_brings_unmarked_corners_into_view():
    ones = torch.ones(1, 1, 64, 64)
    areas = []
    for seed in range(6):
        image, place = attack_with_region(
            ones.expand(-1, 3, -1, -1), ones, names=("rotation",), generator=generator(seed)
        )
        assert torch.equal(place, (image[:, :1] > 0.5).float())
        areas.append(place.mean().item())
    assert min(areas) < 0.97


@pytest.mark.parametrize("name", ["none", "brightness", "jpeg"])
def test_region_stays_where_no_pixel_moves(name):
    image, region = quadrant()
    moved, place = attack_with_region(image, region, names=(name,), generator=generator(3))
    assert moved.shape == image.shape and torch.equal(place, region)
    assert torch.equal(moved, image) == (name == "none")


def test_all_attacks_are_drawn_and_none_at_strength_0():
    image, region = quadrant()
    shapes = set()
    draw = generator()
    for _ in range(40):
        moved, place = attack_with_region(image, region, generator=draw)
        shapes.add(tuple(moved.shape[-2:]))
        still, same = attack_with_region(image, region, generator=draw, strength=0.0)
        assert torch.equal(still, image) and torch.equal(same, region)
    assert len(shapes) > 3


def test_unknown_attacks_are_named():
    image, region = quadrant()
    with pytest.raises(ValueError, match="expected names among .*, got 'mirror'"):
        attack_with_region(image, region, names=("mirror",), generator=generator())
