"""Are chest phantoms exposed as real radiographs are?

    python -m benchmarks.phantom_exposure --real ../shared/data/cxr [--output FILE]

What an attack on brightness destroys depends on how bright the images are, and what survives JPEG
on how much detail they hide it in. Four figures of an image are compared, over many of each kind:
the mean of its pixels, the share above one half (white once brightness is doubled), their standard
deviation, and how steeply its power falls with frequency.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from data_prep.phantoms import phantom
from medsign_lite.images import load_image, resize
from medsign_lite.results import record_result

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BAND = (4, 40)  # cycles per image, between which the slope is fitted


def exposure(image: Tensor) -> dict[str, float]:
    """Figures of one image (3, H, W) in [0, 1]: mean, above_half, deviation and slope.

    The slope is that of log power over log frequency, averaged over directions, by least squares:
    -2 in many photographs of nature, 0 in white noise.
    """
    grey = image.double().mean(dim=0)
    return {
        "mean": grey.mean().item(),
        "above_half": (grey > 0.5).double().mean().item(),
        "deviation": grey.std().item(),
        "slope": _slope(grey),
    }


def _slope(grey: Tensor) -> float:
    height, width = grey.shape
    # Without a taper the jump from one edge of the image to the other is most of the high end.
    taper = torch.hann_window(height).double()[:, None] * torch.hann_window(width).double()
    power = torch.fft.fft2((grey - grey.mean()) * taper).abs().square()
    across, down = torch.fft.fftfreq(width) * width, torch.fft.fftfreq(height) * height
    radius = torch.hypot(down[:, None], across).round().long()
    rings = torch.arange(BAND[0], BAND[1] + 1)
    means = torch.stack([power[radius == ring].mean() for ring in rings])
    x, y = rings.double().log(), (means + 1e-12).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def quantiles(images: Iterable[Tensor]) -> dict:
    """{"images", figure: its `QUANTILES` over the images, lowest first}."""
    rows = [exposure(image) for image in images]
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    return {"images": len(rows)} | {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64).quantile(at).tolist()
        for name in rows[0]
    }


def phantoms(count: int, size: int) -> Iterable[Tensor]:
    """The first chest phantoms of the training split, (3, size, size) in [0, 1]."""
    for index in range(count):
        pixels = torch.from_numpy(phantom("chest", "train", index, size=size).image)
        pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
        yield (pixels.float() / 255).expand(3, -1, -1)


def radiographs(folder: Path, size: int) -> Iterable[Tensor]:
    """Every PNG of a folder, its middle square at (3, size, size) in [0, 1]."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG in {folder}")
    for path in paths:
        image = load_image(path)
        side = min(image.shape[-2:])
        top, left = ((length - side) // 2 for length in image.shape[-2:])
        yield resize(image[None, :, top : top + side, left : left + side], (size, size))[0]


def compare(real: Path, *, count: int, size: int) -> dict:
    """`quantiles` of the phantoms and of the real radiographs."""
    return {
        "phantoms": quantiles(phantoms(count, size)),
        "radiographs": quantiles(radiographs(real, size)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--real", type=Path, required=True, help="folder of real radiographs")
    parser.add_argument("--count", type=int, default=500, help="phantoms")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--output", type=Path, help="JSON file to record")
    options = parser.parse_args(arguments)
    found = compare(options.real, count=options.count, size=options.size)
    middle = QUANTILES.index(0.5)
    for name in ("mean", "above_half", "deviation", "slope"):
        columns = [
            f"{kind} {found[kind][name][middle]:.3f} "
            f"[{found[kind][name][middle - 1]:.3f}, {found[kind][name][middle + 1]:.3f}]"
            for kind in ("phantoms", "radiographs")
        ]
        print(f"{name:10}  {'   '.join(columns)}")
    if options.output:
        config = {"phantoms": options.count, "size": options.size, "quantiles": list(QUANTILES)}
        record_result(options.output, found, config | {"band": list(BAND)})


if __name__ == "__main__":
    main()
