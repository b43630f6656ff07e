"""Images found by path and by name."""

import pytest

from data_prep.image_listing import ImageListing, below_source
from data_prep.pixels import Unusable


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
