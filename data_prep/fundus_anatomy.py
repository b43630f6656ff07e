"""The normal eye of the fundus phantom: its anatomy, and the field, retina, disc and vessels drawn.

Coordinates run from -1 to 1 over the image, x to the right and y downwards. Pictures are (3, H, W)
float32, about 0 to 1, while they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.fundus_vessels import coverage, outlines, vessel_tree
from data_prep.phantom import smooth_noise


def colour(red: float, green: float, blue: float) -> np.ndarray:
    """(3, 1, 1) float32: pictures are (3, H, W) until they are finished."""
    return np.array((red, green, blue), dtype=np.float32)[:, None, None]


VEIN = colour(0.24, 0.43, 0.42)  # what a vessel takes away
ARTERY = colour(0.08, 0.29, 0.32)
RIM = colour(0.97, 0.66, 0.38)
NASAL = colour(0.01, 0.07, 0.08)  # how much redder the rim is on its nasal side
CUP = colour(1.00, 0.88, 0.66)
PALE_CUP = colour(1.00, 0.96, 0.84)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One eye and its photograph, in unit coordinates."""

    eye: str
    centre: np.ndarray
    radius: float
    flat: float  # the field ends this far above and below its centre
    disc: np.ndarray
    disc_radius: np.ndarray  # (2,) along x and y
    cup_ratio: float
    fovea: np.ndarray
    pigment: float
    tessellation: float
    macula: float
    exposure: float
    vignette: float
    tilt: np.ndarray
    quadrants: tuple[tuple[str, str], ...]  # (side, zone) for the sided findings, all different


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    eye = ("right", "left")[generator.integers(2)]
    towards_disc = 1.0 if eye == "right" else -1.0
    disc = np.array((towards_disc * generator.uniform(0.44, 0.60), generator.uniform(-0.09, 0.05)))
    disc_radius = generator.uniform(0.145, 0.185)
    fovea = disc + (-towards_disc * generator.uniform(0.64, 0.74), generator.uniform(0.02, 0.10))
    radius = generator.uniform(0.91, 0.98)
    flattened = generator.random() < 0.4
    order = generator.permutation(4)
    quadrants = [(s, zone) for s in ("superior", "inferior") for zone in ("temporal", "nasal")]
    return Anatomy(
        eye=eye,
        centre=generator.uniform(-0.015, 0.015, 2),
        radius=radius,
        flat=radius * generator.uniform(0.82, 0.92) if flattened else 2.0,
        disc=disc,
        disc_radius=disc_radius * np.array((generator.uniform(0.88, 0.98), 1.0)),
        cup_ratio=generator.uniform(0.25, 0.45),
        fovea=fovea,
        pigment=generator.uniform(0.0, 1.0),
        tessellation=generator.uniform(0.0, 1.0) ** 2,
        macula=generator.uniform(0.7, 1.2),
        exposure=generator.uniform(0.88, 1.12),
        vignette=generator.uniform(0.22, 0.42),
        tilt=generator.uniform(-0.09, 0.09, 2),
        quadrants=tuple(quadrants[i] for i in order),
    )


def _distance(x, y, centre) -> np.ndarray:
    return np.hypot(x - np.float32(centre[0]), y - np.float32(centre[1]))


def field_of_view(anatomy: Anatomy, x, y, size: int) -> np.ndarray:
    """(H, W) 1 where the camera sees the retina, 0 in the black surround, a soft edge between."""
    inside = np.minimum(
        anatomy.radius - _distance(x, y, anatomy.centre),
        anatomy.flat - np.abs(y - np.float32(anatomy.centre[1])),
    )
    return np.clip(inside * (size / 5.0) + 0.5, 0.0, 1.0).astype(np.float32)


