"""What a phantom is, and the few drawing primitives that both modalities share.

Every primitive works on float32 arrays and draws anything random from small, size-independent
arrays, so that one seed gives one anatomy at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MINIMUM_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of a phantom, as drawn and as named in its report."""

    name: str
    """Class name, for example "pneumonia"."""
    word: str = ""
    """The single word of the report that names the finding; "" until a report is written."""
    side: str = ""
    """The patient's side: "right", "left", "bilateral", "superior", "inferior" or ""."""
    zone: str = ""
    """Where within the side, in the modality's own terms, for example "lower"."""
    severity: float = 0.5
    """In [0, 1], from mild to severe."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A drawn image with its report and one exact mask per finding."""

    image: np.ndarray
    """(H, W) grey or (H, W, 3) colour, uint8."""
    report: str
    findings: tuple[Finding, ...]
    masks: tuple[np.ndarray, ...]
    """Aligned with `findings`; each (H, W) bool."""
    modality: str
    """"chest" or "fundus"."""


def check_size(size: int) -> None:
    """Raise ValueError unless `size` is an integer of at least 32 pixels."""
    if not isinstance(size, int | np.integer) or size < MINIMUM_SIZE:
        raise ValueError(f"expected size, an integer of at least {MINIMUM_SIZE}, got {size!r}")


def coordinate_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres of a square image in [-1, 1]: x (1, W) to the right, y (H, 1) downwards."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    return centres[None, :], centres[:, None]


def smooth_step(value: np.ndarray, width: float) -> np.ndarray:
    """Cubic step from 0 (value <= -width) to 1 (value >= width), any shape."""
    step = value * np.float32(0.5 / width)
    step += np.float32(0.5)
    np.maximum(step, 0, out=step)
    np.minimum(step, 1, out=step)
    cubic = step * np.float32(-2)
    cubic += 3
    cubic *= step
    cubic *= step
    return cubic


def soft_ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    angle: float = 0.0,
    softness: float = 0.1,
) -> np.ndarray:
    """Ellipse that is 1 inside and falls to 0 over `softness` (in radii) about its border.

    Args:
        x, y: coordinates that broadcast to (H, W).
        centre, radii: (x, y) in the coordinates' units.
        angle: radians; positive turns the first axis towards positive y.
        softness: half width of the border, relative to the radii.

    Returns:
        (H, W) float32 in [0, 1].
    """
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, down = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (across * cosine + down * sine) / np.float32(radii[0])
    v = (down * cosine - across * sine) / np.float32(radii[1])
    return smooth_step(1 - np.sqrt(u * u + v * v), softness).astype(np.float32)


def resize_matrix(target: int, source: int) -> np.ndarray:
    """(target, source) linear interpolation between `source` samples that span [-1, 1]."""
    position = (np.arange(target, dtype=np.float32) + 0.5) / target * (source - 1)
    lower = np.minimum(position.astype(np.int64), source - 2)
    weight = position - lower
    weight = weight * weight * (3 - 2 * weight)  # cubic ease: no visible lattice creases
    matrix = np.zeros((target, source), dtype=np.float32)
    rows = np.arange(target)
    matrix[rows, lower] = 1 - weight
    matrix[rows, lower + 1] = weight
    return matrix


def smooth_noise(generator: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth random field: a (cells + 1)^2 lattice of unit normals, interpolated.

    The lattice does not depend on `size`, so a seed gives one field at every size.

    Returns:
        (size, size) float32, zero mean.
    """
    lattice = generator.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    matrix = resize_matrix(size, cells + 1)
    return matrix @ lattice @ matrix.T
