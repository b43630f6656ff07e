"""Colour fundus photographs drawn from a seed: anatomy, lesions, their exact masks and a report.

Nothing here is a patient. The anatomy is drawn in unit coordinates (-1 to 1 over the image, y
downwards) before anything that depends on the size, so the same seed at 512 pixels is the same eye
with more detail.
"""

from __future__ import annotations

import numpy as np

from data_prep import fundus_lesions as lesions
from data_prep.fundus_anatomy import (
    Anatomy,
    colour,
    draw_anatomy,
    draw_disc,
    draw_retina,
    draw_vessels,
    field_of_view,
    pixel_box,
)
from data_prep.fundus_reports import fundus_report
from data_prep.fundus_vessels import coverage
from data_prep.phantom import Finding, Phantom, check_size, coordinate_grid, smooth_noise

FINDINGS = ("microaneurysms", "haemorrhages", "exudates", "drusen", "cupping")
COUNT_SHARES = (0.20, 0.30, 0.30, 0.20)  # of images with none, one, two and three findings
NOISE = 0.006  # standard deviation of the sensor's noise


BLOOD = colour(0.60, 0.30, 0.32)  # what a haemorrhage lets through
DOT = colour(0.52, 0.25, 0.27)
EXUDATE = colour(0.98, 0.86, 0.50)
DRUSE = colour(0.96, 0.71, 0.38)


def draw_fundus(seed: int, *, size: int = 128, findings: tuple[str, ...] | None = None) -> Phantom:
    """Draw the fundus photograph of a seed.

    The right eye shows its disc in the right half of the image, the left eye in the left half.
    Sides are retinal hemifields: "superior" is the upper half of the image. Zones "temporal" and
    "nasal" are the halves of the field towards the fovea and towards the disc.

    Args:
        seed: at least 0. The same seed, size and findings give the same pixels.
        size: side of the square image in pixels, at least 32.
        findings: names from `FINDINGS`, without repetition; None draws zero to three of them. The
            eye, its vessels and where each finding would lie depend on the seed alone.

    Returns:
        A phantom with image (size, size, 3) uint8 and, aligned with its findings, one mask
        (size, size) bool each: the pixels the finding changes, gaps within a cluster closed;
        for cupping, the cup.

    Raises:
        ValueError: for a negative seed, a smaller size, an unknown or repeated finding.
    """
    if seed < 0:
        raise ValueError(f"expected a seed of at least 0, got {seed}")
    check_size(size)
    if findings is None:
        findings = _random_findings(_stream(seed, 0))
    unknown = [name for name in findings if name not in FINDINGS]
    if unknown or len(set(findings)) != len(findings):
        raise ValueError(f"expected different findings among {FINDINGS}, got {tuple(findings)}")

    anatomy = draw_anatomy(_stream(seed, 1))
    x, y = coordinate_grid(size)
    field = field_of_view(anatomy, x, y, size)
    image, light = draw_retina(anatomy, x, y, _stream(seed, 2))
    severities = _stream(seed, 3).uniform(0.3, 1.0, len(FINDINGS))
    severity = {name: float(s) for name, s in zip(FINDINGS, severities, strict=True)}
    cup_ratio = 0.66 + 0.20 * severity["cupping"] if "cupping" in findings else anatomy.cup_ratio
    cup = draw_disc(image, anatomy, x, y, cup_ratio, light)
    draw_vessels(image, anatomy, _stream(seed, 4), size)

    found, masks = [], []
    for name in findings:
        side, zone = _place(name, anatomy)
        if name == "cupping":
            mask = cup
        else:
            generator = _stream(seed, 5 + FINDINGS.index(name))
            allowed = field * _hemifield(side, y)
            centre = _lesion_centre(generator, side, zone, anatomy)
            mask = _lesion(image, light, name, severity[name], centre, anatomy, allowed, generator)
        found.append(Finding(name=name, word="", side=side, zone=zone, severity=severity[name]))
        masks.append(mask & (field > 0.5))

    generator = _stream(seed, 10)
    image += NOISE * generator.standard_normal(image.shape, dtype=np.float32)
    image *= field
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)
    report, named = fundus_report(tuple(found), anatomy.eye, _stream(seed, 11))
    return Phantom(
        image=np.ascontiguousarray(pixels),
        report=report,
        findings=named,
        masks=tuple(masks),
        modality="fundus",
    )


