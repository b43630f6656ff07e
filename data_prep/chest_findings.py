"""The six findings: where each may lie, and what each does to the picture.

An opacity fills a fraction of the lung's air (`fill`); a pneumothorax removes lung markings. The
mask of a finding is where its own contribution exceeds MASK_LEVEL of its peak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from data_prep.chest_anatomy import strokes
from data_prep.phantom import Finding, smooth_noise, smooth_step, soft_ellipse

FINDINGS = ("pneumonia", "pneumothorax", "atelectasis", "edema", "cardiomegaly", "effusion")
MASK_LEVEL = 0.2
BILATERAL_SHARE = {"pneumonia": 0.12, "atelectasis": 0.22, "effusion": 0.25}
LOBES = {"upper": (0.40, -0.42), "mid": (0.46, 0.03), "lower": (0.47, 0.27)}  # centres (|x|, y)


def place_findings(
    names: Sequence[str], generators: dict[str, np.random.Generator]
) -> tuple[Finding, ...]:
    """Side, zone and severity of each finding, in the order of `names`.

    Each is drawn from its own generator, so that one does not move another; only where two would
    hide each other does the later of cardiomegaly, effusion, pneumothorax, atelectasis and
    pneumonia give way.
    """
    placed: dict[str, Finding] = {}
    for name in ("edema", "cardiomegaly", "effusion", "pneumothorax", "atelectasis", "pneumonia"):
        if name not in names:
            continue
        g = generators[name]
        severity = float(g.uniform(0.3, 1.0))
        side = ("right", "left")[int(g.integers(2))]
        if g.random() < BILATERAL_SHARE.get(name, 0):
            side = "bilateral"
        choice = float(g.random())
        zone = ""
        if name == "edema":
            side, zone = "bilateral", "perihilar"
        elif name == "cardiomegaly":
            side = ""
        elif name == "effusion":
            zone = "basal"
        elif name == "pneumothorax":
            zone = "apical" if choice < 0.5 else ""
        elif name == "atelectasis":
            zone = "lower" if side == "bilateral" or choice < 0.7 else "mid"
            if _meet(side, placed.get("effusion")):
                side, zone = _other_side(side, placed["effusion"]), "mid"
            if _meet(side, placed.get("pneumothorax")):
                side = _other_side(side, placed["pneumothorax"])
                zone = "mid" if _meet(side, placed.get("effusion")) else zone
            if side == "left" and "cardiomegaly" in placed:
                zone = "mid"  # the enlarged heart covers the left base
        else:
            zone = "upper" if choice < 0.3 else "mid" if choice < 0.55 else "lower"
            if _meet(side, placed.get("pneumothorax")):
                side = _other_side("bilateral", placed["pneumothorax"])
            below = [placed.get("effusion"), placed.get("atelectasis")]
            if zone != "upper" and any(_meet(side, other) for other in below):
                zone = "upper"
            if side == "left" and "cardiomegaly" in placed:
                zone = "upper"
        placed[name] = Finding(name=name, side=side, zone=zone, severity=severity)
    return tuple(placed[name] for name in names)


def _meet(side: str, other: Finding | None) -> bool:
    return other is not None and (side == other.side or "bilateral" in (side, other.side))


def _other_side(side: str, taken: Finding) -> str:
    """The free side where there is one, otherwise right or left of `side`'s own."""
    if taken.side == "bilateral":
        return "right" if side == "bilateral" else side
    return "left" if taken.side == "right" else "right"


def _sides(finding: Finding) -> tuple[float, ...]:
    """Signs of x: the patient's right is the left half of the image."""
    return {"right": (-1.0,), "left": (1.0,)}.get(finding.side, (-1.0, 1.0))


def pneumonia(a: SimpleNamespace, f: SimpleNamespace, finding: Finding, g) -> np.ndarray:
    """Lobar consolidation with a ragged border, cut off straight where it meets the fissure."""
    ragged = smooth_noise(g, 7, f.size) + 0.6 * smooth_noise(g, 15, f.size)
    patchy = float(g.uniform(0.05, 0.4)) * smooth_noise(g, 18, f.size)
    fill = np.zeros_like(f.y)
    for sign in _sides(finding):
        across, down = LOBES[finding.zone]
        across += g.uniform(-0.04, 0.04) + (0.05 if sign > 0 and finding.zone == "lower" else 0)
        down += g.uniform(-0.05, 0.05)
        grow = 0.85 + 0.5 * finding.severity
        radius_x, radius_y = g.uniform(0.18, 0.22) * grow, g.uniform(0.15, 0.2) * grow
        u, v = (f.x - sign * across) / radius_x, (f.y - down) / radius_y
        lobe = smooth_step(1 - np.sqrt(u * u + v * v) + 0.30 * ragged, 0.38)
        if sign < 0 and finding.zone != "lower":  # the minor fissure
            fissure = -0.12 + 0.06 * (f.across - 0.4)
            below = f.y - fissure
            lobe = lobe * smooth_step(below if finding.zone == "mid" else -below, 0.02)
        fill = np.maximum(fill, lobe * (f.x * sign > 0))
    return fill * np.clip((0.5 + 0.4 * finding.severity) * (1 + patchy), 0, 0.97)


