"""Figures of the recorded Table 1: every watermark over the PSNR that it is given."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from medsign_lite.plotting import line_style


def quality_curves_figure(curves: Sequence[Mapping], *, own: str = "", psnr: float = 0) -> Figure:
    """Left the bit accuracy, right how sure a detection is, over PSNR; one line per row.

    Args:
        curves: rows of `matched_quality.curve_row` with their "row" and "method".
        own: the row that is drawn thick.
        psnr: in dB, of the own decoder as it is: a dotted line; 0 for none.

    Raises:
        ValueError: if there is no curve.
    """
    names = list(dict.fromkeys(point["row"] for point in curves))
    if not names:
        raise ValueError("expected points of at least one curve, got none")
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, name in enumerate(names):
        points = sorted((p for p in curves if p["row"] == name), key=lambda p: p["psnr"])
        decibels = [p["psnr"] for p in points]
        style = line_style(number) | {"markersize": 4, "linewidth": 2.5 if name == own else 1.2}
        for ax, figure_name in zip(panels, ("bit_accuracy", "log10_p"), strict=True):
            (line,) = ax.plot(decibels, [p[figure_name] for p in points],
                              label=points[0]["method"], **style)  # fmt: skip
            ends = ([p[f"{figure_name}{end}"] for p in points] for end in ("_low", "_high"))
            ax.fill_between(decibels, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    for ax, label in zip(panels, ("bit accuracy", "log10 of the p-value"), strict=True):
        if psnr:
            ax.axvline(psnr, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="PSNR, dB", ylabel=label, title="mean over images and attacks")
    panels[0].axhline(0.5, color="black", linestyle=":", linewidth=1)
    panels[1].invert_yaxis()  # surer is higher
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure
