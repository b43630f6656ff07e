import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from data_prep.image_reading import read_pixels
from medsign_lite.deployment.image_files import find_image_files, load_image_file
from medsign_lite.images import load_image, save_image
from tests.dicom_files import write_dicom

DEEP = np.random.default_rng(0).integers(0, 4096, (8, 10), dtype=np.uint16)


def write_png16(path, pixels, *, exif=None):
    """A 16-bit colour PNG, (H, W, 3) uint16, which Pillow cannot write."""

    def chunk(kind, data):
        length, check = len(data), zlib.crc32(kind + data)
        return struct.pack(">I", length) + kind + data + struct.pack(">I", check)

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    tags = chunk(b"eXIf", exif.tobytes()[6:]) if exif else b""  # without the six that JPEG needs
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + tags
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip


def assert_grey(image, expected):
    assert image.dtype == torch.float32 and image.shape == (3, *expected.shape)
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-6)


def test_load_image_file_of_8_bits_is_load_image(tmp_path):
    path = save_image(torch.rand(3, 9, 7), tmp_path / "a.png")
    assert load_image_file(path).equal(load_image(path))
    Image.open(path).save(tmp_path / "a.jpg")
    assert load_image_file(tmp_path / "a.jpg").equal(load_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    "highest, divisor",
    [(65535, 65535), (40000, 65535), (4095, 4095), (2048, 4095), (255, 255), (0, 255)],
)
def test_load_image_file_divides_16_bit_png_by_the_bits_in_use(tmp_path, highest, divisor):
    pixels = np.linspace(0, highest, 80).round().astype(np.uint16).reshape(8, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert_grey(load_image_file(tmp_path / "a.png"), pixels / divisor)


def test_load_image_file_keeps_the_upper_8_bits_of_16_bit_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 6, 3), dtype=np.uint16)
    write_png16(tmp_path / "a.png", pixels)
    got = load_image_file(tmp_path / "a.png").permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, pixels / 65535, atol=1 / 255)
    np.testing.assert_allclose(got, (pixels >> 8) / 255, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_load_image_file_turns_as_the_tag_says(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as file:
        expected = np.array(ImageOps.exif_transpose(file))
    image = load_image_file(path)
    assert image.shape == (3, *expected.shape[:2])
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected / 255, atol=1e-6)
    assert np.array_equal(expected, np.asarray(read_pixels(path)))  # as data sets are prepared
    if ending == "png":
        Image.fromarray(DEEP).save(path, exif=exif)
        with Image.open(path) as file:
            expected = np.array(ImageOps.exif_transpose(file))
        assert_grey(load_image_file(path), expected / 4095)
        write_png16(path, pixels.astype(np.uint16) << 8, exif=exif)
        assert load_image_file(path).equal(image)


def test_load_image_file_passes_over_a_tag_that_cannot_be_read(tmp_path):
    path = save_image(torch.rand(3, 9, 7), tmp_path / "a.png")
    Image.open(path).save(tmp_path / "b.png", exif=b"Exif\0\0nothing of the kind")
    assert load_image_file(tmp_path / "b.png").equal(load_image(path))


def test_load_image_file_tells_dicom_without_an_ending(tmp_path):
    assert load_image_file(write_dicom(tmp_path / "IM0001", DEEP)).shape == (3, 8, 10)


def test_load_image_file_refuses_other_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="image .*none.png does not exist"):
        load_image_file(tmp_path / "none.png")
    path = tmp_path / "a.png"
    Image.fromarray(DEEP).save(path)
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match="image .*a.png is truncated or damaged"):
        load_image_file(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="image .*a.png is not an image"):
        load_image_file(path)
    Image.new("RGBA", (4, 4)).save(path)
    with pytest.raises(ValueError, match="image .*a.png: .* got four channels"):
        load_image_file(path)
    Image.new("L", (9, 9)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="image .*a.png has more pixels than Pillow takes"):
        load_image_file(path)


def test_find_image_files_takes_images_at_every_depth(tmp_path):
    (tmp_path / "a" / ".cache").mkdir(parents=True)
    for name in ("b.PNG", "a/c.jpeg", "a/d.dicom", "notes.txt", ".e.png", "a/.cache/f.png", "list"):
        (tmp_path / name).touch()
    write_dicom(tmp_path / "a" / "IM1", DEEP)
    write_dicom(tmp_path / "DICOMDIR", DEEP)
    found, left_out = find_image_files([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a/IM1", "a/c.jpeg", "a/d.dicom", "b.PNG"]
    assert left_out == 2  # notes.txt and list
    odd = tmp_path / "notes.txt"
    assert find_image_files([odd, tmp_path / "a"]) == ([odd, *found[:3]], 0)


def test_find_image_files_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*none"):
        find_image_files([tmp_path / "none"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"no image in {tmp_path}: expected files ending in .png"):
        find_image_files([tmp_path])
