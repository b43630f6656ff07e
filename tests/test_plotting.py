"""What the figures show: the arrays, labels and marks of the axes."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from medsign_lite import plotting


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def drawn(ax: Axes) -> np.ndarray:
    """The figure as pixels: drawing is what finds a mistake that the axes' content hides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def test_every_function_leaves_no_pyplot_figure_behind(image):
    import matplotlib.pyplot as plt

    for ax in (
        plotting.show_image(image),
        plotting.show_map(image, torch.rand(3, 4)),
        plotting.show_token_maps(torch.rand(2, 3, 4), ["a", "b"]),
        plotting.show_difference(image, image),
        plotting.plot_attack_accuracy([{"attack": "none", "bit_accuracy": 1.0}]),
        plotting.plot_training([{"step": 1, "loss": 2.0}]),
        plotting.plot_bits([0, 1], [0, 1]),
        plotting.plot_logit_histogram(torch.randn(4, 3)),
    ):
        assert drawn(ax).std() > 0
    assert plt.get_fignums() == []


def test_show_image_draws_into_the_axes_given(image):
    ax = plotting.new_axes()
    assert plotting.show_image(image, title="radiograph", ax=ax) is ax
    np.testing.assert_allclose(ax.images[0].get_array(), image.permute(1, 2, 0), atol=1e-7)
    assert ax.get_title() == "radiograph"
    assert not ax.axison


def test_show_image_clips_instead_of_wrapping():
    ax = plotting.show_image(torch.tensor([-0.5, 0.5, 1.5]).view(3, 1, 1))
    assert ax.images[0].get_array().ravel().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (2, 3, 6, 8)], ids=["grey", "one", "batch"])
def test_show_image_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected image \(3, H, W\)"):
        plotting.show_image(torch.zeros(shape))


def test_show_map_stretches_the_map_over_the_image(image):
    values = torch.tensor([[0.0, 1.0]])
    ax = plotting.show_map(image, values, title="pneumonia")
    below, above = ax.images
    np.testing.assert_allclose(below.get_array(), image.mean(0), atol=1e-7)
    np.testing.assert_allclose(above.get_array(), values)
    assert above.get_extent() == [-0.5, 7.5, 5.5, -0.5]  # as the 6 x 8 image below it
    assert above.cmap.name == "viridis" and above.get_clim() == (0, 1)


def test_show_map_contour_runs_around_the_mask(image):
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 5:7] = True
    ax = plotting.show_map(image, torch.zeros(2, 2), mask=mask)
    points = np.concatenate([path.vertices for c in ax.collections for path in c.get_paths()])
    assert points[:, 0].min() == 4.5 and points[:, 0].max() == 6.5  # columns
    assert points[:, 1].min() == 1.5 and points[:, 1].max() == 3.5  # rows


@pytest.mark.filterwarnings("error")
def test_show_map_draws_no_contour_of_an_empty_mask(image):
    ax = plotting.show_map(image, torch.zeros(2, 2), mask=torch.zeros(6, 8, dtype=torch.bool))
    assert len(ax.collections) == 0


def test_show_outline_has_two_strokes_that_are_seen_on_any_image():
    ax = plotting.show_image(torch.zeros(3, 4, 6))
    mask = torch.zeros(1, 4, 6)
    mask[..., 1:3, 2:5] = 1
    assert plotting.show_outline(mask, ax=ax) is ax
    white, black = ax.collections
    for stroke, colour in ((white, "white"), (black, "black")):
        np.testing.assert_allclose(stroke.get_edgecolor(), [to_rgba(colour)])
        points = np.concatenate([path.vertices for path in stroke.get_paths()])
        assert (points.min(axis=0) == [1.5, 0.5]).all() and (points.max(axis=0) == [4.5, 2.5]).all()
    assert white.get_linewidth() > black.get_linewidth()
    with pytest.raises(ValueError, match=r"expected mask \(H, W\), got \(2, 4, 6\)"):
        plotting.show_outline(torch.zeros(2, 4, 6), ax=ax)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_show_outline_draws_no_border_where_there_is_none(value):
    ax = plotting.show_outline(torch.full((4, 6), value), ax=plotting.new_axes())
    assert len(ax.collections) == 0


def test_line_style_tells_neighbours_apart_twice_and_many_once():
    styles = [tuple(plotting.line_style(number).values()) for number in range(28)]
    assert len(set(styles)) == 28
    for earlier, later in zip(styles, styles[1:], strict=False):
        assert earlier[0] != later[0] and earlier[1] != later[1]


def test_show_map_refuses_a_mask_of_another_size(image):
    with pytest.raises(ValueError, match=r"expected mask \(6, 8\) like the image, got \(8, 6\)"):
        plotting.show_map(image, torch.zeros(2, 2), mask=torch.zeros(8, 6))


def test_show_token_maps_frames_the_chosen_one_and_writes_scores():
    maps = torch.tensor([[[0.0, 2.0]], [[5.0, 1.0]], [[3.0, 3.0]]])
    ax = plotting.show_token_maps(maps, ["pneu", "mo", "thorax"], scores=[3, 1, 2.5], chosen=1)
    assert [i.get_array().tolist() for i in ax.images] == [[[0, 1]], [[1, 0]], [[0, 0]]]
    assert texts(ax) == ["pneu\n3", "mo\n1", "chosen", "thorax\n2.5"]
    (frame,) = ax.patches
    left, right, _, _ = ax.images[1].get_extent()
    assert frame.get_x() < left and frame.get_x() + frame.get_width() > right
    assert frame.get_x() > ax.images[0].get_extent()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": ["a"]}, r"expected maps \(1, h, w\)"),
        ({"tokens": ["a", "b"], "scores": [1]}, "expected 2 scores"),
        ({"tokens": ["a", "b"], "chosen": 2}, "chosen in 0 to 1, got 2"),
    ],
    ids=["tokens", "scores", "chosen"],
)
def test_show_token_maps_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.show_token_maps(torch.rand(2, 3, 4), **arguments)


