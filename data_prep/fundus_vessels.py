"""Retinal vessels of the fundus phantom: a branching tree in unit coordinates, drawn as polygons.

Unit coordinates run from -1 to 1 over the image, x to the right and y downwards, so that the
anatomy does not know how many pixels it will get.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

POINTS = 14  # points along a vessel


def coverage(polygons: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Share of every pixel that the polygons cover.

    Args:
        polygons: each (N, 2) float, corners as (x, y) in unit coordinates; they may overlap.
        size: side of the square image in pixels.

    Returns:
        (size, size) float32 in [0, 1].
    """
    fine = max(2, -(-384 // size))  # sub-pixels per pixel and axis
    canvas = Image.new("L", (size * fine, size * fine))
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        corners = (polygon + 1.0) * (0.5 * size * fine) - 0.5
        pen.polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(fine), dtype=np.float32) / 255.0


def outlines(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Closed outlines of tapering lines.

    Args:
        points: (V, N, 2) centre lines in unit coordinates.
        widths: (V, N) full widths in unit coordinates.

    Returns:
        (V, 2N, 2): one side forwards, the other side back.
    """
    along = np.gradient(points, axis=1)
    along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-9
    across = np.stack((-along[..., 1], along[..., 0]), axis=2) * (0.5 * widths[..., None])
    return np.concatenate((points + across, (points - across)[:, ::-1]), axis=1)


def vessel_tree(
    generator: np.random.Generator,
    disc: np.ndarray,
    fovea: np.ndarray,
    *,
    generations: int,
    smallest: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four arcades of an artery and a vein each, with generations of branches.

    Args:
        generator: drawn on in the same order whatever is left out.
        disc, fovea: (2,) centres in unit coordinates.
        generations: of branches, at most three.
        smallest: branches thinner than this at their origin are left out.

    Returns:
        Centre lines (V, POINTS, 2), full widths (V, POINTS), and (V,) bool, true for veins.
    """
    distance = np.linalg.norm(fovea - disc)
    temporal = (fovea - disc) / distance
    upward = np.array((temporal[1], -temporal[0])) * (1.0 if temporal[0] > 0 else -1.0)
    # Bezier corners of the superior arcades: how far temporal, how far up, in disc-fovea distances
    corners = np.array(
        (
            ((0.0, 0.0), (0.02, 0.48), (0.50, 0.92), (1.95, 0.36)),
            ((0.0, 0.0), (-0.10, 0.34), (-0.38, 0.50), (-0.85, 1.05)),
        )
    )
    corners = np.concatenate((corners, corners * (1.0, -1.0)))  # inferior arcades
    corners = np.repeat(corners, 2, axis=0)  # an artery, then its vein
    corners[:, 1:] += generator.normal(0.0, 0.055, (8, 3, 2)) * ((1.0,), (1.5,), (2.2,))
    corners[1::2, 1:, 1] *= 0.90  # the veins run a little inside their arteries
    corners[:, 0] += generator.normal(0.0, 0.02, (8, 2)) + (-0.03, 0.0)
    t = np.linspace(0.0, 1.0, POINTS)[None, :, None]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    path = sum(w * corners[:, None, i] for i, w in enumerate(weights))
    points = disc + distance * (path[..., :1] * temporal + path[..., 1:] * upward)
    veins = np.arange(8) % 2 == 1
    calibre = np.where(veins, 0.038, 0.028) * generator.uniform(0.88, 1.1, 8)
    widths = calibre[:, None] * (1.0 - 0.85 * t[..., 0] ** 1.3)
    widths *= 1.0 - 0.6 * np.exp(-16.0 * t[..., 0])  # they rise out of the cup
    points = _meander(points, generator, 0.016)
    tree = [(points, widths, veins)]
    for children, length in ((5, 0.52), (3, 0.30), (3, 0.17))[:generations]:
        points, widths, veins = _branches(points, widths, veins, generator, children, length)
        tree.append((points, widths, veins))
    points, widths, veins = (np.concatenate(part) for part in zip(*tree, strict=True))
    kept = widths[:, 0] >= smallest
    return points[kept], widths[kept], veins[kept]


def _branches(
    points: np.ndarray,
    widths: np.ndarray,
    veins: np.ndarray,
    generator: np.random.Generator,
    children: int,
    length: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`children` side branches of every vessel, leaving to alternate sides and bending outwards."""
    count = len(points)
    start = np.linspace(0.2, 0.92, children) + generator.uniform(-0.07, 0.07, (count, children))
    start = np.clip(np.round(start * (POINTS - 1)).astype(int), 2, POINTS - 2)
    rows = np.arange(count)[:, None]
    origin = points[rows, start]  # (count, children, 2)
    along = points[rows, start + 1] - points[rows, start - 1]
    side = np.where((np.arange(children) + generator.integers(0, 2, (count, 1))) % 2, 1.0, -1.0)
    angle = np.arctan2(along[..., 1], along[..., 0]) + side * generator.uniform(
        0.45, 1.0, (count, children)
    )
    bend = -side * generator.uniform(-0.2, 0.75, (count, children))
    reach = length * generator.uniform(0.55, 1.15, (count, children))
    share = generator.uniform(0.45, 0.72, (count, children))
    t = np.linspace(0.0, 1.0, POINTS)
    direction = angle[..., None] + bend[..., None] * t  # (count, children, POINTS)
    step = np.stack((np.cos(direction), np.sin(direction)), axis=-1) * t[:, None]
    path = (origin[:, :, None] + reach[..., None, None] * step).reshape(-1, POINTS, 2)
    width = (widths[rows, start] * share).reshape(-1, 1) * np.linspace(1.0, 0.35, POINTS)
    return _meander(path, generator, 0.035 * length), width, np.repeat(veins, children)


def _meander(points: np.ndarray, generator: np.random.Generator, amount: float) -> np.ndarray:
    """Let the lines wander sideways by about `amount`, not at their origin."""
    t = np.linspace(0.0, 1.0, POINTS)
    phase = generator.uniform(0.0, 2 * np.pi, (2, len(points), 1))
    wave = np.sin(9.0 * t + phase[0]) + 0.5 * np.sin(17.0 * t + phase[1])
    along = np.gradient(points, axis=1)
    along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-9
    across = np.stack((-along[..., 1], along[..., 0]), axis=2)
    return points + (amount * np.minimum(4 * t, 1.0) * wave)[..., None] * across
