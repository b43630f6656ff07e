"""The normal anatomy of a frontal chest radiograph, as attenuation along each ray.

Everything is laid out in a patient frame (x to the right of the image, y down, chest about
[-1, 1]^2) from a few numbers drawn before the size is known: one seed is one patient at every
size. The patient's right is the left half of the image.

Brightness, contrast and how fast power falls with frequency are those of real radiographs, which
`benchmarks/phantom_exposure.py` compares: attacks find in them what they would find there.

Throughout, `a` holds the drawn numbers of ANATOMY and `f` the (H, W) fields of `lay_out`.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from data_prep.phantom import coordinate_grid, smooth_step, soft_ellipse

ANATOMY = {  # (low, high) of the patient's and the film's variation
    "zoom": (0.93, 1.06),
    "tilt": (-0.04, 0.04),
    "shift_x": (-0.05, 0.05),
    "shift_y": (-0.04, 0.04),
    "rotation": (-0.03, 0.03),
    "cage": (0.70, 0.80),
    "apex": (-0.84, -0.74),
    "dome": (0.36, 0.54),
    "dome_step": (0.02, 0.09),
    "dome_height": (0.14, 0.24),
    "apex_x": (0.27, 0.33),
    "heart_ratio": (0.42, 0.49),
    "heart_axis": (0.35, 0.65),
    "knob": (0.06, 0.085),
    "torso": (0.98, 1.25),
    "shoulder": (0.2, 0.36),
    "thickness": (0.92, 1.04),
    "breast": (-0.10, 0.13),
    "rib_pitch": (0.145, 0.17),
    "rib_phase": (0.0, 1.0),
    "rib_drop": (0.2, 0.3),
    "rib_weight": (0.10, 0.17),
    "clavicle": (0.12, 0.26),
    "bubble": (-0.1, 0.26),
    "bubble_x": (0.28, 0.42),
    "vessels": (0.8, 1.25),
    "film_middle": (0.54, 0.90),
    "film_slope": (3.6, 5.0),
}


def lookup(y: np.ndarray, function) -> np.ndarray:
    """`function` of each y, from a table of 2,048 steps over [-1.7, 1.7]."""
    table = function(np.linspace(-1.7, 1.7, 2048, dtype=np.float32)).astype(np.float32)
    return table[np.clip((y + 1.7) * (2047 / 3.4), 0, 2047).astype(np.int32)]


@lru_cache(maxsize=32)
def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """(size, size) Gaussian of `sigma` in frame units, rows summing to one."""
    centres = (np.arange(size) + 0.5) * (2 / size)
    sigma = max(sigma, 1.1 / size)
    matrix = np.exp(-0.5 * ((centres[:, None] - centres) / sigma) ** 2)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def heart(a: SimpleNamespace, f: SimpleNamespace, ratio: float) -> np.ndarray:
    """Heart of a cardiothoracic ratio as (H, W) in [0, 1], from its left and right border."""
    width = 2 * a.cage * ratio
    top, bottom = -0.36, a.dome + a.dome_step + 0.09
    round_off = 0.8 + (0.5 - ratio) * 2  # a larger heart is more globular

    def left(y):
        s = np.clip((y - top) / (bottom - top), 0, 1.2)
        apex = np.sqrt(np.clip(1 - (np.maximum(s - 0.78, 0) / 0.3) ** 2, 0, 1))
        return (
            0.085
            + (0.66 * width - 0.085)
            * np.sin(np.minimum(s / 0.78, 1) ** (1 + a.heart_axis * round_off) * np.pi / 2)
        ) * apex

    def right(y):
        s = np.clip((y - top) / (bottom - top), 0, 1.2)
        bulge = np.clip(np.sin(np.clip(s - 0.15, 0, 1) ** 1.1 * np.pi), 0, 1) ** 0.75
        return 0.08 + (0.34 * width - 0.08) * bulge

    offset = f.x - np.float32(f.middle)
    level = np.minimum(lookup(f.y, left) - offset, offset + lookup(f.y, right))
    return smooth_step(level - 0.01, max(0.05, f.edge * 1.6)) * smooth_step(
        f.y - np.float32(top), 0.06
    )


def lay_out(a: SimpleNamespace, size: int) -> SimpleNamespace:
    """Patient frame, signed distances to the lung's borders, and the lung without a heart."""
    f = SimpleNamespace(size=size)
    column, row = coordinate_grid(size)
    column, row = (column - a.shift_x) / a.zoom, (row - a.shift_y) / a.zoom
    cosine, sine = np.float32(np.cos(a.tilt)), np.float32(np.sin(a.tilt))
    f.x, f.y = column * cosine + row * sine, row * cosine - column * sine
    f.across, f.sign = np.abs(f.x), np.sign(f.x)
    f.edge = max(0.012, 1.2 / size)
    f.middle = 0.02 + a.rotation
    span = a.dome + 0.25 - a.apex

    def wall(y):
        t = np.clip((y - a.apex) / span, 0, 1)
        return a.apex_x + (a.cage - a.apex_x) * (1 - (1 - t) ** 2.7) ** 0.58

    def inner(y):
        t = np.clip((y - a.apex) / span, 0, 1)
        return a.apex_x - (a.apex_x - 0.09) * (1 - (1 - t) ** 7) ** 0.5

    f.wall, f.inner, f.lookup = wall, inner, lookup
    f.lateral = lookup(f.y, wall) - f.across
    f.medial = f.across - lookup(f.y, inner)
    offset = (f.across - np.float32(0.5 * a.cage)) / np.float32(0.5 * a.cage)
    dome = (
        np.float32(a.dome)
        + np.float32(a.dome_height) * offset * offset * (1 + 0.35 * offset)
        + np.float32(a.dome_step / 2) * (1 + f.sign)
    )
    f.above = dome - f.y
    rim = 1 - np.clip(f.lateral / np.float32(0.3), 0, 1)
    chord = np.sqrt(1 - rim * rim)
    f.lung = chord * smooth_step(f.medial, 0.03) * smooth_step(f.above, f.edge * 1.2)
    f.lung *= smooth_step(f.y - a.apex - 0.02, 0.05) * (0.78 + 0.22 * smooth_step(f.y + 0.45, 0.35))
    return f


