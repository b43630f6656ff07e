"""Images found by path and by name."""

import os

import numpy as np
import pytest

from data_prep.image_listing import ImageListing, below_source
from data_prep.pixels import Unusable
from tests.dicom_files import write_dicom


@pytest.fixture
def listing(tmp_path):
    for name in ("a/one.png", "a/two.JPG", "b/two.JPG", "three.dcm", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return ImageListing(tmp_path), tmp_path


def test_listing_holds_images_only_in_order(listing):
    found, folder = listing
    names = [path.relative_to(folder).as_posix() for path in found.paths]
    assert names == ["a/one.png", "a/two.JPG", "b/two.JPG", "three.dcm"]


def test_listing_tells_dicom_without_an_ending_and_counts_the_rest(tmp_path):
    pixels = np.zeros((4, 4), np.uint16)
    for name in ("IM0001", "a/IM0001", "DICOMDIR", "a/.cache/IM0002", ".IM0003", "old.bak"):
        write_dicom(tmp_path / name, pixels)
    for name in ("README", "notes.txt", ".DS_Store", "a/b.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "queue")  # reading it would wait for ever
    found = ImageListing(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["IM0001", "a/IM0001", "a/b.png"]
    # old.bak, README, notes.txt, gone and queue
    assert found.left_out == (5 if hasattr(os, "mkfifo") else 4)
    assert found.find("a/IM0001") == tmp_path / "a" / "IM0001"


def test_find_takes_a_path_or_a_name_that_is_unique(listing):
    found, folder = listing
    assert found.find("one.png") == found.find("a/one.png") == folder / "a" / "one.png"
    assert found.find("b\\two.JPG") == folder / "b" / "two.JPG"
    with pytest.raises(Unusable, match="several images: the name alone is not unique"):
        found.find("two.JPG")
    for cell in ("absent.png", "c/one.png", "notes.txt"):
        with pytest.raises(Unusable, match="its row names no image of the source"):
            found.find(cell)


@pytest.mark.parametrize("cell", ["../a.png", "a/../../b.png", "/a.png", r"C:\a.png", r"..\a.png"])
def test_below_source_refuses_to_leave(cell):
    with pytest.raises(Unusable, match="its row names a path outside of the source"):
        below_source(cell)


def test_below_source_takes_colons():
    assert below_source("scan 10:30/a.png").parts == ("scan 10:30", "a.png")
