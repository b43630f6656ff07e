"""Figures of what an attacker does: strength curves, what they cost, and one attack taken apart."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from medsign_lite.adversary.attack_curves import CURVES, UNITS, aligned, curve
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.detection import detect_logits, extract_logits
from medsign_lite.images import quantise
from medsign_lite.metrics import psnr
from medsign_lite.plotting import line_style, plot_bits, show_difference, show_image

VISIBLE = (14.0, 55.0)  # dB: worse than this is of no use to anybody, better is no attack
_SMALL = 9  # points: on a page that is 870 pixels wide, 12 pixels


def strength_figure(rows: Sequence[Mapping], *, columns: int = 4) -> Figure:
    """Strength curves: for every attack what is read above, what it costs below.

    Args:
        rows: of `attack_curve_rows`, one or more attacks, at several strengths each.
        columns: panels side by side.

    Returns:
        Per attack two panels. Above, bit accuracy (solid, with the band of its interval) and the
        share of images detected (dashed). Below, the PSNR between the images before and after the
        attack, or for attacks that only move pixels the share of the image that is left.
    """
    if not rows:
        raise ValueError("expected rows of strength curves, got none")
    names = list(dict.fromkeys(row["attack"] for row in rows))
    columns = min(columns, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.3, 3.1 * lines + 0.4), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=(2, 1) * lines)
    for number, name in enumerate(names):
        own = sorted((r for r in rows if r["attack"] == name), key=lambda r: r["strength"])
        line, column = 2 * (number // columns), number % columns
        upper, lower = axes[line, column], axes[line + 1, column]
        lower.sharex(upper)
        _reading(upper, own)
        _cost(lower, own)
        upper.set_title(name)
        lower.set_xlabel(UNITS.get(name, "strength"))
        upper.tick_params(labelbottom=False)
        if column == 0:
            upper.set_ylabel("read")
            lower.set_ylabel("cost")
    for number in range(len(names), lines * columns):
        for half in (0, 1):
            axes[2 * (number // columns) + half, number % columns].set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=_SMALL)
    return figure


def _reading(ax: Axes, rows: Sequence[Mapping]) -> None:
    across = [row["strength"] for row in rows]
    low, high = ([row[f"bit_accuracy_{end}"] for row in rows] for end in ("low", "high"))
    ax.fill_between(across, low, high, color="0.8", linewidth=0)
    accuracy = [row["bit_accuracy"] for row in rows]
    ax.plot(across, accuracy, "-o", color="black", markersize=3, label="bit accuracy")
    shares = [row["true_positive_rate"] for row in rows]
    ax.plot(across, shares, "--s", color="0.35", markersize=3, label="share of images detected")
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1, label="bit accuracy by chance")
    ax.set_ylim(-0.05, 1.05)


def _cost(ax: Axes, rows: Sequence[Mapping]) -> None:
    measured = [row for row in rows if row["psnr"] is not None]
    if measured:
        across = [row["strength"] for row in measured]
        ax.plot(across, [min(row["psnr"], 60.0) for row in measured], "-^", color="black",
                markersize=3)  # fmt: skip
        ax.set_ylim(5, 62)
        _named(ax, "PSNR, dB")
    else:
        ax.plot([r["strength"] for r in rows], [r["kept"] for r in rows], "--v", color="0.35",
                markersize=3)  # fmt: skip
        ax.set_ylim(-0.05, 1.05)
        _named(ax, "share of image left")


def _named(ax: Axes, name: str) -> None:
    """What a panel shows, above its box: inside it a curve may pass anywhere."""
    ax.set_title(name, fontsize=_SMALL, loc="left", pad=2)


def cost_figure(rows: Sequence[Mapping]) -> Figure:
    """What an attacker pays to be rid of the mark: detection against the PSNR that is left.

    Args:
        rows: of any part, with attack, psnr, true_positive_rate (called_marked in those of
            `forgery_rows`), and optionally model and estimate. Left out are rows without a PSNR or
            outside `VISIBLE`, and forgeries, whose attacker wants detection.

    Returns:
        A figure with a point per row, and per attack a line: the fewest detections that it reaches
        at this PSNR or a better one. The further right a line comes down, the better the attack.
    """
    low, high = VISIBLE
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["attack"] == "forge" or row["psnr"] is None or not low <= row["psnr"] <= high:
            continue
        words = (row["attack"], row.get("model"), row.get("estimate"))
        name = ", ".join(word for word in words if word)
        share = row["called_marked" if "called_marked" in row else "true_positive_rate"]
        lines.setdefault(name, []).append((row["psnr"], share))
    if not lines:
        raise ValueError(f"expected rows with a PSNR of {low:g} to {high:g} dB, got none")
    figure = Figure(figsize=(8.7, 4.4), layout="constrained")
    ax = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        best, fewest = [], 1.0
        for decibels, share in sorted(points, reverse=True):
            fewest = min(fewest, share)
            best.append((decibels, fewest))
        best.append((low, fewest))
        style = line_style(number)
        (drawn,) = ax.step(
            *zip(*best, strict=True), where="post", linestyle=style["linestyle"], linewidth=1.2
        )
        ax.plot(*zip(*points, strict=True), style["marker"], markersize=5, color=drawn.get_color())
        ax.plot([], [], **style, markersize=5, color=drawn.get_color(), label=name)
    ax.set(xlim=VISIBLE, ylim=(-0.04, 1.04), xlabel="PSNR after the attack, dB (dearer is left)",
           ylabel="share of images detected")  # fmt: skip
    figure.legend(loc="outside right upper", fontsize=_SMALL, handlelength=3.5)
    return figure


def attack_figure(
    image: Tensor, detector: Detector, *, attack: str = "jpeg", strength: float | None = None
) -> Figure:
    """One attack on one marked image: before, after, what changed, and which bits are read.

    Args:
        image: (3, H, W) in [0, 1].
        detector: extractor and message, and the false-positive rate of the decision.
        attack: a key of `attack_curves.CURVES`.
        strength: within `attack_curves.RANGES`; the middle one of the curve when `None`.

    Raises:
        ValueError: if the attack is unknown or the strength out of its range.
    """
    if strength is None and attack in CURVES:
        strength = CURVES[attack][len(CURVES[attack]) // 2]
    (chosen,) = curve(attack, (strength,)).values()
    before = quantise(image[None])
    after = quantise(chosen(before))
    logits = extract_logits(detector.extractor, after)
    (found,) = detect_logits(
        logits, detector.message, false_positive_rate=detector.false_positive_rate
    )
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 1.2))
    left, middle, right = top.subplots(1, 3)
    show_image(before, title="marked", ax=left)
    show_image(after, title=f"{attack} {strength:g}", ax=middle)
    pair = aligned(chosen, before)
    if pair is None:
        right.text(0.5, 0.5, "only moves pixels:\nno PSNR", ha="center", va="center")
        right.set_axis_off()
        cost = "no PSNR"
    else:
        attacked, reference = (quantise(part) for part in pair)
        show_difference(attacked, reference, gain=5.0, ax=right)
        decibels = float(psnr(attacked, reference, data_range=1.0))
        cost = "nothing changed" if decibels >= 99 else f"PSNR {decibels:.1f} dB"
    plot_bits(detector.message, (logits[0] > 0).float(), ax=bottom.subplots())
    verdict = "detected" if found.detected else "not detected"
    figure.suptitle(
        f"{verdict}: {found.matching} of {found.bits} bits, p = {found.p_value:.1e} (at most "
        f"{found.false_positive_rate:.0e} is needed); cost to the attacker: {cost}",
        fontsize=10,
    )
    return figure


def residual_figure(residuals: Mapping[str, Tensor]) -> Figure:
    """Averaged residuals side by side, each over its own range, grey where nothing is changed.

    Args:
        residuals: (1, 3, H, W) or (3, H, W) by title, around 0.

    Returns:
        A figure; under each title its standard deviation in steps of 1/255.
    """
    if not residuals:
        raise ValueError("expected at least one residual, got none")
    figure = Figure(figsize=(2.3 * len(residuals), 2.7), layout="constrained")
    for ax, (title, residual) in zip(
        figure.subplots(1, len(residuals), squeeze=False)[0], residuals.items(), strict=True
    ):
        plane = residual.detach().cpu().reshape(3, *residual.shape[-2:]).mean(dim=0).numpy()
        reach = max(float(np.quantile(np.abs(plane), 0.99)), 1e-9)
        ax.imshow(plane, cmap="gray", vmin=-reach, vmax=reach, interpolation="nearest")
        spread = float(residual.detach().std(correction=0)) * 255
        ax.set_title(f"{title}\n{spread:.2f} / 255", fontsize=9)
        ax.set_axis_off()
    return figure