def skeleton(a: SimpleNamespace, f: SimpleNamespace) -> np.ndarray:
    """Ribs as two families of arcs (posterior and anterior), spine, clavicles, shoulders."""
    cage = f.lateral + f.across + 0.035
    u = np.clip(f.across / np.maximum(cage, 0.2), 0, 1)
    arc = np.sqrt(1 - u * u)
    inside = smooth_step(cage - f.across, 0.02)
    pitch = np.float32(a.rib_pitch)
    rise = f.y - a.rib_phase * pitch + 0.05 * arc * u
    density = np.zeros_like(f.y)
    for offset, half_width, weight, visible in (
        (a.rib_drop * (1 - arc), 0.19, 1.0, inside),
        (a.rib_drop * (1.05 + 1.25 * arc), 0.21, 0.7, inside * smooth_step(u - 0.5, 0.16)),
    ):
        phase = (rise - offset) / pitch
        distance = np.abs(phase - np.rint(phase))
        soft = max(0.03, 1.0 / (f.size * a.rib_pitch))
        rib = smooth_step(half_width - distance, soft)
        shell = smooth_step(half_width - 0.06 - distance, soft + 0.03)  # marrow inside the cortex
        density += (rib - 0.35 * shell) * visible * np.float32(weight * a.rib_weight)
    density *= smooth_step(f.y - a.apex + 0.08, 0.05) * (0.3 + 0.7 * smooth_step(f.above, 0.06))

    centre = f.x - np.float32(0.3 * a.rotation)
    column = smooth_step(0.085 + 0.012 * f.y - np.abs(centre), 0.022)
    discs = f.y / np.float32(0.135)
    discs = np.abs(discs - np.floor(discs) - 0.5)
    vertebrae = 0.8 + 0.2 * smooth_step(0.36 - discs, 0.08)
    pedicles = smooth_step(0.22 - discs, 0.12) * np.exp(-(((np.abs(centre) - 0.055) / 0.02) ** 2))
    density += column * vertebrae * 0.09 + 0.05 * pedicles

    along = np.clip((f.across - 0.09 - a.rotation * f.sign) / 0.72, 0, 1.2)
    curve = a.apex + 0.2 - a.clavicle * along - 0.035 * np.sin(along * 2 * np.pi)
    thickness = 0.034 - 0.02 * along * (1 - along)
    bone = smooth_step(thickness - np.abs(f.y - curve), f.edge)
    hollow = smooth_step(thickness * 0.6 - np.abs(f.y - curve), f.edge * 1.5)
    ends = smooth_step(along - 0.02, 0.02) * smooth_step(1.12 - along, 0.03)
    density += (bone - 0.35 * hollow) * ends * 0.17
    head = a.cage + 0.24
    top = a.apex + 0.13 - a.clavicle * 0.5
    density += 0.13 * soft_ellipse(f.across, f.y, (head, top), (0.12, 0.13), softness=0.2)
    blade = (f.across - head + 0.12 + 0.12 * (f.y - top), 0.35 * (f.y - top) - 0.13)
    density += (
        0.07
        * smooth_step(0.09 - np.abs(blade[0]), 0.02)
        * smooth_step(0.13 - np.abs(blade[1]), 0.03)
    )
    return density


