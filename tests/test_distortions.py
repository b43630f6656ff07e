import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from medsign_lite import distortions, images


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(batch=2, height=64, width=48, seed=0):
    """Smooth coloured images, as photographs are."""
    return images.resize(torch.rand(batch, 3, 6, 5, generator=generator(seed)), (height, width))


def pillow(image, index=0):
    return Image.fromarray(images.to_bytes(image)[index].numpy())


def test_brightness_by_hand():
    image = torch.tensor([0.0, 0.2, 0.5, 0.8]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert torch.equal(distortions.brightness(image)[0, 0, 0], torch.tensor([0.0, 0.4, 1.0, 1.0]))
    assert torch.equal(distortions.brightness(image, 1.0), image)


def test_contrast_by_hand():
    image = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    expected = torch.tensor([0.0, 0.3, 0.7, 1.0])  # around .5: -.1 and 1.1 are clamped
    assert torch.allclose(distortions.contrast(image, 2.0)[0, 0, 0], expected)


@pytest.mark.parametrize(
    "size, area, expected",
    [((128, 128), 0.5, (90, 90)), ((100, 200), 0.25, (50, 100)), ((512, 512), 0.5, (362, 362)),
     ((31, 33), 1.0, (31, 33))],
    ids=["90.51 rounds down", "quarter", "512", "all"],
)  # fmt: skip
def test_centre_crop_sizes_by_hand(size, area, expected):
    assert distortions.centre_crop(torch.rand(1, 3, *size), area).shape[-2:] == expected


def test_centre_crop_takes_the_centre():
    image = torch.arange(36.0).view(1, 1, 6, 6).expand(1, 3, 6, 6) / 36
    got = distortions.centre_crop(image, 4 / 36 + 1e-9)  # 2 x 2 of 6 x 6
    assert torch.equal(got[0, 0] * 36, torch.tensor([[14.0, 15.0], [20.0, 21.0]]))


def test_resize_area_agrees_with_pillow_at_70_percent():
    image = images.quantise(smooth(1, 128, 128))
    got = distortions.resize_area(image)
    assert got.shape[-2:] == (107, 107)  # 128 * sqrt(.7) = 107.09
    expected = np.asarray(pillow(image).resize((107, 107), Image.Resampling.BILINEAR), float)
    assert np.abs(images.to_bytes(got)[0].numpy() - expected).max() <= 1


@pytest.mark.parametrize("function", [distortions.centre_crop, distortions.resize_area])
def test_resize_back_restores_the_size(function):
    assert function(smooth(), 0.5, resize_back=True).shape == (2, 3, 64, 48)


@pytest.mark.parametrize("degrees", [25.0, -40.0, 90.0, 180.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 64)], ids=["square", "wide"])
def test_rotate_agrees_with_pillow(degrees, size):
    image = images.quantise(smooth(1, *size)) * 0.9 + 0.1  # no black inside
    got = images.to_bytes(distortions.rotate(image, degrees))[0].numpy().astype(int)
    expected = np.asarray(pillow(image).rotate(degrees, Image.Resampling.NEAREST), int)
    # Where a source falls between two pixels the two may round differently, by one pixel.
    assert (np.abs(got - expected).max(axis=-1) > 12).mean() < 0.02
    assert ((got == 0).all(-1) != (expected == 0).all(-1)).mean() < 0.02
    other = np.asarray(pillow(image).rotate(-degrees, Image.Resampling.NEAREST), int)
    if degrees != 180:
        assert (np.abs(got - other).max(axis=-1) > 12).mean() > 0.2  # the sense of rotation counts


def test_rotate_quarter_turn_is_exact_and_fill_fills_the_corners():
    image = torch.rand(1, 3, 32, 32, generator=generator())
    assert torch.equal(distortions.rotate(image, 90.0), torch.rot90(image, 1, (2, 3)))
    for interpolation in ("nearest", "bilinear"):
        got = distortions.rotate(image, 45.0, 0.25, interpolation=interpolation)
        assert torch.allclose(got[..., 0, 0], torch.tensor(0.25))


def test_rotate_twice_returns_the_middle():
    image = smooth(1, 64, 64)
    rotated = distortions.rotate(image, 25.0, interpolation="bilinear")
    back = distortions.rotate(rotated, -25.0, interpolation="bilinear")
    middle = (..., slice(20, 44), slice(20, 44))
    assert (back - image)[middle].abs().max() < 0.05  # interpolated twice
    assert (rotated - image)[middle].abs().max() > 0.2


@pytest.mark.parametrize("quality, subsampling", [(50, 2), (95, 2), (50, 0), (10, 1)])
def test_jpeg_is_pillows_bytes(quality, subsampling):
    image = smooth()
    got = distortions.jpeg(image, quality, subsampling=subsampling)
    for index in range(2):
        buffer = io.BytesIO()
        pillow(image, index).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
        assert torch.equal(got[index], expected)


