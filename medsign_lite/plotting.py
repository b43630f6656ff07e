"""Figures: arrays in, `Axes` out.

Every function draws on the axes it is given, or on those of a figure of its own that no global
state keeps alive, and returns them. Maps use a perceptually uniform colour map; what matters is
also said by position, hatching, marker or text, so that every figure reads without colour.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLOUR_MAP = "viridis"
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
_GREYS = ("0.25", "0.75", "0.5", "0.9", "0.4", "0.65")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")

Array = Tensor | np.ndarray | Sequence


def new_axes(*, figsize: tuple[float, float] = (4.0, 3.0)) -> Axes:
    """Axes of a figure that pyplot does not know of; display `axes.figure` to see it."""
    return Figure(figsize=figsize, layout="constrained").subplots()


def line_style(number: int) -> dict[str, str]:
    """Dash and marker of the line of this number, as keywords of `Axes.plot`.

    The next lines differ in both, and 28 of them in one or the other, whatever their colours.
    """
    return {"linestyle": _LINES[number % 4], "marker": _MARKERS[number % 7]}


def _array(values: Array) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=float)


def _pixels(image: Array, name: str = "image") -> np.ndarray:
    """(H, W, 3) in [0, 1] of an image (3, H, W), as our tensors are, or (1, 3, H, W)."""
    pixels = _array(image)
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"expected {name} (3, H, W), got {pixels.shape}")
    return np.clip(pixels.transpose(1, 2, 0), 0, 1)


def _plane(values: Array, name: str) -> np.ndarray:
    plane = _array(values)
    if plane.ndim == 3 and len(plane) == 1:
        plane = plane[0]
    if plane.ndim != 2:
        raise ValueError(f"expected {name} (H, W), got {plane.shape}")
    return plane


def show_image(image: Array, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw an image (3, H, W) in [0, 1]; values outside are clipped."""
    ax = ax or new_axes(figsize=(3, 3))
    ax.imshow(_pixels(image), interpolation="nearest")
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def show_map(
    image: Array,
    map: Array,
    *,
    mask: Array | None = None,
    opacity: float = 0.6,
    title: str = "",
    colour_bar: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Lay a map (h, w) in [0, 1] over an image (3, H, W) in [0, 1], in grey below it.

    Args:
        map: of any size; stretched over the image.
        mask: (H, W) bool, drawn as a white contour with a black core.
        opacity: of the map, from 0 (image only) to 1 (map only).
        colour_bar: whether to draw the scale of the map beside it.
    """
    pixels, values = _pixels(image), _plane(map, "map")
    height, width = pixels.shape[:2]
    ax = ax or new_axes(figsize=(3, 3))
    ax.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # pixel centres stay whole numbers
    overlay = ax.imshow(
        values,
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=1,
        alpha=opacity,
        extent=extent,
        interpolation="bilinear",
    )
    if mask is not None:
        outline = _plane(mask, "mask")
        if outline.shape != (height, width):
            raise ValueError(f"expected mask {(height, width)} like the image, got {outline.shape}")
        show_outline(outline, ax=ax)
    if colour_bar:
        ax.figure.colorbar(overlay, ax=ax, fraction=0.046)
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def show_outline(mask: Array, *, ax: Axes) -> Axes:
    """Draw the border of a mask (H, W), white with a black core; of an empty or full one nothing.

    Two strokes, so that it is seen on bright and on dark images.
    """
    plane = _plane(mask, "mask")
    if 0 < plane.mean() < 1:  # matplotlib warns where there is no border to draw
        for colour, line_width in (("white", 2.5), ("black", 1.0)):
            ax.contour(plane, levels=[0.5], colors=colour, linewidths=line_width)
    return ax


def show_token_maps(
    maps: Array,
    tokens: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    chosen: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a row of maps (T, h, w), each over its own range; frame the chosen one.

    Args:
        tokens: T names, written above; a score is written below its name.
        chosen: index of the token that is framed and marked "chosen".
    """
    values = _array(maps)
    if values.ndim != 3 or len(values) != len(tokens):
        raise ValueError(f"expected maps ({len(tokens)}, h, w), one a token, got {values.shape}")
    if scores is not None and len(scores) != len(tokens):
        raise ValueError(f"expected {len(tokens)} scores, one a token, got {len(scores)}")
    if chosen is not None and not 0 <= chosen < len(tokens):
        raise ValueError(f"expected chosen in 0 to {len(tokens) - 1}, got {chosen}")
    count, height, width = values.shape
    ax = ax or new_axes(figsize=(1.6 * count, 2.2))
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    values = (values - low) / np.maximum(high - low, 1e-12)
    gap = max(1, width // 8)
    for index, token in enumerate(tokens):
        left = index * (width + gap)
        extent = (left, left + width, height, 0)
        ax.imshow(values[index], cmap=COLOUR_MAP, vmin=0, vmax=1, extent=extent)
        label = token if scores is None else f"{token}\n{scores[index]:.3g}"
        ax.text(left + width / 2, -gap / 2, label, ha="center", va="bottom")
        if index == chosen:
            ax.add_patch(_frame(left, width, height, gap / 3))
            ax.text(left + width / 2, height + gap / 2, "chosen", ha="center", va="top")
    ax.set_xlim(-gap / 2, count * (width + gap) - gap / 2)
    ax.set_ylim(height + 2 * gap, -3 * gap)
    ax.set_axis_off()
    return ax


def _frame(left: float, width: float, height: float, margin: float):
    from matplotlib.patches import Rectangle

    corner = (left - margin, -margin)
    size = (width + 2 * margin, height + 2 * margin)
    return Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=3)


def show_difference(
    image: Array, reference: Array, *, gain: float = 10.0, title: str | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw |image - reference| x gain as grey, both (3, H, W) in [0, 1]; mean over the colours."""
    first, second = _pixels(image), _pixels(reference, "reference")
    if first.shape != second.shape:
        raise ValueError(f"expected images of one shape, got {first.shape} and {second.shape}")
    ax = ax or new_axes(figsize=(3, 3))
    difference = np.abs(first - second).mean(axis=2) * gain
    ax.imshow(difference, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_title(f"difference x {gain:g}" if title is None else title)
    ax.set_axis_off()
    return ax


def plot_attack_accuracy(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Bit accuracy per attack as bars with intervals, one group of bars per attack.

    Args:
        rows: each with "attack", "bit_accuracy", and optionally "low" and "high" (the interval)
            and "method"; methods stand beside each other, told apart by hatching.
    """
    if not rows:
        raise ValueError("expected at least one row with 'attack' and 'bit_accuracy', got none")
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    methods = list(dict.fromkeys(row.get("method", "") for row in rows))
    ax = ax or new_axes(figsize=(1.2 + 0.9 * len(attacks), 3))
    thickness = 0.8 / len(methods)
    for number, method in enumerate(methods):
        own = [row for row in rows if row.get("method", "") == method]
        heights = np.array([row["bit_accuracy"] for row in own], dtype=float)
        places = [attacks.index(row["attack"]) for row in own]
        offset = (number - (len(methods) - 1) / 2) * thickness
        low = [row.get("low", row["bit_accuracy"]) for row in own]
        high = [row.get("high", row["bit_accuracy"]) for row in own]
        ax.bar(
            np.array(places) + offset, heights, thickness, label=method, edgecolor="black",
            color=_GREYS[number % 6], hatch=_HATCHES[number % 6], capsize=3,
            yerr=np.clip([heights - low, high - heights], 0, None),
        )  # fmt: skip
        for place, height, top in zip(places, heights, high, strict=True):
            ax.text(place + offset, top + 0.01, f"{height:.2f}", ha="center", va="bottom", size=8)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.text(1.01, 0.5, "chance", transform=ax.get_yaxis_transform(), va="center", size=8)
    ax.set_xticks(range(len(attacks)), attacks)
    ax.set_ylim(0, 1.1)
    ax.set_ylabel("bit accuracy")
    if methods != [""]:
        ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(methods))
    return ax


def plot_training(
    log: Sequence[Mapping],
    *,
    names: Sequence[str] | None = None,
    x: str = "step",
    logarithmic: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the numbers of a training log against its steps.

    Args:
        log: rows as in log.jsonl; a row without a name adds no point to that name's curve.
        names: which numbers; by default every one but `x`, "step" and "seconds".
        logarithmic: whether the vertical axis is.
    """
    found = dict.fromkeys(
        key for row in log for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )  # fmt: skip
    names = [n for n in found if n not in (x, "step", "seconds")] if names is None else list(names)
    missing = [name for name in (x, *names) if name not in found]
    if missing or not names:
        raise ValueError(f"the log has the numbers {list(found)}; it has no {missing or 'more'}")
    ax = ax or new_axes()
    for number, name in enumerate(names):
        points = [(row[x], row[name]) for row in log if row.get(name) is not None and x in row]
        ax.plot(
            *zip(*points, strict=True), label=name, **line_style(number),
            markevery=max(1, len(points) // 8), markersize=4,
        )  # fmt: skip
    ax.set_xlabel(x)
    if logarithmic:
        ax.set_yscale("log")
    ax.set_ylabel(names[0] if len(names) == 1 else "")
    if len(names) > 1:
        ax.legend(fontsize=8)
    return ax


def plot_bits(message: Array, decoded: Array, *, ax: Axes | None = None) -> Axes:
    """Draw a message (K,) and what was decoded (K,), both in {0, 1}; wrong bits are crossed out."""
    sent, read = _array(message), _array(decoded)
    if sent.ndim != 1 or sent.shape != read.shape:
        raise ValueError(f"expected two messages (K,), got {sent.shape} and {read.shape}")
    if not np.isin([sent, read], (0, 1)).all():
        raise ValueError("expected bits in {0, 1}; decode logits with logits > 0 first")
    ax = ax or new_axes(figsize=(max(3.0, len(sent) / 6), 1.3))
    ax.imshow(np.stack([sent, read]), cmap="gray", vmin=-0.3, vmax=1.3, aspect="auto")
    ax.axhline(0.5, color="white", linewidth=3)
    wrong = np.flatnonzero(sent != read)
    ax.plot(wrong, np.ones(len(wrong)), "x", color="black", markeredgewidth=4, markersize=9)
    ax.plot(wrong, np.ones(len(wrong)), "x", color="white", markeredgewidth=1.5, markersize=8)
    ax.set_yticks([0, 1], ["message", "decoded"])
    ax.set_xticks(range(0, len(sent), 8))
    ax.set_title(f"{len(sent) - len(wrong)} of {len(sent)} bits match")
    return ax


def plot_logit_histogram(
    logits: Array, message: Array | None = None, *, bins: int = 40, ax: Axes | None = None
) -> Axes:
    """Histogram of extractor outputs (B, K); with a message, those of bit 1 and of bit 0 apart.

    Args:
        message: (K,) or (B, K) bits in {0, 1}. Filled bars: bit 1; outlined and hatched: bit 0.
    """
    values = _array(logits)
    ax = ax or new_axes()
    edges = np.histogram_bin_edges(values, bins=bins)
    if message is None:
        ax.hist(values.ravel(), edges, color="0.6", edgecolor="black", linewidth=0.3)
    else:
        bits = np.broadcast_to(_array(message), values.shape) > 0.5
        ax.hist(values[bits], edges, color="0.4", label="bit 1")
        ax.hist(
            values[~bits], edges, facecolor="none", edgecolor="black", hatch="////", label="bit 0"
        )
        ax.legend(fontsize=8)
    ax.axvline(0, color="black", linestyle="--", linewidth=1)
    ax.set_xlabel("logit (above 0 reads as bit 1)")
    ax.set_ylabel("count")
    return ax


def plot_intervals(
    rows: Mapping[str, Mapping[str, Mapping]], *, label: str = "", ax: Axes | None = None
) -> Axes:
    """A line per row, a marker per series: value, interval (thick), range over seeds (thin).

    Args:
        rows: by name, from the top; each holds figures {"value", "low", "high"} by the name of
            their series, optionally with "least" and "most". What was not measured is left out.
        label: of the axis of the values.
    """
    if not rows:
        raise ValueError("expected at least one row of figures, got none")
    series = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    ax = ax or new_axes(figsize=(6, 0.8 + 0.35 * len(rows)))
    for number, name in enumerate(series):
        shift = 0.25 * (number - (len(series) - 1) / 2)
        marker, shade = _MARKERS[number % 6], _GREYS[(0, 4, 2, 5)[number % 4]]
        first = True
        for place, figures in enumerate(rows.values()):
            figure = figures.get(name) or {}
            if figure.get("value") is None:
                continue
            for ends, width in ((("least", "most"), 0.8), (("low", "high"), 2.4)):
                if None not in (limits := [figure.get(end) for end in ends]):
                    ax.plot(limits, [place + shift] * 2, color=shade, linewidth=width)
            ax.plot(figure["value"], place + shift, marker, color=shade, markeredgecolor="black",
                    label=name if first else None)  # fmt: skip
            first = False
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins=5)  # narrow panels, whose numbers would touch
    if len(series) > 1:  # above, where no row is
        ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))
    return ax