def atelectasis(a: SimpleNamespace, f: SimpleNamespace, finding: Finding, g) -> np.ndarray:
    """One or two plates: thin, nearly horizontal bands."""
    fill = np.zeros_like(f.y)
    for sign in _sides(finding):
        down = a.dome - 0.12 if finding.zone == "lower" else g.uniform(-0.16, -0.08)
        lean = g.uniform(0.0, 0.35)
        for plate in range(1 + (finding.severity > 0.6)):
            centre = (0.45 + 0.04 * sign + g.uniform(-0.03, 0.03), down - 0.15 * plate)
            half = (g.uniform(0.2, 0.26) + 0.08 * finding.severity) * (1 - 0.15 * plate)
            thick = g.uniform(0.026, 0.034) + 0.014 * finding.severity
            slant = lean + g.uniform(-0.08, 0.08)
            bow = f.y + 0.12 * (f.across - centre[0]) ** 2
            band = soft_ellipse(sign * f.x, bow, centre, (half, thick), angle=-slant, softness=0.35)
            fill = np.maximum(fill, band * (f.x * sign > 0))
    return fill * (0.6 + 0.37 * finding.severity)


def edema(a: SimpleNamespace, f: SimpleNamespace, finding: Finding, g) -> np.ndarray:
    """Bat-wing haze about both hila, with short Kerley lines at the outer border."""
    cloudy = smooth_noise(g, 9, f.size) + 0.7 * smooth_noise(g, 20, f.size)
    u, v = (f.across - 0.20) / 0.36, (f.y + 0.02 - 0.1 * f.across) / 0.46
    haze = smooth_step(1 - np.sqrt(u * u + v * v) + 0.10 * cloudy, 0.5)
    count = 24
    side = np.where(np.arange(count) < count // 2, -1.0, 1.0)
    down = np.tile(np.linspace(0.02, 0.3, count // 2), 2) + g.normal(0, 0.01, count)
    across = g.uniform(0.36, 0.5, count)
    lines = strokes(
        f,
        a,
        np.stack([side * across, down], axis=1),
        np.where(side > 0, 0.0, np.pi) + g.normal(0, 0.12, count),
        g.normal(0, 0.2, count),
        g.uniform(0.06, 0.11, count),
        sigma=0.003,
        weight=0.9,
    )
    fill = haze * (1 + 0.13 * cloudy + lines)
    return np.clip(fill * (0.45 + 0.4 * finding.severity), 0, 0.95)


def effusion(a: SimpleNamespace, f: SimpleNamespace, finding: Finding, g) -> np.ndarray:
    """Fluid up to a meniscus that climbs the lateral wall and blunts the costophrenic angle."""
    fill = np.zeros_like(f.y)
    for sign in _sides(finding):
        depth = 0.2 + 0.58 * finding.severity * g.uniform(0.9, 1.1)
        base = a.dome + 0.2 + (a.dome_step if sign > 0 else 0)
        q = np.clip(f.across / a.cage, 0, 1.1)
        surface = base - depth * (0.6 + 0.4 * q * q * q) + 0.01 * np.cos(9 * q)
        fill = np.maximum(fill, smooth_step(f.y - surface, 0.05) * (f.x * sign > 0))
    return 0.97 * fill


def pneumothorax(a: SimpleNamespace, f: SimpleNamespace, finding: Finding, g):
    """Air between chest wall and a lung that has drawn back, and its thin pleural line.

    Returns:
        air (H, W) in [0, 1] and line (H, W) in [0, 1].
    """
    drop = 0.07 + 0.2 * finding.severity * g.uniform(0.85, 1.15)
    shrink = 0.10 + 0.4 * finding.severity * g.uniform(0.9, 1.1)

    def shrunken(y):
        kept = 1 - shrink * (1 - 0.3 * np.exp(-(((y + 0.1) / 0.3) ** 2)))
        if finding.zone == "apical":
            kept = 1 - shrink * smooth_step(0.12 - y, 0.5)
        wall, inner = f.wall(y - drop), f.inner(y - drop)
        return np.where(y - drop > a.apex, inner + (wall - inner) * kept, -0.05)

    rows = f.y + 0.02 * np.cos(7 * f.across)
    retreat = f.lookup(rows, shrunken) - f.across
    retreat = np.minimum(retreat, f.across - f.lookup(rows - drop, f.inner) + 0.03)
    here = (f.x < 0) if finding.side == "right" else (f.x > 0)
    present = smooth_step(f.lung - 0.09, 0.06) * here
    air = smooth_step(-retreat, f.edge) * present * (f.lateral < 0.62)
    slope = np.hypot(*np.gradient(retreat, 2 / f.size))
    width = max(0.009, 1.1 / f.size)
    distance = retreat / np.clip(slope, 0.7, 6) / width
    line = np.exp(-distance * distance) * present * (f.lung > 0.02)
    return air, line * min(1.0, 0.010 * f.size)


OPACITIES: dict[str, Callable[..., np.ndarray]] = {
    "pneumonia": pneumonia,
    "atelectasis": atelectasis,
    "edema": edema,
    "effusion": effusion,
}