def strokes(f, a, start, angle, bend, length, *, sigma: float, weight: float) -> np.ndarray:
    """Curved tapering strokes, all at once: points splatted bilinearly, then one blur.

    start (N, 2), angle, bend, length (N,) in the patient frame; returns (H, W), about the
    strokes' thickness times `weight`, whatever the size.
    """
    size = f.size
    steps = max(8, int(0.5 * size * float(length.max())))
    start, angle, bend, length = (v.astype(np.float32) for v in (start, angle, bend, length))
    t = (np.arange(steps, dtype=np.float32) + 0.5) / steps  # (P,)
    heading = angle[:, None] + bend[:, None] * (t - 0.5)
    step = length[:, None] / steps
    x = start[:, :1] + np.cumsum(np.cos(heading) * step, axis=1)
    y = start[:, 1:] + np.cumsum(np.sin(heading) * step, axis=1)
    cosine, sine = float(np.cos(a.tilt)), float(np.sin(a.tilt))
    column = ((x * cosine - y * sine) * a.zoom + a.shift_x + 1) * size / 2 - 0.5
    row = ((y * cosine + x * sine) * a.zoom + a.shift_y + 1) * size / 2 - 0.5
    mass = np.broadcast_to(step * (1 - 0.7 * t), x.shape)
    left, top = np.floor(column).astype(np.int32), np.floor(row).astype(np.int32)
    wx, wy = column - left, row - top
    ok = (left >= 0) & (top >= 0) & (left < size - 1) & (top < size - 1)
    index = (top * size + left)[ok]
    mass, wx, wy = mass[ok], wx[ok], wy[ok]
    places = np.concatenate([index, index + 1, index + size, index + size + 1])
    shares = np.concatenate(
        [mass * (1 - wx) * (1 - wy), mass * wx * (1 - wy), mass * (1 - wx) * wy, mass * wx * wy]
    )
    image = np.bincount(places, weights=shares, minlength=size * size).astype(np.float32)
    blur = blur_matrix(size, sigma)
    scale = weight * sigma * 2.5 * size * size / 4
    return blur @ image.reshape(size, size) @ blur.T * np.float32(scale)


