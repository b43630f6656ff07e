"""Figures of exposure by hand, and phantoms among real radiographs."""

import pytest
import torch

from benchmarks.phantom_exposure import QUANTILES, compare, exposure, quantiles, radiographs


def test_exposure_by_hand():
    image = torch.zeros(3, 64, 64)
    image[:, :, :16] = 1.0
    found = exposure(image)
    assert found["mean"] == found["above_half"] == pytest.approx(0.25)
    assert found["deviation"] == pytest.approx(0.1875**0.5, abs=1e-3)


def test_slope_is_that_of_the_power():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 128, 128, generator=generator)
    rows, columns = (torch.fft.fftfreq(128) * 128, torch.fft.rfftfreq(128) * 128)
    radius = torch.hypot(rows[:, None], columns).clamp(min=1)
    steep = torch.fft.irfft2(torch.fft.rfft2(noise) / radius**1.5, s=(128, 128))
    for images, slope in ((noise, 0.0), (steep, -3.0)):
        found = [exposure(image.expand(3, -1, -1))["slope"] for image in images]
        assert sum(found) / len(found) == pytest.approx(slope, abs=0.15)


def test_quantiles_are_over_images():
    found = quantiles(torch.full((3, 64, 64), value) for value in (0.1, 0.2, 0.6))
    assert found["images"] == 3 and found["mean"][QUANTILES.index(0.5)] == pytest.approx(0.2)
    assert found["above_half"] == pytest.approx([0, 0, 0, 0.5, 0.8])


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no PNG in"):
        next(iter(radiographs(tmp_path, 64)))


def test_phantoms_are_exposed_like_radiographs(root):
    folder = root.parent / "shared" / "data" / "cxr"
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder.relative_to(root.parent)}")
    found = compare(folder, count=60, size=128)
    low, middle, high = (QUANTILES.index(q) for q in (0.25, 0.5, 0.75))
    for name in ("mean", "above_half", "deviation", "slope"):
        real = found["radiographs"][name]
        assert real[low] < found["phantoms"][name][middle] < real[high], name
