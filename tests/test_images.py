import numpy as np
import pytest
import torch
from PIL import Image

from medsign_lite import images


def test_load_image_reads_rgb_in_order_height_width(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)  # H = 2, W = 3
    pixels[1, 2] = (255, 51, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = images.load_image(tmp_path / "a.png")
    assert image.shape == (3, 2, 3) and image.dtype == torch.float32
    assert torch.allclose(image[:, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    assert image[:, 0, 0].sum() == 0


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_load_image_repeats_grey(tmp_path, ending):
    Image.fromarray(np.full((4, 5), 102, np.uint8)).save(tmp_path / f"a.{ending}")
    image = images.load_image(tmp_path / f"a.{ending}")
    assert image.shape == (3, 4, 5)
    assert torch.allclose(image, torch.tensor(0.4), atol=1 / 255)


def png(folder, mode, content=None):
    path = folder / "a.png"
    (Image.new(mode, (4, 4)) if content is None else Image.fromarray(content)).save(path)
    return path


@pytest.mark.parametrize(
    "mode, match",
    [("1", "1 bit"), ("LA", "two channels"), ("RGBA", "four channels"), ("P", "palette")],
)
def test_load_image_refuses_other_channel_counts(tmp_path, mode, match):
    with pytest.raises(ValueError, match=f"expected 8-bit grey .L. or RGB, got .*{match}"):
        images.load_image(png(tmp_path, mode))


def test_load_image_refuses_16_bit_grey(tmp_path):
    with pytest.raises(ValueError, match="a.png: expected 8-bit .* got 16 bits"):
        images.load_image(png(tmp_path, "", np.full((4, 4), 40000, np.uint16)))


def test_load_image_refuses_16_bit_rgb_that_pillow_would_cut_to_8(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + b"\x12\x34" * 3 * 2 for _ in range(2))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with Image.open(path) as file:
        assert file.mode == "RGB"  # nothing in the mode tells
    with pytest.raises(ValueError, match="got 16 bits per channel"):
        images.load_image(path)


def test_load_image_names_missing_empty_truncated_and_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        images.load_image(tmp_path / "nowhere.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="empty.png is empty"):
        images.load_image(tmp_path / "empty.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for ending in ("png", "jpg"):
        whole = tmp_path / f"whole.{ending}"
        Image.fromarray(noise).save(whole)
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"cut.{ending} is truncated or damaged"):
            images.load_image(cut)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="text.png is not an image file"):
        images.load_image(tmp_path / "text.png")


def test_save_image_then_load_image_is_quantise(tmp_path):
    image = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    path = images.save_image(image, tmp_path / "deep" / "a.png")
    assert torch.equal(images.load_image(path), images.quantise(image))


@pytest.mark.parametrize(
    "image, name, match",
    [
        (torch.zeros(1, 4, 4), "a.png", "expected an image .3, H, W., got .1, 4, 4."),
        (torch.full((3, 4, 4), torch.nan), "a.png", "NaN"),
        (torch.zeros(3, 4, 4), "a.jpg", "ending in .png"),
    ],
    ids=["one channel", "nan", "jpeg"],
)
def test_save_image_refuses(tmp_path, image, name, match):
    with pytest.raises(ValueError, match=match):
        images.save_image(image, tmp_path / name)


def test_quantise_by_hand():
    got = images.quantise(torch.tensor([-0.1, 0.0, 0.0019, 0.0020, 0.5, 1.2]))
    assert torch.equal(got * 255, torch.tensor([0.0, 0.0, 0.0, 1.0, 128.0, 255.0]))


@pytest.mark.parametrize(
    "image, match",
    [
        (np.zeros((1, 3, 4, 4)), "expected a tensor"),
        (torch.zeros(3, 4, 4), r"expected \(B, 3, H, W\), got \(3, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), "expected 3 channels .* got 1"),
        (torch.zeros(2, 2, 4, 4), "expected 3 channels .* got 2"),
        (torch.zeros(2, 4, 4, 4), "expected 3 channels .* got 4"),
        (torch.zeros(0, 3, 4, 4), "at least one image"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8; divide by 255"),
        (torch.full((1, 3, 4, 4), 200.0), r"in \[0, 1\], got \[200, 200\]"),
        (torch.full((1, 3, 4, 4), torch.nan), "got .nan"),
        (torch.zeros(1, 3, 31, 40), r"at least 32 pixels on each side, got .* \(31, 40\)"),
    ],
)
def test_check_image_refuses(image, match):
    with pytest.raises(ValueError, match=f"scan: .*{match}"):
        images.check_image(image, name="scan", minimum=32 if "32" in match else 1)


def test_check_image_accepts_an_image_and_unclamped_output_when_told():
    images.check_image(torch.rand(2, 3, 32, 40), minimum=32)
    images.check_image(torch.full((1, 3, 4, 4), 1.3), in_range=False)


def test_signed_round_trip_and_ends():
    image = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(images.to_signed(image), torch.tensor([-1.0, -0.5, 1.0]))
    assert torch.equal(images.from_signed(images.to_signed(image)), image)


def test_imagenet_normalise_by_hand():
    white = images.imagenet_normalise(torch.ones(1, 3, 1, 1)).flatten()
    assert torch.allclose(white, torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4)


def test_resize_agrees_with_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pillow = Image.fromarray(pixels).resize((30, 25), Image.Resampling.BILINEAR)  # (W, H)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    got = images.resize(image, (25, 30))
    assert got.shape == (3, 25, 30)
    assert (images.to_bytes(got).int() - torch.from_numpy(np.array(pillow)).int()).abs().max() <= 1
    assert torch.equal(images.resize(image[None], (25, 30))[0], got)


def test_resize_refuses():
    with pytest.raises(ValueError, match="got .4, 4."):
        images.resize(torch.zeros(4, 4), (2, 2))
    with pytest.raises(ValueError, match="size .H, W."):
        images.resize(torch.zeros(3, 4, 4), (0, 2))


def test_luma_is_what_pillow_keeps_of_a_colour_image():
    pixels = torch.randint(0, 256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    grey = images.luma(pixels / 255)
    assert grey.shape == (2, 1, 5, 4)
    for image, found in zip(pixels, grey, strict=True):
        kept = Image.fromarray(image.permute(1, 2, 0).byte().numpy()).convert("L")
        assert (torch.from_numpy(np.array(kept)) / 255 - found[0]).abs().max() < 1 / 255