def test_jpeg_default_halves_the_colour_but_not_the_luma():
    """4:2:0 by construction: a one-pixel colour pattern of constant luma is averaged away."""
    rows = (torch.arange(32) % 2).float().view(1, 1, 32, 1).expand(1, 1, 32, 32)
    luma = torch.tensor([0.299, 0.587, 0.114])
    blue = torch.tensor([-0.114, -0.114, 0.886])  # luma 0
    assert abs(float(luma @ blue)) < 1e-6
    image = 0.5 + 0.3 * (rows - 0.5) * blue.view(1, 3, 1, 1)
    contrast = [
        float(distortions.jpeg(image, 95, subsampling=s)[:, 2].std(correction=0)) for s in (2, 0)
    ]
    assert contrast[0] < 0.02 < 0.1 < contrast[1]


def test_jpeg_passes_the_gradient_of_cosines_that_survive_and_no_other():
    place = math.pi / 8 * (torch.arange(32) + 0.5)
    low, high = (2 * place).cos(), (7 * place).cos()  # columns of a block
    image = (0.5 + 0.1 * low + 0.002 * high).expand(1, 3, 32, 32).clone().requires_grad_()
    (distortions.jpeg(image, 50) * (low + high)).sum().backward()
    passed = image.grad.sum(dim=1)[0]
    assert torch.allclose(passed, 3 * low.expand(32, 32), atol=0.1)
    red, green, blue = image.grad[0, :, 3, 3] / passed[3, 3]
    assert (red, green, blue) == pytest.approx((0.299, 0.587, 0.114), abs=1e-4)


def test_jpeg_gradient_covers_images_that_are_no_whole_blocks():
    image = smooth()[..., :21, :30].clone().requires_grad_()
    distortions.jpeg(image, 80).sum().backward()
    assert image.grad.shape == (*image.shape[:2], 21, 30) and image.grad.mean() > 0.1


def test_gaussian_blur_of_a_dot_is_a_gaussian():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 16, 16] = 1
    row = distortions.gaussian_blur(image, 2.0)[0, 0].sum(dim=0)  # (33,)
    offsets = torch.arange(33.0) - 16
    assert row.sum() == pytest.approx(1, abs=1e-5)
    assert (row * offsets**2).sum() == pytest.approx(4, rel=0.05)  # sigma squared
    assert row[16] / row[18] == pytest.approx(math.exp(0.5), rel=1e-3)


def test_gaussian_noise_has_its_deviation_and_repeats():
    image = torch.full((4, 3, 64, 64), 0.5)
    noisy = distortions.gaussian_noise(image, 0.1)
    assert (noisy - image).std() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy, distortions.gaussian_noise(image, 0.1))
    assert not torch.equal(noisy, distortions.gaussian_noise(image, 0.1, generator=generator(1)))
    assert not torch.equal(noisy[0], noisy[1])
    # It starts again with each call, as the docstring says: two batches share their noise.
    assert torch.equal(distortions.gaussian_noise(image[:2], 0.1), noisy[:2])
    assert torch.equal(distortions.gaussian_noise(image[2:], 0.1), noisy[:2])


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda x: distortions.brightness(x, -1), "brightness factor of at least 0, got -1"),
        (lambda x: distortions.contrast(x, -1), "contrast factor of at least 0, got -1"),
        (lambda x: distortions.centre_crop(x, 0), r"crop area in \(0, 1\], got 0"),
        (lambda x: distortions.centre_crop(x, 1.1), r"crop area in \(0, 1\], got 1.1"),
        (lambda x: distortions.centre_crop(x, 1e-6), r"no pixel of \(H, W\) = \(64, 48\)"),
        (lambda x: distortions.centre_crop(x[..., :1, :1]), "no pixel .* the image is too small"),
        (lambda x: distortions.resize_area(x, -0.5), "resize area above 0, got -0.5"),
        (lambda x: distortions.resize_area(x, 1e-6), "leaves no pixel"),
        (
            lambda x: distortions.rotate(x, math.nan),
            "rotation by a finite angle in degrees, got nan",
        ),
        (lambda x: distortions.rotate(x, 5, fill=2), r"rotation fill in \[0, 1\], got 2"),
        (lambda x: distortions.rotate(x, 5, interpolation="cubic"), "'nearest' or 'bilinear'"),
        (lambda x: distortions.jpeg(x, 0), "a whole JPEG quality 1 to 100, got 0"),
        (lambda x: distortions.jpeg(x, 50.5), "JPEG quality 1 to 100, got 50.5"),
        (lambda x: distortions.jpeg(x, subsampling=3), "JPEG subsampling 0 .* got 3"),
        (lambda x: distortions.gaussian_blur(x, 0), "blur sigma above 0, got 0"),
        (lambda x: distortions.gaussian_blur(x[..., :5], 3.0), "at least 10 pixels"),
        (lambda x: distortions.gaussian_noise(x, -1), "noise deviation of at least 0, got -1"),
    ],
)
def test_out_of_range_parameters_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(smooth())
