"""Image files of every kind, and what is said of those that cannot be read."""

import errno

import numpy as np
import pytest
from PIL import Image

from data_prep.image_reading import nameless, read_pixels
from data_prep.pixels import Unusable
from tests.dicom_files import write_dicom
from tests.source_folders import noise, save, truncate


def test_read_pixels_reads_every_kind_of_pixel(tmp_path):
    bilevel = Image.fromarray(noise(8, 8) > 127)
    bilevel.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_pixels(tmp_path / "a.png")) > 0, np.asarray(bilevel))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "b.png")
    assert read_pixels(tmp_path / "b.png").getpixel((3, 3)) == (10, 20, 30)
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "c.tiff")
    pixels = np.asarray(read_pixels(tmp_path / "c.tiff"))
    assert pixels.min() == 0 and pixels.max() == 255 and (np.diff(pixels.ravel()) > 0).all()
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "d.tiff")
    with pytest.raises(Unusable, match="damaged"):
        read_pixels(tmp_path / "d.tiff")


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff"])
def test_read_pixels_drops_truncated_files(tmp_path, ending):
    truncate(path := save(tmp_path / f"a.{ending}", noise(64, 64)))
    with pytest.raises(Unusable, match="^truncated, damaged, or not an image$"):
        read_pixels(path)


def test_read_pixels_compares_height_and_width(tmp_path):
    path = save(tmp_path / "a.png", noise(20, 30))
    assert read_pixels(path, expected=(20, 30)).size == (30, 20)
    with pytest.raises(Unusable, match="of another size than its table says"):
        read_pixels(path, expected=(30, 20))
    with pytest.raises(Unusable, match="its image is missing"):
        read_pixels(tmp_path / "absent.png")


def test_read_pixels_leaves_the_name_out_of_the_systems_errors(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(PermissionError, match="an image cannot be read: Permission denied") as e:
        read_pixels(tmp_path / "Doe_00.png")
    assert "Doe" not in str(e.value) and e.value.__suppress_context__


def test_read_pixels_drops_dicom_that_says_it_has_text_in_its_pixels(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    path = write_dicom(tmp_path / "a.dcm", values, BurnedInAnnotation="NO")
    assert read_pixels(path).size == (8, 8)
    path = write_dicom(tmp_path / "b.dcm", values, BurnedInAnnotation="YES")
    with pytest.raises(Unusable, match="says that text is burned into its pixels"):
        read_pixels(path)


def test_nameless_leaves_other_errors_alone():
    with pytest.raises(OSError, match="^image file is truncated$"), nameless("an image"):
        raise OSError("image file is truncated")
