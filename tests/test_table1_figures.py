import pytest

from medsign_lite.tables.table1_figures import quality_curves_figure


def points(row, accuracies):
    return [
        {"row": row, "method": row.title(), "psnr": psnr, "bit_accuracy": accuracy,
         "bit_accuracy_low": accuracy - 0.01, "bit_accuracy_high": accuracy + 0.01,
         "log10_p": -10 * accuracy, "log10_p_low": -11.0, "log10_p_high": -1.0}
        for psnr, accuracy in zip((44.0, 36.0, 40.0), accuracies, strict=True)
    ]  # fmt: skip


def test_curves_rise_along_the_psnr_and_ours_is_thick():
    curves = points("own", (0.8, 0.99, 0.9)) + points("other", (0.6, 0.8, 0.7))
    figure = quality_curves_figure(curves, own="own", psnr=41.0)
    left, right = figure.axes
    own, other, *marks = left.get_lines()
    assert own.get_xdata().tolist() == [36, 40, 44]
    assert own.get_ydata().tolist() == [0.99, 0.9, 0.8]
    assert own.get_linewidth() > other.get_linewidth()
    assert own.get_marker() != other.get_marker()
    assert {tuple(line.get_xdata()) for line in marks} >= {(41.0, 41.0)}
    assert right.yaxis_inverted() and right.get_lines()[0].get_ydata()[0] == -9.9
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Own", "Other"]


def test_without_curves_there_is_no_figure():
    with pytest.raises(ValueError, match="at least one curve"):
        quality_curves_figure([])