def draw_retina(anatomy: Anatomy, x, y, generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (3, H, W) of the bare retina and the light (H, W) that falls on it."""
    size = x.shape[1]
    reach = _distance(x, y, anatomy.centre) / np.float32(anatomy.radius)
    light = 1.0 - anatomy.vignette * reach**2.4 + anatomy.tilt[0] * x + anatomy.tilt[1] * y
    light = (anatomy.exposure * light).astype(np.float32)
    pale, dark = np.array((0.90, 0.50, 0.27)), np.array((0.66, 0.29, 0.13))
    fundus = (pale + (dark - pale) * anatomy.pigment).astype(np.float32)

    texture = 0.7 * smooth_noise(generator, 4, size) + 0.45 * smooth_noise(generator, 9, size)
    ridges = smooth_noise(generator, 22, size) + 0.6 * texture
    choroid = np.exp(-((ridges / 0.35) ** 2)) - 0.4  # bright net where the noise crosses zero
    texture = 0.055 * texture + np.float32(0.055 * anatomy.tessellation) * choroid
    for cells, amount in ((48, 0.016), (100, 0.020), (190, 0.018)):
        if size >= 4 * cells:
            texture = texture + amount * smooth_noise(generator, cells, size)
    if size >= 256:
        texture = texture + _nerve_fibres(anatomy, x, y, generator)

    off_fovea = _distance(x, y, anatomy.fovea)
    macula = anatomy.macula * (
        0.75 * np.exp(-((off_fovea / 0.21) ** 2)) + 0.55 * np.exp(-((off_fovea / 0.075) ** 2))
    )
    off_disc = _distance(x, y, anatomy.disc)
    halo = 0.10 * np.exp(-((off_disc / 0.36) ** 2)) - 0.22 * macula
    planes = []
    for level, grain, dip in zip(fundus, (0.6, 1.1, 1.0), (0.75, 1.25, 1.15), strict=True):
        planes.append(level * light * (1.0 + grain * texture + dip * halo))
    if size >= 256:
        reflex = 0.07 * np.exp(-((_distance(x, y, anatomy.fovea + 0.008) / 0.013) ** 2))
        planes = [plane + reflex for plane in planes]
    return np.stack(planes).astype(np.float32), light


def _nerve_fibres(anatomy: Anatomy, x, y, generator) -> np.ndarray:
    """Fine striations that leave the disc and fade away from it."""
    angle = np.arctan2(y - np.float32(anatomy.disc[1]), x - np.float32(anatomy.disc[0]))
    rays = generator.standard_normal(360).astype(np.float32)
    position = (angle / np.float32(np.pi) + 1.0) * 180.0
    striations = np.interp(position, np.arange(361), np.append(rays, rays[0])).astype(np.float32)
    return 0.028 * striations * np.exp(-((_distance(x, y, anatomy.disc) / 0.42) ** 2))


def draw_disc(image, anatomy: Anatomy, x, y, cup_ratio: float, light) -> np.ndarray:
    """Paint the optic disc into `image`; returns the mask (H, W) of its cup."""
    size = image.shape[1]
    a, b = anatomy.disc_radius
    box = pixel_box(anatomy.disc - 1.4 * b, anatomy.disc + 1.4 * b, size)
    across = (x[:, box[1]] - np.float32(anatomy.disc[0])) / np.float32(a)
    down = (y[box[0]] - np.float32(anatomy.disc[1])) / np.float32(b)
    off = np.hypot(across, down)  # 1 on the disc's edge
    crisp = np.float32(min(max(a * size / 3.0, 2.0), 9.0))
    disc = np.clip((1.0 - off) * crisp + 0.5, 0.0, 1.0)
    large = cup_ratio > 0.6
    cup = np.clip((np.float32(cup_ratio) - off) * crisp * (1.0 if large else 0.6) + 0.5, 0.0, 1.0)
    nasal = np.float32(np.sign(anatomy.disc[0])) * across
    rim = RIM * (0.97 + 0.05 * off - NASAL * nasal)
    shade = rim + (1.0 if large else 0.75) * cup * ((PALE_CUP if large else CUP) - rim)
    part = image[(slice(None), *box)]
    part += 0.94 * disc * (shade * np.clip(light[box], 0.75, 1.0) - part)
    mask = np.zeros(light.shape, dtype=bool)
    mask[box] = cup > 0.5
    return mask


def pixel_box(low, high, size: int) -> tuple[slice, slice]:
    """Rows and columns of the pixels between two corners (x, y) in unit coordinates."""
    low = np.clip(np.floor((np.asarray(low) + 1.0) * (0.5 * size)).astype(int), 0, size - 1)
    high = np.clip(np.ceil((np.asarray(high) + 1.0) * (0.5 * size)).astype(int), low + 1, size)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def draw_vessels(image, anatomy: Anatomy, generator, size: int) -> None:
    """Darken `image` along the vessels; they leave the fovea free."""
    points, widths, veins = vessel_tree(
        generator,
        anatomy.disc,
        anatomy.fovea,
        generations=3 if size >= 384 else 2 if size >= 192 else 1,
        smallest=min(1.1 / size, 0.02) if size < 384 else 0.0,
    )
    to_fovea = np.linalg.norm(points - anatomy.fovea, axis=2)
    widths = widths * np.clip((to_fovea - 0.06) / 0.16, 0.0, 1.0)
    shapes = outlines(points, widths)
    contrast = np.float32(np.clip(0.76 + 0.24 * (size - 128) / 256, 0.76, 1.0))
    vein = contrast * coverage(shapes[veins], size)
    artery = contrast * coverage(shapes[~veins], size) * (1.0 - 0.7 * vein)
    image *= 1.0 - vein * VEIN
    image *= 1.0 - artery * ARTERY
    if size >= 256:  # the light reflex along the wider vessels
        wide = widths[:, 0] > 0.014
        shine = coverage(outlines(points[wide], 0.3 * widths[wide]), size)
        image *= 1.0 + 0.12 * shine
