"""Squares and masks worked by hand."""

import numpy as np
import pytest
from PIL import Image

from data_prep.pixels import Unusable, box_mask, square, stretch


def test_square_is_the_middle():
    pixels = np.zeros((32, 64), dtype=np.uint8)
    pixels[:, 16:48] = np.arange(32)
    image = Image.fromarray(pixels)
    image.info["PatientName"] = "Doe"
    middle = square(image, 32)
    assert np.array_equal(np.asarray(middle)[3], np.arange(32))
    assert not middle.info


def test_square_enlarges_nothing():
    with pytest.raises(Unusable, match="smaller than 32 pixels"):
        square(Image.new("L", (31, 64)), 32)


def test_box_mask_marks_the_boxes_pixels():
    # In a 40 x 20 image (W, H): pixels 12 to 19 across, 5 to 9 down; the square begins at 10.
    mask = np.asarray(box_mask([(0.3, 0.25, 0.2, 0.25)], (20, 40), 20))
    expected = np.zeros((20, 20), dtype=np.uint8)
    expected[5:10, 2:10] = 255
    assert np.array_equal(mask, expected)


def test_box_mask_joins_boxes_and_cuts_what_lies_outside():
    mask = np.asarray(box_mask([(-0.5, -0.5, 0.75, 0.75), (0.75, 0.75, 5, 5)], (8, 8), 8))
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[:2, :2] = expected[6:, 6:] = 255
    assert np.array_equal(mask, expected)
    assert not np.asarray(box_mask([(0.5, 0.5, 0, 0)], (8, 8), 8)).any()


def test_box_mask_follows_the_resize():
    mask = np.asarray(box_mask([(0.5, 0, 0.5, 0.5)], (64, 64), 32))
    assert set(np.unique(mask)) == {0, 255}
    assert mask[:16, 16:].all() and mask.sum() == 255 * 16 * 16


def test_stretch_spans_the_range():
    values = np.array([[-100.0, 10.0], [50.0, 100.0]])
    assert np.asarray(stretch(values)).tolist() == [[0, 140], [191, 255]]
    assert not np.asarray(stretch(np.full((2, 2), 7))).any()
    with pytest.raises(ValueError, match="expected finite pixels"):
        stretch(np.array([[0.0, np.nan]]))
