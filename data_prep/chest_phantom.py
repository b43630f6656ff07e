"""Frontal chest radiographs, drawn by a small physical model.

The attenuation along each ray is a sum over tissues: body, lungs (which take attenuation away),
heart, spine, ribs, vessels and what the findings add or remove. A film curve turns it into grey;
white is dense. The patient's right is the left half of the image.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from data_prep import chest_anatomy as anatomy
from data_prep import chest_findings
from data_prep.chest_findings import FINDINGS, MASK_LEVEL, place_findings
from data_prep.chest_reports import chest_report
from data_prep.phantom import Phantom, check_size, smooth_noise, smooth_step

COUNT_SHARES = (0.16, 0.34, 0.3, 0.2)  # of zero to three findings in an image
LUNG = 0.60  # attenuation that the thickest lung takes away
HEART = 0.20
NOISE = 0.004
SCATTER = 0.3  # share of the signal that scattered rays carry: a veil over every contrast
SCATTER_REACH = 0.16  # standard deviation of the veil; the image is 2 wide


def _generators(seed: int) -> dict[str, np.random.Generator]:
    """One independent stream per purpose, so that one choice does not shift another."""
    purposes = ("anatomy", "vessels", "texture", "noise", "choice", "report", *FINDINGS)
    children = np.random.SeedSequence(seed).spawn(len(purposes))
    return {
        name: np.random.Generator(np.random.PCG64(child))
        for name, child in zip(purposes, children, strict=True)
    }


def _choose_findings(generator: np.random.Generator) -> tuple[str, ...]:
    count = int(generator.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    return tuple(FINDINGS[i] for i in sorted(generator.permutation(len(FINDINGS))[:count]))


def _check_findings(findings: tuple[str, ...]) -> None:
    unknown = [name for name in findings if name not in FINDINGS]
    if unknown or len(set(findings)) < len(findings):
        raise ValueError(f"expected distinct findings among {FINDINGS}, got {tuple(findings)}")


def _texture(g: np.random.Generator, size: int) -> np.ndarray:
    """Fine parenchymal texture, (H, W) about unit variance; finer octaves only where they show."""
    total = np.zeros((size, size), dtype=np.float32)
    for cells, stream in zip((14, 30, 62, 126), g.spawn(4), strict=True):
        if cells <= size // 4:
            total += smooth_noise(stream, cells, size) * 0.8
    return total


def draw_chest(seed: int, *, size: int = 128, findings: tuple[str, ...] | None = None) -> Phantom:
    """Draw one chest radiograph with its report and the exact mask of each finding.

    Args:
        seed: the patient, the film and the report; the same seed gives the same pixels, and the
            same anatomy at another size or with other findings.
        size: side of the image in pixels, at least 32.
        findings: names among FINDINGS; None draws zero to three.

    Returns:
        Phantom with image (size, size) uint8 and masks (size, size) bool.

    Raises:
        ValueError: if a finding is unknown or named twice, or the size is too small.
    """
    check_size(size)
    g = _generators(seed)
    if findings is None:
        findings = _choose_findings(g["choice"])
    _check_findings(findings)
    placed = {finding.name: finding for finding in place_findings(findings, g)}
    report, named = chest_report(tuple(placed.values()), g["report"])

    a = SimpleNamespace(
        **{name: float(g["anatomy"].uniform(*limits)) for name, limits in anatomy.ANATOMY.items()}
    )
    f = anatomy.lay_out(a, size)
    centre = anatomy.mediastinum(a, f)
    heart = anatomy.heart(a, f, a.heart_ratio)
    lung = f.lung * (1 - 0.88 * np.maximum(heart, centre))
    seat = 0.25 + 0.75 * smooth_step(f.above + 0.03, 0.1)  # the heart merges with the belly
    contributions = {}
    if "cardiomegaly" in placed:
        big = anatomy.heart(a, f, 0.575 + 0.12 * placed["cardiomegaly"].severity)
        big = np.maximum(big, heart)
        small = f.lung * (1 - 0.88 * np.maximum(big, centre))
        contributions["cardiomegaly"] = lung - small
        heart, lung = big, small
    air = np.ones_like(lung)  # share of the lung's air that is left
    markings = np.ones_like(lung)
    gas = line = fluid = None
    if "pneumothorax" in placed:
        gas, line = chest_findings.pneumothorax(a, f, placed["pneumothorax"], g["pneumothorax"])
        contributions["pneumothorax"] = gas
        markings = 1 - gas
    for name, draw in chest_findings.OPACITIES.items():
        if name in placed:
            fill = draw(a, f, placed[name], g[name])
            if gas is not None and name != "effusion":
                fill = fill * (1 - gas)
            contributions[name] = fill * lung
            air = air * (1 - fill)
            if name == "effusion":  # fluid is denser than collapsed lung
                fluid = 0.2 * fill * lung
    vessels = anatomy.vessels(a, f, g["vessels"]) * markings * (0.35 + 0.65 * air)
    texture = 0.022 * _texture(g["texture"], size) * markings * air

    density = anatomy.tissues(a, f) + anatomy.skeleton(a, f) - anatomy.airway(a, f)
    density += HEART * np.maximum(heart * seat, centre)
    density += lung * (vessels + texture) - LUNG * lung * air
    if gas is not None:
        density += 0.10 * line - 0.15 * gas
    if fluid is not None:
        density += fluid
    veil = anatomy.blur_matrix(size, SCATTER_REACH)
    density += SCATTER * (veil @ density @ veil.T - density)
    film = 1 / (1 + np.exp(-a.film_slope * (density - a.film_middle)))
    film = 0.02 + 0.94 * film + NOISE * g["noise"].standard_normal((size, size), dtype=np.float32)
    image = np.clip(np.round(film * 255), 0, 255).astype(np.uint8)
    masks = tuple(contributions[name] > MASK_LEVEL * contributions[name].max() for name in findings)
    return Phantom(image=image, report=report, findings=named, masks=masks, modality="chest")