def vessels(a: SimpleNamespace, f: SimpleNamespace, g: np.random.Generator) -> np.ndarray:
    """Branching lung vessels in three generations that leave the hila."""
    count = 22
    side = np.where(np.arange(count) < count // 2, -1.0, 1.0)
    fan = np.tile(np.linspace(-1.45, 1.5, count // 2), 2) + g.normal(0, 0.1, count)
    angle = np.where(side > 0, fan, np.pi - fan)
    length = g.uniform(0.42, 0.62, count) * (1 + 0.15 * np.sin(fan))
    start = np.stack([side * 0.13 + f.middle / 2, -0.03 - 0.02 * side + 0.08 * np.sin(fan)], axis=1)
    bend = g.normal(0, 0.5, count)
    total = np.zeros((f.size, f.size), dtype=np.float32)
    for sigma, weight, children in ((0.0085, 0.28, 3), (0.0050, 0.26, 3), (0.0030, 0.24, 0)):
        total += strokes(f, a, start, angle, bend, length, sigma=sigma, weight=weight)
        if not children or (children == 3 and sigma < 0.006 and f.size < 192):
            break  # the finest generation would not show
        t = g.uniform(0.2, 0.9, (len(angle), children))
        heading = angle[:, None] + bend[:, None] * (t - 0.5)
        middle = angle[:, None] + bend[:, None] * (t / 2 - 0.5)
        turn = g.choice([-1.0, 1.0], t.shape) * g.uniform(0.35, 0.95, t.shape)
        start = np.stack(
            [
                start[:, :1] + np.cos(middle) * t * length[:, None],
                start[:, 1:] + np.sin(middle) * t * length[:, None],
            ],
            -1,
        ).reshape(-1, 2)
        length = (length[:, None] * g.uniform(0.35, 0.6, t.shape)).ravel()
        angle, bend = (heading + turn).ravel(), g.normal(0, 0.5, t.size)
    total *= np.float32(a.vessels)
    return total / (1 + 1.6 * total)  # crossings do not sparkle


def tissues(a: SimpleNamespace, f: SimpleNamespace) -> np.ndarray:
    """Body, neck, shoulders, breasts and the belly with its gas; no bone, lung or heart."""
    slope = np.clip((f.across - 0.27) / 0.8, 0, 1)
    shoulder = a.apex - 0.17 + a.shoulder * slope * slope
    body = np.maximum(
        smooth_step(f.y - shoulder, 0.03),
        smooth_step(0.27 + 0.5 * np.maximum(f.y - a.apex + 0.2, 0) - f.across, 0.06),
    )
    reach = np.maximum(a.torso + 0.4 * smooth_step(-0.2 - f.y, 0.3), 0.3)
    chord = np.sqrt(np.clip(1 - (f.across / reach) ** 2, 0, 1))
    tissue = a.thickness * body * chord * (0.76 + 0.24 * smooth_step(f.y + 0.75, 0.4))
    within = smooth_step(f.lateral, 0.04)
    belly = (
        0.28
        * chord
        * (
            within * smooth_step(-f.above, 0.05)
            + (1 - within) * smooth_step(f.y - a.dome - 0.1, 0.4)
        )
    )
    breast = (
        max(a.breast, 0)
        * 1.4
        * soft_ellipse(
            f.across, f.y, (0.5 * a.cage + 0.08, a.dome - 0.2), (0.36, 0.34), softness=0.12
        )
    )
    gas = (
        max(a.bubble, 0)
        * 1.5
        * soft_ellipse(
            f.x, f.y, (a.bubble_x, a.dome + a.dome_step + 0.13), (0.15, 0.09), softness=0.35
        )
    )
    return tissue + belly + breast * body - gas * smooth_step(-0.03 - f.above, 0.03)


def mediastinum(a: SimpleNamespace, f: SimpleNamespace) -> np.ndarray:
    """Great vessels, aortic knob and hilar roots, thickness in [0, 1]."""
    half = lookup(f.y, lambda y: 0.10 + 0.05 * np.clip((y + 0.5) / 0.6, 0, 1) ** 2)
    band = smooth_step(half - np.abs(f.x - f.middle), max(0.035, f.edge * 1.5))
    band *= 0.2 + 0.8 * smooth_step(f.y - a.apex - 0.05, 0.25)  # the neck holds less
    knob = soft_ellipse(
        f.x, f.y, (f.middle + 0.075, -0.35), (a.knob, a.knob * 1.4), softness=f.edge * 8
    )
    trunk = soft_ellipse(f.x, f.y, (f.middle + 0.09, -0.17), (0.085, 0.14), softness=f.edge * 10)
    return np.maximum(np.maximum(band, knob), trunk)


def airway(a: SimpleNamespace, f: SimpleNamespace) -> np.ndarray:
    """Trachea and main bronchi as missing attenuation."""
    offset = f.x - np.float32(f.middle * 0.6)
    trachea = smooth_step(0.036 - np.abs(offset), 0.016) * smooth_step(-0.25 - f.y, 0.03)
    fork = np.abs(offset) - (f.y + 0.27) * (0.95 + 0.2 * np.sign(offset))
    bronchi = smooth_step(0.026 - np.abs(fork), 0.016)
    bronchi *= smooth_step(0.09 - np.abs(f.y + 0.19), 0.03)
    return 0.2 * np.maximum(trachea, 0.6 * bronchi)
