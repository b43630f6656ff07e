"""Lesions of the fundus phantom: where they lie and their outlines, in unit coordinates.

Each function returns polygons (N, 2) for `fundus_vessels.coverage`. Number, size and spread grow
with severity. `smallest` is the least radius worth drawing, so that a dot survives a small image.
"""

from __future__ import annotations

import numpy as np

TURN = np.linspace(0.0, 2 * np.pi, 16, endpoint=False)
CIRCLE = np.stack((np.cos(TURN), np.sin(TURN)), axis=1)  # (16, 2)


def microaneurysms(generator, centre, severity, smallest) -> list[np.ndarray]:
    """Small round dots scattered over a patch."""
    count = round(7 + 15 * severity)
    where = _scatter(generator, centre, count, 0.12 + 0.10 * severity)
    radius = np.maximum(generator.uniform(0.011, 0.018, count), smallest)
    return list(where[:, None] + radius[:, None, None] * CIRCLE)


def haemorrhages(generator, centre, severity, smallest, *, disc) -> list[np.ndarray]:
    """Blots of uneven outline, and flames that follow the nerve fibres away from the disc."""
    blots, flames = round(2 + 3 * severity), round(1 + 3 * severity)
    where = _scatter(generator, centre, blots + flames, 0.12 + 0.12 * severity)
    generator.shuffle(where)
    radius = generator.uniform(0.034, 0.056, blots) * (0.85 + 0.25 * severity)
    polygons = _uneven(generator, where[:blots], np.maximum(radius, smallest), 0.22)
    for point in where[blots:]:
        away = point - disc
        heading = np.arctan2(away[1], away[0]) + generator.normal(0.0, 0.25)
        length, width = generator.uniform(0.06, 0.095), generator.uniform(0.020, 0.030)
        for slant in generator.normal(0.0, 0.16, 3):  # three spindles fray into one flame
            c, s = np.cos(heading + slant), np.sin(heading + slant)
            spindle = CIRCLE * (length, 0.75 * width)
            spindle[:, 1] *= 1.0 - 0.45 * CIRCLE[:, 0]  # blunt towards the disc
            shift = generator.normal(0.0, 0.35 * width, 2)
            polygons.append(point + shift + spindle @ np.array(((c, s), (-s, c))))
    return polygons


def exudates(generator, centre, severity, smallest) -> list[np.ndarray]:
    """Sharp-edged flecks in a circinate ring, or in a few close clusters."""
    count = round(10 + 16 * severity)
    if generator.random() < 0.5:
        ring = 0.11 + 0.07 * severity
        turn = generator.uniform(0, 2 * np.pi) + generator.uniform(0.0, 1.8 * np.pi, count)
        reach = ring * generator.normal(1.0, 0.13, count)
        where = centre + np.stack((1.15 * reach * np.cos(turn), reach * np.sin(turn)), axis=1)
    else:
        nests = _scatter(generator, centre, 2 + round(2 * severity), 0.10 + 0.09 * severity)
        where = nests[generator.integers(0, len(nests), count)]
        where = where + generator.normal(0.0, 0.042, (count, 2))
    radius = np.maximum(generator.gamma(5.0, 0.0027, count) + 0.007, smallest)
    return _uneven(generator, where, np.minimum(radius, 0.040), 0.25)


def drusen(generator, fovea, severity, smallest) -> list[np.ndarray]:
    """Round spots about the fovea, the larger ones towards it."""
    count = round(12 + 18 * severity)
    turn = generator.uniform(0.0, 2 * np.pi, count)
    reach = (0.16 + 0.12 * severity) * np.sqrt(generator.uniform(0.02, 1.0, count))
    where = fovea + reach[:, None] * np.stack((np.cos(turn), np.sin(turn)), axis=1)
    radius = generator.uniform(0.017, 0.036, count) * (1.15 - reach)
    return list(where[:, None] + np.maximum(radius, smallest)[:, None, None] * CIRCLE)


def close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Fill gaps narrower than about 2 * radius pixels of a (H, W) bool mask."""
    if radius < 1:
        return mask
    padded = np.pad(mask, 2 * radius)
    grown = _widen(padded, radius)
    shrunk = ~_widen(~grown, radius)
    return shrunk[2 * radius : -2 * radius, 2 * radius : -2 * radius]


def _widen(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate by a square of side 2 * radius + 1, one axis after the other."""
    for axis in (0, 1):
        wide = mask.copy()
        for step in range(1, radius + 1):
            wide |= np.roll(mask, step, axis) | np.roll(mask, -step, axis)
        mask = wide
    return mask


def _scatter(generator, centre, count: int, spread: float) -> np.ndarray:
    """(count, 2) points in an ellipse about `centre`, spread by a spiral so that few overlap."""
    index = np.arange(count) + generator.uniform(0.25, 0.75, count)
    turn = index * 2.39996 + generator.uniform(0.0, 2 * np.pi)
    reach = spread * np.sqrt(index / count)
    where = np.stack((1.15 * reach * np.cos(turn), 0.9 * reach * np.sin(turn)), axis=1)
    return centre + where + generator.normal(0.0, 0.1 * spread, (count, 2))


def _uneven(generator, where: np.ndarray, radius: np.ndarray, amount: float) -> list[np.ndarray]:
    """Blobs (16, 2) whose radius varies by about `amount` around their outline."""
    phase = generator.uniform(0.0, 2 * np.pi, (3, len(where), 1))
    wave = np.sin(2 * TURN + phase[0]) + np.sin(3 * TURN + phase[1]) + np.sin(5 * TURN + phase[2])
    outline = radius[:, None] * (1.0 + 0.5 * amount * wave)
    return list(where[:, None] + outline[..., None] * CIRCLE)