def _stream(seed: int, number: int) -> np.random.Generator:
    """A generator of its own for each part, so that one part's draws leave the others alone."""
    return np.random.Generator(np.random.PCG64([seed, number]))


def _random_findings(generator: np.random.Generator) -> tuple[str, ...]:
    count = generator.choice(len(COUNT_SHARES), p=COUNT_SHARES)
    chosen = generator.choice(len(FINDINGS), count, replace=False)
    return tuple(FINDINGS[i] for i in sorted(chosen))


def _place(name: str, anatomy: Anatomy) -> tuple[str, str]:
    """Side and zone of a finding."""
    if name == "drusen":
        return "", "macular"
    if name == "cupping":
        return "", "disc"
    return anatomy.quadrants[FINDINGS.index(name)]


def _hemifield(side: str, y) -> np.ndarray:
    return {"superior": y < 0, "inferior": y > 0}.get(side, y < 2).astype(np.float32)


def _lesion(
    image, light, name: str, severity: float, centre, anatomy: Anatomy, allowed, generator
) -> np.ndarray:
    """Paint one finding into `image`; returns its mask (H, W) bool."""
    size = image.shape[1]
    smallest = 1.8 / size  # 0.9 pixels
    if name == "microaneurysms":
        polygons, gap = lesions.microaneurysms(generator, centre, severity, smallest), 0.028
    elif name == "haemorrhages":
        polygons = lesions.haemorrhages(generator, centre, severity, smallest, disc=anatomy.disc)
        gap = 0.020
    elif name == "exudates":
        polygons, gap = lesions.exudates(generator, centre, severity, smallest), 0.020
    else:
        polygons, gap = lesions.drusen(generator, anatomy.fovea, severity, smallest), 0.024
    corners = np.concatenate(polygons)
    margin = 2 * gap + 4.0 / size
    box = pixel_box(corners.min(axis=0) - margin, corners.max(axis=0) + margin, size)
    cover = coverage(polygons, size)[box]
    if name == "drusen" or size >= 256:
        cover = _soften(cover, max(1, round(size / (128 if name == "drusen" else 384))))
    cover = cover * allowed[box]
    if size >= 256:  # clotted, uneven colour
        cover *= 1.0 - 0.16 * np.clip(smooth_noise(generator, 64, size)[box], 0.0, 2.0)
    part, glow = image[(slice(None), *box)], np.clip(light[box], 0.6, 1.0)
    if name == "microaneurysms":
        part *= 1.0 - cover * (1.0 - DOT)
    elif name == "haemorrhages":
        part *= 1.0 - cover * (1.0 - BLOOD)
    elif name == "exudates":
        part += 0.95 * cover * (EXUDATE * glow - part)
    else:
        part += 0.75 * cover * (DRUSE * glow - part)
    mask = np.zeros(light.shape, dtype=bool)
    mask[box] = lesions.close(cover > 0.1, round(gap * size)) & (allowed[box] > 0.0)
    return mask


def _lesion_centre(generator, side: str, zone: str, anatomy: Anatomy) -> np.ndarray:
    """Centre of a lesion's patch in its quadrant, clear of the field's edge and the other half."""
    towards_disc = 1.0 if anatomy.eye == "right" else -1.0
    across = generator.uniform(0.18, 0.42) * (towards_disc if zone == "nasal" else -towards_disc)
    down = generator.uniform(0.36, 0.47) * (-1.0 if side == "superior" else 1.0)
    return np.array((across, down))


def _soften(alpha: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a square of 2 * radius + 1 pixels, one axis after the other (H, W)."""
    for axis in (0, 1):
        alpha = sum(np.roll(alpha, step, axis) for step in range(-radius, radius + 1))
        alpha = alpha / np.float32(2 * radius + 1)
    return alpha