def test_show_difference_is_ten_times_the_mean_over_colours():
    reference = torch.full((3, 1, 2), 0.5)
    image = reference.clone()
    image[:, 0, 0] += torch.tensor([0.03, -0.03, 0.0])
    ax = plotting.show_difference(image, reference)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.2, 0.0]], atol=1e-6)
    assert ax.get_title() == "difference x 10"
    with pytest.raises(ValueError, match="one shape"):
        plotting.show_difference(image, reference[:, :, :1])


def test_plot_attack_accuracy_bars_and_intervals():
    rows = [
        {"attack": "none", "bit_accuracy": 1.0, "low": 0.99, "high": 1.0, "method": "ours"},
        {"attack": "jpeg", "bit_accuracy": 0.8, "low": 0.7, "high": 0.85, "method": "ours"},
        {"attack": "jpeg", "bit_accuracy": 0.6, "low": 0.5, "high": 0.7, "method": "other"},
    ]
    ax = plotting.plot_attack_accuracy(rows)
    ours, other = (c for c in ax.containers if hasattr(c, "patches"))
    assert [bar.get_height() for bar in ours] == [1.0, 0.8]
    assert [bar.get_height() for bar in other] == [0.6]
    low, high = ours.errorbar.lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == (pytest.approx(0.7), pytest.approx(0.85))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "jpeg"]
    assert other[0].get_x() > ours[1].get_x()  # beside, not over
    assert ours[0].get_hatch() != other[0].get_hatch()  # readable without colour
    assert "0.80" in texts(ax) and "chance" in texts(ax)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ours", "other"]


def test_plot_attack_accuracy_without_interval_draws_none():
    ax = plotting.plot_attack_accuracy([{"attack": "none", "bit_accuracy": 0.9}])
    (bars,) = (c for c in ax.containers if hasattr(c, "patches"))
    low, high = bars.errorbar.lines[2][0].get_segments()[0][:, 1]
    assert low == high == 0.9
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match="at least one row"):
        plotting.plot_attack_accuracy([])


def test_plot_training_draws_what_each_row_has():
    log = [
        {"step": 1, "seconds": 0.1, "loss": 2.0},
        {"step": 2, "seconds": 0.2, "loss": 1.0, "psnr": 30.0, "note": "text"},
        {"step": 3, "seconds": 0.3, "psnr": 31.0},
    ]
    ax = plotting.plot_training(log)
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert curves == {"loss": [[1, 2.0], [2, 1.0]], "psnr": [[2, 30.0], [3, 31.0]]}
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    ax = plotting.plot_training(log, names=["loss"], x="seconds", logarithmic=True)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("seconds", "loss", "log")


def test_plot_training_names_what_the_log_lacks():
    with pytest.raises(ValueError, match=r"numbers \['step', 'loss'\]; it has no \['psnr'\]"):
        plotting.plot_training([{"step": 1, "loss": 1.0}], names=["psnr"])


def test_plot_bits_crosses_out_the_wrong_ones():
    ax = plotting.plot_bits([0, 1, 1, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0, 1, 1, 0], [0, 0, 1, 1]])
    assert all(line.get_xdata().tolist() == [1, 3] for line in ax.lines[1:])
    assert ax.get_title() == "2 of 4 bits match"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["message", "decoded"]


def test_plot_bits_refuses_logits_and_other_lengths():
    with pytest.raises(ValueError, match="logits > 0"):
        plotting.plot_bits([0, 1], [-0.3, 2.0])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        plotting.plot_bits([0, 1], [0, 1, 1])


def test_plot_logit_histogram_counts_the_bits_apart():
    logits = torch.tensor([[-1.0, 2.0, 2.0], [-1.0, 2.0, -1.0]])
    ax = plotting.plot_logit_histogram(logits, torch.tensor([0, 1, 0]), bins=3)
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [[0, 0, 2], [3, 0, 1]]  # bit 1: twice 2.0; bit 0: three of -1.0, one of 2.0
    assert ax.containers[1][0].get_facecolor() == to_rgba("none")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["bit 1", "bit 0"]
    assert "logit" in ax.get_xlabel()
    (bars,) = plotting.plot_logit_histogram(logits, bins=3).containers
    assert [bar.get_height() for bar in bars] == [3, 0, 3]


def test_intervals_are_drawn_where_they_are():
    full = {"value": 2.0, "low": 1.0, "high": 3.0, "least": 1.5, "most": 2.5}
    none = dict.fromkeys(full)
    ax = plotting.plot_intervals({"a": {"x": full, "y": none}, "b": {"x": {"value": 4.0}}})
    lines = [line.get_xdata().tolist() for line in ax.lines]
    assert lines == [[1.5, 2.5], [1.0, 3.0], [2.0], [4.0]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()  # the first row is on top
    with pytest.raises(ValueError, match="at least one row"):
        plotting.plot_intervals({})
